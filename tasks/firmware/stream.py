"""Streaming: a run of layers computed strip by strip, so that no tensor between them is ever whole.

Rows of an image lie behind each other, so a strip of an output is a piece of its tensor, and a strip of an input
likewise: both are *views*, tensors that are rows of another one. What lies between the first and the last layer of the
run exists as strips only. Windows that are taller than their stride make strips need rows that their neighbours need
too; these are computed twice, which is the price: RAM for multiply-accumulates, with the same bytes at the end.

The run is searched for around the layer that sets the arena's size, again and again while it pays.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tasks.firmware.emit import count_macs
from tasks.firmware.ir import AnyLayer, AvgPool, Conv2d, Graph, MaxPool, Pads, Tensor, Window, op_name
from tasks.firmware.planner import plan_memory

_STRIPS = (2, 3, 4, 6, 8, 12, 16)
_LONGEST_RUN = 6
_ROUNDS = 4

_WindowLayer = Conv2d | MaxPool | AvgPool


@dataclass(frozen=True, kw_only=True, slots=True)
class Streamed:
    """``graph`` gives the same bytes as the one it was made from. ``extra_macs`` are what strips compute twice,
    ``saved_bytes`` what the arena is smaller by."""

    graph: Graph
    extra_macs: int
    saved_bytes: int


def stream(graph: Graph, most_extra: float) -> Streamed:
    """The graph with the smallest arena found for at most the share ``most_extra`` of more multiply-accumulates.

    Raises:
        ValueError: the share is negative.
    """
    if most_extra < 0:
        raise ValueError(f"the share of more multiply-accumulates is {most_extra}; it must not be negative")
    macs, arena = _total_macs(graph), plan_memory(graph).arena_bytes
    best, size = graph, arena
    for _ in range(_ROUNDS if most_extra else 0):
        found = min(_candidates(best, macs * (1 + most_extra)), key=lambda item: item[0], default=(size, best))
        if found[0] >= size:
            break
        size, best = found
    return Streamed(graph=best, extra_macs=_total_macs(best) - macs, saved_bytes=arena - size)


def _candidates(graph: Graph, most_macs: float) -> Iterator[tuple[int, Graph]]:
    """(arena, graph) with one more run of layers in strips, over the layer that sets the arena now."""
    peak = plan_memory(graph).peak_step
    for start, end in runs_over(graph, peak):
        rows = graph.tensors[graph.layers[end].output].shape[0]
        for n_strips in (n for n in _STRIPS if n <= rows):
            made = in_strips(graph, start, end, n_strips)
            if _total_macs(made) <= most_macs:
                yield plan_memory(made).arena_bytes, made


def _total_macs(graph: Graph) -> int:
    return sum(count_macs(graph, layer) for layer in graph.layers)


def runs_over(graph: Graph, step: int) -> list[tuple[int, int]]:
    """(first, last) layer of the runs of two or more layers that hold ``step`` and can be streamed."""
    users = Counter(name for layer in graph.layers for name in layer.inputs) + Counter([graph.output])
    linked = [_follows(graph.layers[i : i + 2], users) for i in range(len(graph.layers) - 1)]
    return [
        (start, end)
        for start in range(max(0, step - _LONGEST_RUN), step + 1)
        for end in range(max(step, start + 1), min(len(graph.layers), start + _LONGEST_RUN))
        if all(linked[start:end]) and not _is_view(graph, start, end)
    ]


def _follows(pair: Sequence[AnyLayer], users: Counter[str]) -> bool:
    """Whether the second layer is the only one to read what the first gives, and both see windows."""
    first, second = pair
    return _can_stream(first) and _can_stream(second) and second.inputs == (first.output,) and users[first.output] == 1


def _can_stream(layer: AnyLayer) -> bool:
    return isinstance(layer, (MaxPool, AvgPool)) or op_name(layer) in ("conv2d", "dwconv2d")


def _is_view(graph: Graph, start: int, end: int) -> bool:
    names = (graph.layers[start].inputs[0], graph.layers[end].output)
    return any(graph.tensors[name].parent for name in names)


def in_strips(graph: Graph, start: int, end: int, n_strips: int) -> Graph:
    """Layers ``start`` … ``end`` as ``n_strips`` strips of about as many rows of the last one's output each."""
    run = [layer for layer in graph.layers[start : end + 1] if isinstance(layer, _WindowLayer)]
    rows = graph.tensors[run[-1].output].shape[0]
    cuts = [rows * i // n_strips for i in range(n_strips + 1)]
    tensors = {name: tensor for name, tensor in graph.tensors.items() if name not in {item.output for item in run[:-1]}}
    layers: list[AnyLayer] = []
    for first, last in pairwise(cuts):
        strip = _Strip(graph, run, first, last)
        tensors |= {tensor.name: tensor for tensor in strip.tensors}
        layers += strip.layers
    return dataclasses.replace(
        graph, tensors=tensors, layers=(*graph.layers[:start], *layers, *graph.layers[end + 1 :])
    )


class _Strip:
    """The layers of a run that make rows ``first`` … ``last`` - 1 of its output, and their tensors."""

    def __init__(self, graph: Graph, run: Sequence[_WindowLayer], first: int, last: int) -> None:
        self.layers: list[AnyLayer] = []
        self.tensors: list[Tensor] = []
        target = self._rows(graph.tensors[run[-1].output], first, last, is_view=True)
        for position in range(len(run) - 1, -1, -1):
            layer = run[position]
            source = graph.tensors[layer.inputs[0]]
            start, end = _rows_seen(layer.window, first, last)
            pads = dataclasses.replace(layer.window.pads, top=max(0, -start), bottom=max(0, end - source.shape[0]))
            low, high = max(0, start), min(source.shape[0], end)
            seen = self._rows(source, low, high, is_view=position == 0)
            self.layers.insert(0, _moved(layer, seen.name, target.name, pads, f"[{first}:{last}]"))
            target, first, last = seen, low, high

    def _rows(self, whole: Tensor, first: int, last: int, *, is_view: bool) -> Tensor:
        shape = (last - first, *whole.shape[1:])
        parent, row = (whole.name, first) if is_view else ("", 0)
        made = dataclasses.replace(
            whole, name=f"{whole.name}[{first}:{last}]", shape=shape, parent=parent, first_row=row
        )
        self.tensors.append(made)
        return made


def _rows_seen(window: Window, first: int, last: int) -> tuple[int, int]:
    """The rows that outputs ``first`` … ``last`` - 1 see, beyond the input where they see padding."""
    start = first * window.stride[0] - window.pads.top
    reach = (window.kernel[0] - 1) * window.dilation[0] + 1
    return start, start + (last - first - 1) * window.stride[0] + reach


def _moved(layer: _WindowLayer, source: str, target: str, pads: Pads, rows: str) -> AnyLayer:
    window = dataclasses.replace(layer.window, pads=pads)
    return dataclasses.replace(layer, name=layer.name + rows, inputs=(source,), output=target, window=window)
