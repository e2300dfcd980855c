"""Each trap of the queue that was measured has a setting against it; a lost one is seen here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis
from celery.worker import state

from tasks import app, transport
from tasks.evaluator import PATIENCE_S
from tasks.messages import BEAT_EVERY_S, BEAT_TTL_S
from tests.support.entries import entry, task

ROOT = Path(__file__).parents[2]
CONF = app.make_app("redis://localhost:6379/0").conf


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task_acks_late", True),
        ("task_reject_on_worker_lost", True),
        ("worker_prefetch_multiplier", 1),
        ("worker_cancel_long_running_tasks_on_connection_loss", False),
        ("task_ignore_result", True),
        ("worker_lost_wait", 1.0),
        ("broker_connection_max_retries", None),
        ("broker_connection_retry_on_startup", True),
        ("accept_content", [transport.SERIALIZER]),
        ("task_serializer", transport.SERIALIZER),
    ],
)
def test_a_message_outlives_its_worker_and_its_connection(name: str, value: object) -> None:
    assert CONF[name] == value


def test_no_task_can_take_longer_than_its_message_is_thought_to_be_under_way() -> None:
    given = [
        CONF.visibility_timeout,
        CONF.broker_transport_options["visibility_timeout"],
        CONF.result_backend_transport_options["visibility_timeout"],
    ]
    assert set(given) == {app.VISIBILITY_TIMEOUT_S}
    longest = max(app.soft_limit_s(stage, 120.0) for stage in (*app.STAGES, app.FINAL_STAGE))
    assert longest + transport.HARD_LIMIT_MARGIN_S <= transport.LONGEST_LIMIT_S < app.VISIBILITY_TIMEOUT_S


def test_an_agents_own_list_of_messages_keeps_the_timeout() -> None:
    chosen = app.make_app("redis://localhost:6379/0")
    app.keep_apart(chosen, "board")
    options = chosen.conf.broker_transport_options
    assert options["visibility_timeout"] == app.VISIBILITY_TIMEOUT_S
    assert options["unacked_key"] == "unacked.board"


def test_a_message_that_is_left_lying_is_looked_for_often() -> None:
    assert CONF.broker_transport_options["unacked_restore_interval"] == 10
    assert CONF.broker_transport_options["unacked_restore_throttle"] == 10


def test_a_dead_worker_is_told_from_a_slow_one_within_a_minute() -> None:
    assert 4 * BEAT_EVERY_S <= BEAT_TTL_S <= 60 - 3 * BEAT_EVERY_S
    assert PATIENCE_S > 60 + BEAT_TTL_S


def test_a_workers_own_time_limit_bounds_what_a_message_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    def limits() -> list[float]:
        found: list[float] = json.loads(transport.checked_entry(json.dumps(entry(task())).encode(), "train"))[
            "headers"
        ]["timelimit"]
        return found

    hard, soft = limits()
    monkeypatch.setenv(transport.TIME_LIMIT_VARIABLE, "5")
    assert limits() == [5 + transport.HARD_LIMIT_MARGIN_S, 5]
    monkeypatch.setenv(transport.TIME_LIMIT_VARIABLE, str(soft + 1000))
    assert limits() == [hard, soft]


def test_the_processes_that_fork_load_no_pytorch() -> None:
    """A child forked from a process with PyTorch's threads hangs, and one with CUDA cannot use it."""
    code = "import sys, cli, tasks.app, tasks.crew, tasks.workers; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stdout == "False\n", done.stderr


@dataclass
class Channel:
    """Of a consumer of Celery's: whether it may take one more message before it has acknowledged what it has."""

    may_take: bool = False

    @property
    def qos(self) -> Channel:
        return self

    def can_consume(self) -> bool:
        return self.may_take


def test_a_worker_that_waits_for_ever_to_acknowledge_what_it_does_not_have_reconnects() -> None:
    channel = Channel()
    consumer = SimpleNamespace(task_consumer=SimpleNamespace(channel=channel))
    upkeep = app._Upkeep(SimpleNamespace())
    upkeep._seemed_stuck = False
    upkeep._reconnect_if_stuck(consumer)  # it may just be between two steps
    channel.may_take = True
    upkeep._reconnect_if_stuck(consumer)
    channel.may_take = False
    upkeep._reconnect_if_stuck(consumer)
    with pytest.raises(redis.ConnectionError):
        upkeep._reconnect_if_stuck(consumer)


def test_a_worker_with_a_task_under_way_is_not_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "active_requests", {"a request"})
    upkeep = app._Upkeep(SimpleNamespace())
    upkeep._seemed_stuck = False
    for _ in range(3):
        upkeep._reconnect_if_stuck(SimpleNamespace(task_consumer=SimpleNamespace(channel=Channel())))


def test_every_worker_looks_whether_it_is_stuck() -> None:
    assert app._Upkeep in app.make_app("redis://localhost:6379/0").steps["consumer"]
