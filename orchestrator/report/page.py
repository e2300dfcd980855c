"""One self-contained HTML file: style, script, plotly and data inside, nothing fetched."""

from __future__ import annotations

import json
from importlib import resources

from jinja2 import Environment, StrictUndefined
from plotly.offline import get_plotlyjs

from orchestrator.records import Json


def render(contents: Json) -> str:
    """The whole page for the data of :func:`orchestrator.report.contents.contents`."""
    return _render("report", contents)


def render_compiled(contents: Json) -> str:
    """The whole page for the data of :func:`orchestrator.report.compiled.contents`."""
    return _render("compiled", contents)


def _render(page: str, contents: Json) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_resource(f"{page}.html.j2"))
    return template.render(
        report=contents,
        data=script_json(contents),
        style=_resource("report.css"),
        script=_resource("charts.js") + _resource(f"{page}.js"),
        plotly=get_plotlyjs(),
    )


def script_json(data: Json) -> str:
    """JSON that may stand inside a script element: no text in it can end the element or open a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _resource(name: str) -> str:
    return resources.files("orchestrator.report").joinpath(name).read_text(encoding="utf-8")
