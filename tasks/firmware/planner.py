"""The memory plan: where each activation lies in the one static arena.

A buffer lives from the layer that writes it to the last layer that reads it; the input lives from the start and the
output to the end. Two that live at once lie apart, with one exception: a layer's output may lie over an input that dies
with the layer as far as the layer's kernel reads before it writes (:class:`tasks.firmware.kernels.Sharing`). Finding
the smallest arena is a hard packing problem, so several greedy orders are tried, then a seeded local search; the result
is compared with the most bytes alive in one step, below which no plan can go.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from tasks.firmware.ir import Graph
from tasks.firmware.kernels import Kernel, kernel_of

ALIGNMENT = 4  # kernels may read words
_SEARCH_ROUNDS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Buffer:
    """A piece of the arena that is alive during steps ``first`` … ``last`` (layer indices), both included. ``tensors``
    names the activation in it; empty: the scratch of layer ``first``."""

    tensors: tuple[str, ...]
    n_bytes: int
    first: int
    last: int

    def lives_with(self, other: Buffer) -> bool:
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """Buffer ``target`` may start ``low`` to ``high`` bytes behind buffer ``source`` (indices; None: any number)."""

    source: int
    target: int
    low: int | None
    high: int | None

    def allows(self, source: int, target: int) -> bool:
        """Whether these are places at which the two may overlap."""
        distance = target - source
        return (self.low is None or distance >= self.low) and (self.high is None or distance <= self.high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """``offsets`` gives each tensor's first byte in the arena, ``scratch_offsets`` and ``scratch_bytes`` those of what
    a layer writes aside, by layer index. ``bytes_alive``: in each step, where the output lies as far over an input as
    it may; ``lower_bound_bytes``, the most of them, in step ``peak_step``: no plan can be smaller."""

    buffers: tuple[Buffer, ...]
    offsets: dict[str, int]
    scratch_offsets: dict[int, int]
    scratch_bytes: dict[int, int]
    bytes_alive: tuple[int, ...]
    peak_step: int
    arena_bytes: int
    lower_bound_bytes: int

    def offset_of(self, buffer: Buffer) -> int:
        """The first byte of one of ``buffers`` in the arena."""
        return self.offsets[buffer.tensors[0]] if buffer.tensors else self.scratch_offsets[buffer.first]


def plan_memory(graph: Graph) -> Plan:
    """Place all activations of ``graph``; the same graph gives the same plan."""
    kernels = [kernel_of(graph, layer) for layer in graph.layers]
    buffers = (*live_buffers(graph), *scratch_buffers(kernels))
    overlaps = allowed_overlaps(graph, kernels, buffers)
    alive = bytes_alive(buffers, overlaps)
    bound = max(alive)
    places, size = pack(buffers, bound, overlaps)
    placed = list(zip(buffers, places, strict=True))
    return Plan(
        buffers=buffers,
        offsets=_offsets(graph, {name: place for buffer, place in placed for name in buffer.tensors}),
        scratch_offsets={buffer.first: place for buffer, place in placed if not buffer.tensors},
        scratch_bytes={buffer.first: buffer.n_bytes for buffer in buffers if not buffer.tensors},
        bytes_alive=tuple(alive),
        peak_step=alive.index(bound),
        arena_bytes=size,
        lower_bound_bytes=bound,
    )


def _offsets(graph: Graph, places: Mapping[str, int]) -> dict[str, int]:
    """The places of all tensors, those that are rows of another one with them."""
    found = dict(places)
    for name, tensor in graph.tensors.items():
        if tensor.parent:
            found[name] = places[tensor.parent] + tensor.first_row * prod(tensor.shape[1:])
    return found


def live_buffers(graph: Graph) -> tuple[Buffer, ...]:
    """One for each tensor that is written, with its lifetime, in order of their first step."""
    first, last = {graph.input: 0}, {graph.input: 0}
    for index, layer in enumerate(graph.layers):
        first.setdefault(graph.tensors[layer.output].owner, index)
        last |= dict.fromkeys((graph.tensors[name].owner for name in (*layer.inputs, layer.output)), index)
    last[graph.output] = len(graph.layers) - 1
    return tuple(
        Buffer(tensors=(name,), n_bytes=_aligned(graph.tensors[name].n_bytes), first=start, last=last[name])
        for name, start in first.items()
    )


def scratch_buffers(kernels: Sequence[Kernel]) -> list[Buffer]:
    """What kernels write aside, alive during their own layer."""
    sizes = [_aligned(kernel.scratch_bytes) for kernel in kernels]
    return [Buffer(tensors=(), n_bytes=size, first=i, last=i) for i, size in enumerate(sizes) if size]


def allowed_overlaps(graph: Graph, kernels: Sequence[Kernel], buffers: Sequence[Buffer]) -> list[Overlap]:
    """Of each layer's output with the inputs that die with the layer; none where either is rows of another tensor."""
    index_of = {name: index for index, buffer in enumerate(buffers) for name in buffer.tensors}
    found = []
    for step, (layer, kernel) in enumerate(zip(graph.layers, kernels, strict=True)):
        for sharing in kernel.sharings:
            if any(graph.tensors[name].parent for name in (layer.inputs[sharing.source], layer.output)):
                continue
            source = index_of[layer.inputs[sharing.source]]
            if buffers[source].last == step:
                low, high = sharing.low, sharing.high
                high = None if high is None else high // ALIGNMENT * ALIGNMENT
                found.append(Overlap(source=source, target=index_of[layer.output], low=low, high=high))
    return found


