"""A PyTorch module as a float ONNX model, batch norm folded into the convolutions before it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch
from torch import Tensor, nn

from tasks.errors import Defect

INPUT, OUTPUT = "input", "output"
OPSET = 20


def export_onnx(module: nn.Module, example: Tensor) -> onnx.ModelProto:
    """The network in evaluation mode, with a free batch size; input and output are called ``input`` and ``output``.

    Shapes: example (n, …) with n ≥ 2.

    Raises:
        Defect: PyTorch cannot export the network.
    """
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                external_data=False,
                verbose=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=dynamic,
            )
    except Exception as error:  # the module may be the user's; the exporter raises many kinds of error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Defect("cannot_export", f"PyTorch cannot export the network to ONNX: {reason}") from error
    assert program is not None
    return program.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints and logs what is of no use to the user here (missing torchvision, its own deprecations)."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
