"""The pages: reports as one self-contained HTML file each, with style, script, plotly and data inside; and the files of
the live page, which a server hands out one by one."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, StrictUndefined
from plotly.offline import get_plotlyjs

from orchestrator.records import Json


def render(contents: Json) -> str:
    """The whole page for the data of :func:`orchestrator.report.contents.contents`."""
    return _render("report", contents, "charts.js", "front.js", "report.js")


def render_compiled(contents: Json) -> str:
    """The whole page for the data of :func:`orchestrator.report.compiled.contents`."""
    return _render("compiled", contents, "charts.js", "compiled.js")


@dataclass(frozen=True, kw_only=True, slots=True)
class Asset:
    """A file of the live page; ``packed`` is the same with gzip, ``tag`` its HTTP entity tag."""

    body: bytes
    kind: str
    packed: bytes
    tag: str


def live_assets() -> dict[str, Asset]:
    """The live page's files by their paths; ``/page`` and ``/login`` are the two pages themselves."""
    style = _resource("colours.css") + _resource("live.css")
    return {
        "/page": _asset(_resource("live.html"), "text/html"),
        "/login": _asset(_resource("login.html"), "text/html"),
        "/live.css": _asset(style, "text/css"),
        "/live.js": _asset(_resource("charts.js") + _resource("live.js"), "text/javascript"),
        "/login.js": _asset(_resource("login.js"), "text/javascript"),
        "/plotly.js": _asset(get_plotlyjs(), "text/javascript"),
    }


def _asset(text: str, kind: str) -> Asset:
    body = text.encode("utf-8")
    tag = f'"{hashlib.sha256(body).hexdigest()[:24]}"'
    return Asset(body=body, kind=f"{kind}; charset=utf-8", packed=gzip.compress(body, 6, mtime=0), tag=tag)


def _render(page: str, contents: Json, *scripts: str) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_resource(f"{page}.html.j2"))
    return template.render(
        report=contents,
        data=script_json(contents),
        style=_resource("colours.css") + _resource("report.css"),
        script="".join(_resource(name) for name in scripts),
        plotly=get_plotlyjs(),
    )


def script_json(data: Json) -> str:
    """JSON that may stand inside a script element: no text in it can end the element or open a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _resource(name: str) -> str:
    return resources.files("orchestrator.report").joinpath(name).read_text(encoding="utf-8")
