"""The part of the command line that keeps studies safe: backups, and room on the disk.

As in :mod:`cli`, imports stand inside the functions, so that a command does not wait for what it does not use.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli_rack import json_option
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.backup import Backup, ReadArtifact
    from orchestrator.location import Location
    from orchestrator.reading import StudyReader
    from orchestrator.registry import Entry
    from orchestrator.study import Study
    from tasks.garbage import Plan

STUDIES = "studies"
_SHORTEST_GRACE_S = 60.0


def studies_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """The option ``--studies``."""
    return click.option(
        "--studies",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path(STUDIES),
        envvar="EDGEFRONT_STUDIES",
        show_default=True,
        help="Folder with one folder a study.",
    )(function)


def database_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """The option ``--database``. Its value may hold a password: the environment variable keeps it off the screen."""
    return click.option(
        "--database",
        metavar="URL",
        help="PostgreSQL that holds the studies and their list: postgresql://user:password@host/database; default: "
        "$EDGEFRONT_DATABASE, else files in the studies' folder.",
    )(function)


def where(studies: Path) -> str:
    """The option that a command shown to people needs to find these studies, with a space before it."""
    return "" if studies == Path(STUDIES) else f" --studies {shlex.quote(str(studies))}"


def open_study(name: str, studies: Path, database: str | None = None) -> Study:
    """A study by its name below ``studies`` or in the database, or by the path of its folder.

    Raises:
        UsageError: there is none; the text lists those there are.
        StudyError: its database cannot be used.
    """
    from orchestrator.study import Study

    return Study.open(locate_study(name, studies, database))


def read_study(name: str, studies: Path, database: str | None = None) -> StudyReader:
    """As ``open_study``, for looking only: without Optuna, which takes half a second to load.

    Raises:
        UsageError: there is none; the text lists those there are.
        StudyError: its database cannot be used.
    """
    from orchestrator.ledger import OutdatedStudy
    from orchestrator.reading import StudyReader

    location = locate_study(name, studies, database)
    try:
        return StudyReader.open(location)
    except OutdatedStudy:
        open_study(name, studies, database).close()  # upgrades it
        return StudyReader.open(location)


def locate_study(name: str, studies: Path, database: str | None = None) -> Location:
    """Where a study is that has begun.

    Raises:
        NotBegun: it is on the lab's list, and has not begun.
        UsageError: there is none; the text lists those there are, and those that are submitted.
        StudyError: a database cannot be read.
    """
    from orchestrator.location import ELSEWHERE, UnknownStudy, database_url, find_study, unknown_text

    try:
        return find_study(name, studies, database_url(database))
    except UnknownStudy as error:
        begun = {known for names in error.places.values() for known in names}
        waiting = {entry.name: entry for entry in _listed(studies, database) if entry.name not in begun}
        if name in waiting:
            raise NotBegun(waiting[name]) from error
        if waiting:
            places = {**error.places, "submitted and not begun": list(waiting)}
            raise UsageError(f"{unknown_text(name, places)}. {ELSEWHERE}") from error
        raise


def _listed(studies: Path, database: str | None) -> list[Entry]:
    from orchestrator.registry import Registry, has_registry, registry_url

    if not has_registry(studies, database):
        return []
    with closing(Registry(registry_url(studies, database))) as registry:
        return registry.entries()


class NotBegun(UsageError):
    """The study is on the lab's list, as ``entry`` says, and there is nothing else of it."""

    def __init__(self, entry: Entry) -> None:
        reason = f" ({entry.reason})" if entry.reason else ""
        super().__init__(
            f"study {entry.name} is {entry.state}{reason} and has not begun: there is nothing of it to show. "
            f"edgefront status {entry.name} says how it stands, edgefront watch {entry.name} waits for it"
        )
        self.entry = entry


def artifact_reader(study: Study | StudyReader) -> ReadArtifact:
    """A function that gives the bytes of an artifact by its hash, or None where it is gone."""
    from tasks.artifacts import ArtifactStore
    from tasks.errors import TransientFault

    store = ArtifactStore(study.artifacts)

    def read(sha256: str) -> bytes | None:
        try:
            return store.get_bytes(sha256)
        except TransientFault:
            return None

    return read


@click.command(short_help="Write a study into one file, while it runs too.")
@click.argument("study")
@click.option(
    "--to",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="New file: *.tar.gz or *.tar.zst.",
)
@click.option("--front-only", is_flag=True, help="Leave out artifacts of trials that are on no front.")
@studies_option
@database_option
@json_option
def backup(study: str, path: Path, front_only: bool, studies: Path, database: str | None, as_json: bool) -> None:
    """Write STUDY as it is now into one file: its tables, its study file, its artifacts. It may be running.

    \b
    Example:
      edgefront study backup digits --to digits.tar.gz
    """
    from orchestrator.backup import back_up, check_archive_name

    check_archive_name(path)
    opened = open_study(study, studies, database)
    made = back_up(opened, path, artifact_reader(opened), front_only=front_only)
    opened.close()
    if as_json:
        click.echo(json.dumps({**_backup_json(made), "file": str(path)}))
        return
    click.echo(f"{path}  {made.n_bytes:,} bytes, {made.n_artifacts} artifacts")
    if made.missing:
        click.echo(f"{len(made.missing)} artifacts that the study names are gone from {opened.artifacts}", err=True)


