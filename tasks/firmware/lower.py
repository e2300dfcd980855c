"""Lowering: real scales become fixed-point multipliers, real bounds byte bounds, weights take their final layout.

A real factor ``r`` becomes ``multiplier / 2**(32 - left_shift)`` with ``0 <= multiplier < 2**31``. Every layer has the
least left shift that makes all its multipliers fit, because each further shift costs one bit of their precision. The
bound on every accumulator is proven here, so that the kernels need no checks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tasks.firmware.errors import AccumulatorOverflow, Unsupported
from tasks.firmware.fuse import fuse_lookups
from tasks.firmware.ir import (
    INT8_MAX,
    INT8_MIN,
    N_BYTES,
    Add,
    AnyLayer,
    AvgPool,
    Clamp,
    Concat,
    Conv2d,
    Dense,
    Graph,
    Int8Array,
    Int32Array,
    Lookup,
    MaxPool,
    Mul,
    Pad,
    Rescale,
    Softmax,
    Tensor,
)
from tasks.firmware.quantised import (
    Addition,
    AnyNode,
    AveragePool,
    Bounds,
    Concatenation,
    Convolution,
    Elementwise,
    FloatArray,
    FullyConnected,
    IntArray,
    MaximumPool,
    Multiplication,
    Padding,
    QuantisedNetwork,
    Requantisation,
    SoftmaxOfChannels,
)
from tasks.firmware.residual import fuse_additions

INT32_MAX = 2**31 - 1
MAX_LEFT_SHIFT = 22  # (byte - zero point) << 22 stays within 31 bits
MAX_PRODUCT_SHIFT = 15  # the product of two of them << 15 as well: 255 * 255 << 15 < 2**31
MAX_EXPONENT_BITS = 30
MIN_DIVISOR = 2**12  # of a softmax: rounded to an integer it then is off by at most 1/8192


def lower(network: QuantisedNetwork) -> Graph:
    """The integer network that computes what ``network`` states.

    Raises:
        AccumulatorOverflow: a sum of products could leave 32 bits.
        Unsupported: two scales lie further apart than fixed point can bridge.
    """
    layers = tuple(_lower_node(node, network.tensors) for node in network.nodes)
    graph = Graph(
        tensors=dict(network.tensors),
        layers=layers,
        input=network.input,
        output=network.output,
        digest=network.digest,
    )
    return fuse_additions(fuse_lookups(graph))


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
    return LOWERINGS[type(node)](node, [tensors[name] for name in node.inputs], tensors[node.output])


def _convolution(node: Convolution, sources: list[Tensor], target: Tensor) -> Conv2d:
    (source,) = sources
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


def _fully_connected(node: FullyConnected, sources: list[Tensor], target: Tensor) -> Dense:
    (source,) = sources
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


def small_factors(node: AnyNode, factors: list[float], most: int = MAX_LEFT_SHIFT) -> tuple[tuple[int, ...], int]:
    """Multipliers for single bytes, or what stays within 31 bits when shifted by ``most``."""
    multipliers, shift = fixed_point(np.array(factors))
    if shift > most:
        raise Unsupported(
            operator=type(node).__name__,
            node=node.name,
            reason=f"its input scale is {max(factors):.3g} times its output scale",
            remedy="calibrate again with samples that use the range of this layer's output",
        )
    return tuple(int(value) for value in multipliers), shift


def _addition(node: Addition, sources: list[Tensor], target: Tensor) -> Add:
    """Each term is below 2**30 after its shift, so both products together are below 2**62 with either sign."""
    multipliers, shift = small_factors(node, [source.scale / target.scale for source in sources])
    return Add(
        name=node.name,
        inputs=node.inputs,
        output=node.output,
        clamp=clamp_of(node.bounds, target),
        multipliers=(multipliers[0], -multipliers[1] if node.subtracts else multipliers[1]),
        left_shift=shift,
    )


def _multiplication(node: Multiplication, sources: list[Tensor], target: Tensor) -> Mul:
    """The larger input comes first, so that the kernel knows which one it repeats."""
    inputs = node.inputs if sources[0].n_bytes == target.n_bytes else node.inputs[::-1]
    factor = sources[0].scale * sources[1].scale / target.scale
    (multiplier,), shift = small_factors(node, [factor], MAX_PRODUCT_SHIFT)
    return Mul(
        name=node.name,
        inputs=inputs,
        output=node.output,
        clamp=clamp_of(node.bounds, target),
        multiplier=multiplier,
        left_shift=shift,
    )


def _requantisation(node: Requantisation, sources: list[Tensor], target: Tensor) -> Rescale:
    multipliers, shift = small_factors(node, [sources[0].scale * node.factor / target.scale])
    return Rescale(
        name=node.name,
        inputs=node.inputs,
        output=node.output,
        clamp=clamp_of(node.bounds, target),
        multiplier=multipliers[0],
        left_shift=shift,
    )


def _elementwise(node: Elementwise, sources: list[Tensor], target: Tensor) -> Lookup:
    """The function at each of the input's bytes, in double precision, rounded half up."""
    (source,) = sources
    clamp = clamp_of(node.bounds, target)
    reals = node.function(source.scale * (np.arange(N_BYTES, dtype=np.float64) + INT8_MIN - source.zero_point))
    if not np.isfinite(reals).all():
        raise Unsupported(
            operator=type(node).__name__,
            node=node.name,
            reason="it is not finite for every input byte",
            remedy="use a function that is defined on the whole range of its input",
        )
    values = np.floor(reals / target.scale + 0.5) + target.zero_point
    table = np.clip(values, clamp.low, clamp.high).astype(np.int8)
    return Lookup(name=node.name, inputs=node.inputs, output=node.output, clamp=clamp, table=table)


