"""A real worker and a queue that somebody hostile writes into: it lives on, and answers what can be answered."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import redis

from orchestrator.records import Ending, StageResult
from tasks import messages, transport
from tasks.app import make_app
from tasks.artifacts import ArtifactStore
from tasks.broker import connect
from tasks.evaluator import CeleryEvaluator
from tasks.messages import TaskMessage
from tasks.workers import EmbeddedLab
from tests.support.entries import NASTY, entry, task
from tests.support.studies import BOARD, FAKE_STAGES

QUEUE = f"board.{BOARD}"


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedLab]:
    monkeypatch.delenv("EDGEFRONT_BROKER_URL", raising=False)
    monkeypatch.setenv("EDGEFRONT_STAGES", FAKE_STAGES)
    with EmbeddedLab(tmp_path / "lab", board_kinds=(BOARD,)) as one:
        yield one


@pytest.fixture
def client(lab: EmbeddedLab) -> Iterator[redis.Redis]:
    one = connect(lab.url)
    yield one
    one.close()


def results(client: redis.Redis, count: int, seconds: float = 20.0) -> dict[int, StageResult]:
    """The results by the trial's number, once there are ``count``."""
    found: dict[int, StageResult] = {}
    deadline = monotonic() + seconds
    while len(found) < count:
        assert monotonic() < deadline, f"only {sorted(found)} answered"
        reply: Any = client.xread({messages.results_key("study"): b"0"}, block=200) or []
        answers = [messages.decode_result(fields) for _, entries in reply for _, fields in entries]
        found = {result.trial: result for result in answers}
    return found


def put(client: redis.Redis, item: bytes | dict[str, Any], queue: str = QUEUE) -> None:
    client.lpush(queue, item if isinstance(item, bytes) else json.dumps(item).encode())


def good(folder: Path, trial: int) -> TaskMessage:
    store = ArtifactStore(folder / "artifacts")
    elf = store.put_bytes(b"firmware")
    return task(artifacts=str(folder / "artifacts"), trial=trial, inputs={"elf": elf})


def changed(message: TaskMessage, **changes: Any) -> dict[str, Any]:
    data = message.to_json()
    return entry(message, body=[[{**data, "request": {**data["request"], **changes}}], {}, {}])


def log_of(folder: Path) -> str:
    return (folder / "lab" / "logs" / "worker-board.log").read_text()


def test_a_worker_outlives_everything_that_can_be_put_into_its_queue(
    tmp_path: Path, lab: EmbeddedLab, client: redis.Redis
) -> None:
    put(client, entry(good(tmp_path, 1)))
    assert results(client, 1)[1].ending is Ending.COMPLETE
    workers = lab.worker_pids()
    for _, item, _ in NASTY:
        put(client, item)
    put(client, entry(good(tmp_path, 2)))
    assert results(client, 2)[2].ending is Ending.COMPLETE
    assert lab.worker_pids() == workers
    assert client.llen(QUEUE) == 0
    log = log_of(tmp_path)
    assert log.count("dropped an entry of queue") == len(NASTY)
    assert "Traceback" not in log
    os.kill(workers["board"], 0)  # it is there


def test_a_message_that_says_whose_it_is_is_answered_whatever_is_wrong_with_it(
    tmp_path: Path, lab: EmbeddedLab, client: redis.Redis
) -> None:
    one = good(tmp_path, 1)
    spoilt: list[dict[str, Any]] = [
        changed(one, trial=1, inputs={"elf": "../../../../etc/shadow"}),
        changed(one, trial=2, inputs={"elf": "ab/../" + "c" * 58}),
        changed(one, trial=3, stage="polish"),
        changed(one, trial=4, params=[1, 2]),
        changed(one, trial=5, study="network"),
        changed(one, trial=6, unknown=1),
        changed(one, trial=7, seed="7"),
    ]
    for item in spoilt:
        put(client, item)
    put(client, entry(one, body=[[{"version": 1, "request": 5}], {}, {}]))  # of nobody: dropped
    put(client, changed(one, study_id="../../up"))
    put(client, entry(good(tmp_path, 8)))
    found = results(client, 8)
    assert [found[trial].fault.reason for trial in range(1, 8)] == ["bad_message"] * 7  # type: ignore[union-attr]
    assert found[8].ending is Ending.COMPLETE
    assert log_of(tmp_path).count("dropped a message that names no trial") == 2
    assert client.keys("*up*") == []


