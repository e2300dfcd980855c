"""Reading a study file: every mistake with its line, what was found and what is allowed; and what the study means."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from orchestrator.errors import UsageError
from orchestrator.quantities import show
from orchestrator.records import ParamValue
from orchestrator.space import SearchSpace
from orchestrator.studyfile import (
    OBJECTIVE_UNITS,
    SPACE_SECTIONS,
    CategoricalParameter,
    FixedParameter,
    FloatParameter,
    IntParameter,
    Objective,
    Parameter,
    Plateau,
    SpaceEntry,
    StudyFile,
)
from orchestrator.studyschema import SECTIONS, json_schema
from orchestrator.studyyaml import Lines, read_yaml

__all__ = [
    "BoardFacts",
    "Mistake",
    "Vocabulary",
    "explain",
    "json_schema",
    "load_study",
    "notes",
]

# Less than this no firmware needs: the vector table, the start-up code and the kernels of one layer; the stack and the
# mailbox.
SMALLEST_ROM_BYTES = 1024
SMALLEST_RAM_BYTES = 256
_REFERENCE = re.compile(r"^[\w.]+:\w+$")
_SECTIONS: Mapping[str, type[BaseModel]] = SECTIONS
_PARAMETERS: Mapping[str, type[BaseModel]] = {
    "float": FloatParameter,
    "int": IntParameter,
    "categorical": CategoricalParameter,
    "fixed": FixedParameter,
}


@dataclass(frozen=True, slots=True)
class BoardFacts:
    """What a study needs to know of a board kind."""

    flash_bytes: float
    ram_bytes: float
    description: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistake:
    """``field`` is the path in the file (``space.network.width.low``), ``text`` what was found and what is allowed."""

    field: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """The names a study file may use. ``families`` maps each family to its options and what they mean; ``extra`` finds
    what only others can know (values of a family's options, of a sampler's)."""

    boards: Mapping[str, BoardFacts]
    datasets: Sequence[str]
    families: Mapping[str, Mapping[str, str]]
    samplers: Sequence[str]
    extra: Callable[[StudyFile], Iterable[Mistake]] = field(default=lambda study: ())


def load_study(path: Path, vocabulary: Vocabulary) -> StudyFile:
    """The study in the YAML file at ``path``.

    Raises:
        UsageError: lists every mistake as ``file:line: field: found …, allowed …``.
    """
    data, lines = read_yaml(path)
    mistakes = [Mistake(field=name, text=text) for name, text in lines.duplicates]
    mistakes += _wrong_names(data, vocabulary)
    study: StudyFile | None = None
    try:
        study = StudyFile.model_validate(data)
    except ValidationError as error:
        mistakes += [_mistake(dict(item), data, lines) for item in error.errors()]
    mistakes += _wrong_parameters(_readable(data, "space", TypeAdapter(SpaceEntry)))
    mistakes += _wrong_objectives(_readable(data, "objectives", TypeAdapter(Objective)))
    if study is not None and SearchSpace.from_parameters(study.space).size() <= 1:
        text = (
            "nothing to search: every parameter is fixed. Give at least one a range (type: float, int or categorical)"
        )
        mistakes.append(Mistake(field="space", text=text))
    if study is not None and not mistakes:
        mistakes += vocabulary.extra(study)
    if study is None or mistakes:
        raise UsageError(_listed(path, lines, mistakes))
    return study


def _listed(path: Path, lines: Lines, mistakes: Iterable[Mistake]) -> str:
    placed = sorted({(lines.of(item.field), item.field, item.text) for item in mistakes})
    texts = [f"{path}:{line}: {name + ': ' if name else ''}{text}" for line, name, text in placed]
    count = f"{len(texts)} mistakes" if len(texts) > 1 else "1 mistake"
    return f"{path}: {count} in the study file\n" + "\n".join(texts)


# ------------------------------------------------------------------------------------------------- names, by section


def _wrong_names(data: Mapping[str, Any], vocabulary: Vocabulary) -> list[Mistake]:
    """Unknown boards, data sets, families, samplers and parameters, as far as the file's shape lets them be found."""
    mistakes = _unknown(data, ("board",), vocabulary.boards)
    mistakes += _unknown(data, ("sampler", "name"), vocabulary.samplers)
    mistakes += _unknown(data, ("dataset", "source"), vocabulary.datasets, is_open=True)
    mistakes += _unknown(data, ("network", "family"), vocabulary.families, is_open=True)
    space = data.get("space")
    family = _at(data, ("network", "family"))
    options = vocabulary.families.get(family) if isinstance(family, str) else None
    for name in space if isinstance(space, dict) else ():
        mistakes += _wrong_parameter_name(str(name), str(family), options)
    given = _at(data, ("network", "options"))
    for name in given if isinstance(given, dict) and options is not None else ():
        if options is not None and name not in options:
            mistakes.append(Mistake(field=f"network.options.{name}", text=_no_option(str(name), str(family), options)))
    return mistakes