def bytes_alive(buffers: Sequence[Buffer], overlaps: Sequence[Overlap] = ()) -> list[int]:
    """Bytes alive in each step, less the most that an overlap may save in it."""
    saved: dict[int, int] = {}
    for overlap in overlaps:
        step = buffers[overlap.target].first
        saved[step] = max(saved.get(step, 0), _saving(overlap, buffers))
    steps = range(max(buffer.last for buffer in buffers) + 1)
    return [
        sum(buffer.n_bytes for buffer in buffers if buffer.first <= step <= buffer.last) - saved.get(step, 0)
        for step in steps
    ]


def _saving(overlap: Overlap, buffers: Sequence[Buffer]) -> int:
    """How much less than their sum the two can take up: the best of the ends of the range, and of starts or ends that
    fall together."""
    source, target = buffers[overlap.source].n_bytes, buffers[overlap.target].n_bytes
    candidates = {0, source - target, overlap.low, overlap.high} - {None}
    allowed = [
        distance
        for distance in candidates
        if distance is not None and -target < distance and overlap.allows(0, distance)
    ]
    return max((source + target - (max(source, at + target) - min(0, at)) for at in allowed), default=0)


def lower_bound(buffers: Sequence[Buffer], overlaps: Sequence[Overlap] = ()) -> int:
    """The most bytes alive in one step."""
    return max(bytes_alive(buffers, overlaps))


def pack(buffers: Sequence[Buffer], bound: int, overlaps: Sequence[Overlap] = ()) -> tuple[list[int], int]:
    """Offsets in the order of ``buffers``, and the arena's size: the best of all orders tried."""
    packing = _Packing(buffers, overlaps)
    best: tuple[list[int], int] | None = None
    for order in _orders(buffers):
        places, size = packing.place(order)
        if best is None or size < best[1]:
            best = places, size
        if size <= bound:
            break
    assert best is not None
    if best[1] > bound:
        best = _search(packing, best, bound)
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


class _Packing:
    """Places buffers one by one, each as low as those already placed allow."""

    def __init__(self, buffers: Sequence[Buffer], overlaps: Sequence[Overlap]) -> None:
        self.buffers = buffers
        self._rules = {(o.source, o.target): o for o in overlaps} | {(o.target, o.source): o for o in overlaps}
        self._rivals = [
            [i for i, other in enumerate(buffers) if i != index and buffer.lives_with(other)]
            for index, buffer in enumerate(buffers)
        ]

    def place(self, order: Sequence[int]) -> tuple[list[int], int]:
        """Offsets when placed in this order, and the size."""
        places: dict[int, int] = {}
        for index in order:
            rivals = [i for i in self._rivals[index] if i in places]
            candidates = {0} | {at for i in rivals for at in self._candidates(index, i, places[i])}
            places[index] = next(at for at in sorted(candidates) if self._fits(index, at, rivals, places))
        size = max(place + self.buffers[index].n_bytes for index, place in places.items())
        return [places[index] for index in range(len(self.buffers))], size

    def _candidates(self, index: int, rival: int, place: int) -> list[int]:
        """Places at which ``index`` just gets along with a rival."""
        found = [place + self.buffers[rival].n_bytes]
        rule = self._rules.get((index, rival))
        if rule is not None:
            sign = 1 if rule.target == index else -1
            found += [place + sign * at for at in (rule.low, rule.high) if at is not None]
        return [at for at in found if at >= 0]

    def _fits(self, index: int, at: int, rivals: Sequence[int], places: Mapping[int, int]) -> bool:
        end = at + self.buffers[index].n_bytes
        for rival in rivals:
            start = places[rival]
            if end <= start or start + self.buffers[rival].n_bytes <= at:
                continue
            rule = self._rules.get((index, rival))
            if rule is None or not (rule.allows(start, at) if rule.target == index else rule.allows(at, start)):
                return False
        return True


def _search(packing: _Packing, best: tuple[list[int], int], bound: int) -> tuple[list[int], int]:
    """Exchange two buffers of the best order at random, keep what is no worse; the seed is fixed, so plans repeat."""
    generator = random.Random(0)
    order = sorted(range(len(packing.buffers)), key=lambda i: (best[0][i], i))
    current = best[1]
    for _ in range(_SEARCH_ROUNDS):
        trial = list(order)
        i, j = generator.randrange(len(trial)), generator.randrange(len(trial))
        trial[i], trial[j] = trial[j], trial[i]
        places, size = packing.place(trial)
        if size <= current:
            order, current = trial, size
        if size < best[1]:
            best = places, size
        if best[1] <= bound:
            break
    return best


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT
