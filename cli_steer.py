"""The part of the command line that steers submitted studies: pausing, resuming, stopping and changing them.

As in :mod:`cli`, imports stand inside the functions, so that a command does not wait for what it does not use.
"""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli_service import has_orchestrator, now, open_registry, priority_option, who
from cli_study import database_option, studies_option, where
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.registry import Entry, Registry
    from orchestrator.studyedit import StudyEdit

_EDIT_WAIT_S = 10.0


# ------------------------------------------------------------------------------------------------ pause, resume, stop


@click.command(short_help="Let a study finish its trials and begin none.")
@click.argument("study")
@studies_option
@database_option
def pause(study: str, studies: Path, database: str | None) -> None:
    """Let the trials of STUDY that are under way finish, and begin none until `edgefront resume`.

    \b
    Example:
      edgefront pause digits
    """
    from orchestrator.registry import PAUSE, PAUSED

    registry = open_registry(studies, database)
    _check_not_ended(submitted(study, studies, registry), "be paused")
    registry.want(study, PAUSE, now())
    is_paused = registry.entry(study).state == PAUSED
    click.echo(f"{study} is paused" if is_paused else f"{study} pauses once its trials under way have ended")
    registry.close()


@click.command(short_help="Let a paused or failed study go on.")
@click.argument("study")
@studies_option
@database_option
def resume(study: str, studies: Path, database: str | None) -> None:
    """Let STUDY go on that was paused, or that has failed once its cause is removed.

    \b
    Example:
      edgefront resume digits
    """
    from orchestrator.registry import RUN

    registry = open_registry(studies, database)
    _check_not_ended(submitted(study, studies, registry), "go on")
    registry.want(study, RUN, now())
    click.echo(f"{study} goes on as soon as there is room")
    registry.close()


@click.command(short_help="End a study for good, with a report.")
@click.argument("study")
@studies_option
@database_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def stop(study: str, studies: Path, database: str | None, yes: bool) -> None:
    """End STUDY for good: its trials under way are given up and its report is written. It cannot be resumed.

    \b
    Example:
      edgefront stop digits --yes
    """
    from orchestrator.registry import STOP

    registry = open_registry(studies, database)
    _check_not_ended(submitted(study, studies, registry), "be stopped")
    if not yes:
        click.confirm(f"end {study} for good?", abort=True)
    registry.want(study, STOP, now())
    if has_orchestrator(registry):
        click.echo(f"{study} is being stopped; its report will be in {registry.entry(study).submission.folder}")
    else:
        click.echo(f"{study}: {stop_here(registry.entry(study), registry)}")
    registry.close()


def stop_here(entry: Entry, registry: Registry) -> str:
    """End a study that no orchestrator runs, in this process."""
    from cli_background import close_for_good, open_submitted, reached_by
    from orchestrator.registry import STOPPED
    from orchestrator.study import Study

    token = registry.take(entry, f"stop:{who()}:{os.getpid()}", now())
    if token is None:
        return "an orchestrator has taken it meanwhile and stops it"
    text = "stopped for good before it began"
    if Study.exists(registry.place(entry)):
        with closing(open_submitted(entry, registry)) as study, study.locked():
            text = close_for_good(study)
            registry.note(entry.name, token, reached_by(study), None, "")
    registry.release(entry.name, token, STOPPED, "", now())
    return text


def submitted(name: str, studies: Path, registry: Registry) -> Entry:
    """The study on the lab's list.

    Raises:
        UsageError: it is not there; the text says so, and what to do where there is a study of this name all the same.
    """
    import shlex

    from orchestrator.study import STUDY_COPY

    entry = registry.find(name)
    if entry is None and (place := registry.place_of(studies / name)).database().exists():
        file = shlex.quote(str(place.folder / STUDY_COPY))
        raise UsageError(
            f"study {name} exists and is not on the lab's list: edgefront run has begun it, or it was restored. To put "
            f"it there: edgefront submit {file}{where(studies)}"
        )
    return entry or registry.entry(name)


def _check_not_ended(entry: Entry, what: str) -> None:
    from orchestrator.registry import ENDED_STATES, FINISHED

    if entry.state in ENDED_STATES:
        more = " A larger budget makes it go on: edgefront edit --trials N." if entry.state == FINISHED else ""
        raise UsageError(f"study {entry.name} is {entry.state} since {entry.changed_at} and cannot {what}.{more}")


