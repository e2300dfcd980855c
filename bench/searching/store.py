"""Results on disk: one JSON file a run, written whole or not at all, so that an interrupted bench goes on."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from bench.searching.run import VERSION, Run


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


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=-]+", "_", name)
