"""Content-addressed bytes and remembered stage results, in a folder or behind any fsspec URL.

Layout below the root: ``sha256/<first two>/<rest>`` holds what hashes to that name, ``memo/<first two>/<rest>.json``
the result of a stage under the hash of everything that determines it, and ``checkpoint/<first two>/<rest>`` the state
of one that is under way. Whoever reads checks; whoever writes replaces
whole files, so a reader never sees half of one and writing the same content again repairs a damaged copy.

What becomes of a damaged store: a missing or altered artifact is a transient fault of the stage that reads it, and the
loop then runs the stage again that wrote it. A full disk is no retry's business: it stops the study, which goes on with
the same command once there is room.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec

from orchestrator.errors import UsageError
from orchestrator.fieldcheck import a_sha256
from tasks.errors import Defect, TransientFault

_NO_ROOM = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


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

    def __init__(self, url: str | Path, *, most_bytes: int | None = None) -> None:
        self.url = str(url)
        self._most_bytes = most_bytes
        filesystem, root = fsspec.core.url_to_fs(self.url)
        self._fs = filesystem
        self._root = root.rstrip("/")
        self._is_local = "file" in _protocols(filesystem)

    def put_bytes(self, data: bytes) -> str:
        """Keep ``data``; returns its sha256. Kept already and intact: nothing is written.

        Raises:
            DiskFull: there is no room.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        path = self._path(sha256)
        if self._read(path) != data:
            self._write(path, data)
        return sha256

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
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._checkpoint_path(key))

    def stale_checkpoints(self, age_s: float) -> list[str]:
        """The keys of the checkpoints that were written more than ``age_s`` ago, as far as the store knows times."""
        oldest = time.time() - age_s
        try:
            found = self._fs.find(f"{self._root}/checkpoint", detail=True)
        except FileNotFoundError:
            return []
        old = [path for path, facts in found.items() if (at := _written_at(facts)) is not None and at < oldest]
        return ["".join(path.rsplit("/", 2)[-2:]) for path in old]

    def _checkpoint_path(self, key: str) -> str:
        a_sha256("checkpoint", key)
        return f"{self._root}/checkpoint/{key[:2]}/{key[2:]}"

    def _path(self, sha256: str) -> str:
        a_sha256("artifact", sha256)
        return f"{self._root}/sha256/{sha256[:2]}/{sha256[2:]}"

    def _memo_path(self, key: str) -> str:
        return f"{self._root}/memo/{key[:2]}/{key[2:]}.json"

    def _read(self, path: str) -> bytes | None:
        most = self._most_bytes
        bounds = {} if most is None else {"start": 0, "end": most + 1}
        try:
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
                self._fs.pipe_file(path, data)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise DiskFull(path, len(data)) from error
            raise


def _written_at(facts: dict[str, Any]) -> float | None:
    """When a file was written, in seconds since the epoch; stores tell it under different names, some not at all."""
    found = (facts[name] for name in ("mtime", "LastModified", "last_modified") if facts.get(name) is not None)
    at = next(found, None)
    return at.timestamp() if isinstance(at, datetime) else float(at) if isinstance(at, int | float) else None


def _protocols(filesystem: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


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
