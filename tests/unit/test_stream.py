"""Layers in strips: the same bytes, less RAM, and a stated number of multiply-accumulates more."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcu_agent.kinds import load_kind
from tasks.compile import profile_compiled
from tasks.firmware.compiler import compile_graph
from tasks.firmware.emit import count_macs
from tasks.firmware.host import HostNetwork
from tasks.firmware.ir import Conv2d, Graph, MaxPool, Pads, Tensor, Window
from tasks.firmware.planner import plan_memory
from tasks.firmware.stream import in_strips, runs_over, stream
from tasks.quant import reference

AROUND = Pads(top=1, left=1, bottom=1, right=1)


def tall(height: int = 16, width: int = 6, *, kernel: int = 3, stride: int = 1) -> Graph:
    """2 channels → 1×1 to 12 → depthwise → 1×1 to 3 → maximum of 2×2: wide in the middle."""
    rng = np.random.default_rng(0)
    window = Window(kernel=(kernel, 3), stride=(stride, 1), pads=AROUND if kernel == 3 else Pads(left=1, right=1))
    point, pool = Window(kernel=(1, 1)), Window(kernel=(2, 2), stride=(2, 2))
    plan = [(12, point, 1), (12, window, 12), (3, point, 1), (3, pool, 0)]
    tensors = {"x": Tensor(name="x", shape=(height, width, 2), scale=1.0, zero_point=3)}
    layers: list[Conv2d | MaxPool] = []
    for number, (n_outputs, seen, groups) in enumerate(plan):
        source, name = ("x" if number == 0 else f"t{number - 1}"), f"t{number}"
        shape = tensors[source].shape
        target = (*seen.output_size(*shape[:2]), n_outputs)
        tensors[name] = Tensor(name=name, shape=target, scale=1.0, zero_point=number - 2 if groups else 0)
        if not groups:
            layers.append(MaxPool(name=name, inputs=(source,), output=name, window=seen))
            continue
        layers.append(
            Conv2d(
                name=name,
                inputs=(source,),
                output=name,
                window=seen,
                groups=groups,
                weights=rng.integers(-99, 99, size=(n_outputs, *seen.kernel, shape[2] // groups)).astype(np.int8),
                bias=rng.integers(-900, 900, size=n_outputs).astype(np.int32),
                multipliers=rng.integers(2**23, 2**25, size=n_outputs).astype(np.int32),
                left_shift=0,
            )
        )
    return Graph(tensors=tensors, layers=tuple(layers), input="x", output="t3", digest="0" * 64)


def inputs(graph: Graph, n: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(-128, 128, size=(n, *graph.input_tensor.shape)).astype(np.int8)


def macs(graph: Graph) -> int:
    return sum(count_macs(graph, layer) for layer in graph.layers)


@given(
    height=st.integers(6, 17), kernel=st.sampled_from([1, 3]), stride=st.integers(1, 2), n_strips=st.integers(2, 5),
    run=st.sampled_from([(0, 1), (0, 3), (1, 2), (2, 3)]),
)  # fmt: skip
@settings(max_examples=60, deadline=None, derandomize=True)
def test_strips_give_the_bytes_of_the_whole(
    height: int, kernel: int, stride: int, n_strips: int, run: tuple[int, int]
) -> None:
    graph = tall(height, kernel=kernel, stride=stride)
    n_strips = min(n_strips, graph.tensors[graph.layers[run[1]].output].shape[0])
    strips = in_strips(graph, *run, n_strips)
    assert len(strips.layers) == len(graph.layers) + (n_strips - 1) * (run[1] - run[0] + 1)
    np.testing.assert_array_equal(reference.output_of(strips, inputs(graph)), reference.output_of(graph, inputs(graph)))


def test_rows_that_two_strips_see_are_computed_twice() -> None:
    graph = tall(16)
    two = in_strips(graph, 0, 1, 2)
    # one more row above and one below the cut, each 6 pixels of 2 · 12 products
    assert macs(two) - macs(graph) == 2 * 6 * 2 * 12
    apart = in_strips(tall(16, kernel=1), 0, 1, 2)
    assert macs(apart) == macs(tall(16, kernel=1))


def test_ends_are_rows_of_their_tensors_and_what_lies_between_is_never_whole() -> None:
    strips = in_strips(tall(16), 0, 1, 2)
    first, second = strips.tensors["x[0:9]"], strips.tensors["x[7:16]"]
    assert (first.parent, first.first_row, second.first_row) == ("x", 0, 7)
    assert strips.tensors["t1[8:16]"].parent == "t1"
    assert "t0" not in strips.tensors
    plan = plan_memory(strips)
    assert plan.offsets["x[7:16]"] == plan.offsets["x"] + 7 * 6 * 2
    assert plan.offsets["t1[8:16]"] == plan.offsets["t1"] + 8 * 6 * 12


def test_a_search_takes_less_ram_within_its_budget() -> None:
    graph = tall(32)
    found = stream(graph, 0.2)
    assert 0 < found.extra_macs <= 0.2 * macs(graph)
    assert found.extra_macs == macs(found.graph) - macs(graph)
    assert found.saved_bytes == plan_memory(graph).arena_bytes - plan_memory(found.graph).arena_bytes > 0


def test_without_a_budget_nothing_changes_and_a_negative_one_is_refused() -> None:
    graph = tall(32)
    assert stream(graph, 0.0).graph is graph
    with pytest.raises(ValueError, match=r"is -0.1; it must not be negative"):
        stream(graph, -0.1)


def test_runs_end_where_a_tensor_has_two_readers() -> None:
    graph = tall()
    assert sorted(runs_over(graph, 1)) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    assert runs_over(dataclasses.replace(graph, output="t1"), 1) == [(0, 1)]


def test_strips_run_on_host_and_board_and_share_one_table_of_weights() -> None:
    found = stream(tall(32), 0.2).graph
    compiled = compile_graph(found, load_kind("nrf52840-dk"))
    whole = compile_graph(tall(32), load_kind("nrf52840-dk"))
    network = HostNetwork(compiled.sources, found, compiled.plan)
    np.testing.assert_array_equal(network.run(inputs(found)), reference.output_of(tall(32), inputs(found)))
    expected = reference.run(found, inputs(found)[:1])
    assert reference.first_difference(found, expected, network.layer_outputs(inputs(found)[0])) is None
    profile_compiled(compiled, load_kind("nrf52840-dk"), n_inputs=2, seed=0)  # raises where an output differs
    assert compiled.image.rom.weights_bytes <= whole.image.rom.weights_bytes + 20 * len(found.layers)
