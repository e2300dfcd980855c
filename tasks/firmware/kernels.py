"""Which kernel computes a layer, and what it needs beside the layer's own tensors."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from math import prod

from tasks.firmware.depthwise import Geometry
from tasks.firmware.ir import (
    INT8_MAX,
    INT8_MIN,
    Add,
    AnyLayer,
    Conv2d,
    Dense,
    Graph,
    Lookup,
    Mul,
    Pads,
    Rescale,
    Softmax,
    op_name,
)
from tasks.firmware.packing import WORD

FOLDERS: list[Traversable] = [resources.files("tasks.firmware") / "csrc" / "kernels"]
_BYTE_BY_BYTE = (Add, Lookup, Mul, Rescale, Softmax)
_QUAD = 4  # pixels side by side
_COLUMN_BYTES_A_WORD = _QUAD * WORD * 2  # inputs of two bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """``headers`` and ``assembly`` lie in ``FOLDERS``; ``scratch_bytes`` live during the layer alone.
    ``is_in_place``: the output may start where an input starts that dies with the layer; ``resizes``: even one of
    another size."""

    headers: tuple[str, ...]
    assembly: tuple[str, ...] = ()
    scratch_bytes: int = 0
    is_in_place: bool = False
    resizes: bool = False


def kernel_text(name: str) -> str:
    """The kernel file ``name`` from the first of ``FOLDERS`` that has it.

    Raises:
        LookupError: none has.
    """
    found = next((folder / name for folder in FOLDERS if (folder / name).is_file()), None)
    if found is None:
        raise LookupError(f"no kernel file {name} in {', '.join(map(str, FOLDERS))}")
    return found.read_text(encoding="utf-8")


def kernel_of(graph: Graph, layer: AnyLayer) -> Kernel:
    """The kernel of a layer of ``graph``."""
    name = op_name(layer)
    if isinstance(layer, Conv2d) and layer.groups == 1:
        headers = ("ef_filter_s8.h", "ef_columns_s8.h", "ef_conv2d_s8.h")
        assembly = ("ef_filter_s8.S", "ef_columns_s8.S")
        return Kernel(headers=headers, assembly=assembly, scratch_bytes=_column_bytes(layer))
    if isinstance(layer, Conv2d) and name == "dwconv2d":
        geometry = geometry_of(graph, layer)
        plane = prod(graph.tensors[layer.inputs[0]].shape[:2])  # of the portable kernel: without padding, a byte each
        size = max(plane, geometry.scratch_bytes) if geometry.is_supported else plane
        return Kernel(headers=("ef_dwconv2d_s8.h",), scratch_bytes=size, is_in_place=True, resizes=True)
    if isinstance(layer, Dense):
        return Kernel(headers=("ef_dense_s8.h",), assembly=("ef_dense_s8.S",))
    return Kernel(headers=(f"ef_{name}_s8.h",), is_in_place=isinstance(layer, _BYTE_BY_BYTE))


def is_wide(layer: Conv2d | Dense) -> bool:
    """Whether bytes need more than saturation: a left shift, or bounds that cut into the range of a byte."""
    return layer.left_shift > 0 or (layer.clamp.low, layer.clamp.high) != (INT8_MIN, INT8_MAX)


def geometry_of(graph: Graph, layer: Conv2d) -> Geometry:
    """Of a depthwise convolution."""
    source, target = graph.tensors[layer.inputs[0]].shape, graph.tensors[layer.output].shape
    return Geometry(source=source, target=target, window=layer.window, is_wide=is_wide(layer))


def _column_bytes(layer: Conv2d) -> int:
    """Columns, and the lines behind them (csrc/kernels/ef_columns_s8.h)."""
    n_taps, channels = int(layer.weights[0].size), int(layer.weights.shape[3])
    n_words = -(-n_taps // WORD)
    if channels % WORD:
        lines = _QUAD * n_words * WORD
    else:
        lines = layer.window.kernel[1] * channels if layer.window.pads != Pads() else 0
    return n_words * _COLUMN_BYTES_A_WORD + lines
