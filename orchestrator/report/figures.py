"""Layers and memory of one network as figures, from the notes of a trial or of a compiled model; pages only draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.records import Json

COUNTED = ("cycles", "instructions")  # on a board; everything else of a layer is known exactly
_SHOWN_TENSORS = 3
_LABELLED = 0.06  # of the arena: what is lower has no room for text


def layer_sources(layers: Sequence[Json], fallback: str) -> dict[str, str]:
    """Where each measure of ``layers`` comes from. A layer says so itself; ``fallback`` is for notes of before. Where
    layers differ, or nothing is known, there is no source: no value passes for measured that may not be.
    """
    named = {str(layer.get("source") or fallback) for layer in layers}
    counted = named.pop() if len(named) == 1 else ""
    measures = {name for layer in layers for name, value in layer.items() if isinstance(value, (int, float))}
    return {name: counted if name in COUNTED else "exact" for name in sorted(measures)}


def memory_figure(memory: Json, layers: Sequence[Json]) -> Json | None:
    """Rectangles of the buffers in the arena: centre and width in layers, base and height in bytes; None for notes
    without a plan. ``groups``: those of activations, and those of scratch memory, which hold no tensor; ``labels``:
    what stands in the larger ones.
    """
    buffers = memory.get("arena")
    if not isinstance(buffers, list) or not buffers:
        return None
    n_layers = 1 + max(int(buffer["last_layer"]) for buffer in buffers)
    scratch = [buffer for buffer in buffers if not buffer["tensors"]]
    activations = [buffer for buffer in buffers if buffer["tensors"]]
    arena = max(buffer["offset"] + buffer["bytes"] for buffer in buffers)
    return {
        "arena_bytes": arena,
        "bound_bytes": memory["arena_lower_bound"],
        "peak_layer": memory.get("arena_peak_layer"),
        "names": [_layer_name(index, layers) for index in range(n_layers)],
        "labels": _labels([buffer for buffer in buffers if buffer["bytes"] >= _LABELLED * arena]),
        "groups": {"activations": _rectangles(activations), "scratch": _rectangles(scratch)},
    }


def _layer_name(index: int, layers: Sequence[Json]) -> str:
    return f"{index} {layers[index].get('op', '')}".rstrip() if index < len(layers) else str(index)


def _rectangles(buffers: Sequence[Mapping[str, object]]) -> dict[str, list[object]]:
    rows = [_rectangle(buffer) for buffer in buffers]
    names = ("x", "width", "base", "height", "about")
    return {name: [row[name] for row in rows] for name in names}


def _labels(buffers: Sequence[Json]) -> dict[str, list[object]]:
    """Texts in the middle of rectangles."""
    return {
        "x": [(buffer["first_layer"] + buffer["last_layer"]) / 2 for buffer in buffers],
        "y": [buffer["offset"] + buffer["bytes"] / 2 for buffer in buffers],
        "text": [f"{buffer['bytes']:,}" for buffer in buffers],
    }


def _rectangle(buffer: Mapping[str, object]) -> dict[str, object]:
    first, last, n_bytes = (int(str(buffer[name])) for name in ("first_layer", "last_layer", "bytes"))
    return {
        "x": (first + last) / 2,
        "width": last - first + 1,
        "base": buffer["offset"],
        "height": n_bytes,
        "about": f"{_contents(buffer)}: {n_bytes:,} bytes at {buffer['offset']:,}, "
        + (f"layer {first}" if first == last else f"layers {first} to {last}"),
    }


def _contents(buffer: Mapping[str, object]) -> str:
    tensors = buffer["tensors"]
    if not isinstance(tensors, list) or not tensors:
        return "scratch memory"
    rest = len(tensors) - _SHOWN_TENSORS
    return ", ".join(map(str, tensors[:_SHOWN_TENSORS])) + (f" and {rest} more" if rest > 0 else "")
