"""The memory plan: where each activation lies in the one static arena.

A buffer lives from the layer that writes it to the last layer that reads it; the input lives from the start and the
output to the end. Layers that work byte by byte may write over an input that dies with them. Finding the smallest arena
is a hard packing problem, so several greedy orders are tried, then a seeded local search; the result is compared with
the largest sum of buffers alive at once, below which no plan can go.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tasks.firmware.ir import AnyLayer, Graph
from tasks.firmware.kernels import Kernel, kernel_of

ALIGNMENT = 4  # kernels may read words
_SEARCH_ROUNDS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Buffer:
    """A piece of the arena that is alive during steps ``first`` … ``last`` (layer indices), both included. ``tensors``
    are the activations that share it by being written in place; none: the scratch of layer ``first``."""

    tensors: tuple[str, ...]
    n_bytes: int
    first: int
    last: int

    def lives_with(self, other: Buffer) -> bool:
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """``offsets`` gives each tensor's first byte in the arena, ``scratch_offsets`` and ``scratch_bytes`` those of what
    a layer writes aside, by layer index. ``lower_bound_bytes``: the most bytes alive in a step, here ``peak_step``; no
    plan with these lifetimes can be smaller."""

    buffers: tuple[Buffer, ...]
    offsets: dict[str, int]
    scratch_offsets: dict[int, int]
    scratch_bytes: dict[int, int]
    peak_step: int
    arena_bytes: int
    lower_bound_bytes: int

    def offset_of(self, buffer: Buffer) -> int:
        """The first byte of one of ``buffers`` in the arena."""
        return self.offsets[buffer.tensors[0]] if buffer.tensors else self.scratch_offsets[buffer.first]


def plan_memory(graph: Graph) -> Plan:
    """Place all activations of ``graph``; the same graph gives the same plan."""
    buffers = (*live_buffers(graph), *scratch_buffers(graph))
    alive = bytes_alive(buffers)
    bound = max(alive)
    places, size = pack(buffers, bound)
    placed = list(zip(buffers, places, strict=True))
    return Plan(
        buffers=buffers,
        offsets={name: place for buffer, place in placed for name in buffer.tensors},
        scratch_offsets={buffer.first: place for buffer, place in placed if not buffer.tensors},
        scratch_bytes={buffer.first: buffer.n_bytes for buffer in buffers if not buffer.tensors},
        peak_step=alive.index(bound),
        arena_bytes=size,
        lower_bound_bytes=bound,
    )


def scratch_buffers(graph: Graph) -> list[Buffer]:
    """What kernels write aside, alive during their own layer."""
    sizes = [_aligned(kernel_of(graph, layer).scratch_bytes) for layer in graph.layers]
    return [Buffer(tensors=(), n_bytes=size, first=i, last=i) for i, size in enumerate(sizes) if size]


def live_buffers(graph: Graph) -> tuple[Buffer, ...]:
    """Buffers with their lifetimes, in order of their first step."""
    last_use = {graph.input: 0}
    for index, layer in enumerate(graph.layers):
        for name in (*layer.inputs, layer.output):
            last_use[name] = index
    last_use[graph.output] = len(graph.layers) - 1
    owner = {graph.input: 0}
    groups: list[list[str]] = [[graph.input]]
    starts = [0]
    for index, layer in enumerate(graph.layers):
        dying = [name for name in layer.inputs if last_use[name] == index]
        reused = next((name for name in dying if _may_start_at(graph, layer, name)), None)
        if reused is None:
            groups.append([])
            starts.append(index)
        owner[layer.output] = len(groups) - 1 if reused is None else owner[reused]
        groups[owner[layer.output]].append(layer.output)
    return tuple(
        Buffer(
            tensors=tuple(names),
            n_bytes=_aligned(max(graph.tensors[name].n_bytes for name in names)),
            first=start,
            last=max(last_use[name] for name in names),
        )
        for names, start in zip(groups, starts, strict=True)
    )


def _may_start_at(graph: Graph, layer: AnyLayer, name: str) -> bool:
    """Whether the layer may write its output from where its input ``name`` starts."""
    kernel: Kernel = kernel_of(graph, layer)
    return kernel.is_in_place and (kernel.resizes or graph.tensors[name].n_bytes == graph.tensors[layer.output].n_bytes)


def bytes_alive(buffers: Sequence[Buffer]) -> list[int]:
    """Bytes alive in each step."""
    steps = range(max(buffer.last for buffer in buffers) + 1)
    return [sum(buffer.n_bytes for buffer in buffers if buffer.first <= step <= buffer.last) for step in steps]


def lower_bound(buffers: Sequence[Buffer]) -> int:
    """The most bytes alive in one step."""
    return max(bytes_alive(buffers))


def pack(buffers: Sequence[Buffer], bound: int) -> tuple[list[int], int]:
    """Offsets in the order of ``buffers``, and the arena's size: the best of all orders tried."""
    best: tuple[list[int], int] | None = None
    for order in _orders(buffers):
        places = _first_fit(buffers, order)
        size = max(place + buffer.n_bytes for place, buffer in zip(places, buffers, strict=True))
        if best is None or size < best[1]:
            best = places, size
        if size == bound:
            break
    assert best is not None
    if best[1] > bound:
        best = _search(buffers, best, bound)
    return best


def _orders(buffers: Sequence[Buffer]) -> list[list[int]]:
    """Greedy orders: by size, by length of life, by their product, by first and by last step."""
    keys: list[Callable[[Buffer], tuple[int, int]]] = [
        lambda buffer: (-buffer.n_bytes, buffer.first),
        lambda buffer: (buffer.first - buffer.last, -buffer.n_bytes),
        lambda buffer: (-buffer.n_bytes * (buffer.last - buffer.first + 1), buffer.first),
        lambda buffer: (buffer.first, -buffer.n_bytes),
        lambda buffer: (-buffer.last, -buffer.n_bytes),
    ]
    return [sorted(range(len(buffers)), key=lambda i, key=key: key(buffers[i])) for key in keys]  # type: ignore[misc]


def _first_fit(buffers: Sequence[Buffer], order: Sequence[int]) -> list[int]:
    """Place buffers in ``order``, each at the lowest offset that no buffer alive with it takes."""
    places = [-1] * len(buffers)
    done: list[int] = []
    for index in order:
        taken = sorted(
            (places[i], places[i] + buffers[i].n_bytes) for i in done if buffers[i].lives_with(buffers[index])
        )
        offset = 0
        for start, end in taken:
            if offset + buffers[index].n_bytes <= start:
                break
            offset = max(offset, end)
        places[index] = offset
        done.append(index)
    return places


def _search(buffers: Sequence[Buffer], best: tuple[list[int], int], bound: int) -> tuple[list[int], int]:
    """Exchange two buffers of the best order at random, keep what is no worse; the seed is fixed, so plans repeat."""
    generator = random.Random(0)
    order = sorted(range(len(buffers)), key=lambda i: (best[0][i], i))
    current = best[1]
    for _ in range(_SEARCH_ROUNDS):
        trial = list(order)
        i, j = generator.randrange(len(trial)), generator.randrange(len(trial))
        trial[i], trial[j] = trial[j], trial[i]
        places = _first_fit(buffers, trial)
        size = max(place + buffer.n_bytes for place, buffer in zip(places, buffers, strict=True))
        if size <= current:
            order, current = trial, size
        if size < best[1]:
            best = places, size
        if best[1] == bound:
            break
    return best


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT
