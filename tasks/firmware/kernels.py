"""Which kernel computes a layer, and what it needs beside the layer's own tensors."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from math import prod

import numpy as np
from numpy.typing import NDArray

from tasks.firmware.depthwise import Geometry
from tasks.firmware.ir import (
    INT8_MAX,
    INT8_MIN,
    Add,
    AnyLayer,
    AvgPool,
    Conv2d,
    Dense,
    Graph,
    Layer,
    Lookup,
    MaxPool,
    Mul,
    Pads,
    Rescale,
    Shape,
    Softmax,
    Window,
    op_name,
)
from tasks.firmware.packing import WORD

FOLDERS: list[Traversable] = [resources.files("tasks.firmware") / "csrc" / "kernels"]
_BYTE_BY_BYTE = (Add, Lookup, Mul, Rescale, Softmax)
_QUAD = 4  # pixels side by side
_COLUMN_BYTES_A_WORD = _QUAD * WORD * 2  # inputs of two bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Sharing:
    """The output may overlap input number ``source``, if that dies with the layer: it may start ``low`` to ``high``
    bytes behind it (None: any number), because by then what it writes over has been read."""

    source: int
    low: int | None = 0
    high: int | None = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """``headers`` and ``assembly`` lie in ``FOLDERS``; ``scratch_bytes`` live during the layer alone."""

    headers: tuple[str, ...]
    assembly: tuple[str, ...] = ()
    scratch_bytes: int = 0
    sharings: tuple[Sharing, ...] = ()


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
    if isinstance(layer, Conv2d) and name in ("conv2d", "conv2d_add"):
        return _convolution(graph, layer)
    if isinstance(layer, Conv2d) and name == "dwconv2d":
        geometry = geometry_of(graph, layer)
        plane = prod(graph.tensors[layer.inputs[0]].shape[:2])  # of the portable kernel: without padding, a byte each
        size = max(plane, geometry.scratch_bytes) if geometry.is_supported else plane
        return Kernel(headers=("ef_dwconv2d_s8.h",), scratch_bytes=size, sharings=(Sharing(source=0),))
    if isinstance(layer, Dense):
        return Kernel(headers=("ef_dense_s8.h",), assembly=("ef_dense_s8.S",))
    if isinstance(layer, (AvgPool, MaxPool)):
        return Kernel(headers=(f"ef_{name}_s8.h",), sharings=(_window_sharing(graph, layer, layer.window, 0),))
    sizes = [graph.tensors[source].n_bytes for source in layer.inputs]
    n_bytes = graph.tensors[layer.output].n_bytes
    same = [Sharing(source=i) for i, size in enumerate(sizes) if isinstance(layer, _BYTE_BY_BYTE) and size == n_bytes]
    own = ("ef_add_s8.S",) if isinstance(layer, Add) else ()
    return Kernel(headers=(f"ef_{name}_s8.h",), assembly=own, sharings=tuple(same))


def _convolution(graph: Graph, layer: Conv2d) -> Kernel:
    size = _column_bytes(layer)
    kernel = Kernel(
        headers=("ef_filter_s8.h", "ef_columns_s8.h", "ef_conv2d_s8.h"),
        assembly=("ef_filter_s8.S", "ef_columns_s8.S"),
        scratch_bytes=size,
        sharings=(_window_sharing(graph, layer, layer.window, _QUAD),),
    )
    if layer.addition is None:
        return kernel
    # where both inputs are one tensor, the window's rule is the stricter one
    sums = () if layer.inputs[0] == layer.inputs[1] else (Sharing(source=1),)
    return Kernel(
        headers=(*kernel.headers, "ef_add_s8.h", "ef_conv2d_add_s8.h"),
        assembly=(*kernel.assembly, "ef_add_s8.S"),
        scratch_bytes=-(-size // WORD) * WORD + _QUAD * len(layer.weights),
        sharings=(*kernel.sharings, *sums),
    )


def _window_sharing(graph: Graph, layer: Layer, window: Window, group: int) -> Sharing:
    """A kernel that goes over the output pixels in order, ``group`` at a time, and has read all that a group sees
    before it writes it; with ``group`` 0 it reads and writes a pixel channel by channel."""
    source, target = graph.tensors[layer.inputs[0]].shape, graph.tensors[layer.output].shape
    if group and is_backward(source, target, window):
        return Sharing(source=0, low=0, high=None)
    firsts = _first_reads(source, target, window)
    n, channels = len(firsts), target[2]
    writes = np.arange(n) * channels  # where a pixel's outputs start
    if not group:
        return Sharing(source=0, low=None, high=int((firsts - writes).min()))
    ends = np.arange(group, n, group)  # the first pixel that is still to be read when a group is written
    high = (firsts[ends] - writes[ends]).min(initial=prod(source))
    return Sharing(source=0, low=None, high=int(high))


def _first_reads(source: Shape, target: Shape, window: Window) -> NDArray[np.int64]:
    """(pixels,) the first byte of the input that an output pixel or any after it sees."""
    rows = np.maximum(np.arange(target[0]) * window.stride[0] - window.pads.top, 0)
    columns = np.maximum(np.arange(target[1]) * window.stride[1] - window.pads.left, 0)
    firsts = (rows[:, np.newaxis] * source[1] + columns).ravel() * source[2]
    found: NDArray[np.int64] = np.minimum.accumulate(firsts[::-1])[::-1]
    return found


def is_backward(source: Shape, target: Shape, window: Window) -> bool:
    """Whether a convolution starts at the last pixel: where each sees itself alone and has more outputs than inputs,
    outputs then never lie before inputs that are still to be read."""
    return window == Window(kernel=(1, 1)) and target[2] > source[2]


def has_assembly(graph: Graph, layer: AnyLayer) -> bool:
    """Whether the layer's inner loop is in assembly on cores with the DSP extension."""
    if isinstance(layer, Conv2d) and op_name(layer) == "dwconv2d":
        return geometry_of(graph, layer).is_supported
    return bool(kernel_of(graph, layer).assembly)


def is_wide(layer: Conv2d | Dense) -> bool:
    """Whether bytes need more than saturation: a left shift, or bounds that cut into the range of a byte."""
    return layer.left_shift > 0 or cuts(layer)


def cuts(layer: Layer) -> bool:
    """Whether the layer's bounds cut into the range of a byte."""
    return (layer.clamp.low, layer.clamp.high) != (INT8_MIN, INT8_MAX)


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
