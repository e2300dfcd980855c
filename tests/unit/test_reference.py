"""The integer operators on numbers small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.firmware.ir import (
    Add,
    AvgPool,
    Clamp,
    Concat,
    Conv2d,
    Dense,
    Graph,
    Lookup,
    MaxPool,
    Mul,
    Pad,
    Pads,
    Rescale,
    Softmax,
    Tensor,
    Window,
)
from tasks.firmware.lower import fixed_point
from tasks.quant import reference

HALF = 2**31 - 1  # just below one half: 0.49999999977


def tensor(name: str, shape: tuple[int, int, int], zero_point: int = 0) -> Tensor:
    return Tensor(name=name, shape=shape, scale=1.0, zero_point=zero_point)


def outputs(layer: object, source: Tensor, target: Tensor, values: object, other: object = None) -> list[int]:
    inputs = [np.array(values, np.int8).reshape(1, *source.shape)]
    if other is not None:
        inputs.append(np.array(other, np.int8).reshape(1, *source.shape))
    result = reference.run_layer(layer, {"x": source, "y": target}, inputs)  # type: ignore[arg-type]
    return result.ravel().tolist()


@pytest.mark.parametrize(
    ("accumulator", "expected"),
    [(3, 2), (2, 1), (1, 1), (0, 0), (-1, 0), (-2, -1), (-3, -1), (254, 127), (300, 127), (-300, -128)],
)
def test_one_half_is_rounded_up_also_below_zero_and_saturates(accumulator: int, expected: int) -> None:
    multipliers, shift = fixed_point(np.array([0.5]))
    target = tensor("y", (1, 1, 1))
    result = reference.requantise(np.array([accumulator]), multipliers, shift, target, Clamp())
    assert result.tolist() == [expected]


def test_the_zero_point_is_added_after_rounding_and_before_the_clamp() -> None:
    multipliers, shift = fixed_point(np.array([0.25]))
    target = tensor("y", (1, 1, 1), zero_point=-10)
    result = reference.requantise(np.array([-8, 0, 2, 100]), multipliers, shift, target, Clamp(low=-10, high=10))
    assert result.tolist() == [-10, -10, -9, 10]  # -12 → -10; -10; -10 + 1; 15 → 10


def test_padding_adds_nothing_whatever_the_zero_point() -> None:
    source, target = tensor("x", (1, 3, 1), zero_point=5), tensor("y", (1, 3, 1))
    layer = Conv2d(
        name="conv", inputs=("x",), output="y", window=Window(kernel=(1, 3), pads=Pads(left=1, right=1)), groups=1,
        weights=np.array([1, 2, 4], np.int8).reshape(1, 1, 3, 1), bias=np.array([10], np.int32),
        multipliers=np.array([2**30], np.int32), left_shift=2,
    )  # fmt: skip
    # input minus zero point: 1, 2, 3; sums 10 + (2·1 + 4·2), 10 + (1·1 + 2·2 + 4·3), 10 + (1·2 + 2·3)
    assert outputs(layer, source, target, [6, 7, 8]) == [20, 27, 18]


def test_groups_strides_and_dilation_pick_their_own_taps() -> None:
    source, target = tensor("x", (1, 5, 2)), tensor("y", (1, 2, 2))
    layer = Conv2d(
        name="conv", inputs=("x",), output="y", window=Window(kernel=(1, 2), stride=(1, 2), dilation=(1, 2)), groups=2,
        weights=np.array([[1, 10], [1, 1]], np.int8).reshape(2, 1, 2, 1), bias=np.zeros(2, np.int32),
        multipliers=np.array([2**30, 2**30], np.int32), left_shift=2,
    )  # fmt: skip
    # channel 0 holds 1 2 3 4 5, channel 1 holds 6 7 8 9 10; outputs at 0 and 2 see positions 0, 2 and 2, 4
    x = [1, 6, 2, 7, 3, 8, 4, 9, 5, 10]
    assert outputs(layer, source, target, x) == [1 + 30, 6 + 8, 3 + 50, 8 + 10]


def test_dense_reads_the_bytes_in_their_order() -> None:
    source, target = tensor("x", (1, 2, 2), zero_point=1), tensor("y", (1, 1, 2))
    layer = Dense(
        name="dense", inputs=("x",), output="y", weights=np.array([[1, 2, 3, 4], [0, 0, 0, -1]], np.int8),
        bias=np.array([0, 7], np.int32), multipliers=np.array([2**30, 2**30], np.int32), left_shift=2,
    )  # fmt: skip
    assert outputs(layer, source, target, [2, 3, 4, 5]) == [1 + 4 + 9 + 16, 7 - 4]


def test_an_addition_rounds_its_sum_once() -> None:
    source, target = tensor("x", (1, 1, 3)), tensor("y", (1, 1, 3))
    layer = Add(name="add", inputs=("x", "x"), output="y", multipliers=(2**30, 2**30), left_shift=0)
    # quarters: 1/4 + 1/4 = 1/2 → 1, where rounding each term first would give 0; 3/4 + 3/4 = 1.5 → 2; -1/2 → 0
    assert outputs(layer, source, target, [1, 3, -1], [1, 3, -1]) == [1, 2, 0]


def test_a_negative_multiplier_subtracts_and_still_rounds_up_once() -> None:
    source, target = tensor("x", (1, 1, 3)), tensor("y", (1, 1, 3))
    layer = Add(name="sub", inputs=("x", "x"), output="y", multipliers=(2**30, -(2**30)), left_shift=0)
    # quarters: 1/4 - 3/4 = -1/2 → 0; 3/4 - 1/4 = 1/2 → 1; 1/4 - 7/4 = -3/2 → -1
    assert outputs(layer, source, target, [1, 3, 1], [3, 1, 7]) == [0, 1, -1]


def run(layer: object, *values: np.ndarray, tensors: dict[str, Tensor]) -> list[int]:
    result = reference.run_layer(layer, tensors, [np.array(value, np.int8) for value in values])  # type: ignore[arg-type]
    return result.ravel().tolist()


def test_a_product_is_of_reals_and_is_rounded_once() -> None:
    tensors = {"x": tensor("x", (1, 1, 3), 1), "v": tensor("v", (1, 1, 3), -2), "y": tensor("y", (1, 1, 3), 10)}
    layer = Mul(name="mul", inputs=("x", "v"), output="y", multiplier=2**30, left_shift=1)  # one half
    # (2 - 1)·(1 + 2)/2 = 1.5 → 2; (0 - 1)·(1 + 2)/2 = -1.5 → -1; (3 - 1)·(-2 + 2)/2 = 0; then + 10
    assert run(layer, [[[[2, 0, 3]]]], [[[[1, 1, -2]]]], tensors=tensors) == [12, 9, 10]


def test_a_vector_multiplies_every_pixel() -> None:
    tensors = {"x": tensor("x", (1, 2, 2)), "v": tensor("v", (1, 1, 2), 1), "y": tensor("y", (1, 2, 2))}
    layer = Mul(name="mul", inputs=("x", "v"), output="y", multiplier=2**30, left_shift=1)
    # factors (2 - 1)/2 and (-2 - 1)/2: 1/2 → 1, -3, 3/2 → 2, -6
    assert run(layer, [[[[1, 2], [3, 4]]]], [[[[2, -2]]]], tensors=tensors) == [1, -3, 2, -6]


def test_a_table_begins_with_the_smallest_byte() -> None:
    tensors = {"x": tensor("x", (1, 1, 3)), "y": tensor("y", (1, 1, 3))}
    table = np.arange(127, -129, -1).astype(np.int8)  # -1 - q
    layer = Lookup(name="table", inputs=("x",), output="y", table=table)
    assert run(layer, [[[[-128, 0, 127]]]], tensors=tensors) == [127, -1, -128]


def test_joined_channels_come_on_the_scale_of_the_output() -> None:
    tensors = {"a": tensor("a", (1, 2, 1)), "b": tensor("b", (1, 2, 2), 1), "y": tensor("y", (1, 2, 3))}
    layer = Concat(
        name="join", inputs=("a", "b"), output="y", multipliers=(2**30, 2**30), left_shifts=(2, 1)
    )  # one, one half
    # b minus 1, halved: 1/2 → 1, 2/2; -2/2, 3/2 → 2
    assert run(layer, [[[[5], [-6]]]], [[[[2, 3], [-1, 4]]]], tensors=tensors) == [5, 1, 1, -6, -1, 2]


def test_a_frame_of_zeros_is_a_frame_of_zero_points() -> None:
    tensors = {"x": tensor("x", (1, 2, 1), -3), "y": tensor("y", (2, 3, 1), -3)}
    layer = Pad(name="pad", inputs=("x",), output="y", pads=Pads(top=1, left=1), clamp=Clamp(high=7))
    assert run(layer, [[[[7], [8]]]], tensors=tensors) == [-3, -3, -3, -3, 7, 7]


@pytest.mark.parametrize(
    ("output_scale", "zero_point", "expected"),
    [
        (2**25, -128, [-64, -96, -96]),  # shares 1/2, 1/4, 1/4 in steps of 1/128: 64, 32, 32
        (2**31, 0, [1, 1, 1]),  # in steps of 1/2: 1, 1/2 → 1, 1/2 → 1
        (2**30 + 2**29, 0, [1, 1, 1]),  # in steps of 3/8: 4/3, 2/3, 2/3
    ],
)
def test_a_softmax_gives_each_its_share(output_scale: int, zero_point: int, expected: list[int]) -> None:
    tensors = {"x": tensor("x", (1, 1, 3)), "y": tensor("y", (1, 1, 3), zero_point)}
    exponents = np.array([2**20 >> min(step, 31) for step in range(256)], np.uint32)  # halved with each step
    layer = Softmax(name="softmax", inputs=("x",), output="y", exponents=exponents, output_scale=output_scale)
    assert run(layer, [[[[3, 2, 2]]]], tensors=tensors) == expected


def test_rescaling_subtracts_the_old_zero_point() -> None:
    source, target = tensor("x", (1, 1, 2), zero_point=-28), tensor("y", (1, 1, 2), zero_point=4)
    layer = Rescale(name="r", inputs=("x",), output="y", multiplier=2**30, left_shift=1)
    assert outputs(layer, source, target, [-28, 72]) == [4, 54]


def test_padding_never_wins_a_maximum() -> None:
    source, target = tensor("x", (1, 2, 1)), tensor("y", (1, 2, 1))
    window = Window(kernel=(1, 2), pads=Pads(right=1))
    layer = MaxPool(name="max", inputs=("x",), output="y", window=window)
    assert outputs(layer, source, target, [-128, -100]) == [-100, -100]


@pytest.mark.parametrize(("counts_padding", "expected"), [(True, [3, 3]), (False, [6, 6])])
def test_an_average_divides_by_what_it_counts(counts_padding: bool, expected: list[int]) -> None:
    source, target = tensor("x", (1, 1, 1)), tensor("y", (1, 2, 1))
    one, half = fixed_point(np.array([1.0, 0.5]))[0].tolist()
    layer = AvgPool(
        name="avg", inputs=("x",), output="y", window=Window(kernel=(1, 2), pads=Pads(left=1, right=1)),
        multipliers=(half,) if counts_padding else (one, half), left_shift=2,
    )  # fmt: skip
    assert outputs(layer, source, target, [6]) == expected


def test_inputs_become_bytes_in_rows_of_channels() -> None:
    source = Tensor(name="x", shape=(1, 2, 2), scale=0.5, zero_point=-1)
    x = np.array([[[0.0, 1.0], [-1000.0, 0.25]]], np.float32)  # (n, C, L)
    # 0.25 / 0.5 = 0.5 rounds to the even 0
    assert reference.quantise_input(x, source).tolist() == [[[[-1, -128], [1, -1]]]]
    q = np.array([[-1, 1]], np.int8)
    assert reference.dequantise_output(q, source).tolist() == [[0.0, 1.0]]


def test_a_large_batch_gives_the_same_as_its_samples_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    weights = rng.integers(-127, 128, size=(4, 3, 3, 3)).astype(np.int8)
    layer = Conv2d(
        name="conv", inputs=("x",), output="y", window=Window(kernel=(3, 3)), groups=1, weights=weights,
        bias=np.zeros(4, np.int32), multipliers=np.full(4, 2**22, np.int32), left_shift=0,
    )  # fmt: skip
    tensors = {"x": tensor("x", (5, 5, 3)), "y": tensor("y", (3, 3, 4))}
    graph = Graph(tensors=tensors, layers=(layer,), input="x", output="y", digest="")
    x = rng.integers(-128, 128, size=(7, 75)).astype(np.int8)
    whole = reference.output_of(graph, x)
    monkeypatch.setattr(reference, "_PATCH_BYTES", 1)  # every sample a piece of its own
    assert np.array_equal(reference.output_of(graph, x), whole)


def test_the_first_differing_layer_is_named() -> None:
    layers = tuple(
        Rescale(name=name, inputs=("x",), output=name, multiplier=HALF, left_shift=0) for name in ("a", "b", "c")
    )
    graph = Graph(tensors={}, layers=layers, input="x", output="c", digest="")
    expected = {name: np.zeros((1, 1, 1, 2), np.int8) for name in "abc"}
    assert reference.first_difference(graph, expected, dict(expected)) is None
    actual = {**expected, "b": np.ones((1, 1, 1, 2), np.int8), "c": np.ones((1, 1, 1, 2), np.int8)}
    assert reference.first_difference(graph, expected, actual) == (1, layers[1])