def test_an_agent_runs_profiles_of_its_kinds_only(lab: EmbeddedLab, client: redis.Redis) -> None:
    asked = {
        "stage train is not run here; this worker runs profile": task("train", trial=0),
        "stage gate is not run here": task("gate", trial=1),
        "board kind 'nucleo-h743zi' is not offered here": task("profile@nucleo-h743zi", trial=2),
        "artifacts at 'zip://": task(trial=3, artifacts="zip://x.zip::http://elsewhere/x"),
        "artifacts at 'relative/folder'": task(trial=4, artifacts="relative/folder"),
    }
    for message in asked.values():
        given = entry(message)
        given["headers"]["task"] = "edgefront.profile"
        put(client, given)
    found = results(client, len(asked))
    for trial, detail in enumerate(asked):
        fault = found[trial].fault
        assert fault is not None
        assert fault.reason == "not_allowed"
        assert detail in fault.detail


def test_a_message_under_way_that_cannot_be_read_is_dropped_and_the_others_come_back(
    lab: EmbeddedLab, client: redis.Redis
) -> None:
    connection = make_app(lab.url).connection_for_read()
    qos = connection.default_channel.qos
    for tag, item in {"spoilt": b"no JSON", "list": b"[1]", "fine": json.dumps([entry(task()), "", "aside"])}.items():
        client.hset("unacked", tag, item)
        client.zadd("unacked_index", {tag: 1.0})
    qos.restore_visible()
    connection.close()
    assert client.hkeys("unacked") == []
    assert client.zcard("unacked_index") == 0
    assert client.llen("aside") == 1


def test_a_task_held_by_something_that_is_no_worker_is_left_alone(
    tmp_path: Path, lab: EmbeddedLab, client: redis.Redis
) -> None:
    held, free = good(tmp_path, 1), good(tmp_path, 2)
    client.set(messages.beat_key(held.request.task_id), b'{"pid": "all"}')
    put(client, entry(held))
    put(client, entry(free))
    assert set(results(client, 1)) == {2}


def test_an_entry_of_ours_is_what_celery_would_write(tmp_path: Path, lab: EmbeddedLab, client: redis.Redis) -> None:
    asked = task("profile", artifacts=str(tmp_path), study={"board": "elsewhere"})
    evaluator = CeleryEvaluator(url=lab.url, study_id="study", artifacts=tmp_path)
    evaluator.submit(asked.request)
    evaluator.close()
    celery = make_app(lab.url)
    limits = {"soft_time_limit": 780.0, "time_limit": 840.0}
    celery.send_task(
        "edgefront.profile",
        args=[asked.to_json()],
        task_id=asked.request.task_id,
        queue="board.elsewhere",
        ignore_result=True,
        **limits,
    )
    celery.close()
    theirs, ours = (json.loads(item) for item in client.lrange("board.elsewhere", 0, -1))
    assert ours["headers"].items() <= {**theirs["headers"], "origin": "", "argsrepr": "", "kwargsrepr": ""}.items()
    assert json.loads(base64.b64decode(ours["body"])) == json.loads(base64.b64decode(theirs["body"]))
    assert ours["content-type"] == theirs["content-type"]
    assert ours["properties"].keys() <= theirs["properties"].keys()
    checked = [
        json.loads(transport.checked_entry(json.dumps(item).encode(), "board.elsewhere")) for item in (theirs, ours)
    ]
    for item in checked:
        del item["properties"]["delivery_tag"]
    assert checked[0] == checked[1]
