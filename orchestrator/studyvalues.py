"""What the values of a study file must be, beyond what the schema can say; and the schema's complaints in our words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, TypeAdapter, ValidationError

from orchestrator.errors import UsageError
from orchestrator.records import ParamValue
from orchestrator.space import SearchSpace
from orchestrator.studyfile import (
    OBJECTIVE_UNITS,
    CategoricalParameter,
    FloatParameter,
    IntParameter,
    Objective,
    Parameter,
    StudyFile,
    parse_quantity,
)
from orchestrator.studyschema import SECTIONS

# Less than this no firmware needs: the vector table, the start-up code and the kernels of one layer; the stack and the
# mailbox.
SMALLEST_ROM_BYTES = 1024
SMALLEST_RAM_BYTES = 256
MOST_CHOICES_TRIED = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistake:
    """``field`` is the path in the file (``space.network.width.low``), ``text`` what was found and what is allowed."""

    field: str
    text: str


def wrong_space(study: StudyFile) -> list[Mistake]:
    try:
        SearchSpace.from_parameters(study.space)
    except UsageError as error:
        field, _, text = str(error).partition(": ")
        return [Mistake(field=field, text=text)]
    return []


def telling_candidates(study: StudyFile) -> list[dict[str, ParamValue]]:
    """Candidates that between them meet what can be wrong: the smallest, the largest, and the smallest with each single
    choice."""
    space = SearchSpace.from_parameters(study.space)
    smallest, largest = (dict(space.decode(np.full(space.dim, corner))) for corner in (0.0, 1.0))
    searched = {name: item for name, item in study.space.items() if isinstance(item, CategoricalParameter)}
    others = [{**smallest, name: choice} for name, item in searched.items() for choice in item.choices]
    return [smallest, largest, *others[:MOST_CHOICES_TRIED]]


def readable(data: Mapping[str, Any], section: str, entry: TypeAdapter[Any]) -> dict[str, Any]:
    """Those entries of a section that are right in themselves, so that others' mistakes do not hide theirs."""
    found = data.get(section)
    readable = {}
    for name, value in found.items() if isinstance(found, dict) else ():
        try:
            readable[str(name)] = entry.validate_python(value)
        except ValidationError:
            continue
    return readable


def wrong_parameters(space: Mapping[str, Parameter]) -> list[Mistake]:
    """Values of searched or fixed training and compression options that those would refuse."""
    mistakes: list[Mistake] = []
    for name, parameter in space.items():
        first, _, option = name.partition(".")
        if first not in ("training", "compression"):
            continue
        if first == "compression" and option.startswith("sparsity."):
            option = "sparsity"
        model = SECTIONS[first]
        if option not in model.model_fields:
            continue
        if isinstance(parameter, FloatParameter) and model.model_fields[option].annotation is int:
            mistakes.append(Mistake(field=f"space.{name}", text=f"{option} is a whole number; use type: int"))
            continue
        for key, value in _values(parameter):
            mistakes += _refused(model, option, value, f"space.{name}.{key}" if key else f"space.{name}")
    return mistakes


def _values(parameter: Parameter) -> list[tuple[str, ParamValue]]:
    """The values that decide whether all are allowed, each with its field."""
    if isinstance(parameter, (FloatParameter, IntParameter)):
        return [("low", parameter.low), ("high", parameter.high)]
    if isinstance(parameter, CategoricalParameter):
        return [("choices", choice) for choice in parameter.choices]
    return [("value", parameter.value)]


def _refused(model: type[BaseModel], option: str, value: ParamValue, where: str) -> list[Mistake]:
    try:
        model.model_validate({option: value})
    except ValidationError as error:
        return [Mistake(field=where, text=f"found {value!r}; {allowed(dict(item))}") for item in error.errors()]
    return []


def wrong_objectives(objectives: Mapping[str, Objective], given: Any) -> list[Mistake]:
    """Limits that are missing, of another quantity, or such that no candidate can meet them; ``given`` is what stands
    in the file."""
    mistakes = _wrong_units(objectives, given)
    objectives = {
        name: item for name, item in objectives.items() if f"objectives.{name}.limit" not in _fields(mistakes)
    }
    mistakes += [
        Mistake(
            field=f"objectives.{name}",
            text=f"has no limit; {name} has no natural one, so set one, for example limit: {example}",
        )
        for name, example in (("latency", "20 ms"), ("energy", "1 mJ"))
        if name in objectives and objectives[name].limit is None
    ]
    for name, smallest in (("rom", SMALLEST_ROM_BYTES), ("ram", SMALLEST_RAM_BYTES)):
        limit = objectives[name].limit if name in objectives else None
        if limit is not None and limit < smallest:
            text = f"found {limit:g}; no firmware needs less than {smallest} bytes, so no candidate could meet it"
            mistakes.append(Mistake(field=f"objectives.{name}.limit", text=text))
    limit = objectives["error"].limit if "error" in objectives else None
    if limit is not None and limit > 1:
        text = f"found {limit:g}; the error is a share of the samples, from 0 to 1: write 0.05 or 5 % for 5 percent"
        mistakes.append(Mistake(field="objectives.error.limit", text=text))
    return mistakes


def _fields(mistakes: list[Mistake]) -> set[str]:
    return {item.field for item in mistakes}


def _wrong_units(objectives: Mapping[str, Objective], given: Any) -> list[Mistake]:
    """Limits with a unit of something else, such as ``rom: {limit: 3 ms}``."""
    mistakes = []
    for name in objectives.keys() & OBJECTIVE_UNITS.keys():
        limit = given[name].get("limit") if isinstance(given[name], dict) else None
        try:
            parse_quantity(limit, OBJECTIVE_UNITS[name] if name != "flops" else "")
        except ValueError as error:
            mistakes.append(Mistake(field=f"objectives.{name}.limit", text=str(error)))
    return mistakes


# ------------------------------------------------------------------------------------------- in our words


def short(found: Any) -> str:
    """The value as it was written, cut where it is long."""
    text = repr(found)
    return text if len(text) <= 80 else text[:80] + "…"


_IN_OUR_WORDS = {
    "too_short": "is empty; give at least one",
    "dict_type": "allowed: fields with values (name: …)",
    "model_type": "allowed: fields with values (name: …), or {} for none",
    "string_type": "allowed: text; write it in quotes if it looks like a number or a date",
}


_PATTERNS = {
    "name": "letters, digits, '.', '_' and '-', the first a letter or digit",
    "device": "cpu, auto, cuda, cuda:1 …, mps, xpu",
    "webhook": "an address of HTTP, http://host/… or https://host/…",
}


def allowed(item: Mapping[str, Any]) -> str:
    """What one of pydantic's errors says is allowed."""
    if item["type"] == "string_pattern_mismatch":
        text = next((_PATTERNS[part] for part in reversed(item["loc"]) if part in _PATTERNS), "")
        return f"allowed: {text or 'text like ' + str(item['ctx']['pattern'])}"
    if item["type"] in _IN_OUR_WORDS:
        return _IN_OUR_WORDS[item["type"]]
    message = str(item["msg"])
    for prefix in ("Value error, ", "Input should be "):
        if message.startswith(prefix):
            message = message[len(prefix) :]
            return message if prefix.startswith("Value") else f"allowed: {message}"
    return message
