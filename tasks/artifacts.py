"""Content-addressed bytes and remembered stage results, in a folder or behind any fsspec URL.

Layout below the root: ``sha256/<first two>/<rest>`` holds what hashes to that name, ``memo/<first two>/<rest>.json``
the result of a stage under the hash of everything that determines it, ``checkpoint/<first two>/<rest>`` the state of
one that is under way, ``studies/`` a file for each study that keeps artifacts here, ``sweeps/`` one for each removal
that is under way. Whoever reads checks; whoever writes replaces whole files, so a reader never sees half of one and
writing the same content again repairs a damaged copy.

Artifacts that nobody needs are removed beside studies that run (:mod:`tasks.garbage`). Whoever puts or holds one gives
it a new time first, then looks whether a sweep names it, then whether it is still there; a sweep is announced first,
then the time is looked at, then the file is removed. So either the sweep sees the new time, or the other sees the sweep
or the loss.

What becomes of a damaged store: a missing or altered artifact is a transient fault of the stage that reads it, and the
loop then runs the stage again that wrote it. A full disk is no retry's business: it stops the study, which goes on with
the same command once there is room.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from orchestrator.errors import UsageError
from orchestrator.fieldcheck import a_sha256
from tasks.errors import Defect, TransientFault
from tasks.remote import NO_ROOM, StoreUnreachable, filesystem_of, protocols, reached

# A sweep renews its announcement within this time; one that stays the same for twice as long has died.
SWEEP_S = 300.0
_SWEEP_LOOKS_S = 0.5
_MOST_TRIES = 5
_TIME_FIELDS = ("mtime", "LastModified", "modified", "last_modified", "updated", "created")


class ArtifactMissing(TransientFault):
    """Nothing is stored under this hash any more. ``sha256`` names it, and so does the text."""

    def __init__(self, sha256: str, location: str) -> None:
        super().__init__("artifact_missing", f"artifact {sha256} is missing: {location} does not exist")
        self.sha256 = sha256


class ArtifactAltered(TransientFault):
    """What is stored under this hash has another one."""

    def __init__(self, sha256: str, location: str, found: str) -> None:
        super().__init__("artifact_altered", f"artifact {sha256} was altered: {location} now hashes to {found}")
        self.sha256 = sha256


class ArtifactTooLarge(Defect):
    """What is stored is larger than whoever reads it takes; no more than that was read."""

    def __init__(self, location: str, most_bytes: int) -> None:
        super().__init__(
            "artifact_too_large", f"{location} holds more than the {most_bytes} bytes that are read here at most"
        )
        self.most_bytes = most_bytes


class DiskFull(Defect):
    """No room for an artifact; nothing was written."""

    def __init__(self, location: str, needed_bytes: int) -> None:
        super().__init__(
            "disk_full",
            f"no space left for {needed_bytes} bytes at {location}; free some space and run the same command again",
        )
        self.needed_bytes = needed_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A file in a store: ``sha256`` of an artifact, empty for others; ``modified`` in seconds since 1970."""

    path: str
    sha256: str
    n_bytes: int
    modified: float

    @property
    def is_memo(self) -> bool:
        return "/memo/" in self.path


def check_writable(url: str) -> None:
    """Try an address before a study begins with it, by keeping a few bytes there.

    Raises:
        UsageError: fsspec does not know the address, its package is missing, or nothing can be written there.
    """
    try:
        ArtifactStore(url).put_bytes(b"edgefront")
    except ImportError as error:
        raise UsageError(f"artifacts at {url}: {error}") from None
    except ValueError as error:
        raise UsageError(f"artifacts at {url}: {error}; give a folder, or an address that fsspec knows") from None
    except (TransientFault, Defect, OSError) as error:
        raise UsageError(f"artifacts at {url}: nothing can be written there: {error}") from None