def _at(data: Mapping[str, Any], path: Sequence[str]) -> Any:
    value: Any = data
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _unknown(
    data: Mapping[str, Any], path: Sequence[str], known: Iterable[str], *, is_open: bool = False
) -> list[Mistake]:
    """A name that is not in the list; where ``is_open``, a ``.npz`` file or ``module:function`` will do as well."""
    name = _at(data, path)
    if not isinstance(name, str) or name in known:
        return []
    if is_open and (_REFERENCE.match(name) or (path[0] == "dataset" and name.endswith(".npz"))):
        return []
    more = ", or module:function" if is_open else ""
    more = ", a .npz file" + more if path[0] == "dataset" else more
    return [Mistake(field=".".join(path), text=f"found {name!r}{_meant(name, known)}; allowed: {_names(known)}{more}")]


def _wrong_parameter_name(name: str, family: str, options: Mapping[str, str] | None) -> list[Mistake]:
    where = f"space.{name}"
    first, _, rest = name.partition(".")
    if first not in SPACE_SECTIONS or not rest:
        text = f"found {name!r}; a parameter is called network.…, training.… or compression.…"
        return [Mistake(field=where, text=text)]
    if first == "network":
        return [Mistake(field=where, text=_no_option(rest, family, options))] if options and rest not in options else []
    fields = _SECTIONS[first].model_fields
    if rest in fields or (first == "compression" and rest.startswith("sparsity.")):
        return []
    return [
        Mistake(field=where, text=f"{first} has no field {rest!r}{_meant(rest, fields)}; allowed: {_names(fields)}")
    ]


def _no_option(name: str, family: str, options: Mapping[str, str]) -> str:
    return f"family {family} has no option {name!r}{_meant(name, options)}; allowed: {_names(options)}"


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _names(known: Iterable[str]) -> str:
    return ", ".join(known) or "none"


# ------------------------------------------------------------------------------------------- what pydantic complains of


def _mistake(item: dict[str, Any], data: Mapping[str, Any], lines: Lines) -> Mistake:
    """One of pydantic's errors in our words."""
    path = lines.path_of(item["loc"])
    kind, found = item["type"], item.get("input")
    last = str(item["loc"][-1]) if item["loc"] else ""
    if kind == "extra_forbidden":
        fields = _fields_at(path.rpartition(".")[0] if path else "", data, item["loc"])
        return Mistake(field=path, text=f"unknown field{_meant(last, fields)}; allowed: {_names(fields)}")
    if kind == "missing":
        name = f"{path}.{last}" if path else last
        return Mistake(field=name, text="is missing and must be given")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = found.get("type") if isinstance(found, dict) else found
        text = f"found type {tag!r}{_meant(str(tag), _PARAMETERS)}; allowed: {_names(_PARAMETERS)}, or a plain value"
        return Mistake(field=path, text=text)
    if last == "[key]" and "objectives" in item["loc"]:
        text = (
            f"no objective is called {found!r}{_meant(str(found), OBJECTIVE_UNITS)}; allowed: {_names(OBJECTIVE_UNITS)}"
        )
        return Mistake(field=path, text=text)
    allowed = _allowed(item)
    if path == "name" and kind == "string_pattern_mismatch":
        allowed = "allowed: letters, digits, '.', '_' and '-', the first a letter or digit"
    shown = "" if isinstance(found, dict) else f"found {found!r}; "
    return Mistake(field=path, text=f"{shown}{allowed}")


