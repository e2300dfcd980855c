"""A process that is told to end while it holds the lock of what it waits for ends nevertheless."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from cli_background import Orders, _interrupt
from orchestrator.signals import set_soon
from tasks.agent import Agent
from tasks.crew import Crew

Handler = Callable[[int, FrameType | None], Any]


@pytest.fixture
def on_signal() -> Iterator[Callable[[Handler], None]]:
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda handler: signal.signal(signal.SIGUSR1, handler) and None
    signal.signal(signal.SIGUSR1, before)


def tell_amid_a_wait(*events: threading.Event) -> None:
    """The signal comes when the main thread is just about to wait for the events, or just back from it."""
    locks = [event._cond for event in events]  # type: ignore[attr-defined]
    for lock in locks:
        lock.acquire()
    signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGUSR1)
    for lock in locks:
        lock.release()
    assert all(event.wait(10) for event in events)


def test_an_event_is_set_though_the_interrupted_thread_holds_its_lock(on_signal: Callable[[Handler], None]) -> None:
    event = threading.Event()
    on_signal(lambda number, frame: set_soon(event))
    tell_amid_a_wait(event)


def test_a_worker_that_is_told_to_end_twice_at_once_hears_both(on_signal: Callable[[Handler], None]) -> None:
    crew: Any = SimpleNamespace(_signals=0, _stop=threading.Event())
    on_signal(lambda number, frame: Crew._on_signal(crew, number, frame))
    tell_amid_a_wait(crew._stop)
    assert crew._signals == 2


def test_an_agent_that_is_told_to_end_twice_at_once_hurries(on_signal: Callable[[Handler], None]) -> None:
    agent: Any = SimpleNamespace(_signals=0, _stop=threading.Event(), _hurry=threading.Event())
    on_signal(lambda number, frame: Agent._on_signal(agent, number, frame))
    tell_amid_a_wait(agent._stop, agent._hurry)


def test_a_study_that_is_told_to_end_before_its_first_order_ends(on_signal: Callable[[Handler], None]) -> None:
    orders = Orders()
    on_signal(lambda number, frame: _interrupt(orders, number, frame))
    tell_amid_a_wait(orders.first, orders.stop)
