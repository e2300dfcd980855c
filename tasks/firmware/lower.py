"""Lowering: real scales become fixed-point multipliers, real bounds byte bounds, weights take their final layout.

A real factor ``r`` becomes ``multiplier / 2**(32 - left_shift)`` with ``0 <= multiplier < 2**31``. Every layer has the
least left shift that makes all its multipliers fit, because each further shift costs one bit of their precision. The
bound on every accumulator is proven here, so that the kernels need no checks.
"""

from __future__ import annotations

import math

import numpy as np

from tasks.firmware.errors import AccumulatorOverflow, Unsupported
from tasks.firmware.ir import (
    INT8_MAX,
    INT8_MIN,
    Add,
    AnyLayer,
    AvgPool,
    Clamp,
    Conv2d,
    Dense,
    Graph,
    Int8Array,
    Int32Array,
    MaxPool,
    Rescale,
    Tensor,
)
from tasks.firmware.quantised import (
    Addition,
    AnyNode,
    AveragePool,
    Bounds,
    Convolution,
    FloatArray,
    FullyConnected,
    IntArray,
    MaximumPool,
    QuantisedNetwork,
    Requantisation,
)

INT32_MAX = 2**31 - 1
MAX_LEFT_SHIFT = 22  # (byte - zero point) << 22 stays within 31 bits


def lower(network: QuantisedNetwork) -> Graph:
    """The integer network that computes what ``network`` states.

    Raises:
        AccumulatorOverflow: a sum of products could leave 32 bits.
        Unsupported: two scales lie further apart than fixed point can bridge.
    """
    layers = tuple(_lower_node(node, network.tensors) for node in network.nodes)
    return Graph(
        tensors=dict(network.tensors), layers=layers, input=network.input, output=network.output, digest=network.digest
    )


def fixed_point(factors: FloatArray) -> tuple[Int32Array, int]:
    """Multipliers and the common left shift of positive real factors.

    Shapes:
        factors: (n,), each at least 0.

    Returns:
        multipliers (n,) in 0 … 2**31 - 1 and the least shift >= 0 with ``factor ≈ multiplier / 2**(32 - shift)``.
    """
    shift = 0
    while float(np.max(factors)) * 2.0 ** (32 - shift) > INT32_MAX - 0.5:
        shift += 1
    return np.floor(np.asarray(factors, np.float64) * 2.0 ** (32 - shift) + 0.5).astype(np.int32), shift


def clamp_of(bounds: Bounds, tensor: Tensor) -> Clamp:
    """The byte range in which ``bounds`` hold, bounds rounded half up like every value."""
    low, high = (_quantised_bound(bound, tensor) for bound in (bounds.low, bounds.high))
    return Clamp(low=low, high=high)


def _quantised_bound(bound: float, tensor: Tensor) -> int:
    if math.isinf(bound):
        return INT8_MIN if bound < 0 else INT8_MAX
    return int(min(max(math.floor(bound / tensor.scale + 0.5) + tensor.zero_point, INT8_MIN), INT8_MAX))


def _lower_node(node: AnyNode, tensors: dict[str, Tensor]) -> AnyLayer:
    source, target = tensors[node.inputs[0]], tensors[node.output]
    if isinstance(node, Convolution):
        return _convolution(node, source, target)
    if isinstance(node, FullyConnected):
        return _fully_connected(node, source, target)
    if isinstance(node, Addition):
        return _addition(node, source, tensors[node.inputs[1]], target)
    if isinstance(node, Requantisation):
        return _requantisation(node, source, target)
    if isinstance(node, AveragePool):
        return _average_pool(node, source, target)
    return _max_pool(node, target)


def _convolution(node: Convolution, source: Tensor, target: Tensor) -> Conv2d:
    weights = np.ascontiguousarray(node.weights.transpose(0, 2, 3, 1))  # OIHW → OHWI
    multipliers, shift = fixed_point(source.scale * node.scales / target.scale)
    _check_accumulators(node.name, weights, node.bias, source.zero_point, shift)
    return Conv2d(
        name=node.name,
        inputs=node.inputs,
        output=node.output,
        clamp=clamp_of(node.bounds, target),
        window=node.window,
        groups=node.groups,
        weights=weights,
        bias=node.bias.astype(np.int32),
        multipliers=multipliers,
        left_shift=shift,
    )


