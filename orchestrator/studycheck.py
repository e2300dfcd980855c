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
from orchestrator.quantities import rounded
from orchestrator.space import SearchSpace
from orchestrator.studyfile import (
    MOST_BOARDS,
    NOT_SEARCHED,
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
    wrong_boards,
)
from orchestrator.studyschema import SECTIONS, json_schema
from orchestrator.studyvalues import (
    Mistake,
    allowed,
    readable,
    short,
    wrong_objectives,
    wrong_parameters,
    wrong_space,
)
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
        complaints = [dict(item) for item in error.errors() if item["type"] != "boards"]  # found in _wrong_names, too
        mistakes += _once_a_value(_mistake(item, data, lines) for item in complaints)
    mistakes += wrong_parameters(readable(data, "space", TypeAdapter(SpaceEntry)))
    mistakes += wrong_objectives(readable(data, "objectives", TypeAdapter(Objective)), data.get("objectives"))
    mistakes += wrong_space(study) if study is not None else []
    if study is not None and not mistakes:
        mistakes += vocabulary.extra(study)
    if study is None or mistakes:
        raise UsageError(_listed(path, lines, mistakes))
    return study


def _once_a_value(mistakes: Iterable[Mistake]) -> list[Mistake]:
    """One complaint about an element of a list, where each kind that it might be of has its own."""
    kept: dict[str, Mistake] = {}
    others = []
    for item in mistakes:
        if not item.field.rpartition(".")[2].isdigit():
            others.append(item)
        elif item.field in kept:
            found = item.text.partition(";")[0]
            kept[item.field] = Mistake(field=item.field, text=f"{found}; allowed: a number, text, true or false")
        else:
            kept[item.field] = item
    return others + list(kept.values())


def _listed(path: Path, lines: Lines, mistakes: Iterable[Mistake]) -> str:
    placed = sorted({(lines.of(item.field), item.field, item.text) for item in mistakes})
    texts = [f"{path}:{line}: {name + ': ' if name else ''}{text}" for line, name, text in placed]
    count = f"{len(texts)} mistakes" if len(texts) > 1 else "1 mistake"
    return f"{path}: {count} in the study file\n" + "\n".join(texts)


# ------------------------------------------------------------------------------------------------- names, by section


def _wrong_names(data: Mapping[str, Any], vocabulary: Vocabulary) -> list[Mistake]:
    """Unknown boards, data sets, families, samplers and parameters, as far as the file's shape lets them be found."""
    mistakes = _unknown(data, ("board",), vocabulary.boards) + _wrong_boards(data, vocabulary)
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


def _wrong_boards(data: Mapping[str, Any], vocabulary: Vocabulary) -> list[Mistake]:
    """None or both of ``board`` and ``boards``, and kinds in the list that are doubled or unknown."""
    given = data.get("boards")
    mistakes = [Mistake(field=name, text=text) for name, text in wrong_boards(data.get("board"), given)]
    for index, kind in enumerate(given if isinstance(given, list) else ()):
        mistakes += _unknown_name(f"boards.{index}", kind, vocabulary.boards)
    return mistakes


def _unknown_name(where: str, name: Any, known: Iterable[str], more: str = "") -> list[Mistake]:
    if not isinstance(name, str) or name in known:
        return []
    return [Mistake(field=where, text=f"found {name!r}{_meant(name, known)}; allowed: {_names(known)}{more}")]


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
    is_reference = isinstance(name, str) and bool(_REFERENCE.match(name))
    if is_open and (is_reference or (path[0] == "dataset" and str(name).endswith(".npz"))):
        return []
    more = ", or module:function" if is_open else ""
    more = ", a .npz file" + more if path[0] == "dataset" else more
    return _unknown_name(".".join(path), name, known, more)


def _wrong_parameter_name(name: str, family: str, options: Mapping[str, str] | None) -> list[Mistake]:
    where = f"space.{name}"
    first, _, rest = name.partition(".")
    if first not in SPACE_SECTIONS or not rest:
        text = f"found {name!r}; a parameter is called network.…, training.… or compression.…"
        return [Mistake(field=where, text=text)]
    if first == "network":
        return [Mistake(field=where, text=_no_option(rest, family, options))] if options and rest not in options else []
    fields = [field for field in _SECTIONS[first].model_fields if f"{first}.{field}" not in NOT_SEARCHED]
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
    if path == "boards":
        count = f"found {len(found)}; " if isinstance(found, (list, tuple)) else f"found {short(found)}; "
        return Mistake(
            field=path, text=f"{count}allowed: a list of 2 to {MOST_BOARDS} board kinds; for one, give board: KIND"
        )
    if last == "[key]" and "objectives" in item["loc"]:
        text = (
            f"no objective is called {found!r}{_meant(str(found), OBJECTIVE_UNITS)}; allowed: {_names(OBJECTIVE_UNITS)}"
        )
        return Mistake(field=path, text=text)
    shown = "" if isinstance(found, dict) or "found " in item["msg"] else f"found {short(found)}; "
    return Mistake(field=path, text=f"{shown}{allowed(item)}")


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


# -------------------------------------------------------------------------------------------------------- in words


