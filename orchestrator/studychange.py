"""What of a study may change after it has begun: parallelism, early stopping, plateau, whom to
notify, and its budget upwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.errors import UsageError
from orchestrator.studyfile import StudyFile

# What may change in any direction.
_FREE = ("parallelism.", "early_stopping.", "budget.plateau", "notify", "training.checkpoint_every")


def check_update(old: StudyFile, new: StudyFile) -> None:
    """Make sure that only what may change did: parallelism, early stopping, plateau, whom to notify, and the budget
    upwards.

    Raises:
        UsageError: names each field with its old and new value.
    """
    before, after = _flat(old.to_json()), _flat(new.to_json())
    absent = "absent"
    names = sorted(before.keys() | after.keys())
    changed = [name for name in names if before.get(name, absent) != after.get(name, absent)]
    changed = [name for name in changed if not name.startswith(_FREE)]
    refused = [name for name in changed if not name.startswith("budget.")]
    shrunk = [name for name in changed if name not in refused and not _is_raised(before[name], after[name])]
    lines = [f"  {name}: was {before.get(name, absent)!r}, now {after.get(name, absent)!r}" for name in refused]
    lines += [
        f"  {name}: was {before[name]!r}, now {after[name]!r}; it may only be raised, in the file or by --trials"
        for name in shrunk
    ]
    if lines:
        raise UsageError(
            f"study {old.name} has begun, and its file has changed since:\n" + "\n".join(lines) + "\n"
            "Only a larger budget, another plateau or parallelism and other early stopping can be taken over. Undo the "
            "change, or give the study a new name."
        )


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The fields in which two study files (``StudyFile.to_json``) differ, each with its old and new value; secrets are
    not shown."""
    before, after = _flat(dict(old)), _flat(dict(new))
    names = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
    shown = [(name, "***" if name.startswith("notify") else None) for name in names]
    return [
        f"{name}: was {hidden or repr(before.get(name, 'absent'))}, is {hidden or repr(after.get(name, 'absent'))}"
        for name, hidden in shown
    ]


def check_data(file: StudyFile, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Make sure that the data are the same.

    Raises:
        UsageError: they are not.
    """
    old, new = before.get("dataset", ""), now.get("dataset", "")
    if old != new:
        raise UsageError(
            f"dataset.source: the content of {file.dataset.source!r} has changed since study {file.name} began (sha256 "
            f"was {old[:12]}, is {new[:12]}): results on old and new data cannot be compared. Put the old data back, "
            "or give the study a new name."
        )


def _is_raised(before: float | None, after: float | None) -> bool:
    return after is None or (before is not None and after >= before)


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict) or not data:
        return {prefix: data}
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat.update(_flat(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat
