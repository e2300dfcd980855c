"""Tar archives of a study: gzip or Zstandard, written and read as a stream, nothing in them believed."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from orchestrator.errors import UnusableInput, UsageError
from orchestrator.extras import require
from orchestrator.records import Json

SUFFIXES = (".tar.gz", ".tgz", ".tar.zst")
_MEMBER = re.compile(r"study\.db|study\.yaml|manifest\.json|artifacts/[0-9a-f]{64}")
_CHUNK = 1024 * 1024


def add(archive: tarfile.TarFile, name: str, data: bytes) -> Json:
    """One member; returns what the manifest says of it."""
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))
    return {"sha256": hashlib.sha256(data).hexdigest()}


def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the user and the time of whoever made it."""
    plain = tarfile.TarInfo(entry.name)
    plain.size = entry.size
    return plain


@contextmanager
def reading(path: Path) -> Iterator[Iterator[tuple[str, IO[bytes]]]]:
    """Name and content of each member, in order.

    Raises:
        UsageError: there is no such file.
        UnusableInput: it cannot be read, or holds what no backup holds.
    """
    try:
        with path.open("rb") as raw, _decompressing(raw) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            yield _members(path, archive, stream)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; give the file that edgefront study backup wrote") from None
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, _ZstdError) as error:
        raise UnusableInput(
            f"{path}: it cannot be read ({error or type(error).__name__}): it is damaged, cut off or no backup. Take "
            "another copy of it, or another backup"
        ) from error


def _members(path: Path, archive: tarfile.TarFile, stream: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    for entry in archive:
        content = archive.extractfile(entry) if entry.isreg() else None
        if content is None or not _MEMBER.fullmatch(entry.name):
            raise UnusableInput(f"{path}: it holds {entry.name[:100]!r}, which no backup of a study does")
        yield entry.name, content
    # The checksum stands behind the last member, where tarfile does not look: read on, so that a cut there is found.
    while stream.read(_CHUNK):
        pass


class _ZstdError(Exception):
    """What the library says of a damaged stream, so that it need not be imported to be caught."""


@contextmanager
def compressing(raw: IO[bytes], name: str) -> Iterator[IO[bytes]]:
    """What is written to it stands compressed in ``raw``, in the way that ``name`` ends."""
    if name.endswith(".zst"):
        import zstandard

        with zstandard.ZstdCompressor(level=6, write_checksum=True).stream_writer(raw, closefd=False) as stream:
            yield stream
    else:
        with gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=6, mtime=0) as stream:
            yield stream  # type: ignore[misc]  # a file of bytes in all but name


@contextmanager
def _decompressing(raw: IO[bytes]) -> Iterator[Any]:
    is_zstd = raw.read(4) == b"\x28\xb5\x2f\xfd"
    raw.seek(0)
    if not is_zstd:
        with gzip.GzipFile(fileobj=raw, mode="rb") as stream:
            yield stream
        return
    require("zstd")
    import zstandard

    try:
        with zstandard.ZstdDecompressor().stream_reader(raw) as reader:
            yield reader
    except zstandard.ZstdError as error:
        raise _ZstdError(str(error)) from error


def digest_of(content: IO[bytes], keep: Path | None) -> str:
    """The hash of what ``content`` holds, which is written to ``keep`` meanwhile."""
    digest = hashlib.sha256()
    with io.BytesIO() if keep is None else keep.open("xb") as target:
        while part := content.read(_CHUNK):
            digest.update(part)
            if keep is not None:
                target.write(part)
    return digest.hexdigest()