def _fully_connected(node: FullyConnected, source: Tensor, target: Tensor) -> Dense:
    weights = node.weights
    if node.channels_first:
        height, width, channels = source.shape
        blocks = weights.reshape(-1, channels, height, width)
        weights = blocks.transpose(0, 2, 3, 1).reshape(weights.shape)
    multipliers, shift = fixed_point(source.scale * node.scales / target.scale)
    _check_accumulators(node.name, weights, node.bias, source.zero_point, shift)
    return Dense(
        name=node.name,
        inputs=node.inputs,
        output=node.output,
        clamp=clamp_of(node.bounds, target),
        weights=np.ascontiguousarray(weights),
        bias=node.bias.astype(np.int32),
        multipliers=multipliers,
        left_shift=shift,
    )


def _check_accumulators(name: str, weights: Int8Array, bias: IntArray, zero_point: int, shift: int) -> None:
    """Bound the accumulator of each output channel whatever the input bytes and the order of summation."""
    reach = max(INT8_MAX - zero_point, zero_point - INT8_MIN)
    sums = np.abs(weights.astype(np.int64)).reshape(len(weights), -1).sum(axis=1) * reach
    bounds = (np.abs(bias) + sums) << shift
    worst = int(np.argmax(bounds))
    if int(bounds[worst]) > INT32_MAX:
        raise AccumulatorOverflow(layer=name, channel=worst, bound=int(bounds[worst]))


def _small_factors(node: AnyNode, factors: list[float]) -> tuple[tuple[int, ...], int]:
    multipliers, shift = fixed_point(np.array(factors))
    if shift > MAX_LEFT_SHIFT:
        raise Unsupported(
            operator=type(node).__name__,
            node=node.name,
            reason=f"its input scale is {max(factors):.3g} times its output scale",
            remedy="calibrate again with samples that use the range of this layer's output",
        )
    return tuple(int(value) for value in multipliers), shift


def _addition(node: Addition, first: Tensor, second: Tensor, target: Tensor) -> Add:
    multipliers, shift = _small_factors(node, [first.scale / target.scale, second.scale / target.scale])
    return Add(
        name=node.name,
        inputs=node.inputs,
        output=node.output,
        clamp=clamp_of(node.bounds, target),
        multipliers=(multipliers[0], multipliers[1]),
        left_shift=shift,
    )


def _requantisation(node: Requantisation, source: Tensor, target: Tensor) -> Rescale:
    multipliers, shift = _small_factors(node, [source.scale / target.scale])
    return Rescale(
        name=node.name,
        inputs=node.inputs,
        output=node.output,
        clamp=clamp_of(node.bounds, target),
        multiplier=multipliers[0],
        left_shift=shift,
    )


def _max_pool(node: MaximumPool, target: Tensor) -> MaxPool:
    return MaxPool(
        name=node.name,
        inputs=node.inputs,
        output=node.output,
        clamp=clamp_of(node.bounds, target),
        window=node.window,
    )


def _average_pool(node: AveragePool, source: Tensor, target: Tensor) -> AvgPool:
    size = math.prod(node.window.kernel)
    counts = [size] if node.count_padding else list(range(1, size + 1))
    multipliers, shift = _small_factors(node, [source.scale / target.scale / count for count in counts])
    bound = (INT8_MAX - INT8_MIN) * size << shift
    if bound > INT32_MAX:
        raise AccumulatorOverflow(layer=node.name, channel=0, bound=bound)
    return AvgPool(
        name=node.name,
        inputs=node.inputs,
        output=node.output,
        clamp=clamp_of(node.bounds, target),
        window=node.window,
        multipliers=multipliers,
        left_shift=shift,
    )
