"""The part of the command line that shows a study which another process runs: its progress, and its logs.

As in :mod:`cli`, imports stand inside the functions, so that a command does not wait for what it does not use.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli_rack import json_option
from cli_service import open_registry
from cli_study import studies_option

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.registry import Registry
    from orchestrator.study import Study

_EVERY_S = 1.0


@click.command(short_help="Show how a study goes that runs elsewhere.")
@click.argument("study")
@studies_option
@json_option
def watch(study: str, studies: Path, as_json: bool) -> None:
    """Show STUDY as it goes on, whoever runs it, until it ends or Ctrl-C; the study does not notice.

    \b
    Example:
      edgefront watch digits
    """
    from orchestrator.registry import has_registry

    registry = open_registry(studies) if has_registry(studies) else None
    watch_study(study, studies, registry, as_json=as_json)
    if registry is not None:
        registry.close()


def watch_study(name: str, studies: Path, registry: Registry | None, *, as_json: bool) -> None:
    """Until the study ends."""
    from time import sleep

    from rich.console import Console

    from orchestrator.following import Follower

    console = Console(highlight=False)
    opened = _wait_for(name, studies, registry)
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


def _wait_for(name: str, studies: Path, registry: Registry | None) -> Study | None:
    """The study, once it has begun; None where it ended before."""
    from time import sleep

    from cli_background import place_of
    from cli_study import open_study
    from orchestrator.study import Study

    entry = registry.find(name) if registry is not None else None
    folder = Path(entry.submission.folder) if entry is not None else studies / name
    place = place_of(folder)
    if registry is not None and entry is not None and not Study.exists(place):
        click.echo(f"{name} is {entry.state} and has not begun", err=True)
        while not Study.exists(place):
            if text := _ended_text(name, registry):
                click.echo(text, err=True)
                return None
            sleep(_EVERY_S)
    return open_study(name, folder.parent)


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
@click.option("--follow", "-f", is_flag=True, help="Go on showing what comes, until Ctrl-C.")
@click.option("--trial", type=click.IntRange(min=0), help="Only what is about this trial, with its stages.")
@json_option
def logs(study: str, studies: Path, follow: bool, trial: int | None, as_json: bool) -> None:
    """Show what happened in STUDY, and the logs of the processes that run it.

    \b
    Example:
      edgefront logs digits -f
      edgefront logs digits --trial 3
    """
    from time import sleep

    from cli_study import open_study
    from orchestrator.following import LogReader, attempt_lines, json_line, log_text
    from orchestrator.registry import has_registry

    folder = studies
    if has_registry(studies):
        registry = open_registry(studies)
        entry = registry.find(study)
        folder = Path(entry.submission.folder).parent if entry is not None else studies
        registry.close()
    opened = open_study(study, folder)
    reader = LogReader(study=opened, trial=trial)
    write = json_line if as_json else log_text
    for line in attempt_lines(opened, trial) if trial is not None else ():
        click.echo(write(line))
    while True:
        for line in reader.events():
            click.echo(write(line))
        for name, text in reader.lines():
            click.echo(json.dumps({"log": name, "text": text}) if as_json else f"{name} | {text}")
        sys.stdout.flush()
        if not follow:
            break
        sleep(_EVERY_S)
    opened.close()


COMMANDS = (watch, logs)
