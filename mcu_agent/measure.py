"""Measuring one image by itself: no study, no queue. What it is to be held against lies beside it in files."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mcu_agent.boards.protocol import Board
from mcu_agent.errors import ImageRejected, InventoryError, UnstableOutput
from mcu_agent.image import read_image
from mcu_agent.session import Bytes, Job, Layer, opened

VECTORS_FILE, LAYERS_FILE = "vectors.npz", "layers.json"
# Where `edgefront compile` and `edgefront export` leave them, from the folder of the image.
_VECTORS = (VECTORS_FILE, "../test/test_vectors.npz")
_LAYERS = (LAYERS_FILE, "../layers.json")
_LAYER_PREFIX = "layer_"
MAX_IMAGE_BYTES = 64 << 20
_DTYPES = ("int8", "uint8")


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownAnswers:
    """Inputs and what must come out; ``file`` says where from. ``layers`` and ``layer_outputs`` may be empty.

    Shapes:
        inputs: (n, input bytes). outputs: (n, output bytes).
    """

    inputs: Bytes
    outputs: Bytes
    layers: tuple[Layer, ...]
    layer_outputs: Mapping[int, Bytes]
    file: str


def read_elf(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        InventoryError: there is none, or it is larger than any firmware.
    """
    try:
        size = path.stat().st_size
        if size > MAX_IMAGE_BYTES:
            raise InventoryError(f"{path}: {size:,} bytes; an image has at most {MAX_IMAGE_BYTES:,}")
        return path.read_bytes()
    except OSError as error:
        raise InventoryError(f"{path}: cannot be read: {error.strerror}; give the ELF file of a firmware") from error


def find_known_answers(image: Path, given: Path | None = None) -> KnownAnswers | None:
    """The known answers in ``given``, or in the files that lie beside ``image``; None where there are none.

    Raises:
        InventoryError: a file is there and cannot be used; says what is wrong with it.
    """
    places = [given] if given is not None else [image.parent / name for name in _VECTORS]
    file = next((place for place in places if place is not None and place.exists()), given)
    if file is None:
        return None
    layers = next((place for name in _LAYERS if (place := image.parent / name).exists()), None)
    try:
        arrays = unpack_vectors(file.read_bytes())
    except OSError as error:
        raise InventoryError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InventoryError(f"{file}: {error}") from error
    prefixed = {name: array for name, array in arrays.items() if name.startswith(_LAYER_PREFIX)}
    return KnownAnswers(
        inputs=_rows(arrays["inputs"]),
        outputs=_rows(arrays["outputs"]),
        layers=_read_layers(layers) if layers else (),
        layer_outputs={int(name.removeprefix(_LAYER_PREFIX)): array for name, array in prefixed.items()},
        file=str(file),
    )


def _read_layers(file: Path) -> tuple[Layer, ...]:
    try:
        items = json.loads(file.read_text("utf-8"))
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise ValueError("no list of layers; allowed: a JSON list with an object for each")
        return tuple(Layer.from_json(item) for item in items)
    except OSError as error:
        raise InventoryError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError, ImageRejected) as error:
        raise InventoryError(f"{file}: {error}; edgefront compile and edgefront export write one") from error


def pack_vectors(job: Job) -> bytes:
    """The known answers of a job as the bytes of an npz file."""
    layers = {f"{_LAYER_PREFIX}{index}": array for index, array in (job.layer_outputs or {}).items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, inputs=job.inputs, outputs=job.expected, **layers)
    return buffer.getvalue()


def unpack_vectors(data: bytes) -> dict[str, npt.NDArray[np.int8]]:
    """The arrays of an npz file with known answers: ``inputs``, ``outputs`` and ``layer_<index>``; others are left
    out.

    Raises:
        ValueError: it is none, an array is missing or holds no bytes, or the numbers of inputs and outputs differ.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            names = [name for name in archive.files if name in ("inputs", "outputs") or _is_layer(name)]
            arrays = {name: archive[name] for name in names}
    except (OSError, EOFError, KeyError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError("no npz file of known answers, or one that numpy does not load without pickle") from error
    for name in ("inputs", "outputs"):
        if name not in arrays:
            raise ValueError(f"no array {name!r}; known answers have 'inputs' and 'outputs', one row each")
    for name, array in arrays.items():
        if array.dtype.name not in _DTYPES:
            raise ValueError(f"array {name!r} holds {array.dtype.name}; allowed: {', '.join(_DTYPES)}")
    n_inputs, n_outputs = len(arrays["inputs"]), len(arrays["outputs"])
    if n_inputs != n_outputs or not n_inputs:
        raise ValueError(f"{n_inputs} inputs and {n_outputs} outputs; there must be as many, and at least one")
    return {name: array.astype(np.int8) for name, array in arrays.items()}


def job_of(elf: bytes, known: KnownAnswers | None, board: Board, *, samples: int, timeout_s: float) -> Job:
    """What to profile: at most ``samples`` of the known answers; where there are none, what the board itself says to
    random inputs, so that at least it must say so again.

    Raises:
        UnstableOutput: it gives different outputs for the same input.
        AgentError: as :func:`mcu_agent.session.opened` and what is done on the link.
    """
    if known is None:
        inputs, outputs = answers_of(elf, board, samples, timeout_s)
        return Job(elf=elf, inputs=inputs, expected=outputs, timeout_s=timeout_s)
    return Job(
        elf=elf,
        inputs=known.inputs[:samples],
        expected=known.outputs[:samples],
        layers=known.layers,
        layer_outputs=known.layer_outputs,
        timeout_s=timeout_s,
    )


def answers_of(elf: bytes, board: Board, samples: int, timeout_s: float) -> tuple[Bytes, Bytes]:
    """(inputs, outputs) of random inputs, each run twice.

    Raises:
        UnstableOutput: the two outputs of an input differ.
    """
    empty = np.zeros((1, 1), dtype=np.int8)
    with opened(
        Job(elf=elf, inputs=empty, expected=empty, timeout_s=timeout_s), read_image(elf, board.kind), board
    ) as link:
        link.check_identity()
        shape = (samples, link.report().input_bytes)
        inputs = np.random.default_rng(0).integers(-128, 128, size=shape).astype(np.int8)
        outputs = np.stack([link.run(one).output for one in inputs])
        again = np.stack([link.run(one).output for one in inputs])
    if unlike := np.flatnonzero((outputs != again).any(axis=1)).tolist():
        raise UnstableOutput(f"board {board.board_id}: inputs {unlike} give different outputs when they are run again")
    return inputs, outputs


def _rows(array: npt.NDArray[np.int8]) -> Bytes:
    return array.reshape(len(array), -1)


def _is_layer(name: str) -> bool:
    return name.startswith(_LAYER_PREFIX) and name.removeprefix(_LAYER_PREFIX).isdecimal()


def to_json(value: Any) -> Any:
    """A record of this package as plain JSON; arrays and bytes are left out."""
    if hasattr(value, "__dataclass_fields__"):
        pairs = {name: getattr(value, name) for name in value.__dataclass_fields__}
        return {name: to_json(item) for name, item in pairs.items() if not isinstance(item, np.ndarray | bytes)}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value