def notes(study: StudyFile, vocabulary: Vocabulary) -> list[str]:
    """What is allowed but may surprise."""
    found = []
    memory = _memory(study, vocabulary)
    for name, objective in study.objectives.items():
        has, kind = memory.get(name, (float("inf"), ""))
        if objective.limit is not None and objective.limit > has:
            found.append(
                f"the limit of {name} ({rounded(objective.limit, 'byte')}) is above what {kind} has "
                f"({rounded(has, 'byte')}) and is lowered to that"
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
    memory = _memory(study, vocabulary)
    size = "infinitely many candidates" if space.size() == float("inf") else f"{space.size():,.0f} different candidates"
    lines = [
        f"Study {study.name}, seed {study.seed}",
        f"  data      {study.dataset.source}: {_share(study.dataset.validation)} for validation, "
        f"{_share(study.dataset.test)} kept for the final test",
        f"  network   family {study.network.family}" + _settings(study.network.options),
        *_boards(study, vocabulary),
        "",
        f"Searched: {len(study.space) - len(space.fixed)} parameters, {size}",
        *(f"  {name:<32} {_range(parameter)}" for name, parameter in study.space.items()),
        "",
        "Minimised, all at once; more than the limit is infeasible",
        *(f"  {name:<10} {_limit(study, name, memory)}" for name in study.objectives),
        "",
        f"Budget: {study.budget.trials} trials"
        + (f", at most {rounded(study.budget.wall_clock, 's')}" if study.budget.wall_clock else ""),
        *_plateau(study),
        f"  the first {min(study.sampler.initial, study.budget.trials)} from a Latin hypercube, then "
        f"{study.sampler.name}" + _settings(study.sampler.options),
        f"  {study.parallelism.trials_in_flight} trials under way at once; worker processes: "
        f"{study.parallelism.train_workers} training, {study.parallelism.build_workers} building, "
        f"{study.parallelism.boards} with a board" + (" of each kind" if study.boards else ""),
        "",
        "Each trial: does the untrained network fit? → training → pruning and int8 → C and firmware → run on the",
        f"board; {study.profiling.samples} samples must match the host bit for bit. What does not fit ends at once.",
        *_on_each(study),
        *_calibrated(study),
        _firmware(study),
        *_early_stopping(study),
        "At the end the test split is used once, for the trials of the front.",
    ]
    lines += [f"Note: {note}" for note in notes(study, vocabulary)]
    return "\n".join(lines)


def _memory(study: StudyFile, vocabulary: Vocabulary) -> dict[str, tuple[float, str]]:
    """The least flash and RAM of the study's boards, by objective, and the kind that has so little."""
    known = [(kind, vocabulary.boards[kind]) for kind in study.kinds if kind in vocabulary.boards]
    if not known:
        return {}
    flash = min((facts.flash_bytes, kind) for kind, facts in known)
    return {"rom": flash, "ram": min((facts.ram_bytes, kind) for kind, facts in known)}


def _boards(study: StudyFile, vocabulary: Vocabulary) -> list[str]:
    lines = []
    for kind in study.kinds:
        facts = vocabulary.boards.get(kind)
        lines.append(kind + (f": {facts.description}" if facts and facts.description else ""))
    head = "boards" if study.boards else "board"
    return [f"  {head:<9} {lines[0]}", *(f"{'':12}{line}" for line in lines[1:])]


def _on_each(study: StudyFile) -> list[str]:
    if not study.boards:
        return []
    return [
        f"It is trained once; firmware is built for each of the {len(study.boards)} boards and run there. The search",
        "counts the worst board's values, and every limit holds on every board. The report has a front of each board",
        "beside the joint one.",
    ]


def _plateau(study: StudyFile) -> list[str]:
    plateau = study.budget.plateau
    if plateau is None:
        return []
    gain = f"raised the hypervolume by no more than {_share(plateau.gain)}"
    return [f"  less when the last {plateau.trials} trials {gain}, not counting the initial design"]


def _calibrated(study: StudyFile) -> list[str]:
    records = [record for record in study.profiling.calibration if isinstance(record, dict)]
    return [
        f"Latency and energy of virtual {record['kind']} boards are estimated: cycles x {record['cycle_factor']:.3f}, "
        f"calibrated on {record['board_id']} on {record['at'][:10]}."
        for record in records
    ]


def _firmware(study: StudyFile) -> str:
    extra = study.firmware.extra_macs
    price = f", with up to {_share(extra)} more operations where that takes less RAM" if extra else ""
    return f"Code is made for {study.firmware.optimise}{price}."


def _early_stopping(study: StudyFile) -> list[str]:
    stopping = study.early_stopping
    if stopping.mode == "off" or "error" not in study.objectives:
        return []
    return [
        "A training is given up when the chance that the trial still adds to the front is below "
        f"{_share(stopping.chance)}; less than {_share(stopping.gain)} of the hypervolume counts as nothing."
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


def _limit(study: StudyFile, name: str, memory: Mapping[str, tuple[float, str]]) -> str:
    limit = study.objectives[name].limit  # type: ignore[index]
    unit = OBJECTIVE_UNITS[name]
    if name in memory and (limit is None or limit > memory[name][0]):
        has, kind = memory[name]
        return f"up to {rounded(has, unit, name)} (all {kind if study.boards else 'the board'} has)"
    if limit is None:
        limit = {"error": 1.0, "flops": 1e9}[name]
    return f"up to {rounded(limit, unit, name)}"
