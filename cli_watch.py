"""The part of the command line that shows a study which another process runs: its progress, and its logs.

As in :mod:`cli`, imports stand inside the functions, so that a command does not wait for what it does not use.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli_rack import json_option
from cli_service import open_registry
from cli_study import database_option, studies_option
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.location import Location
    from orchestrator.registry import Registry
    from orchestrator.study import Study

_EVERY_S = 1.0


@click.command(short_help="Show how a study goes that runs elsewhere.")
@click.argument("study")
@studies_option
@database_option
@json_option
def watch(study: str, studies: Path, database: str | None, as_json: bool) -> None:
    """Show STUDY as it goes on, whoever runs it, until it ends or Ctrl-C; the study does not notice.

    \b
    Example:
      edgefront watch digits
    """
    from orchestrator.registry import has_registry

    registry = open_registry(studies, database) if has_registry(studies, database) else None
    watch_study(study, studies, database, registry, as_json=as_json)
    if registry is not None:
        registry.close()


def watch_study(name: str, studies: Path, database: str | None, registry: Registry | None, *, as_json: bool) -> None:
    """Until the study ends."""
    from time import sleep

    from rich.console import Console

    from orchestrator.following import Follower

    console = Console(highlight=False)
    opened = _wait_for(name, studies, database, registry)
    if opened is None:
        return
    with ExitStack() as stack:
        stack.callback(opened.close)
        follower = Follower(study=opened, sink=_watch_view(opened, console, stack, as_json=as_json))
        while True:
            ended = _ended_text(name, registry)  # before the poll: what came before the end is shown, too
            follower.poll()
            if follower.is_over or ended:
                break
            sleep(_EVERY_S)
    if not as_json:
        console.print(ended or f"{name} has ended", markup=False)


def _wait_for(name: str, studies: Path, database: str | None, registry: Registry | None) -> Study | None:
    """The study, once it has begun; None where it ended before."""
    from time import sleep

    from cli_study import open_study

    entry = registry.find(name) if registry is not None else None
    if registry is None or entry is None:
        return open_study(name, studies, database)
    place = registry.place(entry)
    if not place.database().is_complete():
        click.echo(f"{name} is {entry.state} and has not begun", err=True)
        while not place.database().is_complete():
            if text := _ended_text(name, registry):
                click.echo(text, err=True)
                return None
            sleep(_EVERY_S)
    return open_study(name, place.folder.parent, database)


def _ended_text(name: str, registry: Registry | None) -> str:
    from orchestrator.registry import ENDED_STATES, FAILED

    entry = registry.find(name) if registry is not None else None
    if entry is None or entry.state not in (*ENDED_STATES, FAILED):
        return ""
    return f"{name} is {entry.state}" + (f": {entry.reason}" if entry.reason else "")


def _watch_view(study: Study, console: Console, stack: ExitStack, *, as_json: bool) -> Any:
    from time import monotonic

    from orchestrator.following import standing
    from orchestrator.loop import SystemClock
    from orchestrator.progress import Progress
    from orchestrator.view import FanOut, JsonLines, LiveView, PlainLines
    from tasks.registry import STAGES

    if as_json:
        return JsonLines(click.echo, SystemClock().now_iso)
    progress = Progress(monotonic)
    standing(study, progress)
    units = dict(zip(study.objectives.names, study.objectives.units, strict=True))
    if console.is_terminal:
        return FanOut(progress, stack.enter_context(LiveView(progress, units, STAGES, console, monotonic)))
    return FanOut(progress, PlainLines(progress, units, lambda line: console.print(line, markup=False, soft_wrap=True)))


@click.command(short_help="Show what happened in a study.")
@click.argument("study")
@studies_option
@database_option
@click.option("--follow", "-f", is_flag=True, help="Go on showing what comes, until Ctrl-C.")
@click.option("--trial", type=click.IntRange(min=0), help="Only what is about this trial, with its stages.")
@json_option
def logs(study: str, studies: Path, database: str | None, follow: bool, trial: int | None, as_json: bool) -> None:
    """Show what happened in STUDY, and the logs of the processes that run it, in the order of time.

    \b
    Example:
      edgefront logs digits -f
      edgefront logs digits --trial 3
    """
    from time import sleep

    from orchestrator.logreading import LogReader, json_line, log_text
    from orchestrator.study import Study

    place = _place_of_logs(study, studies, database, is_waiting=follow)
    reader = LogReader(folder=place.folder, trial=trial)
    with ExitStack() as stack:
        while True:
            if reader.study is None and place.database().is_complete():
                reader.study = stack.enter_context(closing(Study.open(place)))
                if trial is not None and not follow:
                    _check_trial(reader.study, trial)
            for line in reader.news():
                click.echo(json_line(line) if as_json else log_text(line))
            sys.stdout.flush()
            if not follow:
                break
            sleep(_EVERY_S)


def _place_of_logs(name: str, studies: Path, database: str | None, *, is_waiting: bool) -> Location:
    """Where the study is. One that has not begun may have logs all the same: of a process that could not begin it.

    Raises:
        NotBegun: it has none, and is not to be waited for.
        UsageError: there is no such study.
    """
    from cli_study import NotBegun, locate_study
    from orchestrator.registry import has_registry

    if not has_registry(studies, database):
        return locate_study(name, studies, database)
    with closing(open_registry(studies, database)) as registry:
        entry = registry.find(name)
        if entry is None:
            return locate_study(name, studies, database)
        place = registry.place(entry)
    if not place.database().is_complete():
        if not is_waiting and not any((place.folder / "logs").glob("*.log")):
            raise NotBegun(entry)
        click.echo(str(NotBegun(entry)), err=True)
    return place


def _check_trial(study: Study, trial: int) -> None:
    with study.guarded():
        numbers = {row.trial for row in study.ledger.candidates()}
    if trial not in numbers:
        there = f"0 to {max(numbers)}" if numbers else "none yet"
        raise UsageError(f"--trial: found {trial}; the trials of study {study.file.name} are {there}")


COMMANDS = (watch, logs)
