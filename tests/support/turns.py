"""Two threads that take turns as they are told: every order of their steps can be tried, each the same every time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_TIMEOUT_S = 30


class Turns:
    """Each thread calls ``step`` with its name before whatever may meet what another does."""

    def __init__(self, jobs: Mapping[str, Callable[[], Any]]) -> None:
        self.results: dict[str, Any] = {}
        self._go = {name: threading.Semaphore(0) for name in jobs}
        self._arrived = {name: threading.Semaphore(0) for name in jobs}
        self._over: set[str] = set()
        self._threads = {name: threading.Thread(target=self._run, args=(name, job)) for name, job in jobs.items()}

    def step(self, name: str) -> None:
        self._arrived[name].release()
        assert self._go[name].acquire(timeout=_TIMEOUT_S)

    def run(self, order: Sequence[str]) -> None:
        """The steps in this order, then in turn until all are through."""
        for name, thread in self._threads.items():
            thread.start()
            self._await(name)
        for name in order:
            self._advance(name)
        while len(self._over) < len(self._threads):
            for name in self._threads:
                self._advance(name)
        for thread in self._threads.values():
            thread.join(_TIMEOUT_S)

    def _run(self, name: str, job: Callable[[], Any]) -> None:
        self.step(name)
        try:
            self.results[name] = job()
        except Exception as error:  # handed to the test, which looks at it
            self.results[name] = error
        self._over.add(name)
        self._arrived[name].release()

    def _advance(self, name: str) -> None:
        if name not in self._over:
            self._go[name].release()
            self._await(name)

    def _await(self, name: str) -> None:
        assert self._arrived[name].acquire(timeout=_TIMEOUT_S)
