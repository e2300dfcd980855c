"""The part of the command line that says how studies stand: one with its front, or all of the lab's.

As in :mod:`cli`, imports stand inside the functions, so that a command does not wait for what it does not use.
"""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli_rack import aligned, json_option
from cli_service import has_orchestrator, open_registry
from cli_study import NotBegun, database_option, read_study, studies_option, where

if TYPE_CHECKING:
    from orchestrator.database import Database
    from orchestrator.reading import StudyReader
    from orchestrator.records import Json
    from orchestrator.registry import Entry, Registry

_REASON_LENGTH = 100


@click.command(short_help="Say how a study stands, or all of them.")
@click.argument("study", required=False)
@studies_option
@database_option
@json_option
def status(study: str | None, studies: Path, database: str | None, as_json: bool) -> None:
    """Say how STUDY stands: trials, hypervolume, the front; and its state, where it was submitted. Works while it runs.
    Without STUDY: all that were submitted.

    \b
    Example:
      edgefront status
      edgefront status digits
    """
    from orchestrator.registry import has_registry

    if study is None:
        _say_all(studies, database, as_json=as_json)
        return
    try:
        opened = read_study(study, studies, database)
    except NotBegun as error:
        _say_waiting(error.entry, as_json=as_json)
        return
    with closing(opened):
        entry = None
        if has_registry(studies, database):
            with closing(open_registry(studies, database)) as registry:
                entry = entry_of(opened, registry)
        _say_one(opened, entry, as_json=as_json)


def entry_of(study: StudyReader, registry: Registry) -> Entry | None:
    """What the lab's list says of a study; None where it was not submitted.

    Raises:
        StudyError: the list cannot be used.
    """
    entry = registry.find(study.file.name)
    is_this = entry is not None and _is_same(registry.place(entry).database(), study.database)
    return entry if is_this else None


def _is_same(one: Database, other: Database) -> bool:
    from orchestrator.database import SqliteDatabase

    if isinstance(one, SqliteDatabase) and isinstance(other, SqliteDatabase):
        return one.path.resolve() == other.path.resolve()
    return one.shown == other.shown


def _say_one(study: StudyReader, entry: Entry | None, *, as_json: bool) -> None:
    from rich.console import Console

    from orchestrator.summary import summary_of, summary_view

    summary = summary_of(study)
    if as_json:
        click.echo(json.dumps({**summary, "submitted": _listed(entry) if entry is not None else None}))
        return
    console = Console(highlight=False)
    console.print(summary_view(summary))
    if entry is not None:
        console.print(standing_text(entry), markup=False, soft_wrap=True)


def _say_waiting(entry: Entry, *, as_json: bool) -> None:
    """Of a study that has not begun: the same fields as of one that has, with nothing in them."""
    from cli_background import objectives_of
    from orchestrator.studyfile import StudyFile
    from orchestrator.summary import summarise

    file = StudyFile.from_json(entry.submission.file)
    summary = summarise(file, objectives_of(file), [], [], {})
    if as_json:
        click.echo(json.dumps({**summary, "submitted": _listed(entry)}))
        return
    click.echo(f"{entry.name}: it has not begun, {entry.reached.told}/{entry.reached.budget} trials told")
    click.echo(standing_text(entry))


def _listed(entry: Entry) -> Json:
    kept = ("state", "wanted", "reason", "priority", "submitter", "submitted_at", "changed_at", "folder", "owner")
    return {name: value for name, value in entry.to_json().items() if name in kept}


def standing_text(entry: Entry) -> str:
    """State, reason and what may be done, in a line or several."""
    from orchestrator.registry import FAILED, PAUSED

    text = f"{state_of(entry)} since {entry.changed_at}, submitted by {entry.submission.submitter}"
    if entry.reason:
        text += f": {reason_of(entry)}"
    advice = {
        PAUSED: f"to go on: edgefront resume {entry.name}",
        FAILED: f"once its cause is removed: edgefront resume {entry.name}",
    }
    return f"{text}\n{advice[entry.state]}" if entry.state in advice else text


def state_of(entry: Entry) -> str:
    """The state, and what it is being brought to."""
    from orchestrator.registry import OPEN_STATES, RUN

    if entry.state in OPEN_STATES and entry.wanted != RUN:
        return entry.state + {"pause": ", pausing", "stop": ", stopping"}[entry.wanted]
    return entry.state


def reason_of(entry: Entry) -> str:
    """Why it is as it is. A study that has just been taken up again may have left behind what ended it the last
    time."""
    from orchestrator.registry import RUNNING

    return f"begun again after: {entry.reason}" if entry.state == RUNNING and entry.reason else entry.reason


# ---------------------------------------------------------------------------------------------------------------- all


def _say_all(studies: Path, database: str | None, *, as_json: bool) -> None:
    from orchestrator.registry import has_registry

    entries: list[Entry] = []
    is_served = False
    if has_registry(studies, database):
        with closing(open_registry(studies, database)) as registry:
            entries, is_served = registry.entries(), has_orchestrator(registry)
    if as_json:
        click.echo(json.dumps([entry.to_json() for entry in entries]))
        return
    if not entries:
        click.echo(f"nothing was submitted in {studies} yet; edgefront submit STUDY.yaml does")
        return
    rows = [["study", "state", "trials", "hypervolume", "front", "priority", "by", ""], *map(_row, entries)]
    for line in aligned(rows):
        click.echo(line)
    if not is_served:
        click.echo(f"\nno orchestrator is at work; start one with: edgefront orchestrator{where(studies)}")


def _row(entry: Entry) -> list[str]:
    reached = entry.reached
    return [
        entry.name,
        state_of(entry),
        f"{reached.told}/{reached.budget}",
        f"{reached.hypervolume:.4f}",
        str(reached.front_size),
        f"{entry.priority:+d}" if entry.priority else "0",
        entry.submission.submitter,
        shortened(reason_of(entry)),
    ]


def shortened(reason: str) -> str:
    """The first line of a reason, cut between two words where it is long; "…" says that there is more."""
    first, _, rest = reason.strip().partition("\n")
    if len(first) > _REASON_LENGTH:
        return first[:_REASON_LENGTH].rpartition(" ")[0].rstrip(" ,;:") + " …"
    return f"{first} …" if rest else first


COMMANDS = (status,)
