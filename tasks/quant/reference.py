"""What every integer operator computes, bit for bit: the definition that generated C must match on every machine.

All sums are exact integers; a value is rounded once, half up, when it becomes a byte::

    q = clamp(zero_point + (accumulator * 2**left_shift * multiplier + 2**31 >> 32))

where ``>>`` rounds down. Arrays are batched: (N, H, W, C) int8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tasks.firmware.ir import (
    Add,
    AnyLayer,
    AvgPool,
    Clamp,
    Concat,
    Conv2d,
    Dense,
    Graph,
    Int8Array,
    Lookup,
    MaxPool,
    Mul,
    Pad,
    Plain,
    Rescale,
    Softmax,
    Tensor,
    Window,
)

Int64Array = NDArray[np.int64]
FloatArray = NDArray[np.floating]

_Number = TypeVar("_Number", np.int8, np.int64, np.float64)

_ROUND = 1 << 31
_PATCH_BYTES = 1 << 26  # patches are float64; a larger batch is cut in pieces


def quantise_input(x: FloatArray, tensor: Tensor) -> Int8Array:
    """Real samples as the network's input bytes, rounded half to even like ONNX's QuantizeLinear.

    Shapes:
        x: (n, C, H, W), (n, C, L) or (n, C), channels first as networks take them.

    Returns:
        (n, H, W, C).
    """
    height, width, channels = tensor.shape
    planes = np.asarray(x, np.float32).reshape(len(x), channels, height, width)
    bytes_ = np.rint(planes / np.float32(tensor.scale)) + np.float32(tensor.zero_point)
    return np.ascontiguousarray(np.clip(bytes_, -128, 127).astype(np.int8).transpose(0, 2, 3, 1))


def dequantise_output(q: Int8Array, tensor: Tensor) -> NDArray[np.float64]:
    """The reals that output bytes stand for; same shape."""
    return (q.astype(np.float64) - tensor.zero_point) * tensor.scale


def run(graph: Graph, x: Int8Array) -> dict[str, Int8Array]:
    """The outputs of all layers, by tensor name, in execution order.

    Shapes:
        x: (n, H, W, C) or (n, H·W·C) int8; each result is (n, H, W, C) of its tensor.
    """
    values = {graph.input: x.reshape(len(x), *graph.input_tensor.shape)}
    for layer in graph.layers:
        inputs = [_value(values, graph.tensors[name]) for name in layer.inputs]
        made = run_layer(layer, graph.tensors, inputs)
        values[layer.output] = made
        tensor = graph.tensors[layer.output]
        if tensor.parent:
            whole = values.setdefault(tensor.parent, np.zeros((len(x), *graph.tensors[tensor.parent].shape), np.int8))
            whole[:, tensor.first_row : tensor.first_row + tensor.shape[0]] = made
    return {name: value for name, value in values.items() if name != graph.input}


def _value(values: dict[str, Int8Array], tensor: Tensor) -> Int8Array:
    if not tensor.parent:
        return values[tensor.name]
    return values[tensor.parent][:, tensor.first_row : tensor.first_row + tensor.shape[0]]


def output_of(graph: Graph, x: Int8Array) -> Int8Array:
    """The network's output bytes, (n, k)."""
    return run(graph, x)[graph.output].reshape(len(x), -1)


def run_layer(layer: AnyLayer, tensors: dict[str, Tensor], inputs: list[Int8Array]) -> Int8Array:
    """One layer on a batch; ``inputs`` in the layer's order."""
    target = tensors[layer.output]
    zero_points = [tensors[name].zero_point for name in layer.inputs]
    if isinstance(layer, Conv2d):
        sums = conv2d(inputs[0], layer, zero_points[0])
        made = requantise(sums, layer.multipliers, layer.left_shift, tensors[layer.result], layer.clamp)
        if layer.addition is None:
            return made
        return run_layer(layer.addition, tensors, [made, inputs[1]])
    if isinstance(layer, Dense):
        sums = dense(inputs[0], layer, zero_points[0])
        return requantise(sums, layer.multipliers, layer.left_shift, target, layer.clamp)
    if isinstance(layer, Add):
        return add(inputs[0], inputs[1], layer, zero_points, target)
    if isinstance(layer, Rescale):
        sums = inputs[0].astype(np.int64) - zero_points[0]
        return requantise(sums, np.array(layer.multiplier), layer.left_shift, target, layer.clamp).reshape(
            len(inputs[0]), *target.shape
        )
    if isinstance(layer, AvgPool):
        return average_pool(inputs[0], layer, zero_points[0], target)
    if isinstance(layer, MaxPool):
        return max_pool(inputs[0], layer)
    return PLAIN[type(layer)](layer, inputs, zero_points, target)