# --------------------------------------------------------------------------------------------------------------- edit


@click.command(short_help="Raise a study's budget, tighten its limits, change its priority.")
@click.argument("study")
@studies_option
@database_option
@click.option("--trials", type=click.IntRange(1, 1_000_000), help="Budget of trials; it may only be raised.")
@click.option("--wall-clock", metavar="T", help="Budget of time over all runs (8 h); it may only be raised.")
@click.option("--limit", "limits", multiple=True, metavar="NAME=AMOUNT", help="Limit of an objective (latency=20ms).")
@priority_option(None)
def edit(
    study: str,
    studies: Path,
    database: str | None,
    trials: int | None,
    wall_clock: str | None,
    limits: tuple[str, ...],
    priority: int | None,
) -> None:
    """Change STUDY while it runs: a larger budget, tighter limits, another priority.

    A limit holds for the trials that were told, too: those beyond it are infeasible from then on, and the search goes
    on from that. It may only be tightened, and only of an objective that the study has.

    \b
    Example:
      edgefront edit digits --trials 200 --limit "rom=48 KiB"
    """
    from orchestrator.registry import STOPPED
    from orchestrator.studyedit import StudyEdit, parse_limit

    change = StudyEdit(trials=trials, wall_clock_s=_seconds(wall_clock), limits=dict(map(parse_limit, limits)))
    if change.is_empty and priority is None:
        raise click.UsageError("nothing to change; give --trials, --wall-clock, --limit or --priority")
    registry = open_registry(studies, database)
    entry = submitted(study, studies, registry)
    if entry.state == STOPPED:
        raise UsageError(f"study {entry.name} was stopped for good on {entry.changed_at} and cannot be edited")
    if not change.is_empty:
        click.echo(f"{study}: {edit_study(entry, change, registry)}")
    if priority is not None:
        registry.set_priority(study, priority)
        click.echo(f"{study}: priority {priority}")
    registry.close()


def _seconds(text: str | None) -> float | None:
    from orchestrator.studyfile import parse_quantity

    if text is None:
        return None
    try:
        seconds = float(parse_quantity(text, "s"))
    except ValueError as error:
        raise UsageError(f"--wall-clock: {error}") from error
    if not 0 < seconds < float("inf"):
        raise UsageError(f"--wall-clock: found {text}; allowed is any time above 0")
    return seconds


def edit_study(entry: Entry, change: StudyEdit, registry: Registry) -> str:
    """Ask for the change, and wait a while for the study's process to make it; says what has become of it.

    Raises:
        UsageError: it cannot be made; nothing was changed.
    """
    _check_edit(entry, change, registry)
    number = registry.add_edit(entry.name, change.to_json(), who(), now())
    registry.reopen(entry.name, now())
    if not registry.entry(entry.name).owner:
        return "taken over when it runs next"
    answer = _answer(entry.name, number, registry)
    if answer.startswith("refused: "):
        raise UsageError(answer.removeprefix("refused: "))
    return answer or "asked for; its process makes the change between two trials (edgefront logs shows when)"


def _answer(name: str, number: int, registry: Registry) -> str:
    from time import monotonic, sleep

    deadline = monotonic() + _EDIT_WAIT_S
    while monotonic() < deadline:
        row = next(row for row in registry.edits(name) if row.number == number)
        if not row.is_pending:
            return row.answer
        sleep(0.2)
    return ""


def _check_edit(entry: Entry, change: StudyEdit, registry: Registry) -> None:
    """Against the study as it will be when the changes before this one are made."""
    from cli_background import objectives_of
    from orchestrator.study import Study
    from orchestrator.studyedit import StudyEdit, edited
    from orchestrator.studyfile import StudyFile

    file = StudyFile.from_json(entry.submission.file)
    place = registry.place(entry)
    if Study.exists(place):
        study = Study.open(place)
        file = study.file
        study.close()
    for row in registry.edits(entry.name):
        if row.is_pending:
            file = edited(file, objectives_of(file), StudyEdit.from_json(row.edit))
    edited(file, objectives_of(file), change)


COMMANDS = (pause, resume, stop, edit)
