"""The part of emission that belongs to layers without weights or windows: products, tables, concatenation, padding and
softmax. Pure functions from a layer to its calls, its tables and its counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.firmware.ir import AnyLayer, Concat, Graph, Lookup, Mul, Pad, Plain, Softmax, Tensor

ElementwiseLayer = Plain
Arguments = list[str]
Table = tuple[str, str, str]  # C type, name with its size, initialiser
Format = Callable[[NDArray[np.integer]], str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Emission:
    """How the layers of a class become C. ``calls``: (graph, layer, symbol, inputs, output) → the arguments of each
    call of the kernel; ``tables``: (graph, layer, symbol, format) → what is trained, beside the rounding; ``flops``: of
    each output element."""

    calls: Callable[[Graph, Any, str, list[str], str], list[Arguments]]
    tables: Callable[[Graph, Any, str, Format], list[Table]] = lambda graph, layer, symbol, values: []
    flops: int = 0


def kernel_calls(graph: Graph, layer: Plain, symbol: str, ins: list[str], out: str) -> list[Arguments]:
    """The arguments of each call of the layer's kernel; ``ins`` and ``out`` are C expressions for its tensors."""
    return EMITTED[type(layer)].calls(graph, layer, symbol, ins, out)


def tables(graph: Graph, layer: Plain, symbol: str, values: Format) -> list[Table]:
    """What is trained of a layer, beside its rounding; ``values`` writes an array as an initialiser."""
    return EMITTED[type(layer)].tables(graph, layer, symbol, values)


def flops(graph: Graph, layer: Plain) -> int:
    """One for each output element, two for a softmax (a sum and a division), none for padding."""
    return EMITTED[type(layer)].flops * graph.tensors[layer.output].n_bytes


def rounding_shift(layer: AnyLayer) -> int:
    """The left shift that is common to the whole layer; 0 where there is none."""
    return getattr(layer, "left_shift", 0)


def _mul_calls(graph: Graph, layer: Mul, symbol: str, ins: list[str], out: str) -> list[Arguments]:
    repeated = graph.tensors[layer.inputs[1]].n_bytes
    times = graph.tensors[layer.output].n_bytes // repeated
    return [[str(times), str(repeated), f"{symbol}_quant", f"{symbol}_terms", *ins, out]]


def _mul_tables(graph: Graph, layer: Mul, symbol: str, values: Format) -> list[Table]:
    other = graph.tensors[layer.inputs[1]].zero_point
    return [("ef_mul_t", f"{symbol}_terms", f"{{{other}, {layer.multiplier}}}")]


def _lookup_calls(graph: Graph, layer: Lookup, symbol: str, ins: list[str], out: str) -> list[Arguments]:
    return [[str(graph.tensors[layer.output].n_bytes), f"{symbol}_table", *ins, out]]


def _lookup_tables(graph: Graph, layer: Lookup, symbol: str, values: Format) -> list[Table]:
    return [("int8_t", f"{symbol}_table[{layer.table.size}]", values(layer.table))]


def _concat_calls(graph: Graph, layer: Concat, symbol: str, ins: list[str], out: str) -> list[Arguments]:
    """One call an input: each fills its own channels of every pixel."""
    height, width, channels = graph.tensors[layer.output].shape
    depths = [graph.tensors[name].n_bytes // (height * width) for name in layer.inputs]
    starts = [0, *accumulate(depths)]
    return [
        [str(height * width), str(depth), str(channels), f"{symbol}_quant", f"{symbol}_parts + {i}", ins[i], place]
        for i, (depth, place) in enumerate(zip(depths, (f"{out} + {start}" for start in starts), strict=False))
    ]


def _pad_calls(graph: Graph, layer: Pad, symbol: str, ins: list[str], out: str) -> list[Arguments]:
    return [[*_pad_sizes(layer, graph.tensors[layer.inputs[0]]), f"{symbol}_quant", *ins, out]]


def _pad_sizes(layer: Pad, source: Tensor) -> Arguments:
    """Rows and their bytes; bytes before and after the image, and between two of its rows."""
    pads, (height, width, channels) = layer.pads, source.shape
    row = (pads.left + width + pads.right) * channels
    before = pads.top * row + pads.left * channels
    after = pads.right * channels + pads.bottom * row
    return [str(size) for size in (height, width * channels, before, (pads.left + pads.right) * channels, after)]


def _concat_tables(graph: Graph, layer: Concat, symbol: str, values: Format) -> list[Table]:
    zero_points = [graph.tensors[name].zero_point for name in layer.inputs]
    rows = zip(zero_points, layer.multipliers, layer.left_shifts, strict=True)
    parts = ", ".join("{" + ", ".join(map(str, row)) + "}" for row in rows)
    return [("ef_concat_t", f"{symbol}_parts[{len(layer.inputs)}]", f"{{{parts}}}")]


def _softmax_calls(graph: Graph, layer: Softmax, symbol: str, ins: list[str], out: str) -> list[Arguments]:
    height, width, channels = graph.tensors[layer.output].shape
    return [[str(height * width), str(channels), f"{symbol}_quant", f"&{symbol}_terms", *ins, out]]


def _softmax_tables(graph: Graph, layer: Softmax, symbol: str, values: Format) -> list[Table]:
    text = f"{{{layer.output_scale}u, {values(layer.exponents)}}}"
    return [("ef_softmax_t", f"{symbol}_terms", text)]


EMITTED: dict[type[Plain], Emission] = {
    Concat: Emission(calls=_concat_calls, tables=_concat_tables, flops=1),
    Lookup: Emission(calls=_lookup_calls, tables=_lookup_tables, flops=1),
    Mul: Emission(calls=_mul_calls, tables=_mul_tables, flops=1),
    Pad: Emission(calls=_pad_calls),
    Softmax: Emission(calls=_softmax_calls, tables=_softmax_tables, flops=2),
}
