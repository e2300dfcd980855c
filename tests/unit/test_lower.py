"""From real scales to integers."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.firmware.errors import AccumulatorOverflow, Unsupported
from tasks.firmware.ir import (
    Add,
    Clamp,
    Concat,
    Conv2d,
    Dense,
    Lookup,
    Mul,
    Pad,
    Pads,
    Rescale,
    Softmax,
    Tensor,
    Window,
)
from tasks.firmware.lower import clamp_of, fixed_point, lower
from tasks.firmware.quantised import (
    Addition,
    AnyNode,
    AveragePool,
    Bounds,
    Concatenation,
    Convolution,
    Elementwise,
    FullyConnected,
    Multiplication,
    Padding,
    QuantisedNetwork,
    Requantisation,
    SoftmaxOfChannels,
)
from tasks.quant import reference


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


def lowered(node: AnyNode, *tensors: Tensor) -> object:
    return lower(network(node, *tensors)).layers[0]


def test_a_subtraction_is_an_addition_of_the_opposite() -> None:
    node = Addition(name="sub", inputs=("x", "x"), output="y", subtracts=True)
    layer = lowered(node, tensor("x", (1, 1, 1)), tensor("y", (1, 1, 1), scale=2.0))
    assert isinstance(layer, Add)
    assert (layer.multipliers, layer.left_shift) == ((2**30, -(2**30)), 1)  # one half


def test_a_factor_of_a_rescaling_multiplies_its_scale() -> None:
    layer = lowered(
        Requantisation(name="r", inputs=("x",), output="y", factor=0.25), tensor("x", (1, 1, 1)), tensor("y", (1, 1, 1))
    )
    assert isinstance(layer, Rescale)
    assert (layer.multiplier, layer.left_shift) == (2**30, 0)


def test_the_repeated_vector_of_a_product_comes_second() -> None:
    node = Multiplication(name="mul", inputs=("x", "i"), output="y")
    layer = lowered(
        node, tensor("x", (1, 1, 3), 0.5), tensor("i", (2, 2, 3), 0.5), tensor("y", (2, 2, 3), 0.25, zero_point=4)
    )
    assert isinstance(layer, Mul)
    assert (layer.inputs, layer.multiplier, layer.left_shift) == (("i", "x"), 2**30, 2)  # 0.5 · 0.5 / 0.25 = 1


@pytest.mark.parametrize(("factor", "fits"), [(2.0**14 - 1, True), (2.0**14, False)])
def test_a_product_may_be_shifted_by_fifteen_bits(factor: float, fits: bool) -> None:
    node = Multiplication(name="mul", inputs=("x", "x"), output="y")
    tensors = tensor("x", (1, 1, 1)), tensor("y", (1, 1, 1), 1 / factor)
    if fits:
        layer = lowered(node, *tensors)
        assert isinstance(layer, Mul) and layer.left_shift == 15
        return
    with pytest.raises(Unsupported, match="calibrate again"):
        lowered(node, *tensors)


def test_a_function_becomes_a_table_rounded_half_up_and_clipped() -> None:
    node = Elementwise(
        name="f", inputs=("x",), output="y", function=lambda x: x * x / 8, bounds=Bounds(low=-1.0, high=3.0)
    )
    layer = lowered(node, tensor("x", (1, 1, 1), 2.0, zero_point=1), tensor("y", (1, 1, 1), zero_point=-100))
    assert isinstance(layer, Lookup)
    # bytes 1, 2, 0, 3, 4, 5: reals 0, 2, -2, 4, 6, 8 → 0, 1/2 → 1, 1/2 → 1, 2, 4.5 → 3, 8 → 3
    assert [int(layer.table[q + 128]) for q in (1, 2, 0, 3, 4, 5)] == [-100, -99, -99, -98, -97, -97]


def test_a_function_that_is_infinite_somewhere_is_refused() -> None:
    def inverse(x: np.ndarray) -> np.ndarray:
        return np.where(x == 0, np.inf, x)

    node = Elementwise(name="f", inputs=("x",), output="y", function=inverse)
    with pytest.raises(Unsupported, match="not finite for every input byte"):
        lowered(node, tensor("x", (1, 1, 1)), tensor("y", (1, 1, 1)))


def test_joining_on_the_same_scale_and_zero_point_copies_all_bytes() -> None:
    node = Concatenation(name="join", inputs=("x", "v"), output="y")
    tensors = (
        tensor("x", (1, 256, 1), 0.3, -77), tensor("v", (1, 256, 1), 0.6, 12), tensor("y", (1, 256, 2), 0.3, -77),
    )  # fmt: skip
    layer = lowered(node, *tensors)
    assert isinstance(layer, Concat)
    every = np.arange(-128, 128).astype(np.int8).reshape(1, 1, 256, 1)
    joined = reference.run_layer(layer, {item.name: item for item in tensors}, [every, every])
    assert np.array_equal(joined[..., 0:1], every)
    assert layer.left_shifts == (2, 3)  # factors 1 and 2


def test_padding_keeps_its_amounts() -> None:
    pads = Pads(top=1, right=2)
    layer = lowered(
        Padding(name="pad", inputs=("x",), output="y", pads=pads), tensor("x", (1, 1, 1)), tensor("y", (2, 3, 1))
    )
    assert isinstance(layer, Pad) and layer.pads == pads


def softmax_of(n: int, output_scale: float, input_scale: float = float(np.log(2))) -> Softmax:
    node = SoftmaxOfChannels(name="s", inputs=("x",), output="y")
    layer = lowered(node, tensor("x", (1, 1, n), input_scale), tensor("y", (1, 1, n), output_scale, -128))
    assert isinstance(layer, Softmax)
    return layer


def test_the_exponents_of_a_softmax_fill_their_bits_and_no_more() -> None:
    layer = softmax_of(4, 1 / 256)
    assert layer.exponents[:3].tolist() == [2**29, 2**28, 2**27]  # 4 · 2**30 would leave 32 bits
    assert layer.exponents[255] == 0
    assert layer.output_scale == 2**24
    assert softmax_of(3, 1 / 256).exponents[0] == 2**30


@pytest.mark.parametrize("scale", [1.0, 2.0**-18])
def test_a_softmax_whose_output_scale_suits_no_shares_is_refused(scale: float) -> None:
    with pytest.raises(Unsupported, match="leave the softmax out"):
        softmax_of(4, scale)


@pytest.mark.parametrize("n", [2, 10, 1000])
def test_a_softmax_is_within_one_step_of_the_real_one(n: int) -> None:
    rng = np.random.default_rng(n)
    layer = softmax_of(n, 1 / 256, 0.1)
    tensors = {"x": tensor("x", (1, 1, n), 0.1), "y": tensor("y", (1, 1, n), 1 / 256, -128)}
    x = np.clip(rng.normal(scale=40, size=(500, 1, 1, n)), -128, 127).astype(np.int8)
    shares = np.exp(0.1 * x.astype(float))
    exact = shares / shares.sum(axis=-1, keepdims=True) * 256 - 128
    errors = np.abs(reference.run_layer(layer, tensors, [x]) - np.minimum(exact, 127))
    assert errors.max() < 0.505  # one half is the rounding to a byte
