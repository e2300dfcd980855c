"""Where studies are: each in a folder below ``--studies``, its tables in a file there or in a lab's PostgreSQL."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.database import DATABASE_FILE, Database, SqliteDatabase
from orchestrator.errors import UsageError
from orchestrator.postgres import DATABASE_VARIABLE, PostgresDatabase, check_url, names_there, shown


@dataclass(frozen=True, kw_only=True, slots=True)
class Location:
    """One study's place. ``folder`` holds its file, logs and report; ``url`` is a PostgreSQL address (with its
    password: never show it), or empty for the file in the folder; ``name`` is the study's."""

    folder: Path
    name: str
    url: str = field(default="", repr=False)

    def database(self) -> Database:
        """
        Raises:
            UsageError: ``url`` is no address of a PostgreSQL database.
        """
        if not self.url:
            return SqliteDatabase(folder=self.folder)
        return PostgresDatabase(url=check_url(self.url), name=self.name, folder=self.folder)


ELSEWHERE = "Another folder is chosen with --studies, another database with --database."
_MOST_NAMES = 20


class UnknownStudy(UsageError):
    """No study called ``name`` has begun; ``places`` says where those are that have, and which."""

    def __init__(self, name: str, places: Mapping[str, Sequence[str]]) -> None:
        super().__init__(f"{unknown_text(name, places)}. {ELSEWHERE}")
        self.name = name
        self.places = places


def unknown_text(name: str, places: Mapping[str, Sequence[str]]) -> str:
    """That there is no study called ``name``, which one may be meant, and those there are in each of ``places``."""
    close = difflib.get_close_matches(name, sorted({known for names in places.values() for known in names}), n=1)
    meant = f" (did you mean {close[0]!r}?)" if close else ""
    return f"no study {name!r}{meant}; " + "; ".join(f"{place}: {_shown(names)}" for place, names in places.items())


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return (", ".join(names[:_MOST_NAMES]) or "none") + more


def database_url(given: str | None = None, environment: Mapping[str, str] = os.environ) -> str:
    """The address given, else that of ``EDGEFRONT_DATABASE``, else nothing: each study has its own file.

    Raises:
        UsageError: it is no address of a PostgreSQL database.
    """
    text = given if given is not None else environment.get(DATABASE_VARIABLE, "")
    if text:
        check_url(text, where=DATABASE_VARIABLE if given is None else "--database")
    return text


def location_of(studies: Path, name: str, url: str = "") -> Location:
    """Where the study called ``name`` is, or is to be begun.

    Raises:
        UsageError: with a database given: the folder holds a study of that name in a file of its own.
    """
    folder = studies / name
    if url and (folder / DATABASE_FILE).exists():
        raise UsageError(
            f"study {name} was begun in {folder / DATABASE_FILE}, and a database is given. Unset {DATABASE_VARIABLE} "
            "to go on with it; or move it by edgefront study backup, and study restore with another --studies"
        )
    return Location(folder=folder, name=name, url=url)


def find_study(name: str, studies: Path, url: str = "") -> Location:
    """A study that exists: by its name, or by the path of its folder.

    Raises:
        UnknownStudy: there is none; the text lists those there are.
        StudyError: the database cannot be read.
    """
    for folder in (studies / name, Path(name)):
        if (folder / DATABASE_FILE).exists():
            return Location(folder=folder, name=folder.resolve().name)
    if url and name in (found := names_there(check_url(url))):
        return Location(folder=studies / name, name=name, url=url)
    known = sorted(path.parent.name for path in studies.glob(f"*/{DATABASE_FILE}"))
    places = {f"in the folder {studies}": known}
    if url:
        places[f"in {shown(check_url(url))}"] = sorted(found)
    raise UnknownStudy(name, places)


def studies_there(studies: Path, url: str = "") -> list[Location]:
    """All studies below ``studies`` and in the database, by name.

    Raises:
        StudyError: the database cannot be read.
    """
    found = [Location(folder=path.parent, name=path.parent.name) for path in studies.glob(f"*/{DATABASE_FILE}")]
    if url:
        found += [Location(folder=studies / name, name=name, url=url) for name in names_there(check_url(url))]
    return sorted(found, key=lambda location: location.name)