class ArtifactStore:
    """Artifacts below ``url``: a folder, or any address fsspec knows (``s3://bucket/studies`` with s3fs installed).

    ``most_bytes`` bounds what is read of a single file: for a host that runs images from a queue.

    Raises:
        TransientFault: the address cannot be reached (``OSError`` passes as it is and counts as one).
        ValueError: fsspec does not know the address.
    """

    def __init__(
        self, url: str | Path, *, most_bytes: int | None = None, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self.url = str(url)
        self._most_bytes = most_bytes
        self._pause = pause
        filesystem, root = filesystem_of(self.url)
        self._fs = filesystem
        self._root = root.rstrip("/")
        self._is_local = "file" in protocols(filesystem)

    def put_bytes(self, data: bytes) -> str:
        """Keep ``data``; returns its sha256. Kept already and intact: it gets a new time.

        Raises:
            DiskFull: there is no room.
            StoreRefused: credentials, bucket or permission are missing.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        path = self._path(sha256)
        for _ in range(_MOST_TRIES):
            self._renew(path, data)
            if self._is_safe(sha256, path):
                return sha256
        raise StoreUnreachable(self.url, f"artifact {sha256} was removed as often as it was written")

    def hold(self, sha256: str) -> bool:
        """Whether the artifact is there and intact; if so it has a new time, and no removal takes it before its grace
        is over. For whoever goes on to name it in a result without writing it."""
        try:
            data = self.get_bytes(sha256)
            return self.put_bytes(data) == sha256
        except (ArtifactMissing, ArtifactAltered, ArtifactTooLarge):
            return False

    def get_bytes(self, sha256: str) -> bytes:
        """The bytes kept under ``sha256``, checked.

        Raises:
            ArtifactMissing: there are none.
            ArtifactAltered: they are not what was kept.
            ArtifactTooLarge: they are more than ``most_bytes``.
            ValueError: ``sha256`` is none; it would be part of a path.
        """
        path = self._path(sha256)
        data = self._read(path)
        if data is None:
            raise ArtifactMissing(sha256, path)
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise ArtifactAltered(sha256, path, found)
        return data

    def has(self, sha256: str) -> bool:
        """Whether ``get_bytes`` would succeed."""
        try:
            data = self._read(self._path(sha256))
        except ArtifactTooLarge:
            return False
        return data is not None and hashlib.sha256(data).hexdigest() == sha256

    def path_of(self, sha256: str) -> str:
        """Where the artifact lies, for a person to look at; it need not exist."""
        return self._path(sha256)

    def remember(self, key: str, data: bytes) -> None:
        """Keep a stage's result under the hash ``key``; a later one replaces it."""
        self._write(self._memo_path(key), data)

    def recall(self, key: str) -> bytes | None:
        """What was remembered under ``key``, or None; None too when it is larger than ``most_bytes``."""
        try:
            return self._read(self._memo_path(key))
        except ArtifactTooLarge:
            return None

    def save_checkpoint(self, key: str, data: bytes) -> None:
        """Keep the state of a stage under way under the hash ``key``; a later one replaces it."""
        self._write(self._checkpoint_path(key), data)

    def load_checkpoint(self, key: str) -> bytes | None:
        """What was kept under ``key``, or None; None too when it is larger than ``most_bytes``."""
        try:
            return self._read(self._checkpoint_path(key))
        except ArtifactTooLarge:
            return None

    def delete_checkpoint(self, key: str) -> None:
        """Delete what was kept under ``key``, if anything."""
        self.remove(self._checkpoint_path(key))

    def stale_checkpoints(self, age_s: float) -> list[str]:
        """The keys of the checkpoints that were written more than ``age_s`` ago."""
        try:
            with reached(self.url, is_local=self._is_local):
                found = self._fs.find(f"{self._root}/checkpoint", detail=True)
        except FileNotFoundError:
            return []
        oldest = time.time() - age_s
        return ["".join(path.rsplit("/", 2)[-2:]) for path, about in found.items() if _time_of(about) < oldest]

    def register(self, study_id: str) -> None:
        """Note that the study keeps artifacts here: nothing is removed without asking its ledger."""
        if (self.url, study_id) not in _REGISTERED:
            path = f"{self._root}/studies/{study_id}"
            if not self._exists(path):
                self._write(path, b"")
            _REGISTERED.add((self.url, study_id))

    def registered(self) -> set[str]:
        """The ids of the studies that keep artifacts here."""
        return {path.rpartition("/")[2] for path in self._listed(f"{self._root}/studies")}

    def entries(self) -> list[Stored]:
        """All artifacts, remembered results and what a crash left of them."""
        found = []
        for part in ("sha256", "memo"):
            try:
                with reached(self.url, is_local=self._is_local):
                    listed = self._fs.find(f"{self._root}/{part}", detail=True)
            except FileNotFoundError:
                continue
            found += [_stored(str(path), about) for path, about in listed.items()]
        return found

    def read_all(self, paths: Sequence[str]) -> dict[str, bytes]:
        """The contents of several files at once; those that are gone are left out."""
        if not paths:
            return {}
        with reached(self.url, is_local=self._is_local):
            found: dict[str, bytes | Exception] = self._fs.cat(list(paths), on_error="return")
        return {path: data for path, data in found.items() if isinstance(data, bytes)}

    def announce(self, name: str, paths: Sequence[str]) -> None:
        """Say that a sweep is about to remove these; replaces its last announcement."""
        self._write(self._sweep_path(name), json.dumps({"at": time.time(), "paths": list(paths)}).encode())

    def conclude(self, name: str) -> None:
        """The sweep is over."""
        self.remove(self._sweep_path(name))

    def modified(self, path: str) -> float | None:
        """When the file was written or held, None where it is gone."""
        try:
            with reached(self.url, is_local=self._is_local):
                return _time_of(self._fs.info(path))
        except FileNotFoundError:
            return None

    def remove(self, path: str) -> None:
        """Delete a file; gone already is as good."""
        try:
            with reached(self.url, is_local=self._is_local):
                self._fs.rm_file(path)
        except FileNotFoundError:
            pass

    def _is_safe(self, sha256: str, path: str) -> bool:
        """Whether what has just got a new time will stay: waits for a sweep that names it."""
        self._wait_for_sweeps(path)
        return self._exists(path)

    def _wait_for_sweeps(self, path: str) -> None:
        waited: dict[bytes, float] = {}
        while announced := [text for text in self._announced() if _names(text, path)]:
            if all(waited.get(text, 0.0) > 2 * SWEEP_S for text in announced):
                return  # whoever announced them is dead
            self._pause(_SWEEP_LOOKS_S)
            for text in announced:
                waited[text] = waited.get(text, 0.0) + _SWEEP_LOOKS_S

    def _announced(self) -> list[bytes]:
        texts = [self._read(path) for path in self._listed(f"{self._root}/sweeps")]
        return [text for text in texts if text is not None]

    def _listed(self, folder: str) -> list[str]:
        try:
            with reached(self.url, is_local=self._is_local):
                return [str(path) for path in self._fs.ls(folder, detail=False)]
        except FileNotFoundError:
            return []

    def _sweep_path(self, name: str) -> str:
        return f"{self._root}/sweeps/{name}.json"

    def _renew(self, path: str, data: bytes) -> None:
        """Write it anew, or where that is cheaper give it a new time and make sure that it is intact."""
        if not (self._is_local and _touch(path) and self._read(path) == data):
            self._write(path, data)

    def _exists(self, path: str) -> bool:
        with reached(self.url, is_local=self._is_local):
            return bool(self._fs.exists(path))

    def _path(self, sha256: str) -> str:
        a_sha256("artifact", sha256)
        return f"{self._root}/sha256/{sha256[:2]}/{sha256[2:]}"

    def _memo_path(self, key: str) -> str:
        return f"{self._root}/memo/{key[:2]}/{key[2:]}.json"

    def _checkpoint_path(self, key: str) -> str:
        a_sha256("checkpoint", key)
        return f"{self._root}/checkpoint/{key[:2]}/{key[2:]}"

    def _read(self, path: str) -> bytes | None:
        most = self._most_bytes
        bounds = {} if most is None else {"start": 0, "end": most + 1}
        try:
            with reached(self.url, is_local=self._is_local):
                data = bytes(self._fs.cat_file(path, **bounds))
        except FileNotFoundError:
            return None
        if most is not None and len(data) > most:
            raise ArtifactTooLarge(path, most)
        return data

    def _write(self, path: str, data: bytes) -> None:
        try:
            if self._is_local:
                _replace_file(Path(path), data)
            else:  # object stores show a file only when it is whole
                with reached(self.url, is_local=self._is_local):
                    self._fs.pipe_file(path, data)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise DiskFull(path, len(data)) from error
            raise


_REGISTERED: set[tuple[str, str]] = set()


def _stored(path: str, about: dict[str, Any]) -> Stored:
    first, _, rest = path.rpartition("/")
    sha256 = first.rpartition("/")[2] + rest
    is_artifact = "/sha256/" in path and len(sha256) == 64
    return Stored(
        path=path, sha256=sha256 if is_artifact else "", n_bytes=int(about.get("size") or 0), modified=_time_of(about)
    )


def _time_of(about: dict[str, Any]) -> float:
    """When a file was written.

    Raises:
        Defect: the kind of store does not say.
    """
    stamp = next((about[name] for name in _TIME_FIELDS if about.get(name) is not None), None)
    if isinstance(stamp, datetime):
        return stamp.timestamp()
    if not isinstance(stamp, int | float):
        raise Defect(
            "no_file_times", "this kind of artifact store does not say when a file was written; remove by hand"
        )
    return float(stamp)


def _names(announcement: bytes, path: str) -> bool:
    try:
        return path in json.loads(announcement)["paths"]
    except (ValueError, KeyError, TypeError):
        return False  # half of one: whoever wrote it begins anew, or is dead


def _touch(path: str) -> bool:
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _replace_file(path: Path, data: bytes) -> None:
    """Write beside, flush to the disk, rename: after a crash either nothing or the whole file is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)  # noqa: PTH105 - the temporary name is a string from mkstemp
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
