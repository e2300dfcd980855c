"""How many trials a lab's workers can have under way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import Any

import redis

from tasks import messages
from tasks.broker import connect

_LOOK_EVERY_S = 5.0
# Workers announce themselves every few seconds; one that is being restarted is not gone.
_REMEMBERED_S = 60.0


def slots_of(announcements: list[str]) -> int:
    """One for each training process, and, as far as there are processes that build, one more for each, so that training
    need not wait for the next candidate to be looked at; never none."""
    counts: Counter[str] = Counter()
    for text in announcements:
        queues, processes = messages.announced(text)
        counts.update(dict.fromkeys(queues, processes))
    training = counts[messages.TRAIN_QUEUE]
    return max(1, training + min(training, counts[messages.BUILD_QUEUE]))


class AnnouncedSlots:
    """The slots of the workers announced at ``url``: the most of the last minute; calling it gives the number. While
    the broker does not answer, the last number holds."""

    def __init__(self, url: str, clock: Callable[[], float] = monotonic) -> None:
        self._client = connect(url, retries=0)
        self._clock = clock
        self._seen: list[tuple[float, int]] = []

    def __call__(self) -> int:
        now = self._clock()
        if not self._seen or now - self._seen[-1][0] >= _LOOK_EVERY_S:
            self._look(now)
        return max((slots for _, slots in self._seen), default=1)

    def close(self) -> None:
        self._client.close()

    def _look(self, now: float) -> None:
        try:
            keys = list(self._client.scan_iter(messages.WORKER_KEYS, count=1000))
            texts: Any = self._client.mget(keys) if keys else []
        except (redis.RedisError, OSError):
            return
        self._seen = [item for item in self._seen if now - item[0] < _REMEMBERED_S]
        self._seen.append((now, slots_of([text.decode() for text in texts if text])))
