"""What the page about one compiled model says, as plain JSON: from what ``edgefront compile`` reports."""

from __future__ import annotations

from pathlib import PurePath

from orchestrator.quantities import exact, show, title
from orchestrator.records import Json, Source, Value
from orchestrator.report.contents import SOURCE_TEXTS
from orchestrator.report.figures import layer_sources, memory_figure

_HEADLINE = ("rom", "arena", "ram", "macs", "cycles", "latency")


def contents(report: Json, memory: Json) -> Json:
    """The page's data. ``report`` is ``report.json``; ``memory`` the memory map that a trial's notes have, too."""
    totals = {name: Value.from_json(value) for name, value in report["totals"].items()}
    layers = report["layers"]
    return {
        "name": PurePath(report["model"]).name,
        **{name: report[name] for name in ("model", "sha256", "board", "core", "clock_hz", "compiler", "inputs")},
        "headline": [_figure(name, totals[name]) for name in _HEADLINE if name in totals],
        "totals": [
            [title(name), _exact_text(name, value), value.source.value, value.note] for name, value in totals.items()
        ],
        "layers": layers,
        "layer_sources": layer_sources(layers, ""),
        "memory": memory_figure(memory, layers),
        "sources": [[source.value, SOURCE_TEXTS[source]] for source in Source if _is_used(source, totals)],
    }


def _is_used(source: Source, totals: dict[str, Value]) -> bool:
    return any(value.source is source for value in totals.values())


def _figure(name: str, value: Value) -> Json:
    return {"title": title(name), "figure": show(value.amount, value.unit, name), "about": value.source.value}


def _exact_text(name: str, value: Value) -> str:
    """Every digit of what is counted."""
    return exact(value.amount, value.unit) if value.unit in ("1", "byte") else show(value.amount, value.unit, name)
