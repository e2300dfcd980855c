"""Convolutions, fully connected layers and sums as C: their tables and their calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tasks.firmware.depthwise import Geometry, assembly
from tasks.firmware.ir import Add, Conv2d, Dense, Graph, Layer, Shape, Window, op_name
from tasks.firmware.kernels import cuts, geometry_of, is_wide
from tasks.firmware.packing import PAIRS, QUADS, WORD, completed, fold, interleave, pack

Table = tuple[str, str, str]  # C type, name with its size, initialiser
Array = NDArray[np.integer]
Values = Callable[[Array], str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """C expressions: where a layer's input, scratch words, output and, for sums, other input lie."""

    source: str
    scratch: str
    target: str
    other: str = ""


def owner_of_tables(graph: Graph, index: int) -> int:
    """The first layer with the same weights: strips of one layer read the same tables."""
    layer = graph.layers[index]
    same = (
        at
        for at, other in enumerate(graph.layers)
        if isinstance(other, Conv2d) and isinstance(layer, Conv2d) and other.weights is layer.weights
    )
    return next(same, index)


def tables(graph: Graph, layer: Conv2d | Dense, symbol: str, values: Values) -> list[Table]:
    """What the kernel of ``layer`` reads, its parameters last."""
    zero_point = graph.tensors[layer.inputs[0]].zero_point
    if isinstance(layer, Dense):
        packed = pack(layer.weights, layer.bias, layer.multipliers, zero_point, QUADS)
        n_outputs, n_inputs = layer.weights.shape
        fields = [
            f"{symbol}_weights",
            f"{symbol}_requant",
            f"{symbol}_tails",
            n_outputs,
            n_inputs // WORD,
            n_inputs % WORD,
        ]
        arrays: dict[str, tuple[str, Array]] = {
            f"{symbol}_weights": ("_Alignas(4) int8_t", packed.words),
            f"{symbol}_tails": ("int8_t", packed.tails),
            f"{symbol}_requant": ("int32_t", packed.requant),
        }
        return _with_params(arrays, values, "ef_dense_t", symbol, [*fields, *_rounding(graph, layer)])
    if op_name(layer) == "gconv2d":
        return _grouped(graph, layer, symbol, values)
    if op_name(layer) == "dwconv2d":
        requant = np.stack([fold(layer.weights, layer.bias, zero_point), layer.multipliers], axis=1)
        fields = [f"{symbol}_weights", f"{symbol}_requant", len(layer.weights), zero_point, *_rounding(graph, layer)]
        return [
            ("int8_t", f"{symbol}_weights[{layer.weights.size}]", values(layer.weights)),
            ("int32_t", f"{symbol}_requant[{requant.size}]", values(requant)),
            ("ef_depthwise_t", f"{symbol}_params", _record(fields)),
        ]
    rows = completed(layer.weights.reshape(len(layer.weights), -1))
    words, tails = interleave(rows, layer.bias, layer.multipliers, zero_point, PAIRS)
    n_outputs, n_taps = rows.shape
    output_zero_point, *rounding = _rounding(graph, layer)
    fields = [f"{symbol}_weights", n_outputs // 2, n_taps // WORD, n_outputs, output_zero_point]
    fields += [f"{symbol}_tails", n_taps % WORD, *rounding, zero_point]
    matrix: dict[str, tuple[str, Array]] = {
        f"{symbol}_weights": ("int32_t", words),
        f"{symbol}_tails": ("int8_t", tails),
    }
    found = _with_params(matrix, values, "ef_filter_t", symbol, fields)
    if layer.addition is not None:
        found.append(("ef_add_t", f"{symbol}_terms", add_record(graph, layer.addition)))
    return found


def _with_params(
    arrays: Mapping[str, tuple[str, Array]],
    values: Values,
    kind: str,
    symbol: str,
    fields: Iterable[str | int],
) -> list[Table]:
    """Tables and the record that points to them; what would be empty is left out and its pointer 0."""
    found = {name: pair for name, pair in arrays.items() if pair[1].size}
    shown = [0 if field in arrays and field not in found else field for field in fields]
    tables_ = [(kind_, f"{name}[{array.size}]", values(array)) for name, (kind_, array) in found.items()]
    return [*tables_, (kind, f"{symbol}_params", _record(shown))]


def _grouped(graph: Graph, layer: Conv2d, symbol: str, values: Values) -> list[Table]:
    zero_points = [graph.tensors[name].zero_point for name in (layer.inputs[0], layer.output)]
    return [
        (
            "ef_requant_t",
            f"{symbol}_quant",
            _record([*zero_points, layer.clamp.low, layer.clamp.high, layer.left_shift]),
        ),
        ("int8_t", f"{symbol}_weights[{layer.weights.size}]", values(layer.weights)),
        ("int32_t", f"{symbol}_bias[{layer.bias.size}]", values(layer.bias)),
        ("int32_t", f"{symbol}_multipliers[{layer.multipliers.size}]", values(layer.multipliers)),
    ]


def _rounding(graph: Graph, layer: Conv2d | Dense) -> list[str | int]:
    target = graph.tensors[layer.result if isinstance(layer, Conv2d) else layer.output]
    return [target.zero_point, layer.left_shift, layer.clamp.low, layer.clamp.high]


def _record(fields: Iterable[str | int]) -> str:
    return "{" + ", ".join(map(str, fields)) + "}"


def call(graph: Graph, layer: Conv2d | Dense, prefix: str, symbol: str, place: Place) -> list[str]:
    """The lines of C that run the layer; those with a window expect it as the constant ``shape``."""
    params = f"&{symbol}_params"
    if isinstance(layer, Dense):
        name = "ef_dense_wide_s8" if is_wide(layer) else "ef_dense_s8"
        return [f"    {name}({params}, {place.source}, {place.target});"]
    if op_name(layer) == "gconv2d":
        arguments = ["shape", f"{symbol}_quant", place.source]
        arguments += [f"{symbol}_weights", f"{symbol}_bias", f"{symbol}_multipliers", place.target]
        return [f"    ef_gconv2d_s8({', '.join(arguments)});"]
    if op_name(layer) == "dwconv2d":
        given = f"{params}, {place.source}, {place.scratch}, {place.target}"
        portable = f"    ef_dwconv2d_s8(shape, {given});"
        geometry = geometry_of(graph, layer)
        if not geometry.is_supported:
            return [portable]
        own = f"    {depthwise_symbol(graph, prefix, geometry)}({given});"
        return ["#if EF_HAS_DSP", "    (void)shape;", own, "#else", portable, "#endif"]
    sources = [params, place.source]
    if layer.addition is not None:
        sources = [params, f"&{symbol}_terms", place.source, place.other]
    given = ", ".join([*sources, place.scratch, place.target])
    shared = _shared(graph)
    if _key(graph, layer) in shared:
        return [f"    {prefix}_conv2d_{shared.index(_key(graph, layer)):02d}({given});"]
    return [f"    {_kernel(layer)}{given});"]


def shape_declaration(graph: Graph, layer: Conv2d) -> str:
    """The window of a convolution as the C constant ``shape``; empty where its function has it."""
    if _key(graph, layer) in _shared(graph):
        return ""
    return window_declaration(graph, layer, layer.window, layer.groups)


def window_declaration(graph: Graph, layer: Layer, window: Window, groups: int = 1) -> str:
    """The C constant ``shape`` of a layer's window."""
    source, target = graph.tensors[layer.inputs[0]].shape, graph.tensors[layer.output].shape
    lines = (
        {"input_height": source[0], "input_width": source[1], "input_channels": source[2]},
        {"output_height": target[0], "output_width": target[1], "output_channels": target[2]},
        {"kernel_height": window.kernel[0], "kernel_width": window.kernel[1]},
        {"stride_y": window.stride[0], "stride_x": window.stride[1]},
        {"dilation_y": window.dilation[0], "dilation_x": window.dilation[1]},
        {"pad_top": window.pads.top, "pad_left": window.pads.left, "groups": groups},
    )
    fields = "".join("        " + " ".join(f".{name} = {at}," for name, at in line.items()) + "\n" for line in lines)
    return f"    const ef_window_t shape = {{\n{fields}    }};\n"


def shared_convolutions(graph: Graph, prefix: str) -> str:
    """One function for all convolutions of the same shapes, where there are several: nothing else differs in code."""
    samples = {_key(graph, layer): layer for layer in graph.layers if isinstance(layer, Conv2d)}
    functions = (
        f"static __attribute__((noinline)) void {prefix}_conv2d_{number:02d}({_parameters(samples[key])})\n{{\n"
        f"{window_declaration(graph, samples[key], samples[key].window, samples[key].groups)}"
        f"    {_kernel(samples[key])}{', '.join(_names(samples[key]))});\n}}\n"
        for number, key in enumerate(_shared(graph))
    )
    return "\n".join(functions)


_PARAMETERS = {
    "filter": "const ef_filter_t *filter",
    "terms": "const ef_add_t *terms",
    "in": "const int8_t *in",
    "other": "const int8_t *other",
    "scratch": "uint32_t *scratch",
    "out": "int8_t *out",
}


def _names(layer: Conv2d) -> list[str]:
    """What a shared function is given."""
    sums = ("terms", "other")
    return [name for name in _PARAMETERS if layer.addition is not None or name not in sums]


def _parameters(layer: Conv2d) -> str:
    return ", ".join(_PARAMETERS[name] for name in _names(layer))


def _kernel(layer: Conv2d) -> str:
    """The start of a call of the kernel, up to what is not constant."""
    if layer.addition is None:
        return f"ef_conv2d_s8(shape, {_word(is_wide(layer))}, "
    return f"ef_conv2d_add_s8(shape, {_word(is_wide(layer))}, {_word(cuts(layer.addition))}, "


_Key = tuple[str, Shape, Shape, Window, bool, bool]


def _key(graph: Graph, layer: Conv2d) -> _Key:
    """What the code of a convolution depends on."""
    shapes = (graph.tensors[layer.inputs[0]].shape, graph.tensors[layer.output].shape)
    return (op_name(layer), *shapes, layer.window, is_wide(layer), layer.addition is not None and cuts(layer.addition))


def _shared(graph: Graph) -> list[_Key]:
    """The keys of more than one convolution, in order of first use."""
    layers = (layer for layer in graph.layers if isinstance(layer, Conv2d) and op_name(layer) in _SHARED)
    counts = Counter(_key(graph, layer) for layer in layers)
    return [key for key, count in counts.items() if count > 1]


_SHARED = ("conv2d", "conv2d_add")


def _word(value: bool) -> str:
    return "true" if value else "false"


def add_call(graph: Graph, layer: Add, symbol: str, sources: Sequence[str], target: str) -> str:
    """The line of C that adds the tensors at ``sources``."""
    name = "ef_add_wide_s8" if cuts(layer) else "ef_add_s8"
    return f"    {name}(&{symbol}_params, {graph.tensors[layer.output].n_bytes}, {', '.join(sources)}, {target});"


def add_record(graph: Graph, layer: Add) -> str:
    """What ``ef_add_t`` holds; zero points and half a unit become one offset of 64 bits."""
    zero_points = [graph.tensors[name].zero_point for name in layer.inputs]
    products = zip(zero_points, layer.multipliers, strict=True)
    offset = (graph.tensors[layer.output].zero_point << 32) + (1 << 31)
    offset -= sum((zero_point << layer.left_shift) * multiplier for zero_point, multiplier in products)
    words = [f"{offset >> shift & 0xFFFFFFFF}u" for shift in (0, 32)]
    return _record([*words, *layer.multipliers, layer.left_shift, layer.clamp.low, layer.clamp.high])


def depthwise_geometries(graph: Graph) -> list[Geometry]:
    """Those of the graph that have code of their own, each once, in order of first use."""
    layers = (layer for layer in graph.layers if isinstance(layer, Conv2d) and op_name(layer) == "dwconv2d")
    found = dict.fromkeys(geometry_of(graph, layer) for layer in layers)
    return [geometry for geometry in found if geometry.is_supported]


def depthwise_symbol(graph: Graph, prefix: str, geometry: Geometry) -> str:
    return f"{prefix}_depthwise_{depthwise_geometries(graph).index(geometry):02d}"


def depthwise_prototypes(graph: Graph, prefix: str) -> str:
    """Declarations of the functions in :func:`depthwise_file`."""
    geometries = depthwise_geometries(graph)
    if not geometries:
        return ""
    arguments = "const ef_depthwise_t *layer, const int8_t *in, uint32_t *scratch, int8_t *out"
    lines = [f"void {depthwise_symbol(graph, prefix, geometry)}({arguments});" for geometry in geometries]
    return "\n".join(["#if EF_HAS_DSP", *lines, "#endif", ""])


_NO_STACK = """
#if defined(__linux__)
    .section .note.GNU-stack, "", %progbits
#endif
"""


def depthwise_file(graph: Graph, prefix: str, *, is_small: bool) -> str:
    """The assembly of all depthwise geometries; empty where there is none."""
    parts = []
    for geometry in depthwise_geometries(graph):
        kernel, stride, pads = geometry.window.kernel, geometry.window.stride, geometry.window.pads
        about = f"{kernel[0]}x{kernel[1]}, stride {stride[0]}x{stride[1]}, padding {pads.top} and {pads.left}"
        sizes = " to ".join("x".join(map(str, shape)) for shape in (geometry.source, geometry.target))
        symbol = depthwise_symbol(graph, prefix, geometry)
        parts.append(f"/* {about}, {sizes} */\n" + assembly(symbol, replace(geometry, is_small=is_small)))
    if not parts:
        return ""
    guard = "#if defined(__ARM_FEATURE_DSP) && !defined(EF_PORTABLE)\n\n    .syntax unified\n    .thumb\n\n"
    return guard + "\n".join(parts) + "\n#endif\n" + _NO_STACK
