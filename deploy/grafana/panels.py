"""Grafana's panels as plain data: the few kinds that the dashboards are made of, and how they are laid out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

DATASOURCE: Json = {"type": "prometheus", "uid": "edgefront-prometheus"}
COLUMNS = 24
_GREEN, _YELLOW, _RED, _BLUE = "green", "yellow", "red", "blue"


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """One line of PromQL. ``is_now``: only the newest value is asked for, which is what tables and bars show."""

    expr: str
    legend: str = ""
    is_now: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """``width`` and ``height`` are in Grafana's grid of 24 columns; ``steps`` maps a threshold to the colour from there
    on; ``more`` goes into the panel as it is, ``defaults`` into the field settings."""

    title: str
    about: str
    kind: str
    queries: Sequence[Query]
    unit: str = "short"
    width: int = 8
    height: int = 8
    decimals: int | None = None
    highest: float | None = None
    steps: Mapping[float, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    overrides: Sequence[Json] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A heading with the panels below it, laid out from left to right."""

    title: str
    panels: Sequence[Panel]


def lines(
    title: str, about: str, queries: Sequence[Query], unit: str = "short", *, stacked: bool = False, **more: Any
) -> Panel:
    """Values over time."""
    custom: Json = {
        "drawStyle": "line",
        "lineWidth": 2,
        "fillOpacity": 30 if stacked else 8,
        "showPoints": "never",
        "spanNulls": True,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
    }
    options: Json = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    defaults = {"custom": custom, "min": 0, "color": {"mode": "palette-classic"}, **more.pop("defaults", {})}
    return Panel(
        title=title,
        about=about,
        kind="timeseries",
        queries=queries,
        unit=unit,
        defaults=defaults,
        options=options,
        **more,
    )


def number(title: str, about: str, query: Query, unit: str = "short", *, spark: bool = True, **more: Any) -> Panel:
    """One large figure, to be read across the room."""
    options: Json = {
        "colorMode": "value",
        "graphMode": "area" if spark else "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    size = {"width": 4, "height": 5, **more}
    return Panel(title=title, about=about, kind="stat", queries=[query], unit=unit, options=options, **size)


def dial(title: str, about: str, query: Query, unit: str = "percentunit", **more: Any) -> Panel:
    """A share of something on an arc."""
    options: Json = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "showThresholdLabels": False,
        "showThresholdMarkers": False,
    }
    size = {"width": 4, "height": 5, "highest": 1.0, **more}
    defaults = {"min": 0}
    return Panel(
        title=title, about=about, kind="gauge", queries=[query], unit=unit, options=options, defaults=defaults, **size
    )


def bars(title: str, about: str, query: Query, unit: str = "short", **more: Any) -> Panel:
    """The newest values side by side."""
    options: Json = {
        "displayMode": "basic",
        "orientation": "horizontal",
        "showUnfilled": True,
        "valueMode": "text",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    return Panel(
        title=title,
        about=about,
        kind="bargauge",
        queries=[query],
        unit=unit,
        options=options,
        defaults={"min": 0, "color": {"mode": "palette-classic"}},
        **more,
    )


def table(
    title: str, about: str, columns: Mapping[str, tuple[str, str]], *, keys: Mapping[str, str], **more: Any
) -> Panel:
    """One line for each set of ``keys`` (label → heading); ``columns`` maps a heading to (query, unit)."""
    names = {chr(ord("A") + index): heading for index, heading in enumerate(columns)}
    hidden = dict.fromkeys(("Time", "__name__", "instance", "job"), True)
    renamed = {f"Value #{letter}": heading for letter, heading in names.items()} | dict(keys)
    overrides = [
        {
            "matcher": {"id": "byName", "options": heading},
            "properties": [{"id": "unit", "value": unit}],
        }
        for heading, (_, unit) in columns.items()
    ]
    transformations = [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": hidden, "indexByName": {}, "renameByName": renamed}},
    ]
    return Panel(
        title=title,
        about=about,
        kind="table",
        queries=[Query(expr=expr, is_now=True) for expr, _ in columns.values()],
        overrides=overrides,
        options={"showHeader": True, "cellHeight": "sm"},
        more={"transformations": transformations},
        **more,
    )


def dashboard(
    uid: str, title: str, about: str, variables: Sequence[Json], rows: Sequence[Row], *, since: str = "now-6h"
) -> Json:
    """The whole dashboard, with links to its sisters."""
    return {
        "uid": uid,
        "title": title,
        "description": about,
        "tags": ["edgefront"],
        "timezone": "browser",
        "schemaVersion": 41,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": since, "to": "now"},
        "annotations": {"list": []},
        "links": [
            {
                "title": "Edgefront",
                "type": "dashboards",
                "tags": ["edgefront"],
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
                "icon": "external link",
                "targetBlank": False,
                "tooltip": "",
                "url": "",
            }
        ],
        "templating": {"list": list(variables)},
        "panels": _laid_out(rows),
    }


def variable(name: str, label: str, query: str, *, several: bool) -> Json:
    """A choice at the top of the page, filled from the values of a label."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": several,
        "includeAll": several,
        "allValue": ".*" if several else None,
        "current": {"text": "All", "value": "$__all"} if several else {},
        "hide": 0,
    }


def _laid_out(rows: Sequence[Row]) -> list[Json]:
    found: list[Json] = []
    y = 0
    for row in rows:
        place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        heading = {"id": len(found) + 1, "type": "row", "title": row.title, "collapsed": False, "gridPos": place}
        found.append({**heading, "panels": []})
        x, y, tallest = 0, y + 1, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            found.append(_panel(panel, len(found) + 1, x, y))
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return found


def _panel(panel: Panel, number: int, x: int, y: int) -> Json:
    first = next(iter(panel.steps.values()), _BLUE if panel.kind in ("stat", "gauge") else _GREEN)
    steps = [{"color": first, "value": None}]
    steps += [{"color": colour, "value": value} for value, colour in list(panel.steps.items())[1:]]
    defaults: Json = {
        "unit": panel.unit,
        "color": {"mode": "thresholds"},
        "thresholds": {"mode": "absolute", "steps": steps},
        "noValue": "–",
        **panel.defaults,
    }
    if panel.decimals is not None:
        defaults["decimals"] = panel.decimals
    if panel.highest is not None:
        defaults["max"] = panel.highest
    return {
        "id": number,
        "title": panel.title,
        "description": panel.about,
        "type": panel.kind,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": list(panel.overrides)},
        "options": dict(panel.options),
        "targets": [_target(query, chr(ord("A") + index)) for index, query in enumerate(panel.queries)],
        **panel.more,
    }


def _target(query: Query, letter: str) -> Json:
    return {
        "refId": letter,
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        "datasource": DATASOURCE,
        "editorMode": "code",
        "instant": query.is_now,
        "range": not query.is_now,
        "format": "table" if query.is_now else "time_series",
    }
