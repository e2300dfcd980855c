"""Checkpoints of long stages beside the artifacts, named by the work and not by who does it: any worker goes on."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from orchestrator.records import Event
from tasks.artifacts import ArtifactStore
from tasks.errors import Defect, TransientFault

# What lies untouched for this long belongs to work that nobody will take up: it is rewritten every minute while it is.
STALE_S = 7 * 86_400.0
_SWEEP_EVERY_S = 3600.0
_MAGIC = b"edgefront checkpoint 1\n"

# Of the store; each costs a checkpoint and no more.
_FAILURES = (OSError, Defect, TransientFault)

_log = logging.getLogger(__name__)
_last_sweep: dict[str, float] = {}


@dataclass(kw_only=True)
class StoredCheckpoint:
    """The checkpoint of the work called ``key`` in ``store``: a :class:`tasks.stage.Checkpoint`.

    ``tell`` hears of ``checkpoint_saved`` and ``checkpoint_loaded``, with ``seconds`` and ``bytes``.
    """

    store: ArtifactStore
    key: str
    leaving: Callable[[], bool] = lambda: False
    tell: Callable[[Event], None] = lambda event: None
    _is_kept: bool = field(default=False, init=False)

    def load(self) -> bytes | None:
        started = monotonic()
        try:
            found = self.store.load_checkpoint(self.key)
        except _FAILURES as error:
            _log.warning("the checkpoint %s cannot be read, the stage starts anew: %s", self.key[:12], error)
            return None
        if found is None:
            return None
        self._is_kept = True
        data = unsealed(found)
        if data is None:
            _log.warning("the checkpoint %s is damaged, the stage starts anew", self.key[:12])
            return None
        self._tell("checkpoint_loaded", started, data)
        return data

    def save(self, data: bytes) -> None:
        started = monotonic()
        try:
            self.store.save_checkpoint(self.key, sealed(data))
        except _FAILURES as error:
            _log.warning("no checkpoint of %s could be kept: %s", self.key[:12], error)
            return
        self._is_kept = True
        self._tell("checkpoint_saved", started, data)
        sweep(self.store)

    def is_leaving(self) -> bool:
        return self.leaving()

    def forget(self) -> None:
        """The work is done: nobody goes on from here."""
        if self._is_kept:
            _forget(self.store, self.key)

    def _tell(self, name: str, started: float, data: bytes) -> None:
        self.tell(Event(name=name, fields={"seconds": monotonic() - started, "bytes": len(data)}))


def sealed(data: bytes) -> bytes:
    """``data`` with its hash before it."""
    return _MAGIC + hashlib.sha256(data).digest() + data


def unsealed(found: bytes) -> bytes | None:
    """What was sealed, or None when it is not whole."""
    head, digest = len(_MAGIC), len(_MAGIC) + 32
    data = found[digest:]
    is_whole = found[:head] == _MAGIC and found[head:digest] == hashlib.sha256(data).digest()
    return data if is_whole else None


def sweep(store: ArtifactStore, now: Callable[[], float] = monotonic) -> None:
    """Now and then, delete the checkpoints of the store that nobody has touched for a week."""
    if now() - _last_sweep.get(store.url, float("-inf")) < _SWEEP_EVERY_S:
        return
    _last_sweep[store.url] = now()
    try:
        stale = store.stale_checkpoints(STALE_S)
    except _FAILURES as error:
        _log.warning("cannot look for old checkpoints at %s: %s", store.url, error)
        return
    for key in stale:
        _forget(store, key)


def _forget(store: ArtifactStore, key: str) -> None:
    try:
        store.delete_checkpoint(key)
    except _FAILURES as error:
        _log.warning("the checkpoint %s cannot be deleted: %s", key[:12], error)