def _allowed(item: Mapping[str, Any]) -> str:
    message = str(item["msg"])
    for prefix in ("Value error, ", "Input should be "):
        if message.startswith(prefix):
            message = message[len(prefix) :]
            return message if prefix.startswith("Value") else f"allowed: {message}"
    return message


def _fields_at(path: str, data: Mapping[str, Any], loc: Sequence[Any]) -> Iterable[str]:
    """The fields that are allowed where the path leads."""
    if not path:
        return StudyFile.model_fields
    first = str(loc[0])
    if first == "space":
        kind = _at(data, ("space", str(loc[1]), "type"))
        return _PARAMETERS[kind].model_fields if kind in _PARAMETERS else _PARAMETERS
    if first == "objectives":
        return Objective.model_fields
    if path == "budget.plateau":
        return Plateau.model_fields
    return _SECTIONS[first].model_fields if first in _SECTIONS else ()


# ------------------------------------------------------------------------------------------- what the values must be


def _readable(data: Mapping[str, Any], section: str, entry: TypeAdapter[Any]) -> dict[str, Any]:
    """Those entries of a section that are right in themselves, so that others' mistakes do not hide theirs."""
    found = data.get(section)
    readable = {}
    for name, value in found.items() if isinstance(found, dict) else ():
        try:
            readable[str(name)] = entry.validate_python(value)
        except ValidationError:
            continue
    return readable


def _wrong_parameters(space: Mapping[str, Parameter]) -> list[Mistake]:
    """Values of searched or fixed training and compression options that those would refuse."""
    mistakes: list[Mistake] = []
    for name, parameter in space.items():
        first, _, option = name.partition(".")
        if first not in ("training", "compression"):
            continue
        if first == "compression" and option.startswith("sparsity."):
            option = "sparsity"
        model = _SECTIONS[first]
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
        return [Mistake(field=where, text=f"found {value!r}; {_allowed(dict(item))}") for item in error.errors()]
    return []


