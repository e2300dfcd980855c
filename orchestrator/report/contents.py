"""What a report says, as plain JSON; the page only draws it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.boards import MARK, base, kind_of, on_board
from orchestrator.quantities import rounded, show, title
from orchestrator.records import Json, Outcome, ParamValue, Source, Value
from orchestrator.report.figures import layer_sources, memory_figure
from orchestrator.studyfile import OBJECTIVE_UNITS, StudyFile

# Axes want one unit for all points: factor from the base unit, and the unit's name.
_AXES = {"byte": (1 / 1024, "KiB"), "s": (1e3, "ms"), "J": (1e6, "µJ")}
_AXIS_BY_NAME = {"error": (100.0, "%"), "flops": (1e-6, "M"), "macs": (1e-6, "M"), "cycles": (1e-3, "k")}
# Worth an axis beside the objectives, where a trial has them.
_EXTRA_QUANTITIES = ("error", "rom", "ram", "flops", "macs", "latency", "energy", "cycles", "arena", "stack")

_TOLD_STATES = ("complete", "infeasible", "stopped")

SOURCE_TEXTS = {
    Source.EXACT: "counted: by the linker, by the compiler, or over the whole split of the data",
    Source.MEASURED: "read from a real board or meter",
    Source.EMULATED: "counted while the real firmware ran on an emulated core; cycles assume memory without wait states"
    " and come out about 1.3 times too optimistic",
    Source.ESTIMATED: "computed from a stated model, such as a published energy per cycle",
}


class Trial(Protocol):
    """What a report reads of a trial; ``orchestrator.study.TrialRecord`` is one."""

    @property
    def number(self) -> int: ...
    @property
    def params(self) -> Mapping[str, ParamValue]: ...
    @property
    def state(self) -> str: ...
    @property
    def stage(self) -> str: ...
    @property
    def outcome(self) -> Outcome | None: ...
    @property
    def notes(self) -> Mapping[str, Json]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class BoardFront:
    """One board of several: what it is, and the numbers of the trials on its own front."""

    kind: str
    text: str
    front: Sequence[int]
    hypervolume: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportInput:
    """Everything a report is made of. ``limits`` are in base units, in the order of the study's objectives;
    ``downloads`` maps a trial to (label, relative link) pairs. ``boards`` is empty where the study has one board; where
    it has several, ``front`` and ``history`` are joint ones. ``edits`` are the limits that were tightened: after how
    many told trials, and in words; the whole of ``history`` is judged by those that hold now."""

    study: StudyFile
    limits: Mapping[str, float]
    trials: Sequence[Trial]
    front: Sequence[int]
    history: Sequence[tuple[int, float]]
    test_results: Mapping[int, Value]
    written_at: str
    board_text: str = ""
    study_yaml: str = ""
    export_command: str = ""
    downloads: Mapping[int, Sequence[tuple[str, str]]] = field(default_factory=dict)
    boards: Sequence[BoardFront] = ()
    edits: Sequence[tuple[int, str]] = ()


def contents(source: ReportInput) -> Json:
    """The report's data: ``headline``, ``objectives``, ``quantities``, ``trials``, ``history`` and texts."""
    front = set(source.front)
    trials = [_trial(trial, front, source) for trial in source.trials]
    return {
        "name": source.study.name,
        "board": " and ".join(source.study.kinds),
        "board_text": source.board_text,
        "boards": [_board(board, source) for board in source.boards],
        "dataset": source.study.dataset.source,
        "family": source.study.network.family,
        "sampler": source.study.sampler.name,
        "initial": source.study.sampler.initial,
        "written_at": source.written_at,
        "study_yaml": source.study_yaml,
        "export_command": source.export_command,
        "headline": headline(source),
        "objectives": [quantity_of(name, limit) for name, limit in source.limits.items()],
        "quantities": [quantity_of(name, source.limits.get(name)) for name in _plottable(source)],
        "params": list(_searched(source.study)),
        "log_params": [name for name, entry in source.study.space.items() if getattr(entry, "log", False)],
        "trials": trials,
        "history": [[number, hypervolume] for number, hypervolume in source.history],
        "edits": [[told, text] for told, text in source.edits],
        "sources": _sources(source.trials),
    }


