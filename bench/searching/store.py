"""Results on disk: one JSON file a run, written whole or not at all, so that an interrupted bench goes on."""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from typing import Any

from bench.searching.run import VERSION, Run
from orchestrator.errors import UsageError


def path_of(folder: Path, run: Run) -> Path:
    """The run's file."""
    case = f"seed{run.seed}-trials{run.trials}-initial{run.initial}-workers{run.workers}.json"
    return folder / "runs" / _safe(run.problem) / _safe(run.proposer) / case


def read(folder: Path, run: Run) -> dict[str, Any] | None:
    """The run's result; nothing where it is missing, damaged or of another version."""
    try:
        found = json.loads(path_of(folder, run).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("version") == VERSION else None


def write(path: Path, data: Any) -> None:
    """Write JSON to a file beside ``path`` and rename it, so that no one ever reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(data, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)


def pack(folder: Path, path: Path, referenced: Collection[str]) -> int:
    """Put all runs below ``folder`` into one compressed file; returns how many. Those of the problems ``referenced``
    go without their shares, which are needed only where there is no reference."""
    files = sorted((folder / "runs").glob("*/*/*.json"))
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    runs = [run | ({"shares": []} if run["problem"] in referenced else {}) for run in runs]
    text = json.dumps({"version": VERSION, "runs": runs}, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    # No name and no time in the header: the same runs, the same bytes.
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    return len(runs)


def unpack(path: Path, folder: Path) -> int:
    """Put the runs of a packed file below ``folder``, where they are not there already; returns how many were new.

    Raises:
        UsageError: the file is missing, damaged, or of another version.
    """
    names = [item.name for item in fields(Run)]
    try:
        packed = json.loads(gzip.decompress(path.read_bytes()))
        version = packed["version"]
        runs = [(Run(**{name: found[name] for name in names}), found) for found in packed["runs"]]
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--unpack {path}: cannot be read: {type(error).__name__}: {error}") from error
    if version != VERSION:
        raise UsageError(f"--unpack {path}: has version {version}, allowed is {VERSION}")
    new = [(run, found) for run, found in runs if read(folder, run) is None]
    for run, found in new:
        write(path_of(folder, run), found)
    return len(new)


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=-]+", "_", name)
