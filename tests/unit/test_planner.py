"""The memory plan on chains whose best arena is known."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.firmware.ir import (
    AnyLayer,
    Concat,
    Conv2d,
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
from tasks.firmware.kernels import kernel_of
from tasks.firmware.planner import Buffer, Overlap, bytes_alive, live_buffers, lower_bound, pack, plan_memory


def tensor(name: str, n_bytes: int) -> Tensor:
    return Tensor(name=name, shape=(1, 1, n_bytes), scale=1.0, zero_point=0)


def move(source: str, target: str) -> Pad:
    """A layer that never writes over its input."""
    return Pad(name=target, inputs=(source,), output=target, pads=Pads())


def rescale(source: str, target: str) -> Rescale:
    return Rescale(name=target, inputs=(source,), output=target, multiplier=1, left_shift=0)


def graph(sizes: dict[str, int], *layers: AnyLayer) -> Graph:
    tensors = {name: tensor(name, size) for name, size in sizes.items()}
    return Graph(tensors=tensors, layers=layers, input="x", output=layers[-1].output, digest="")


def buffer(n_bytes: int, first: int, last: int) -> Buffer:
    return Buffer(tensors=(f"{first}-{last}",), n_bytes=n_bytes, first=first, last=last)


def test_a_chain_needs_its_largest_neighbours() -> None:
    net = graph({"x": 100, "a": 40, "b": 60, "y": 8}, move("x", "a"), move("a", "b"), move("b", "y"))
    plan = plan_memory(net)
    assert plan.arena_bytes == plan.lower_bound_bytes == 140


def test_sizes_are_rounded_up_to_words() -> None:
    plan = plan_memory(graph({"x": 1, "y": 3}, move("x", "y")))
    assert plan.arena_bytes == 8
    assert sorted(plan.offsets.values()) == [0, 4]


def test_a_rescaling_writes_over_an_input_that_dies_with_it() -> None:
    plan = plan_memory(graph({"x": 16, "a": 16, "y": 16}, rescale("x", "a"), rescale("a", "y")))
    assert plan.arena_bytes == 16
    assert set(plan.offsets.values()) == {0}


ONE_INPUT: list[AnyLayer] = [
    Lookup(name="y", inputs=("x",), output="y", table=np.zeros(256, np.int8)),
    Mul(name="y", inputs=("x", "x"), output="y", multiplier=1, left_shift=0),
    Softmax(name="y", inputs=("x",), output="y", exponents=np.ones(256, np.uint32), output_scale=2**24),
]


@pytest.mark.parametrize("layer", ONE_INPUT, ids=lambda layer: type(layer).__name__)
def test_layers_that_go_byte_by_byte_write_over_their_input(layer: AnyLayer) -> None:
    assert plan_memory(graph({"x": 16, "y": 16}, layer)).arena_bytes == 16


def test_a_product_writes_over_its_image_and_never_over_the_vector_it_repeats() -> None:
    product = Mul(name="y", inputs=("x", "v"), output="y", multiplier=1, left_shift=0)
    plan = plan_memory(graph({"x": 16, "v": 4, "y": 16}, move("x", "v"), product))
    assert plan.offsets["y"] == plan.offsets["x"] != plan.offsets["v"]
    assert plan.arena_bytes == 20


@pytest.mark.parametrize(
    "layer",
    [
        Concat(name="y", inputs=("x",), output="y", multipliers=(1,), left_shifts=(0,)),
        Pad(name="y", inputs=("x",), output="y", pads=Pads()),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_move_bytes_need_room_beside_their_input(layer: AnyLayer) -> None:
    assert plan_memory(graph({"x": 16, "y": 16}, layer)).arena_bytes == 32


def test_a_rescaling_leaves_an_input_that_is_still_needed() -> None:
    net = graph({"x": 16, "a": 16, "y": 16}, rescale("x", "a"), move("x", "y"))
    assert plan_memory(net).offsets["x"] != plan_memory(net).offsets["a"]


def test_a_result_nobody_reads_still_has_its_place_while_it_is_written() -> None:
    plan = plan_memory(graph({"x": 16, "dead": 16, "y": 16}, move("x", "dead"), move("x", "y")))
    assert plan.offsets["dead"] != plan.offsets["x"]


def test_lifetimes_run_from_the_writer_to_the_last_reader() -> None:
    net = graph({"x": 4, "a": 4, "b": 4, "y": 4}, move("x", "a"), move("a", "b"), move("a", "y"))
    assert [(b.tensors, b.first, b.last) for b in live_buffers(net)] == [
        (("x",), 0, 0), (("a",), 0, 2), (("b",), 1, 1), (("y",), 2, 2),
    ]  # fmt: skip


def test_where_every_greedy_order_fails_the_search_still_packs_tightly() -> None:
    # found by trying random cases: the five greedy orders need 60 or 64 bytes
    buffers = [buffer(16, 5, 8), buffer(24, 3, 4), buffer(20, 4, 5), buffer(20, 5, 5)]
    places, size = pack(buffers, lower_bound(buffers))
    assert size == lower_bound(buffers) == 56
    assert min(places) == 0


def test_the_same_graph_gives_the_same_plan() -> None:
    net = graph({"x": 100, "a": 40, "b": 60, "y": 8}, move("x", "a"), move("a", "b"), move("b", "y"))
    assert plan_memory(net) == plan_memory(net)


def test_bytes_alive_are_the_sum_of_the_buffers_around_a_step() -> None:
    assert bytes_alive([buffer(100, 0, 0), buffer(40, 0, 2), buffer(8, 1, 2)]) == [140, 48, 48]


def convolved(shape: tuple[int, int, int], n_outputs: int, window: Window) -> Graph:
    target = (*window.output_size(*shape[:2]), n_outputs)
    tensors = {
        name: Tensor(name=name, shape=size, scale=1.0, zero_point=0) for name, size in (("x", shape), ("y", target))
    }
    layer = Conv2d(
        name="y",
        inputs=("x",),
        output="y",
        window=window,
        groups=1,
        weights=np.zeros((n_outputs, *window.kernel, shape[2]), np.int8),
        bias=np.zeros(n_outputs, np.int32),
        multipliers=np.zeros(n_outputs, np.int32),
        left_shift=0,
    )
    return Graph(tensors=tensors, layers=(layer,), input="x", output="y", digest="")


def test_points_with_fewer_outputs_may_start_where_the_first_four_were_read() -> None:
    net = convolved((4, 4, 8), 4, Window(kernel=(1, 1)))
    (sharing,) = kernel_of(net, net.layers[0]).sharings
    # when the first 16 outputs are written 32 inputs have been read, and later ones take half of what is freed
    assert (sharing.low, sharing.high) == (None, 32 - 16)
    assert plan_memory(net).bytes_alive == (4 * 4 * 8 + 2 * 32,)


def test_points_with_more_outputs_run_backwards_and_end_behind_their_inputs() -> None:
    net = convolved((4, 4, 8), 12, Window(kernel=(1, 1)))
    (sharing,) = kernel_of(net, net.layers[0]).sharings
    assert (sharing.low, sharing.high) == (0, None)
    plan = plan_memory(net)
    assert plan.offsets["y"] >= plan.offsets["x"]
    assert plan.arena_bytes == plan.lower_bound_bytes == 4 * 4 * 12 + 2 * 32


def test_a_window_leaves_the_rows_it_still_needs() -> None:
    net = convolved((8, 4, 4), 4, Window(kernel=(3, 3), pads=Pads(top=1, left=1, bottom=1, right=1)))
    (sharing,) = kernel_of(net, net.layers[0]).sharings
    # When row r has been written, row r + 1 still sees input rows from r on: outputs may end where row r starts, so
    # they start a row of 16 bytes before the input.
    assert (sharing.low, sharing.high) == (None, -16)


def test_a_pool_that_halves_writes_over_what_it_has_read() -> None:
    layer = MaxPool(name="y", inputs=("x",), output="y", window=Window(kernel=(2, 2), stride=(2, 2)))
    tensors = {
        name: Tensor(name=name, shape=shape, scale=1.0, zero_point=0)
        for name, shape in (("x", (4, 4, 8)), ("y", (2, 2, 8)))
    }
    net = Graph(tensors=tensors, layers=(layer,), input="x", output="y", digest="")
    assert plan_memory(net).arena_bytes == 4 * 4 * 8


def test_an_overlap_is_used_as_far_as_it_is_allowed() -> None:
    items = [buffer(100, 0, 0), buffer(60, 0, 1), buffer(48, 1, 1)]
    before = [Overlap(source=0, target=1, low=None, high=-8)]
    assert bytes_alive(items, before) == [108, 108]
    places, size = pack(items, 108, before)
    assert (size, places[1] - places[0]) == (108, -8)
    assert pack(items, 160)[1] == 160