def _concatenation(node: Concatenation, sources: list[Tensor], target: Tensor) -> Concat:
    """An input with the output's scale and zero point passes unchanged: the factor 1 is exact in fixed point."""
    factors = [small_factors(node, [source.scale / target.scale]) for source in sources]
    return Concat(
        name=node.name,
        inputs=node.inputs,
        output=node.output,
        clamp=clamp_of(node.bounds, target),
        multipliers=tuple(multipliers[0] for multipliers, _ in factors),
        left_shifts=tuple(shift for _, shift in factors),
    )


def _padding(node: Padding, sources: list[Tensor], target: Tensor) -> Pad:
    return Pad(
        name=node.name,
        inputs=node.inputs,
        output=node.output,
        clamp=clamp_of(node.bounds, target),
        pads=node.pads,
    )


def _softmax(node: SoftmaxOfChannels, sources: list[Tensor], target: Tensor) -> Softmax:
    """Units of 2**-bits, so that all exponents of a pixel sum to at most 2**32 - 1; an exponent plus half the divisor
    stays below that too, because ``bits`` is at most 30 and the output's scale is below 1."""
    (source,) = sources
    bits = min(MAX_EXPONENT_BITS, ((2**32 - 1) // source.shape[2]).bit_length() - 1)
    output_scale = math.floor(target.scale * 2.0**32 + 0.5)
    if output_scale >= 2**32 or target.scale * 2.0**bits < MIN_DIVISOR:
        raise Unsupported(
            operator=type(node).__name__,
            node=node.name,
            reason=f"its output scale {target.scale:.3g} suits no shares of {source.shape[2]} channels",
            remedy="calibrate again, or leave the softmax out: the largest class stays the same",
        )
    exponents = np.floor(np.exp(-source.scale * np.arange(N_BYTES)) * 2.0**bits + 0.5)
    return Softmax(
        name=node.name,
        inputs=node.inputs,
        output=node.output,
        clamp=clamp_of(node.bounds, target),
        exponents=exponents.astype(np.uint32),
        output_scale=output_scale,
    )


def _max_pool(node: MaximumPool, sources: list[Tensor], target: Tensor) -> MaxPool:
    return MaxPool(
        name=node.name,
        inputs=node.inputs,
        output=node.output,
        clamp=clamp_of(node.bounds, target),
        window=node.window,
    )


def _average_pool(node: AveragePool, sources: list[Tensor], target: Tensor) -> AvgPool:
    (source,) = sources
    size = math.prod(node.window.kernel)
    counts = [size] if node.count_padding else list(range(1, size + 1))
    multipliers, shift = small_factors(node, [source.scale / target.scale / count for count in counts])
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


LOWERINGS: dict[type, Callable[[Any, list[Tensor], Tensor], AnyLayer]] = {
    Addition: _addition,
    AveragePool: _average_pool,
    Concatenation: _concatenation,
    Convolution: _convolution,
    Elementwise: _elementwise,
    FullyConnected: _fully_connected,
    MaximumPool: _max_pool,
    Multiplication: _multiplication,
    Padding: _padding,
    Requantisation: _requantisation,
    SoftmaxOfChannels: _softmax,
}