def requantise(
    sums: Int64Array, multipliers: NDArray[np.integer], left_shift: int, target: Tensor, clamp: Clamp
) -> Int8Array:
    """Accumulators as bytes of ``target``; ``multipliers`` broadcast over ``sums``."""
    scaled = (sums << left_shift) * multipliers.astype(np.int64)
    return _clamped(target.zero_point + ((scaled + _ROUND) >> 32), clamp)


def conv2d(x: Int8Array, layer: Conv2d, zero_point: int) -> Int64Array:
    """bias + Σ weight · (input − zero point); padding adds nothing. (n, H, W, C) → (n, H', W', O)."""
    n_outputs, kernel_y, kernel_x, depth = layer.weights.shape
    # BLAS multiplies float64 much faster than numpy multiplies integers, and sums below 2**53 are exact.
    kernels = layer.weights.reshape(layer.groups, n_outputs // layer.groups, -1).astype(np.float64)
    per_sample = (
        np.prod(layer.window.output_size(x.shape[1], x.shape[2])) * kernel_y * kernel_x * depth * layer.groups * 8
    )
    step = max(1, _PATCH_BYTES // int(per_sample))
    parts = []
    for start in range(0, len(x), step):
        centred = x[start : start + step].astype(np.float64) - zero_point
        patches = _patches(centred, layer.window, 0.0)  # (n, H', W', kH, kW, C)
        n, height, width = patches.shape[:3]
        grouped = patches.reshape(n * height * width, kernel_y * kernel_x, layer.groups, depth)
        columns = grouped.transpose(2, 0, 1, 3).reshape(layer.groups, -1, kernels.shape[2])
        products = columns @ kernels.transpose(0, 2, 1)  # (groups, n·H'·W', O / groups)
        parts.append(products.transpose(1, 0, 2).reshape(n, height, width, n_outputs).astype(np.int64))
    return np.concatenate(parts) + layer.bias.astype(np.int64)


def dense(x: Int8Array, layer: Dense, zero_point: int) -> Int64Array:
    """bias + Σ weight · (input − zero point) over all bytes of a sample. (n, H, W, C) → (n, 1, 1, O)."""
    flat = x.reshape(len(x), -1).astype(np.float64) - zero_point
    sums = (flat @ layer.weights.T.astype(np.float64)).astype(np.int64) + layer.bias.astype(np.int64)
    return sums.reshape(len(x), 1, 1, -1)


def add(first: Int8Array, second: Int8Array, layer: Add, zero_points: list[int], target: Tensor) -> Int8Array:
    """Both terms scaled, added in 64 bits, rounded once."""
    terms = [
        ((x.astype(np.int64).reshape(len(x), *target.shape) - zero_point) << layer.left_shift) * multiplier
        for x, zero_point, multiplier in zip((first, second), zero_points, layer.multipliers, strict=True)
    ]
    return _clamped(target.zero_point + ((terms[0] + terms[1] + _ROUND) >> 32), layer.clamp)


def multiply(first: Int8Array, second: Int8Array, layer: Mul, zero_points: list[int], target: Tensor) -> Int8Array:
    """(first − zero point) · (second − zero point), rounded once; ``second`` (n, 1, 1, C) multiplies every pixel."""
    left = first.astype(np.int64).reshape(len(first), *target.shape) - zero_points[0]
    right = second.astype(np.int64) - zero_points[1]
    right = right.reshape(left.shape if right.size == left.size else (len(right), 1, 1, -1))
    return requantise(left * right, np.array(layer.multiplier), layer.left_shift, target, layer.clamp)


def look_up(x: Int8Array, layer: Lookup) -> Int8Array:
    """The table's byte for each byte."""
    result: Int8Array = layer.table[x.astype(np.int64) + 128]
    return result


def concatenate(inputs: list[Int8Array], layer: Concat, zero_points: list[int], target: Tensor) -> Int8Array:
    """(n, H, W, C₁), (n, H, W, C₂), … → (n, H, W, C₁ + C₂ + …), each rescaled with one rounding."""
    parts = [
        requantise(
            x.astype(np.int64).reshape(len(x), *target.shape[:2], -1) - zero_point,
            np.array(multiplier),
            left_shift,
            target,
            layer.clamp,
        )
        for x, zero_point, multiplier, left_shift in zip(
            inputs, zero_points, layer.multipliers, layer.left_shifts, strict=True
        )
    ]
    return np.concatenate(parts, axis=3)


def pad(x: Int8Array, layer: Pad, zero_point: int) -> Int8Array:
    """The image in a frame of zero points, then the clamp."""
    pads = layer.pads
    amounts = ((0, 0), (pads.top, pads.bottom), (pads.left, pads.right), (0, 0))
    return _clamped(np.pad(x, amounts, constant_values=zero_point), layer.clamp)


def softmax(x: Int8Array, layer: Softmax, target: Tensor) -> Int8Array:
    """``exponents[largest − q]`` divided by their sum over the channels and by the output's scale.

    The divisor, sum times scale, is rounded half up to an integer, and so is the quotient.
    """
    steps = x.max(axis=3, keepdims=True).astype(np.int64) - x
    terms = layer.exponents.astype(np.uint64)[steps]
    sums = terms.sum(axis=3, keepdims=True)
    divisors = (sums * np.uint64(layer.output_scale) + np.uint64(_ROUND)) >> np.uint64(32)
    quotients = (terms + (divisors >> np.uint64(1))) // divisors
    return _clamped(target.zero_point + quotients.astype(np.int64), layer.clamp)


def max_pool(x: Int8Array, layer: MaxPool) -> Int8Array:
    """The largest byte of each window, then the clamp; padding is below every byte."""
    largest = _patches(x, layer.window, -128).max(axis=(3, 4))
    return _clamped(largest, layer.clamp)


def average_pool(x: Int8Array, layer: AvgPool, zero_point: int, target: Tensor) -> Int8Array:
    """Σ (input − zero point) times a multiplier that holds the division by the number of elements counted."""
    sums = _patches(x.astype(np.int64) - zero_point, layer.window, 0).sum(axis=(3, 4))
    multipliers = np.array(layer.multipliers)
    if len(layer.multipliers) == 1:
        return requantise(sums, multipliers, layer.left_shift, target, layer.clamp)
    inside = np.ones((1, x.shape[1], x.shape[2], 1), np.int64)
    counts = _patches(inside, layer.window, 0).sum(axis=(3, 4))
    return requantise(sums, multipliers[counts - 1], layer.left_shift, target, layer.clamp)


def _clamped(values: NDArray[np.integer], clamp: Clamp) -> Int8Array:
    clamped: Int8Array = np.clip(values, clamp.low, clamp.high).astype(np.int8)
    return clamped


def _patches(x: NDArray[_Number], window: Window, fill: float) -> NDArray[_Number]:
    """(n, H, W, C) → (n, H', W', kH, kW, C): what each position of the window sees."""
    pads = window.pads
    padded = np.pad(
        x, ((0, 0), (pads.top, pads.bottom), (pads.left, pads.right), (0, 0)), constant_values=np.asarray(fill, x.dtype)
    )
    reach = [dilation * (size - 1) + 1 for size, dilation in zip(window.kernel, window.dilation, strict=True)]
    views = sliding_window_view(padded, (reach[0], reach[1]), axis=(1, 2))  # (n, ., ., C, reach, reach)
    strided = views[:, :: window.stride[0], :: window.stride[1], :, :: window.dilation[0], :: window.dilation[1]]
    return strided.transpose(0, 1, 2, 4, 5, 3)


# layer, inputs, their zero points, the output's tensor -> the output
PLAIN: dict[type[Plain], Callable[[Any, list[Int8Array], list[int], Tensor], Int8Array]] = {
    Mul: lambda layer, inputs, zero_points, target: multiply(inputs[0], inputs[1], layer, zero_points, target),
    Lookup: lambda layer, inputs, _, target: look_up(inputs[0], layer).reshape(len(inputs[0]), *target.shape),
    Concat: lambda layer, inputs, zero_points, target: concatenate(inputs, layer, zero_points, target),
    Pad: lambda layer, inputs, zero_points, _: pad(inputs[0], layer, zero_points[0]),
    Softmax: lambda layer, inputs, _, target: softmax(inputs[0], layer, target),
}


def first_difference(
    graph: Graph, expected: dict[str, Int8Array], actual: dict[str, Int8Array]
) -> tuple[int, AnyLayer] | None:
    """Index and layer of the first layer whose outputs differ; ``None`` when all agree."""
    differing = (
        (index, layer)
        for index, layer in enumerate(graph.layers)
        if not np.array_equal(expected[layer.output], actual[layer.output].reshape(expected[layer.output].shape))
    )
    return next(differing, None)
