"""From real scales to integers."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.firmware.errors import AccumulatorOverflow, Unsupported
from tasks.firmware.ir import Clamp, Conv2d, Dense, Tensor, Window
from tasks.firmware.lower import clamp_of, fixed_point, lower
from tasks.firmware.quantised import (
    Addition,
    AnyNode,
    AveragePool,
    Bounds,
    Convolution,
    FullyConnected,
    QuantisedNetwork,
    Requantisation,
)


def network(node: AnyNode, *tensors: Tensor) -> QuantisedNetwork:
    return QuantisedNetwork(
        tensors={tensor.name: tensor for tensor in tensors}, nodes=(node,), input="x", output="y", digest=""
    )


def tensor(name: str, shape: tuple[int, int, int], scale: float = 1.0, zero_point: int = 0) -> Tensor:
    return Tensor(name=name, shape=shape, scale=scale, zero_point=zero_point)


def dense(weights: np.ndarray, bias: int = 0, *, channels_first: bool = False, scale: float = 0.01) -> FullyConnected:
    n_outputs = len(weights)
    return FullyConnected(
        name="fc", inputs=("x",), output="y", weights=weights.astype(np.int8), scales=np.full(n_outputs, scale),
        bias=np.full(n_outputs, bias), channels_first=channels_first,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("factor", "multiplier", "shift"), [(0.25, 2**30, 0), (0.5, 2**30, 1), (1.0, 2**30, 2), (3.0, 3 * 2**29, 3)]
)
def test_a_factor_gets_the_least_shift_that_fits(factor: float, multiplier: int, shift: int) -> None:
    multipliers, left_shift = fixed_point(np.array([factor]))
    assert (multipliers.tolist(), left_shift) == ([multiplier], shift)


def test_a_factor_just_below_one_half_does_not_round_out_of_31_bits() -> None:
    multipliers, shift = fixed_point(np.array([np.nextafter(0.5, 0)]))
    assert (multipliers.tolist(), shift) == ([2**30], 1)


def test_channels_share_the_shift_of_the_largest() -> None:
    multipliers, shift = fixed_point(np.array([0.5, 0.125, 0.0]))
    assert (multipliers.tolist(), shift) == ([2**30, 2**28, 0], 1)


def test_real_bounds_become_byte_bounds() -> None:
    target = tensor("y", (1, 1, 1), scale=0.1, zero_point=-20)
    assert clamp_of(Bounds(), target) == Clamp(low=-128, high=127)
    assert clamp_of(Bounds(low=0.0, high=6.0), target) == Clamp(low=-20, high=40)
    assert clamp_of(Bounds(low=0.0, high=1000.0), target) == Clamp(low=-20, high=127)


def test_clips_one_after_the_other_make_one() -> None:
    assert Bounds(low=-1, high=5).intersect(Bounds(low=0, high=9)) == Bounds(low=0, high=5)
    assert Bounds(low=-5, high=-3).intersect(Bounds(low=0, high=9)) == Bounds(low=0, high=0)


def test_convolution_weights_end_with_their_input_channels() -> None:
    weights = np.arange(12).reshape(1, 3, 2, 2).astype(np.int8)
    node = Convolution(
        name="conv", inputs=("x",), output="y", window=Window(kernel=(2, 2)), groups=1, weights=weights,
        scales=np.array([0.1]), bias=np.array([1]),
    )  # fmt: skip
    layer = lower(network(node, tensor("x", (2, 2, 3)), tensor("y", (1, 1, 1)))).layers[0]
    assert isinstance(layer, Conv2d)
    assert layer.weights.tolist() == [[[[0, 4, 8], [1, 5, 9]], [[2, 6, 10], [3, 7, 11]]]]


def test_dense_weights_follow_the_bytes_of_a_flattened_image() -> None:
    weights = np.arange(8).reshape(1, 8)  # C, H, W = 2, 2, 2
    x, y = tensor("x", (2, 2, 2)), tensor("y", (1, 1, 1))
    ours = lower(network(dense(weights), x, y)).layers[0]
    theirs = lower(network(dense(weights, channels_first=True), x, y)).layers[0]
    assert isinstance(ours, Dense) and isinstance(theirs, Dense)
    assert ours.weights.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert theirs.weights.tolist() == [[0, 4, 1, 5, 2, 6, 3, 7]]


@pytest.mark.parametrize(("bias", "fits"), [(2**31 - 1 - 2 * 127 * 128, True), (2**31 - 2 * 127 * 128, False)])
def test_the_accumulator_may_reach_the_last_bit_and_not_further(bias: int, fits: bool) -> None:
    node = dense(np.array([[127, -127]]), bias)
    net = network(node, tensor("x", (1, 1, 2)), tensor("y", (1, 1, 1)))
    if fits:
        lower(net)
        return
    with pytest.raises(AccumulatorOverflow, match="layer 'fc', output channel 0: the accumulator can reach 2147483648"):
        lower(net)


def test_the_left_shift_counts_against_the_accumulator() -> None:
    node = dense(np.array([[127]]), 2**28, scale=2.0)  # factor 2: shift 3
    with pytest.raises(AccumulatorOverflow):
        lower(network(node, tensor("x", (1, 1, 1)), tensor("y", (1, 1, 1))))


def test_an_average_over_too_many_pixels_is_refused() -> None:
    node = AveragePool(name="avg", inputs=("x",), output="y", window=Window(kernel=(4000, 4000)), count_padding=True)
    with pytest.raises(AccumulatorOverflow):
        lower(network(node, tensor("x", (4000, 4000, 1)), tensor("y", (1, 1, 1))))


@pytest.mark.parametrize("kind", [Addition, Requantisation])
def test_scales_too_far_apart_are_refused(kind: type) -> None:
    node = kind(name="n", inputs=("x", "x"), output="y")
    with pytest.raises(Unsupported, match="calibrate again"):
        lower(network(node, tensor("x", (1, 1, 1), scale=1e7), tensor("y", (1, 1, 1))))
