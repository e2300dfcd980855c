"""Removing artifacts that nobody needs, beside studies that run.

An artifact stays when a study's ledger needs it, when it was written or held within the grace period, or when a result
remembered within that period names it. The period reaches back at least to when the oldest attempt under way was
queued: what its worker has made and the ledger does not know yet is younger. The store says which studies keep
artifacts in it; all of their ledgers must have been asked.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic

from orchestrator.errors import UsageError
from orchestrator.records import Json
from tasks.artifacts import SWEEP_S, ArtifactStore, Stored

_AT_ONCE = 500
_MEMOS_AT_ONCE = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is to be removed, and what stays."""

    condemned: tuple[Stored, ...]
    kept: tuple[Stored, ...]

    @property
    def n_bytes(self) -> int:
        return sum(item.n_bytes for item in self.condemned)

    def to_json(self) -> Json:
        artifacts = [item for item in self.condemned if item.sha256]
        return {
            "artifacts": len(artifacts),
            "remembered_results": sum(item.is_memo for item in self.condemned),
            "bytes": self.n_bytes,
            "kept": len(self.kept),
            "kept_bytes": sum(item.n_bytes for item in self.kept),
        }


def check_owners(store: ArtifactStore, asked: Collection[str]) -> None:
    """Make sure that every study that keeps artifacts in the store was asked what it needs; ``asked`` are their ids.

    Raises:
        UsageError: one was not.
    """
    others = sorted(store.registered() - set(asked))
    if others:
        raise UsageError(
            f"other studies keep artifacts in {store.url}, too: {', '.join(others)}. Name them in the same command; of "
            f"one that is gone for good, delete its file in {store.url}/studies"
        )


def plan(
    entries: Iterable[Stored], memos: Mapping[str, frozenset[str]], needed: Collection[str], cutoff: float
) -> Plan:
    """Sort what a store holds.

    ``memos`` maps a remembered result's path to the hashes that it names; ``needed`` are those that ledgers need;
    ``cutoff`` is the time (seconds since 1970) from which on everything stays.
    """
    everything = list(entries)
    young = [memos.get(item.path, frozenset()) for item in everything if item.is_memo and item.modified >= cutoff]
    named = set(needed).union(*young)
    condemned = [item for item in everything if item.modified < cutoff and not _stays(item, memos, named)]
    gone = {item.path for item in condemned}
    return Plan(condemned=tuple(condemned), kept=tuple(item for item in everything if item.path not in gone))


def _stays(item: Stored, memos: Mapping[str, frozenset[str]], named: Collection[str]) -> bool:
    """Whether an old file is of use: a remembered result is as long as all that it names stays."""
    if item.is_memo:
        names = memos.get(item.path, frozenset())
        return bool(names) and all(sha256 in named for sha256 in names)
    return item.sha256 in named


def memos_of(store: ArtifactStore, entries: Iterable[Stored]) -> dict[str, frozenset[str]]:
    """The hashes that each remembered result names; none for one that cannot be read."""
    paths = [item.path for item in entries if item.is_memo]
    named = {}
    for start in range(0, len(paths), _MEMOS_AT_ONCE):
        for path, data in store.read_all(paths[start : start + _MEMOS_AT_ONCE]).items():
            named[path] = _named(data)
    return named


def _named(data: bytes) -> frozenset[str]:
    try:
        return frozenset(json.loads(data)["artifacts"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return frozenset()


def sweep(
    store: ArtifactStore, condemned: Sequence[Stored], cutoff: float, *, clock: Callable[[], float] = monotonic
) -> list[Stored]:
    """Remove what is condemned, unless it was written or held in the meantime; returns what was removed."""
    name = str(uuid.uuid4())
    removed = []
    for start in range(0, len(condemned), _AT_ONCE):
        part = list(condemned[start : start + _AT_ONCE])
        while part:
            done, part = _sweep_some(store, part, cutoff, name, clock)
            removed += done
    return removed


def _sweep_some(
    store: ArtifactStore, items: Sequence[Stored], cutoff: float, name: str, clock: Callable[[], float]
) -> tuple[list[Stored], list[Stored]]:
    """Announce, then look and remove one after the other; what an announcement has no time left for comes back."""
    store.announce(name, [item.path for item in items])
    deadline = clock() + SWEEP_S
    removed: list[Stored] = []
    try:
        for index, item in enumerate(items):
            modified = store.modified(item.path)
            if clock() > deadline:
                return removed, list(items[index:])
            if modified is not None and modified < cutoff:
                store.remove(item.path)
                removed.append(item)
    finally:
        store.conclude(name)
    return removed, []