def _wrong_objectives(objectives: Mapping[str, Objective]) -> list[Mistake]:
    """Limits that are missing, and those that no candidate can meet."""
    mistakes = [
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
    return mistakes


# -------------------------------------------------------------------------------------------------------- in words


def notes(study: StudyFile, vocabulary: Vocabulary) -> list[str]:
    """What is allowed but may surprise."""
    found = []
    board = vocabulary.boards.get(study.board)
    memory = {"rom": board.flash_bytes, "ram": board.ram_bytes} if board else {}
    for name, objective in study.objectives.items():
        if objective.limit is not None and objective.limit > memory.get(name, float("inf")):
            found.append(
                f"the limit of {name} ({show(objective.limit, 'byte')}) is above what {study.board} has "
                f"({show(memory[name], 'byte')}) and is lowered to that"
            )
    size = SearchSpace.from_parameters(study.space).size()
    if size < study.budget.trials:
        found.append(
            f"the space holds only {size:g} different candidates for {study.budget.trials} trials: some repeat"
        )
    if study.sampler.initial >= study.budget.trials:
        found.append(
            f"all {study.budget.trials} trials belong to the initial design of {study.sampler.initial}: "
            f"{study.sampler.name} is never asked"
        )
    both = [name for name in study.network.options if f"network.{name}" in study.space]
    found += [f"network.options.{name} is overruled by the space" for name in both]
    return found


def explain(study: StudyFile, vocabulary: Vocabulary) -> str:
    """The study in words: what is searched, within which limits, and what will run where."""
    space = SearchSpace.from_parameters(study.space)
    board = vocabulary.boards.get(study.board)
    size = "infinitely many candidates" if space.size() == float("inf") else f"{space.size():,.0f} different candidates"
    lines = [
        f"Study {study.name}, seed {study.seed}",
        f"  data      {study.dataset.source}: {_share(study.dataset.validation)} for validation, "
        f"{_share(study.dataset.test)} kept for the final test",
        f"  network   family {study.network.family}" + _settings(study.network.options),
        f"  board     {study.board}" + (f": {board.description}" if board and board.description else ""),
        "",
        f"Searched: {len(study.space) - len(space.fixed)} parameters, {size}",
        *(f"  {name:<32} {_range(parameter)}" for name, parameter in study.space.items()),
        "",
        "Minimised, all at once; more than the limit is infeasible",
        *(f"  {name:<10} {_limit(study, name, board)}" for name in study.objectives),
        "",
        f"Budget: {study.budget.trials} trials"
        + (f", at most {show(study.budget.wall_clock, 's')}" if study.budget.wall_clock else ""),
        *_plateau(study),
        f"  the first {min(study.sampler.initial, study.budget.trials)} from a Latin hypercube, then "
        f"{study.sampler.name}" + _settings(study.sampler.options),
        f"  {study.parallelism.trials_in_flight} trials under way at once; worker processes: "
        f"{study.parallelism.train_workers} training, {study.parallelism.build_workers} building, "
        f"{study.parallelism.boards} with a board",
        "",
        "Each trial: does the untrained network fit? → training → pruning and int8 → C and firmware → run on the",
        f"board; {study.profiling.samples} samples must match the host bit for bit. What does not fit ends at once.",
        *_early_stopping(study),
        "At the end the test split is used once, for the trials of the front.",
    ]
    lines += [f"Note: {note}" for note in notes(study, vocabulary)]
    return "\n".join(lines)


def _plateau(study: StudyFile) -> list[str]:
    plateau = study.budget.plateau
    if plateau is None:
        return []
    gain = f"raised the hypervolume by no more than {_share(plateau.gain)}"
    return [f"  less when the last {plateau.trials} trials {gain}, not counting the initial design"]


def _early_stopping(study: StudyFile) -> list[str]:
    stopping = study.early_stopping
    if stopping.mode == "off" or "error" not in study.objectives:
        return []
    return [
        "A training is given up when the chance that the trial still reaches the front is below "
        f"{_share(stopping.chance)}."
    ]


def _share(fraction: float) -> str:
    return f"{100 * fraction:g} %"


def _settings(options: Mapping[str, Any]) -> str:
    return f" with {', '.join(f'{name} = {value}' for name, value in options.items())}" if options else ""


def _range(parameter: Parameter) -> str:
    if isinstance(parameter, FixedParameter):
        return f"fixed at {parameter.value}"
    if isinstance(parameter, CategoricalParameter):
        return f"one of {', '.join(map(str, parameter.choices))}"
    kind = "whole number" if isinstance(parameter, IntParameter) else "number"
    step = f" in steps of {parameter.step}" if isinstance(parameter, IntParameter) and parameter.step > 1 else ""
    return f"{kind} from {parameter.low:g} to {parameter.high:g}{step}" + (", on a log scale" if parameter.log else "")


def _limit(study: StudyFile, name: str, board: BoardFacts | None) -> str:
    limit = study.objectives[name].limit  # type: ignore[index]
    unit = OBJECTIVE_UNITS[name]
    memory = {"rom": board.flash_bytes, "ram": board.ram_bytes} if board else {}
    if name in memory and (limit is None or limit > memory[name]):
        return f"up to {show(memory[name], unit, name)} (all the board has)"
    if limit is None:
        limit = {"error": 1.0, "flops": 1e9}[name]
    return f"up to {show(limit, unit, name)}"
