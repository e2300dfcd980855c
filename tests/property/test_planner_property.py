"""What holds for every memory plan."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.firmware.ir import Graph
from tasks.firmware.kernels import kernel_of
from tasks.firmware.planner import ALIGNMENT, Buffer, allowed_overlaps, lower_bound, pack, plan_memory
from tests.support.networks import graphs


@st.composite
def buffers(draw: st.DrawFn) -> Buffer:
    first = draw(st.integers(0, 20))
    n_bytes = 4 * draw(st.integers(1, 500))
    return Buffer(tensors=("t",), n_bytes=n_bytes, first=first, last=first + draw(st.integers(0, 6)))


@given(st.lists(buffers(), min_size=1, max_size=16))
@settings(max_examples=60, deadline=None)
def test_live_buffers_never_overlap_and_no_plan_beats_the_bound(items: list[Buffer]) -> None:
    bound = lower_bound(items)
    places, size = pack(items, bound)
    assert bound <= size <= sum(item.n_bytes for item in items)
    for (place, item), (other_place, other) in itertools.combinations(list(zip(places, items, strict=True)), 2):
        if item.lives_with(other):
            assert place + item.n_bytes <= other_place or other_place + other.n_bytes <= place
    assert max(place + item.n_bytes for place, item in zip(places, items, strict=True)) == size


@given(graphs())
@settings(max_examples=60, deadline=None)
def test_every_tensor_has_room_apart_from_all_that_is_still_needed(graph: Graph) -> None:
    plan = plan_memory(graph)
    last_use = {name: index for index, layer in enumerate(graph.layers) for name in (*layer.inputs, layer.output)}
    last_use[graph.output] = len(graph.layers)
    written = {graph.input: -1} | {layer.output: index for index, layer in enumerate(graph.layers)}
    for name in written:
        assert plan.offsets[name] % ALIGNMENT == 0
        assert plan.offsets[name] + graph.tensors[name].n_bytes <= plan.arena_bytes
    for index, layer in enumerate(graph.layers):
        # While layer `index` writes, nothing that is read later may lie under its output.
        start, end = plan.offsets[layer.output], plan.offsets[layer.output] + graph.tensors[layer.output].n_bytes
        for name in written:
            if name != layer.output and written[name] < index < last_use.get(name, -1):
                assert plan.offsets[name] + graph.tensors[name].n_bytes <= start or end <= plan.offsets[name]


@given(graphs())
@settings(max_examples=30, deadline=None)
def test_outputs_lie_over_nothing_but_inputs_that_die_there(graph: Graph) -> None:
    plan = plan_memory(graph)
    places = [plan.offset_of(buffer) for buffer in plan.buffers]
    kernels = [kernel_of(graph, layer) for layer in graph.layers]
    allowed = {(item.source, item.target): item for item in allowed_overlaps(graph, kernels, plan.buffers)}
    for (i, first), (j, second) in itertools.permutations(enumerate(plan.buffers), 2):
        apart = places[i] + first.n_bytes <= places[j] or places[j] + second.n_bytes <= places[i]
        if apart or not first.lives_with(second) or (j, i) in allowed:
            continue
        assert allowed[i, j].allows(places[i], places[j])
        assert first.last == second.first