def headline(source: ReportInput) -> list[Json]:
    """The figures at the top of the page: ``{"title", "figure", "about"}`` each."""
    front = [trial for trial in source.trials if trial.number in set(source.front) and trial.outcome]
    told = sum(trial.state in _TOLD_STATES for trial in source.trials)
    counts = _counts_text(source.trials)
    hypervolume = source.history[-1][1] if source.history else 0.0
    figures = [
        {"title": "hypervolume", "figure": f"{hypervolume:.3f}", "about": "share of the box under the limits, 0 to 1"},
        {
            "title": "on the joint front" if source.boards else "on the front",
            "figure": str(len(front)),
            "about": f"of {told} told{counts}",
        },
    ]
    for name in source.limits:
        best = min(front, key=lambda trial: _amount(trial, name), default=None)
        if best is not None and name in _values(best):
            figures.append(_best_figure(name, best, source))
    return figures


def _best_figure(name: str, trial: Trial, source: ReportInput) -> Json:
    value = _values(trial)[name]
    about = f"trial {trial.number}, {value.source.value}"
    if any(base(other) == name for other in _values(trial) if MARK in other):
        about += f", worst of {len(source.boards)} boards"
    tested = source.test_results.get(trial.number)
    if name == "error" and tested is not None:
        about = f"trial {trial.number}; on the test split {show(tested.amount, '1', 'error')}"
    return {"title": _best_title(name), "figure": show(value.amount, value.unit, name), "about": about}


def _best_title(name: str) -> str:
    words = {"error": "lowest error", "latency": "fastest", "energy": "least energy"}
    return words.get(name, f"smallest {title(name)}")


def _board(board: BoardFront, source: ReportInput) -> Json:
    """One of several boards: its front and the best points on it."""
    members = [trial for trial in source.trials if trial.number in set(board.front) and trial.outcome]
    best = []
    for name in source.limits:
        values = {trial.number: on_board(_values(trial), board.kind).get(name) for trial in members}
        known = {number: value for number, value in values.items() if value is not None}
        if known:
            number = min(known, key=lambda number: known[number].amount)
            best.append({**_value(name, known[number]), "name": name, "title": _best_title(name), "trial": number})
    return {
        "kind": board.kind,
        "text": board.text,
        "front_size": len(members),
        "hypervolume": board.hypervolume,
        "best": best,
    }


def _counts_text(trials: Sequence[Trial]) -> str:
    """How the told trials ended, and how many more were never told, because all their attempts ended in faults."""
    counts = {state: sum(trial.state == state for trial in trials) for state in _TOLD_STATES}
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    faults = sum(trial.state == "fault" for trial in trials)
    lost = f"; {faults} more ended in {'a fault' if faults == 1 else 'faults'}" if faults else ""
    return (f" ({told})" if told else "") + lost


def _values(trial: Trial) -> Mapping[str, Value]:
    return trial.outcome.values if trial.outcome else {}


def _amount(trial: Trial, name: str) -> float:
    value = _values(trial).get(name)
    return value.amount if value else float("inf")


def _plottable(source: ReportInput) -> list[str]:
    extra = [name for name in _EXTRA_QUANTITIES if any(name in _values(trial) for trial in source.trials)]
    return list(dict.fromkeys([*source.limits, *extra, *(["test_error"] if source.test_results else [])]))


def quantity_of(name: str, limit: float | None) -> Json:
    """How a quantity is plotted: title, the factor to its axis' unit, and its limit in base units, None without one."""
    unit = OBJECTIVE_UNITS.get(name, "byte" if name in ("arena", "stack") else "1")
    factor, axis_unit = _AXIS_BY_NAME.get("error" if name.endswith("error") else name) or _AXES.get(unit, (1.0, ""))
    return {
        "name": name,
        "title": title(name),
        "unit": unit,
        "factor": factor,
        "axis_unit": axis_unit,
        "limit": limit if limit is not None and math.isfinite(limit) else None,
        "limit_text": rounded(limit, unit, name) if limit is not None else "",
    }


def _searched(study: StudyFile) -> list[str]:
    return [name for name, entry in study.space.items() if entry.type != "fixed"]


