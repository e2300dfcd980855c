"""A study as one file, taken while it runs, and back again under the same or another name.

The file is a tar archive, compressed with gzip or Zstandard: ``study.db`` (a snapshot of the tables as SQLite, whatever
database the study is in), ``study.yaml``, ``artifacts/<sha256>`` and, last, ``manifest.json`` with the SHA-256 of each
of them. An archive that was cut off has no manifest.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Protocol

from orchestrator.archive import SUFFIXES, add, compressing, digest_of, plain, reading
from orchestrator.copying import copy_rows, make_tables, rename, snapshot
from orchestrator.database import DATABASE_FILE, SqliteDatabase
from orchestrator.errors import UnusableInput, UsageError
from orchestrator.extras import require
from orchestrator.ledger import Ledger
from orchestrator.location import Location
from orchestrator.needs import needs_of
from orchestrator.records import Json
from orchestrator.storage import open_storage
from orchestrator.study import STUDY_COPY, Study, choose_artifacts

FORMAT, FORMAT_VERSION = "edgefront backup", 1
MANIFEST = "manifest.json"
_LARGEST_MANIFEST = 512 * 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NAME_LINE = re.compile(r"^name:[ \t]*\S.*$", re.MULTILINE)


class Store(Protocol):
    """Where artifacts are, by content."""

    def put_bytes(self, data: bytes) -> str: ...

    def get_bytes(self, sha256: str) -> bytes: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Backup:
    """What an archive holds: ``n_artifacts`` of them; ``missing`` are those that the store did not have any more."""

    name: str
    study_id: str
    made_at: str
    is_front_only: bool
    n_artifacts: int
    missing: tuple[str, ...]
    n_bytes: int


ReadArtifact = Callable[[str], bytes | None]
OpenStore = Callable[[str], Store]


def check_archive_name(path: Path) -> None:
    """
    Raises:
        UsageError: the ending names no kind of archive, or the file exists.
        MissingExtra: it is Zstandard, which is not installed.
    """
    if not path.name.endswith(SUFFIXES):
        raise UsageError(f"--to: found {path.name}; allowed are names that end in {', '.join(SUFFIXES)}")
    if path.exists():
        raise UsageError(f"--to: {path} exists; choose another name, a backup overwrites nothing")
    if path.name.endswith(".zst"):
        require("zstd")


def back_up(study: Study, path: Path, read: ReadArtifact, *, front_only: bool = False) -> Backup:
    """Write the study as it is now into a new archive; it may be running.

    ``read`` gives an artifact's bytes, or None where it is gone. ``front_only`` leaves out the artifacts of trials that
    are on no front and not under way.

    Raises:
        UsageError: the archive exists or has no name of one.
        StudyError: the database cannot be read.
    """
    check_archive_name(path)
    half = path.with_name(path.name + ".half")
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".backup-") as folder:
            copy = Path(folder) / DATABASE_FILE
            with study.guarded():
                snapshot(study.database, study.engine, copy)
            # What is named is read from the copy: what came after it is not part of the backup.
            frozen = Study.open(Path(folder))
            needs = needs_of(frozen)
            frozen.close()
            SqliteDatabase(folder=Path(folder)).fold()
            wanted = sorted(needs.kept if front_only else needs.named)
            with half.open("xb") as raw, compressing(raw, path.name) as stream:
                missing = _write(stream, study, copy, wanted, read, is_front_only=front_only)
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)
    return Backup(
        name=study.file.name,
        study_id=study.study_id,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        is_front_only=front_only,
        n_artifacts=len(wanted) - len(missing),
        missing=tuple(missing),
        n_bytes=path.stat().st_size,
    )


def _write(
    stream: IO[bytes],
    study: Study,
    copy: Path,
    wanted: Iterable[str],
    read: ReadArtifact,
    *,
    is_front_only: bool,
) -> list[str]:
    """All members, the manifest last; returns the artifacts that are gone."""
    files: dict[str, Json] = {}
    missing = []
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        with copy.open("rb") as database:
            files[DATABASE_FILE] = {"sha256": hashlib.file_digest(database, "sha256").hexdigest()}
        archive.add(copy, arcname=DATABASE_FILE, filter=plain)
        page = study.folder / STUDY_COPY
        if page.exists():
            files[STUDY_COPY] = add(archive, STUDY_COPY, page.read_bytes())
        for sha256 in wanted:
            data = read(sha256)
            if data is None:
                missing.append(sha256)
            else:
                files[f"artifacts/{sha256}"] = add(archive, f"artifacts/{sha256}", data)
        manifest = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "name": study.file.name,
            "study_id": study.study_id,
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "front_only": is_front_only,
            "missing": missing,
            "files": files,
        }
        add(archive, MANIFEST, json.dumps(manifest, indent=1).encode())
    return missing


def verify(path: Path, folder: Path | None = None) -> Backup:
    """Read all of an archive and compare every hash; ``study.db`` and ``study.yaml`` are written into ``folder``.

    Raises:
        UnusableInput: it is damaged, cut off, no backup, or of another version; names the member.
    """
    found: dict[str, str] = {}
    manifest: Json | None = None
    with reading(path) as members:
        for name, content in members:
            if manifest is not None or name in found:
                raise UnusableInput(
                    f"{path}: found {name} twice or after the manifest; it is no backup as this program writes"
                )
            if name == MANIFEST:
                manifest = _manifest(path, content.read(_LARGEST_MANIFEST))
            else:
                keep = folder / name if folder is not None and "/" not in name else None
                found[name] = digest_of(content, keep)
    if manifest is None:
        raise UnusableInput(
            f"{path}: it ends without a manifest: it was cut off. Take another copy of it, or another backup"
        )
    _compare(path, {name: about["sha256"] for name, about in manifest["files"].items()}, found)
    return Backup(
        name=manifest["name"],
        study_id=manifest["study_id"],
        made_at=manifest["made_at"],
        is_front_only=manifest["front_only"],
        n_artifacts=sum(name.startswith("artifacts/") for name in found),
        missing=tuple(manifest["missing"]),
        n_bytes=path.stat().st_size,
    )


def _manifest(path: Path, data: bytes) -> Json:
    try:
        manifest: Json = json.loads(data)
        kind, version = manifest["format"], manifest["version"]
        complete = {"name", "study_id", "made_at", "front_only", "missing", "files"} <= manifest.keys()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnusableInput(f"{path}: its manifest cannot be read: {error!r}") from error
    if kind != FORMAT or not complete:
        raise UnusableInput(f"{path}: it is no backup of a study")
    if version != FORMAT_VERSION:
        raise UnusableInput(
            f"{path}: it is of version {version}, this program reads {FORMAT_VERSION}; install the newer one"
        )
    return manifest


def _compare(path: Path, expected: dict[str, str], found: dict[str, str]) -> None:
    altered = sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name])
    absent = sorted(expected.keys() ^ found.keys())
    if altered or absent or DATABASE_FILE not in found:
        what = [f"{name} was altered" for name in altered] + [f"{name} is missing or unknown" for name in absent]
        raise UnusableInput(
            f"{path}: {'; '.join(what[:3]) or 'it holds no database'}{' …' if len(what) > 3 else ''}. It is damaged; "
            "take another copy of it, or another backup"
        )


def restore(path: Path, studies: Path, open_store: OpenStore, *, name: str = "", url: str = "") -> Location:
    """Bring a study back, all of it or nothing visible; ``url`` is a PostgreSQL address, empty for a file.

    Under another name it is another study: it gets an id of its own, and its queue is apart from the first one's.
    Artifacts go where a new study's would. What is under way in the backup goes on with the next run.

    Raises:
        UsageError: there is such a study; nothing is overwritten.
        UnusableInput: the archive is damaged.
        StudyError: a database cannot be used.
    """
    studies.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=studies, prefix=".restoring-") as temporary:
        folder = Path(temporary) / "study"
        folder.mkdir()
        backup = verify(path, folder)
        chosen = name or backup.name
        if not _NAME.fullmatch(chosen):
            raise UsageError(f"a study cannot be called {chosen!r}; allowed are letters, digits and . _ - (--name)")
        location = Location(folder=studies / chosen, name=chosen, url=url)
        _check_free(location)
        study_id = _settle(folder, chosen)
        choose_artifacts(folder, f"{location.name}-{study_id[:8]}")
        _put_artifacts(path, folder, open_store)
        if url:
            _into_database(folder / DATABASE_FILE, location)
            (folder / DATABASE_FILE).unlink()
        if location.folder.exists():
            location.folder.rmdir()  # empty, as was checked
        folder.rename(location.folder)
    return location


def _check_free(location: Location) -> None:
    if location.folder.exists() and any(location.folder.iterdir()):
        raise UsageError(
            f"{location.folder} exists and is not empty; nothing is overwritten. Give the study another name with "
            "--name, or another place with --studies"
        )
    if location.database().is_complete():
        raise UsageError(
            f"{location.database().shown} holds a study {location.name}; nothing is overwritten. Give the study "
            "another name with --name"
        )


def _settle(folder: Path, name: str) -> str:
    """Upgrade the snapshot to the present version, and name it anew if a name is given; returns the study's id."""
    study = Study.open(folder)
    study_id = study.study_id
    if name and name != study.file.name:
        study_id = rename(study, name)
        page = folder / STUDY_COPY
        if page.exists():
            text = page.read_text(encoding="utf-8", errors="replace")
            page.write_text(_NAME_LINE.sub(f"name: {name}", text, count=1), encoding="utf-8")
    study.close()
    SqliteDatabase(folder=folder).fold()
    return study_id


def _put_artifacts(path: Path, folder: Path, open_store: OpenStore) -> None:
    address = folder / "artifacts.url"
    store = open_store(address.read_text(encoding="utf-8").strip() if address.exists() else str(folder / "artifacts"))
    with reading(path) as members:
        for member, content in members:
            if member.startswith("artifacts/"):
                store.put_bytes(content.read())


def _into_database(snapshot_file: Path, location: Location) -> None:
    database = location.database()
    source = SqliteDatabase(folder=snapshot_file.parent).connecting.engine()
    try:
        with database.explained():
            storage = open_storage(database, is_new=True)
            try:
                make_tables(storage.engine)
                storage.remove_session()
                with source.connect() as reading, storage.engine.begin() as writing:
                    copy_rows(reading, writing)
                Ledger(storage.engine).study()
            finally:
                storage.remove_session()
                storage.engine.dispose()
    finally:
        source.dispose()
