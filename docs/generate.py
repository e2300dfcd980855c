"""Writes the generated parts of the documentation: everything between a pair of marks

    <!-- generated: NAME -->
    …
    <!-- end -->

is replaced by what the program says about itself. ``make docs`` runs this; a test fails where a page is behind.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.testing import CliRunner
from pydantic import BaseModel

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from mcu_agent.meters.fields import MeterField
    from mcu_agent.rackfields import Field as RackField

_MARK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def metrics() -> str:
    from orchestrator.metrics import describe

    return describe()


def service_metrics() -> str:
    from orchestrator.service_metrics import describe

    return describe()


def agent_metrics() -> str:
    from tasks.agent_metrics import describe

    return describe()


def worker_metrics() -> str:
    from tasks.worker_metrics import describe

    return describe()


def cli() -> str:
    return "\n\n".join(_command_text(words) for words, _ in commands(main_command(), ("edgefront",)))


def kernels() -> str:
    from tasks.firmware.kernel_table import cells, conditions, rows

    found = rows()
    head, *lines = ["| " + " | ".join(row) + " |" for row in cells(found)]
    line = "|" + "---|" * len(cells(found)[0])
    return "\n".join([head, line, *lines, "", *conditions(found)]).replace("<", "&lt;")


def main_command() -> click.Group:
    from cli import main

    return main


def commands(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that does something, with the words that call it, in the order of the help."""
    if isinstance(command, click.Group):
        if command.invoke_without_command and len(words) > 1:
            yield words, command
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None:
                yield from commands(child, (*words, name))
    else:
        yield words, command


def _command_text(words: tuple[str, ...]) -> str:
    """The command's help as a terminal of 100 columns shows it."""
    arguments = [*words[1:], "--help"]
    shown = CliRunner().invoke(main_command(), arguments, prog_name=words[0], terminal_width=100)
    return f"## `{' '.join(words)}`\n\n```text\n{shown.output.rstrip()}\n```"


def study_file() -> str:
    from orchestrator import studyfile
    from orchestrator.studycheck import json_schema

    schema = json_schema()
    parts = [_model_text("", studyfile.StudyFile, schema)]
    for name, field in studyfile.StudyFile.model_fields.items():
        model = field.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            parts.append(_model_text(name, model, schema["$defs"][model.__name__]))
    for title, model in (
        ("notify", studyfile.Notify),
        ("budget.plateau", studyfile.Plateau),
        ("objectives.<name>", studyfile.Objective),
        ("space.<name>, type: float", studyfile.FloatParameter),
        ("space.<name>, type: int", studyfile.IntParameter),
        ("space.<name>, type: categorical", studyfile.CategoricalParameter),
        ("space.<name>, type: fixed", studyfile.FixedParameter),
    ):
        parts.append(_model_text(title, model, schema["$defs"][model.__name__]))
    return "\n\n".join(parts)


def _model_text(title: str, model: type[BaseModel], schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = [
        f"| `{name}` | {_type_text(entry)} | {_default_text(name, entry, required)} | {_meaning(entry)} |"
        for name, entry in schema["properties"].items()
    ]
    about = " ".join((model.__doc__ or "").split()).replace("``", "`")
    about = re.sub(r":\w+:`([^`]+)`", r"`\1`", about)
    head = f"### `{title}`" if title else "### top level"
    text = [head, "", about, "", "| field | takes | default | |", "|---|---|---|---|", *rows]
    return "\n".join(text if about else [text[0], *text[3:]])


def _meaning(entry: dict[str, Any]) -> str:
    text = " ".join(str(entry.get("description", "")).split())
    return text.replace("``", "`").replace("|", "/").replace("<", "&lt;")


def _default_text(name: str, entry: dict[str, Any], required: set[str]) -> str:
    if name in required:
        return "**required**"
    default = entry.get("default")
    if default is None or default == {}:
        return "–"
    return "see below" if isinstance(default, dict) else f"`{json.dumps(default)}`"


_TYPE_WORDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true` or `false`"}
_QUANTITY_PATTERN = r"^\s*[0-9.]+"  # a number with a unit, as text
_NONSENSE = 1e5
_BOUNDS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))


def _type_text(entry: dict[str, Any]) -> str:
    if "$ref" in entry:
        return "see below"
    if "enum" in entry:
        return ", ".join(f"`{choice}`" for choice in entry["enum"])
    if "const" in entry:
        return f"`{entry['const']}`"
    if "anyOf" in entry:
        options = [_type_text(option) for option in entry["anyOf"] if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(options))
    if entry.get("type") == "array":
        return f"list of {_type_text(entry.get('items', {}))}"
    return "mapping" if entry.get("type") == "object" else _scalar_text(entry)


def _scalar_text(entry: dict[str, Any]) -> str:
    if entry.get("pattern", "").startswith(_QUANTITY_PATTERN):
        return "quantity"
    word = _TYPE_WORDS.get(str(entry.get("type")), "anything")
    # Bounds that only keep nonsense out say nothing to the reader.
    known = [(sign, entry[key]) for key, sign in _BOUNDS if key in entry and abs(entry[key]) < _NONSENSE]
    return ", ".join([word, *(f"{sign} {bound:g}" for sign, bound in known)])


def rack_file() -> str:
    from mcu_agent.meters.fields import METER_DRIVERS
    from mcu_agent.rackfields import POWER, TABLES

    titles = {name: f"`[[{name}]]`" if name in ("board", "hub") else f"`[{name}]`" for name in TABLES}
    tables = {"board": TABLES["board"], "power": POWER, **TABLES}
    parts = [_rack_table(titles.get(name, "`power`, of a board"), fields) for name, fields in tables.items()]
    rows = [
        f"| `{driver}` | {', '.join(_meter_field(one) for one in fields) or 'nothing more'} |"
        for driver, fields in METER_DRIVERS.items()
    ]
    meter = "\n".join(["### `meter`, of a board", "", "| `driver` | further fields |", "|---|---|", *rows])
    return "\n\n".join([*parts[:2], meter, *parts[2:]])


def _rack_table(title: str, fields: Mapping[str, RackField]) -> str:
    rows = []
    for name, field in fields.items():
        default = field.default or "–"
        if field.needed_by and set(field.needed_by) >= set(field.drivers):
            default = "**required**"
        takes = "a name from `edgefront boards`" if "{" in field.allowed and name == "kind" else field.allowed
        only = f" ({', '.join(field.drivers)})" if field.drivers else ""
        rows.append(f"| `{name}`{only} | {takes} | {default} | {field.meaning} |")
    return "\n".join([f"### {title}", "", "| field | takes | default | |", "|---|---|---|---|", *rows])


def _meter_field(field: MeterField) -> str:
    name = "supply" if field.name == "supply_v" else field.name
    return f"`{name}`{' (required)' if field.is_required else ''}: {field.allowed.replace('|', '/')}"


GENERATED: dict[str, Callable[[], str]] = {
    "rack-file": rack_file,
    "metrics": metrics,
    "agent-metrics": agent_metrics,
    "worker-metrics": worker_metrics,
    "service-metrics": service_metrics,
    "cli": cli,
    "kernels": kernels,
    "study-file": study_file,
}


def render(page: str) -> str:
    """The page with every generated part brought up to date."""
    return _MARK.sub(lambda match: f"{match.group(1)}{GENERATED[match.group(2)]()}\n{match.group(3)}", page)


def pages() -> list[Path]:
    return [page for page in sorted((ROOT / "docs").glob("*.md")) if _MARK.search(page.read_text(encoding="utf-8"))]


def main() -> None:
    for page in pages():
        page.write_text(render(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
