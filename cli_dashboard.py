"""The part of the command line that shows studies to whoever passes by: ``edgefront dashboard``.

As in :mod:`cli`, imports stand inside the functions, so that a command does not wait for what it does not use.
"""

from __future__ import annotations

import os
import shlex
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from cli_study import STUDIES, database_option, studies_option
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.location import Location
    from orchestrator.reading import StudyReader
    from orchestrator.registry import Registry
    from orchestrator.report.live import Standing
    from tasks.watching import LabWatch

DEFAULT_PORT = 8450


@click.command(short_help="Show studies live in the browser.")
@click.argument("study", required=False, default="")
@studies_option
@database_option
@click.option(
    "--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True, help="Port; 0: any free one."
)
@click.option("--address", default="127.0.0.1", show_default=True, help="Interface; other than loopback needs a token.")
@click.option(
    "--token",
    default="",
    envvar="EDGEFRONT_DASHBOARD_TOKEN",
    help="Who has it may look; better set as EDGEFRONT_DASHBOARD_TOKEN, which lists of processes do not show.",
)
@click.option("--optuna-dashboard", "optuna_url", default="", metavar="URL", help="Link to one that is running.")
@click.option("--open", "is_open", is_flag=True, help="Open it in the browser.")
def dashboard(
    study: str,
    studies: Path,
    database: str | None,
    port: int,
    address: str,
    token: str,
    optuna_url: str,
    is_open: bool,
) -> None:
    """Show STUDY, or all studies, live in the browser: fronts, hypervolume, trials under way and, where
    EDGEFRONT_BROKER_URL is set, the boards. Works while other processes run the studies, and changes nothing.

    \b
    Example:
      edgefront dashboard digits --open
      EDGEFRONT_DASHBOARD_TOKEN=… edgefront dashboard --address 0.0.0.0
    """
    from orchestrator.location import database_url
    from orchestrator.postgres import DatabaseAway
    from orchestrator.report.serve import Access, DashboardServer

    _check_given(studies, optuna_url)
    shown = ShownStudies(studies, database_url(database), optuna_url, _watch())
    try:
        shown.names()  # a wrong password is an error now and not on the page
    except DatabaseAway as error:
        click.echo(f"edgefront: {error}", err=True)
    if study:
        shown.open(study)  # an unknown one is an error now and not on the page
    access = Access(address=address, port=port, token=token)
    with closing(shown), DashboardServer(shown, access, first=study) as server:
        click.echo(f"{server.url}  (Ctrl-C ends it)")
        if is_open:
            click.launch(server.url)
        threading.Event().wait()


def _check_given(studies: Path, optuna_url: str) -> None:
    """
    Raises:
        UsageError: a folder was named that does not exist, or the link leads nowhere.
    """
    is_named = click.get_current_context().get_parameter_source("studies") is not ParameterSource.DEFAULT
    if is_named and not studies.is_dir():
        raise UsageError(f"--studies: there is no folder {studies}; name the one that holds the studies' folders")
    parts = urlsplit(optuna_url)
    if optuna_url and (parts.scheme not in ("http", "https") or not parts.netloc):
        raise UsageError(f"--optuna-dashboard: found {optuna_url!r}; allowed is http://host:port/ or https://…")


def _watch() -> LabWatch | None:
    from tasks.broker import BROKER_VARIABLE
    from tasks.watching import LabWatch

    url = os.environ.get(BROKER_VARIABLE)
    return LabWatch(url) if url else None


class ShownStudies:
    """The studies of a folder and of a database, for :class:`~orchestrator.report.serve.DashboardServer`; each is
    opened once."""

    def __init__(self, folder: Path, database: str = "", optuna_url: str = "", watch: LabWatch | None = None) -> None:
        self._folder = folder
        self._database = database
        self._optuna_url = optuna_url
        self._watch = watch
        self._lock = threading.Lock()
        self._opened: dict[str, tuple[int | str, StudyReader]] = {}
        self._registry: Registry | None = None

    def names(self) -> list[str]:
        """Those that changed last come first.

        Raises:
            StudyError: the database cannot be read.
        """
        from orchestrator.location import studies_there

        found = sorted(studies_there(self._folder, self._database), key=_changed_at, reverse=True)
        return [location.name for location in found]

    def look(self, name: str) -> dict[str, Any]:
        """
        Raises:
            OrchestratorError: there is no such study, or it cannot be read.
        """
        from time import time

        from orchestrator.report.live import read_study, snapshot
        from tasks.registry import stages_for

        study = self.open(name)
        progress = self._watch.progress(study.study_id) if self._watch is not None else {}
        stages = stages_for(study.file.kinds)
        data = snapshot(read_study(study, stages, time(), progress, self._submitted(study)))
        return {**data, "links": self._links(study)}

    def _submitted(self, study: StudyReader) -> Standing | None:
        """What the lab's list says; None, too, where it cannot be read: the study's own record is shown all the
        same."""
        from cli_service import open_registry
        from cli_status import entry_of
        from orchestrator.errors import OrchestratorError
        from orchestrator.registry import has_registry
        from orchestrator.report.live import Standing

        database = self._database or None
        try:
            with self._lock:
                if self._registry is None and has_registry(self._folder, database):
                    self._registry = open_registry(self._folder, database)
            entry = entry_of(study, self._registry) if self._registry is not None else None
        except OrchestratorError:
            return None
        return Standing(state=entry.state, wanted=entry.wanted, reason=entry.reason) if entry is not None else None

    def boards(self) -> dict[str, Any]:
        if self._watch is None:
            return {"boards": [], "text": ""}
        return self._watch.boards()

    def open(self, name: str) -> StudyReader:
        """
        Raises:
            UsageError: there is none; the text lists those there are.
            StudyError: its database cannot be used.
        """
        from cli_study import read_study

        with self._lock:
            before, study = self._opened.get(name, (None, None))
            if study is not None:
                if _mark(study) == before:
                    return study
                del self._opened[name]  # begun anew since
                study.close()
            opened = read_study(name, self._folder, self._database)
            self._opened[name] = (_mark(opened), opened)
            return opened

    def close(self) -> None:
        with self._lock:
            for _, study in self._opened.values():
                study.close()
            self._opened.clear()
            if self._registry is not None:
                self._registry.close()

    def _links(self, study: StudyReader) -> dict[str, str]:
        where = "" if self._folder == Path(STUDIES) else f" --studies {shlex.quote(str(self._folder))}"
        links = {"the whole report": f"edgefront report {study.file.name}{where} --open"}
        # The address of a study in PostgreSQL would hold a password.
        optuna = self._optuna_url or (f"optuna-dashboard sqlite:///{path.absolute()}" if (path := _file(study)) else "")
        return {**links, "every plot of Optuna": optuna} if optuna else links


def _file(study: StudyReader) -> Path | None:
    from orchestrator.database import SqliteDatabase

    return study.database.path if isinstance(study.database, SqliteDatabase) else None


def _mark(study: StudyReader) -> int | str:
    """Tells a study from one of the same name that was begun later."""
    path = _file(study)
    if path is not None:
        return path.stat().st_ino if path.exists() else 0
    with study.guarded():
        row = study.ledger.study()
    return row.study_id if row is not None else ""


def _changed_at(location: Location) -> float:
    from orchestrator.database import DATABASE_FILE

    for path in (location.folder / DATABASE_FILE, location.folder):
        if path.exists():
            return path.stat().st_mtime
    return 0.0  # in PostgreSQL, and run by another host