def _trial(trial: Trial, front: set[int], source: ReportInput) -> Json:
    kinds = [board.kind for board in source.boards]
    values = {name: value for name, value in _values(trial).items() if MARK not in name}
    tested = source.test_results.get(trial.number)
    own = {
        board.kind: {"front": trial.number in board.front, **_on_one(trial, board.kind, tested)}
        for board in source.boards
    }
    return {
        "number": trial.number,
        "state": trial.state,
        "stage": trial.stage,
        "front": trial.number in front,
        "params": dict(trial.params),
        "reason": _reason(trial),
        "seconds": dict(trial.outcome.stage_seconds) if trial.outcome else {},
        "downloads": [[label, link] for label, link in source.downloads.get(trial.number, ())],
        "boards": own,
        # Layers of all boards together there are none: those of the first stand for them.
        **_figures(trial, values, tested, kinds[0] if kinds else ""),
    }


def _on_one(trial: Trial, kind: str, tested: Value | None) -> Json:
    return _figures(trial, on_board(_values(trial), kind), tested, kind)


def _figures(trial: Trial, values: Mapping[str, Value], tested: Value | None, kind: str) -> Json:
    """Values, layers and memory; the latter two as they are on ``kind`` where there are several boards."""
    notes = _notes_on(trial.notes, kind) if kind else trial.notes
    layers = layers_of(notes)
    counted = on_board(_values(trial), kind).get("cycles") if kind else values.get("cycles")
    shown = {**values, **({"test_error": tested} if tested is not None else {})}
    return {
        "values": {name: _value(name, value) for name, value in shown.items()},
        "layers": layers,
        "layer_sources": layer_sources(layers, counted.source.value if counted else ""),
        "memory": _memory(notes, layers),
    }


def _notes_on(notes: Mapping[str, Json], kind: str) -> dict[str, Json]:
    """The stages' notes as they are on one board."""
    return {
        base(stage): on_board(stage_notes, kind) for stage, stage_notes in notes.items() if kind_of(stage) in ("", kind)
    }


def _value(name: str, value: Value) -> Json:
    return {
        "title": title(name),
        "amount": value.amount,
        "text": show(value.amount, value.unit, name),
        "source": value.source.value,
        "note": value.note,
    }


def _reason(trial: Trial) -> str:
    if trial.outcome is None:
        return ""
    if trial.outcome.fault is not None:
        return f"{trial.outcome.fault.reason} at {trial.stage}"
    return trial.outcome.reason or "; ".join(violation.message for violation in trial.outcome.violations)


def layers_of(notes: Mapping[str, Json]) -> list[Json]:
    """Per-layer figures: what the board counted, joined with what the compiler knows, in the network's order."""
    merged: dict[str, Json] = {}
    for stage_notes in notes.values():
        layers = stage_notes.get("layers") if isinstance(stage_notes, Mapping) else None
        for index, layer in enumerate(layers if isinstance(layers, list) else []):
            if isinstance(layer, Mapping):
                key = str(layer.get("symbol") or layer.get("index") or layer.get("name") or index)
                merged.setdefault(key, {}).update(layer)
    return list(merged.values())


def _memory(notes: Mapping[str, Json], layers: Sequence[Json]) -> Json | None:
    """The memory plan of the last stage that made one: the gate's is that of the untrained network."""
    maps = [notes[stage]["memory"] for stage in ("build", "gate") if "memory" in notes.get(stage, {})]
    return memory_figure(maps[0], layers) if maps else None


def _sources(trials: Sequence[Trial]) -> list[Json]:
    """Which quantities come from where, over all trials, with what that word means and one trial's note as example."""
    quantities: dict[Source, dict[str, str]] = {source: {} for source in Source}
    for trial in trials:
        values = _values(trial)
        boards_own = {base(name) for name in values if MARK in name}
        for place, value in values.items():
            if place in boards_own:
                continue  # the worst of what the boards say
            name = base(place)
            has_number = any(letter.isdigit() for letter in value.note)  # then the note is about this trial alone
            note = f"trial {trial.number}: {value.note}" if has_number else value.note
            quantities[value.source].setdefault(name, note)
    return [
        {
            "source": source.value,
            "text": SOURCE_TEXTS[source],
            "quantities": [[title(name), note] for name, note in sorted(named.items())],
        }
        for source, named in quantities.items()
        if named
    ]
