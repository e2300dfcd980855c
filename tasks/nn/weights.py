"""A network's weights as bytes: an ``.npz`` of its state, without pickle, the same bytes for the same weights."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import torch
from torch import nn

from tasks.errors import Defect

_EPOCH = (1980, 1, 1, 0, 0, 0)


def pack_weights(module: nn.Module) -> bytes:
    """The module's state as an ``.npz`` archive; equal states give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, tensor in module.state_dict().items():
            array = io.BytesIO()
            np.lib.format.write_array(array, tensor.detach().cpu().numpy(), allow_pickle=False)
            # np.savez would stamp each entry with the time of day.
            archive.writestr(zipfile.ZipInfo(name + ".npy", date_time=_EPOCH), array.getvalue())
    return buffer.getvalue()


def unpack_weights(module: nn.Module, data: bytes) -> nn.Module:
    """Load ``data`` into ``module`` (in place) and return it.

    Raises:
        Defect: the archive is damaged or belongs to another network.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            state = {name: torch.from_numpy(archive[name].copy()) for name in archive.files}
        module.load_state_dict(state)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise Defect("bad_weights", f"the weights do not fit the candidate's network: {reason}") from error
    return module
