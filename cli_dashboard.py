"""The part of the command line that shows studies to whoever passes by: ``edgefront dashboard``.

As in :mod:`cli`, imports stand inside the functions, so that a command does not wait for what it does not use.
"""

from __future__ import annotations

import os
import shlex
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from orchestrator.study import Study
    from tasks.watching import LabWatch

DEFAULT_PORT = 8450


@click.command(short_help="Show studies live in the browser.")
@click.argument("study", required=False, default="")
@click.option(
    "--studies",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("studies"),
    envvar="EDGEFRONT_STUDIES",
    show_default=True,
    help="Folder with one folder a study.",
)
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
def dashboard(study: str, studies: Path, port: int, address: str, token: str, optuna_url: str, is_open: bool) -> None:
    """Show STUDY, or all studies, live in the browser: fronts, hypervolume, trials under way and, where
    EDGEFRONT_BROKER_URL is set, the boards. Works while other processes run the studies, and changes nothing.

    \b
    Example:
      edgefront dashboard digits --open
      EDGEFRONT_DASHBOARD_TOKEN=… edgefront dashboard --address 0.0.0.0
    """
    from orchestrator.report.serve import Access, DashboardServer

    shown = ShownStudies(studies, optuna_url, _watch())
    if study:
        shown.open(study)  # an unknown one is an error now and not on the page
    with DashboardServer(shown, Access(address=address, port=port, token=token), first=study) as server:
        click.echo(f"{server.url}  (Ctrl-C ends it)")
        if is_open:
            click.launch(server.url)
        threading.Event().wait()


def _watch() -> LabWatch | None:
    from tasks.broker import BROKER_VARIABLE
    from tasks.watching import LabWatch

    url = os.environ.get(BROKER_VARIABLE)
    return LabWatch(url) if url else None


class ShownStudies:
    """The studies of a folder, for :class:`~orchestrator.report.serve.DashboardServer`; each is opened once."""

    def __init__(self, folder: Path, optuna_url: str = "", watch: LabWatch | None = None) -> None:
        self._folder = folder
        self._optuna_url = optuna_url
        self._watch = watch
        self._lock = threading.Lock()
        self._opened: dict[str, tuple[int, Study]] = {}

    def names(self) -> list[str]:
        from orchestrator.study import DATABASE_FILE

        found = self._folder.glob(f"*/{DATABASE_FILE}")
        return [path.parent.name for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]

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
        data = snapshot(read_study(study, stages_for(study.file.kinds), time(), progress))
        return {**data, "links": self._links(study)}

    def boards(self) -> dict[str, Any]:
        if self._watch is None:
            return {"boards": [], "text": ""}
        return self._watch.boards()

    def open(self, name: str) -> Study:
        """
        Raises:
            UsageError: there is none; the text lists those there are.
            StudyError: its database cannot be used.
        """
        from cli_study import open_study
        from orchestrator.study import DATABASE_FILE

        with self._lock:
            path = self._folder / name / DATABASE_FILE
            inode = path.stat().st_ino if path.exists() else 0
            before, study = self._opened.get(name, (None, None))
            if study is not None and before == inode:
                return study
            if study is not None:  # begun anew since
                study.close()
            opened = open_study(name, self._folder)
            self._opened[name] = (inode, opened)
            return opened

    def _links(self, study: Study) -> dict[str, str]:
        from orchestrator.study import DATABASE_FILE

        where = "" if self._folder == Path("studies") else f" --studies {shlex.quote(str(self._folder))}"
        database = (study.folder / DATABASE_FILE).absolute()
        return {
            "the whole report": f"edgefront report {study.file.name}{where} --open",
            "every plot of Optuna": self._optuna_url or f"optuna-dashboard sqlite:///{database}",
        }
