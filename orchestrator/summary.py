"""How a study stands, in a few numbers: for ``edgefront status`` and for scripts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from orchestrator.boards import on_board
from orchestrator.fronts import front, front_hypervolume
from orchestrator.objectives import Objectives
from orchestrator.quantities import show
from orchestrator.reading import StudyReader, history_of
from orchestrator.records import Json, Value
from orchestrator.report.contents import Trial
from orchestrator.studyfile import OBJECTIVE_UNITS, StudyFile
from orchestrator.view import sparkline

TOLD_STATES = ("complete", "infeasible", "stopped")
STATES = ("complete", "infeasible", "stopped", "fault", "running", "proposed")


def summarise(
    study: StudyFile,
    objectives: Objectives,
    trials: Sequence[Trial],
    history: Sequence[tuple[int, float]],
    test_results: Mapping[int, Value],
) -> Json:
    """The state of a study as JSON; ``front`` holds ``{"trial", "params", "values"}``, the lowest error first.

    With several boards it is the joint front, ``fronts`` holds that of each board with the values it has there, and
    ``hypervolumes`` what each of them dominates.
    """
    counts = Counter(trial.state for trial in trials)
    fronts = {kind: front(trials, objectives, kind) for kind in ("", *(study.boards or ()))}
    return _summary(study, objectives, counts, history, fronts, test_results)


def summary_of(study: StudyReader) -> Json:
    """The same of a study on disk. Of thousands of trials only those on a front are read in full."""
    rows = study.amounts()
    numbers = {kind: front(rows, study.objectives, kind) for kind in ("", *(study.file.boards or ()))}
    fronts = {kind: study.some_trials([row.number for row in members]) for kind, members in numbers.items()}
    counts = Counter(row.state for row in rows)
    counts += Counter(trial.state for trial in study.trials_under_way())
    history = history_of(rows, study.objectives)
    return _summary(study.file, study.objectives, counts, history, fronts, study.test_results())


def _summary(
    study: StudyFile,
    objectives: Objectives,
    counts: Mapping[str, int],
    history: Sequence[tuple[int, float]],
    fronts: Mapping[str, Sequence[Trial]],
    test_results: Mapping[int, Value],
) -> Json:
    """``fronts`` has the joint one under an empty name, and with several boards each board's."""
    states = {state: counts.get(state, 0) for state in STATES}
    own = {kind: members for kind, members in fronts.items() if kind}
    boards: Json = {}
    if own:
        boards = {
            "fronts": {kind: _front_rows(members, study, test_results, kind) for kind, members in own.items()},
            "hypervolumes": {kind: front_hypervolume(members, objectives, kind) for kind, members in own.items()},
        }
    return {
        "name": study.name,
        **({"boards": list(study.boards)} if study.boards else {"board": study.board}),
        "budget": study.budget.trials,
        "told": sum(states[state] for state in TOLD_STATES),
        "states": states,
        "objectives": list(study.objectives),
        "hypervolume": history[-1][1] if history else 0.0,
        "history": [hypervolume for _, hypervolume in history],
        "front": _front_rows(fronts[""], study, test_results),
        **boards,
    }


def _front_rows(
    members: Iterable[Trial], study: StudyFile, test_results: Mapping[int, Value], kind: str = ""
) -> list[Json]:
    first = "error" if "error" in study.objectives else next(iter(study.objectives))
    rows = [_front_row(trial, test_results, kind) for trial in members]
    return sorted(rows, key=lambda row: _amount(row["values"], first))


def _front_row(trial: Trial, test_results: Mapping[int, Value], kind: str) -> Json:
    values = dict(trial.outcome.values) if trial.outcome else {}
    values = on_board(values, kind) if kind else values
    if trial.number in test_results:
        values["test_error"] = test_results[trial.number]
    return {
        "trial": trial.number,
        "params": dict(trial.params),
        "values": {name: value.to_json() for name, value in values.items()},
    }


def _amount(values: Mapping[str, Json], name: str) -> float:
    return float(values[name]["amount"]) if name in values else float("inf")


def summary_view(summary: Json) -> Group:
    """The summary as rich renders it: two lines and the table of the front."""
    states = ", ".join(f"{count} {state}" for state, count in summary["states"].items() if count) or "no trial yet"
    head = Text.assemble(
        (summary["name"], "bold"),
        f" on {_boards_text(summary)}: {summary['told']}/{summary['budget']} trials told ({states})",
    )
    line = Text.assemble(
        "hypervolume ",
        (f"{summary['hypervolume']:.4f} ", "bold"),
        (sparkline(summary["history"], 40), "cyan"),
        f"  {'joint ' if 'fronts' in summary else ''}front {len(summary['front'])}",
    )
    return Group(head, line, *_board_lines(summary), *([_front_table(summary)] if summary["front"] else []))


def _boards_text(summary: Json) -> str:
    return str(summary["board"]) if "board" in summary else " and ".join(summary["boards"])


def _board_lines(summary: Json) -> list[Text]:
    """The fronts of the single boards in a line each; the table below them is the joint front's."""
    fronts: Mapping[str, Any] = summary.get("fronts", {})
    if not fronts:
        return []
    width = max(map(len, fronts))
    lines = [
        Text(f"  {kind:<{width}}  hypervolume {summary['hypervolumes'][kind]:.4f}  front {len(rows)}")
        for kind, rows in fronts.items()
    ]
    return [*lines, *([Text("joint front, the worst of the boards:", style="dim")] if summary["front"] else [])]


def _front_table(summary: Json) -> Table:
    tested = any("test_error" in row["values"] for row in summary["front"])
    timed = any("latency" in row["values"] for row in summary["front"])
    extra = [*(["latency"] if timed else []), *(["test_error"] if tested else [])]
    names = list(dict.fromkeys([*summary["objectives"], *extra]))
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for title in ("trial", *names):
        table.add_column(title.replace("_", " "), justify="right")
    for row in summary["front"]:
        table.add_row(str(row["trial"]), *(_cell(row["values"].get(name), name) for name in names))
    return table


def _cell(value: Any, name: str) -> str:
    return show(value["amount"], OBJECTIVE_UNITS.get(name, value["unit"]), name) if value else "–"
