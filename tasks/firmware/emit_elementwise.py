"""The part of emission that belongs to layers without weights or windows: products, tables, concatenation, padding and
softmax. Pure functions from a layer to its calls, its tables and its counts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from tasks.firmware.ir import AnyLayer, Concat, Graph, Lookup, Mul, Pad, Softmax, Tensor

ElementwiseLayer = Mul | Lookup | Concat | Pad | Softmax
Arguments = list[str]
Table = tuple[str, str, str]  # C type, name with its size, initialiser
_Format = Callable[[NDArray[np.integer]], str]

_FLOPS_EACH = {Mul: 1, Lookup: 1, Concat: 1, Pad: 0, Softmax: 2}


def kernel_calls(graph: Graph, layer: ElementwiseLayer, symbol: str, ins: list[str], out: str) -> list[Arguments]:
    """The arguments of each call of the layer's kernel; ``ins`` and ``out`` are C expressions for its tensors."""
    source, target = graph.tensors[layer.inputs[0]], graph.tensors[layer.output]
    quant = f"{symbol}_quant"
    if isinstance(layer, Concat):
        return _concat_calls(graph, layer, symbol, ins, out)
    if isinstance(layer, Mul):
        repeated = graph.tensors[layer.inputs[1]].n_bytes
        return [[str(target.n_bytes // repeated), str(repeated), quant, f"{symbol}_terms", *ins, out]]
    if isinstance(layer, Lookup):
        return [[str(target.n_bytes), f"{symbol}_table", *ins, out]]
    if isinstance(layer, Pad):
        return [[*_pad_sizes(layer, source), quant, *ins, out]]
    channels = target.shape[2]
    return [[str(target.n_bytes // channels), str(channels), quant, f"&{symbol}_terms", *ins, out]]


def _concat_calls(graph: Graph, layer: Concat, symbol: str, ins: list[str], out: str) -> list[Arguments]:
    """One call an input: each fills its own channels of every pixel."""
    height, width, channels = graph.tensors[layer.output].shape
    depths = [graph.tensors[name].n_bytes // (height * width) for name in layer.inputs]
    starts = [0, *accumulate(depths)]
    return [
        [str(height * width), str(depth), str(channels), f"{symbol}_quant", f"{symbol}_parts + {i}", ins[i], place]
        for i, (depth, place) in enumerate(zip(depths, (f"{out} + {start}" for start in starts), strict=False))
    ]


def _pad_sizes(layer: Pad, source: Tensor) -> Arguments:
    """Rows and their bytes; bytes before and after the image, and between two of its rows."""
    pads, (height, width, channels) = layer.pads, source.shape
    row = (pads.left + width + pads.right) * channels
    before = pads.top * row + pads.left * channels
    after = pads.right * channels + pads.bottom * row
    return [str(size) for size in (height, width * channels, before, (pads.left + pads.right) * channels, after)]


def tables(graph: Graph, layer: ElementwiseLayer, symbol: str, values: _Format) -> list[Table]:
    """What is trained of a layer, beside its rounding; ``values`` writes an array as an initialiser."""
    if isinstance(layer, Mul):
        other = graph.tensors[layer.inputs[1]].zero_point
        return [("ef_mul_t", f"{symbol}_terms", f"{{{other}, {layer.multiplier}}}")]
    if isinstance(layer, Lookup):
        return [("int8_t", f"{symbol}_table[{layer.table.size}]", values(layer.table))]
    if isinstance(layer, Concat):
        zero_points = [graph.tensors[name].zero_point for name in layer.inputs]
        rows = zip(zero_points, layer.multipliers, layer.left_shifts, strict=True)
        parts = ", ".join("{" + ", ".join(map(str, row)) + "}" for row in rows)
        return [("ef_concat_t", f"{symbol}_parts[{len(layer.inputs)}]", f"{{{parts}}}")]
    if isinstance(layer, Softmax):
        text = f"{{{layer.output_scale}u, {values(layer.exponents)}}}"
        return [("ef_softmax_t", f"{symbol}_terms", text)]
    return []


def flops(graph: Graph, layer: ElementwiseLayer) -> int:
    """One for each output element, two for a softmax (a sum and a division), none for padding."""
    return _FLOPS_EACH[type(layer)] * graph.tensors[layer.output].n_bytes


def rounding_shift(layer: AnyLayer) -> int:
    """The left shift that is common to the whole layer; 0 where there is none."""
    return getattr(layer, "left_shift", 0)
