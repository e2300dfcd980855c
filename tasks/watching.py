"""Looking at a lab's broker from outside: the boards that agents report, and how far trainings are. Changes nothing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any

import redis

from orchestrator import fieldcheck
from orchestrator.records import Event, Json
from tasks import messages, strictjson
from tasks.broker import connect

_EVENTS_LOOKED_AT = 300
_LONGEST_REPORT = 1_000_000


class LabWatch:
    """The broker at ``url``, which may be away: then there is nothing to see, and ``boards`` says why. Several threads
    may look at once, also while it is closed."""

    def __init__(self, url: str) -> None:
        self._client = connect(url, retries=0)
        self._is_closed = False

    def boards(self) -> Json:
        """``{"boards": [{"board", "kind", "state", "detail", "agent", "at"}], "text"}``; ``at`` is when the agent said
        so, ``text`` why there are none. The order is that of agents' and boards' names."""
        try:
            with self._looking():
                found = sorted(self._reported(), key=lambda board: (board["agent"], board["board"]))
        except (redis.RedisError, OSError) as error:
            return {"boards": [], "text": f"the broker is away: {error}"}
        return {"boards": found, "text": "" if found else "no agent reports any"}

    def progress(self, study_id: str) -> dict[int, Json]:
        """By trial, the newest epoch that its training reported: ``{"epoch", "epochs", "accuracy"}``."""
        try:
            key = messages.events_key(study_id)
            with self._looking():
                entries: Any = self._client.xrevrange(key, count=_EVENTS_LOOKED_AT)
        except (redis.RedisError, OSError):
            return {}
        return newest_epochs(_decoded(entry for _, entry in entries))

    def close(self) -> None:
        self._is_closed = True
        self._client.close()

    @contextlib.contextmanager
    def _looking(self) -> Iterator[None]:
        """A connection that was in use as this was closed goes back to the pool afterwards: who used it closes it."""
        try:
            yield
        finally:
            if self._is_closed:
                self._client.close()

    def _reported(self) -> Iterator[Json]:
        prefix = messages.AGENT_KEYS.removesuffix("*")
        keys = list(self._client.scan_iter(messages.AGENT_KEYS, count=1000))
        texts: Any = self._client.mget(keys) if keys else []
        for key, text in zip(keys, texts, strict=True):
            with contextlib.suppress(ValueError):  # another version's, or not an agent's: it says nothing we can show
                yield from boards_of(key.decode().removeprefix(prefix), text or b"")


def boards_of(agent: str, report: bytes) -> list[Json]:
    """The boards in an agent's report.

    Raises:
        ValueError: it is none, or of another version.
    """
    found = fieldcheck.a_map("report", strictjson.loads(report, _LONGEST_REPORT))
    at, boards = found.get("at", time.time()), found.get("boards")
    if found.get("version") != 1 or not isinstance(boards, list) or not isinstance(at, int | float):
        raise ValueError(f"the report of agent {agent} is of another version")
    texts = ("board", "kind", "state", "detail")
    maps = [fieldcheck.a_map("board", board) for board in boards]
    return [{**{name: str(board.get(name, "")) for name in texts}, "agent": agent, "at": at} for board in maps]


def newest_epochs(events: Iterable[Event]) -> dict[int, Json]:
    """By trial, its last epoch; of a trial that has gone on to another stage since, nothing. The newest event comes
    first."""
    found: dict[int, Json] = {}
    passed: set[int] = set()
    for event in events:
        trial = event.fields.get("trial")
        if not isinstance(trial, int) or trial in passed:
            continue
        passed.add(trial)
        if event.name == "epoch_finished":
            found[trial] = {name: event.fields.get(name) for name in ("epoch", "epochs", "accuracy")}
    return found


def _decoded(entries: Iterable[dict[bytes, bytes]]) -> Iterator[Event]:
    for entry in entries:
        with contextlib.suppress(ValueError):
            yield messages.decode_event(entry)