def _backup_json(made: Backup) -> dict[str, object]:
    return {
        "study": made.name,
        "study_id": made.study_id,
        "made_at": made.made_at,
        "front_only": made.is_front_only,
        "artifacts": made.n_artifacts,
        "missing": list(made.missing),
        "bytes": made.n_bytes,
    }


@click.command(short_help="Bring a study back from a backup.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--name", default="", help="Another name; it is another study then.")
@click.option("--check", "only_check", is_flag=True, help="Only compare every hash in it.")
@studies_option
@database_option
@json_option
def restore(file: Path, name: str, only_check: bool, studies: Path, database: str | None, as_json: bool) -> None:
    """Check FILE, which edgefront study backup wrote, and bring its study back. Nothing is overwritten.

    The study is not on the lab's list then; `edgefront submit` with the study.yaml of its folder puts it there.

    \b
    Example:
      edgefront study restore digits.tar.gz --name digits-again
      edgefront submit studies/digits-again/study.yaml
    """
    from orchestrator.backup import restore as bring_back
    from orchestrator.backup import verify
    from orchestrator.location import database_url
    from orchestrator.study import STUDY_COPY
    from tasks.artifacts import ArtifactStore

    if only_check:
        found = verify(file)
        click.echo(
            json.dumps(_backup_json(found)) if as_json else f"{file} is whole: study {found.name} of {found.made_at}"
        )
        return
    location = bring_back(file, studies, ArtifactStore, name=name, url=database_url(database))
    shown = location.database().shown
    if as_json:
        click.echo(json.dumps({"study": location.name, "database": shown}))
        return
    again = f"{shlex.quote(str(location.folder / STUDY_COPY))}{where(studies)}"
    click.echo(f"{location.name}  in {shown}")
    click.echo(f"it is not on the lab's list; to go on with it: edgefront submit {again}, or edgefront run {again}")


@click.command(short_help="Remove artifacts that nobody needs.")
@click.argument("study", nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--older-than", default="1d", show_default=True, metavar="TIME", help="Keep everything younger: 12h, 1d.")
@studies_option
@database_option
@json_option
def gc(
    study: tuple[str, ...], dry_run: bool, older_than: str, studies: Path, database: str | None, as_json: bool
) -> None:
    """Remove the artifacts of STUDY that no front, no trial under way and no recent result needs. It may be running.

    Reports, exports of trials on a front and the rest of the search work as before. Where several studies share a store
    of artifacts, name all of them.

    \b
    Example:
      edgefront study gc digits --dry-run
    """
    grace_s = _grace_s(older_than)
    with ExitStack() as stack:
        opened = [open_study(name, studies, database) for name in study]
        for one in opened:
            stack.callback(one.close)
        found = collect(opened, grace_s, is_dry=dry_run)
    if as_json:
        click.echo(json.dumps({**found.to_json(), "dry_run": dry_run}))
        return
    numbers = found.to_json()
    verb = "would be removed" if dry_run else "removed"
    click.echo(
        f"{numbers['artifacts']} artifacts and {numbers['remembered_results']} remembered results {verb}, "
        f"{numbers['bytes']:,} bytes; {numbers['kept']} files kept, {numbers['kept_bytes']:,} bytes"
    )


def _grace_s(text: str) -> float:
    from orchestrator.studyfile import parse_quantity

    try:
        seconds = float(parse_quantity(text, "s"))
    except ValueError as error:
        raise UsageError(f"--older-than: {error}; and at least {_SHORTEST_GRACE_S:g} s") from None
    if seconds < _SHORTEST_GRACE_S:
        raise UsageError(
            f"--older-than: found {text}; allowed is {_SHORTEST_GRACE_S:g} s or more: clocks of hosts differ, and "
            "what a worker has just written is not in the ledger yet"
        )
    return seconds


def collect(studies: list[Study], grace_s: float, *, is_dry: bool) -> Plan:
    """Remove what the studies, which share one store, and everything within ``grace_s`` do not need."""
    from datetime import UTC, datetime

    from orchestrator.needs import cutoff, needs_of
    from tasks.artifacts import ArtifactStore
    from tasks.garbage import Plan, check_owners, memos_of, plan, sweep

    places = sorted({study.artifacts for study in studies})
    if len(places) > 1:
        raise UsageError(
            f"these studies keep their artifacts in different places: {', '.join(places)}; name one at a time"
        )
    store = ArtifactStore(places[0])
    check_owners(store, {study.study_id for study in studies})
    now = datetime.now(UTC)
    needs = [needs_of(study) for study in studies]  # before the store is listed: what comes later is young
    until = cutoff(needs, now, grace_s)
    entries = store.entries()
    found = plan(entries, memos_of(store, entries), frozenset().union(*(item.kept for item in needs)), until)
    if is_dry:
        return found
    return Plan(condemned=tuple(sweep(store, found.condemned, until)), kept=found.kept)


COMMANDS = (backup, restore, gc)
