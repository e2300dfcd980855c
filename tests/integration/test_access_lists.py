"""The broker's users as docs/security.md has them: each role can do its work, and an agent no more than that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner

import cli
from orchestrator.records import Ending, StageResult
from tasks import app, messages
from tasks.artifacts import ArtifactStore
from tasks.broker import BrokerError, EmbeddedBroker, check_queues, check_reachable, connect
from tasks.evaluator import CeleryEvaluator
from tasks.slots import AnnouncedSlots
from tasks.watching import LabWatch
from tests.support.entries import entry, task
from tests.support.serving import serving
from tests.support.studies import BOARD, FAKE_STAGES, request
from tests.support.tls import documented

ROOT = Path(__file__).parents[2]
STUDY = """\
name: listed
dataset: {source: digits}
network: {family: mlp}
space: {network.width: {type: int, low: 4, high: 40}}
board: nrf52-dk
objectives: {error: {}, rom: {}}
budget: {trials: 2}
sampler: {name: random, initial: 2}
"""
ROLES = ("orchestrator", "worker", "agent")
BOARDS = [{"board": "one", "kind": BOARD, "state": "free", "detail": ""}]
REPORT = {"version": 1, "at": 1.0, "boards": BOARDS}
Url = Callable[[str], str]
Refused = Callable[[], set[tuple[str, str]]]


def users() -> dict[str, list[str]]:
    """The rules of each user of the page, by name."""
    (block,) = documented("acl")
    lines = [line.split() for line in block.splitlines()]
    return {name: rules for _, name, *rules in lines}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    one = EmbeddedBroker(tmp_path / "broker", tmp_path / "broker.log")
    one.start()
    admin = connect(one.url)
    for role in ROLES:
        admin.execute_command("ACL", "SETUSER", role, *users()[role])  # type: ignore[no-untyped-call]
    admin.close()
    yield one
    one.stop()


@pytest.fixture
def url(broker: EmbeddedBroker) -> Url:
    return lambda role: f"redis+socket://{role}:{role.upper()}-PASSWORD@{broker._socket}"


@pytest.fixture
def refused(broker: EmbeddedBroker) -> Iterator[Callable[[], set[tuple[str, str]]]]:
    """Whom the broker has refused what, but for redis-py's wish to say its name."""
    admin = connect(broker.url)

    def ask() -> set[tuple[str, str]]:
        log: Any = admin.acl_log()
        return {(item["username"], item["object"]) for item in log if item["object"] != "client"}

    yield ask
    admin.close()


def test_the_page_has_a_user_for_each_role_and_none_without_a_password() -> None:
    assert set(users()) == {"default", *ROLES}
    assert users()["default"] == ["off"]
    assert all("-@all" in users()[role] and "nopass" not in users()[role] for role in ROLES)


def test_every_role_can_do_its_work(tmp_path: Path, url: Url, refused: Refused) -> None:
    elf = ArtifactStore(tmp_path).put_bytes(b"firmware")
    asked = (request("gate", trial=1), request("train", trial=2), task(trial=3, inputs={"elf": elf}).request)
    evaluator = CeleryEvaluator(url=url("orchestrator"), study_id="study", artifacts=tmp_path)
    with (
        serving("build", url("worker"), tmp_path / "build.log"),
        serving("train", url("worker"), tmp_path / "train.log"),
        serving(f"board.{BOARD}", url("agent"), tmp_path / "agent.log"),
    ):
        for one in asked:
            evaluator.submit(one)
        results: list[StageResult] = []
        while len(results) < len(asked):
            new = evaluator.collect(20.0)
            assert new, f"{len(results)} of {len(asked)} answered; refused: {refused()}"
            results += new
    assert evaluator.lost([asked[0].task_id]) == []
    evaluator.close()
    assert {result.trial: result.ending for result in results} == dict.fromkeys((1, 2, 3), Ending.COMPLETE)
    assert refused() == set()


def test_a_search_in_the_background_runs_to_its_end(
    tmp_path: Path, url: Url, broker: EmbeddedBroker, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = url("orchestrator")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEFRONT_BROKER_URL", address)
    (tmp_path / "listed.yaml").write_text(STUDY, encoding="utf-8")
    admin = connect(broker.url)
    with (
        serving("build", url("worker"), tmp_path / "build.log"),
        serving("train", url("worker"), tmp_path / "train.log"),
        serving(f"board.{BOARD}", url("agent"), tmp_path / "agent.log"),
    ):
        admin.set(messages.agent_key("elsewhere"), json.dumps(REPORT))
        submitted = CliRunner().invoke(cli.main, ["submit", "listed.yaml"])
        assert submitted.exit_code == 0, submitted.output
        wait_for(lambda: len(list(admin.scan_iter(messages.WORKER_KEYS))) == 3)
        slots = AnnouncedSlots(address)
        assert slots() == 2  # one that trains and one that builds
        slots.close()
        with orchestrator(tmp_path):
            wait_for(lambda: "study listed: finished" in (tmp_path / "orchestrator.log").read_text())
    admin.close()
    assert refused() == set()


def test_the_live_page_may_read_boards_and_progress(url: Url, broker: EmbeddedBroker, refused: Refused) -> None:
    admin = connect(broker.url)
    admin.set(messages.agent_key("bench-1"), json.dumps(REPORT))
    admin.close()
    watch = LabWatch(url("orchestrator"))
    assert [board["board"] for board in watch.boards()["boards"]] == ["one"]
    assert watch.progress("study") == {}
    watch.close()
    assert refused() == set()


@contextmanager
def orchestrator(folder: Path) -> Iterator[None]:
    """An orchestrator's process on ``folder`` until the block ends; it says what it says into a log there."""
    environment = {**os.environ, "EDGEFRONT_STAGES": FAKE_STAGES, "PYTHONPATH": str(ROOT)}
    with (folder / "orchestrator.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "orchestrator", "--metrics-port", "0"],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def test_who_may_not_serve_a_queue_is_told_at_once_and_by_name(url: Url, broker: EmbeddedBroker) -> None:
    check_queues(url("worker"), ["train", "build"])
    check_queues(url("agent"), ["board.nrf52-dk"])
    with pytest.raises(BrokerError, match=r"refuses user 'agent' the queue 'train'.*~train") as caught:
        check_queues(url("agent"), ["board.nrf52-dk", "train"])
    assert caught.value.exit_code == 2


def test_a_database_that_the_server_does_not_have_is_not_a_server_that_is_away(broker: EmbeddedBroker) -> None:
    with pytest.raises(BrokerError, match="answers, and refuses: DB index is out of range") as caught:
        check_reachable(f"{broker.url}?db=99")
    assert caught.value.exit_code == 2


def test_an_agent_puts_back_what_another_agent_has_left_lying(
    url: Url, broker: EmbeddedBroker, refused: Refused
) -> None:
    agent_app = app.make_app(url("agent"))
    app.keep_apart(agent_app, messages.BOARD_QUEUE)
    admin = connect(broker.url)
    admin.hset("unacked.board", "tag", json.dumps([entry(task()), "", f"board.{BOARD}"]))
    admin.zadd("unacked.board_index", {"tag": 1.0})
    connection = agent_app.connection_for_read()
    connection.default_channel.qos.restore_visible()
    connection.close()
    assert admin.llen(f"board.{BOARD}") == 1
    admin.close()
    assert refused() == set()


@pytest.mark.parametrize(
    "command",
    [
        ("LPUSH", "build", "x"),
        ("LPUSH", "train", "x"),
        ("LRANGE", "board.nrf52-dk", "0", "-1"),
        ("HGETALL", "unacked"),
        ("HGET", "unacked", "tag"),
        ("XRANGE", "edgefront:study:results", "-", "+"),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("FLUSHALL",),
        ("CONFIG", "GET", "requirepass"),
        ("ACL", "LIST"),
        ("EVAL", "return 1", "0"),
        ("MONITOR",),
        ("CLIENT", "LIST"),
        ("SHUTDOWN",),
        ("SLAVEOF", "elsewhere", "6379"),
        ("MODULE", "LOAD", "/tmp/x.so"),
        ("DEBUG", "SLEEP", "1"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_an_agents_password_opens_nothing_else(url: Url, broker: EmbeddedBroker, command: tuple[str, ...]) -> None:
    client = connect(url("agent"), retries=0)
    with pytest.raises(redis.exceptions.ResponseError) as refusal:
        client.execute_command(*command)  # type: ignore[no-untyped-call]
    # Redis 7 refuses MODULE and DEBUG to everybody, before it asks who it is: then nobody's password opens them.
    if "not allowed" in str(refusal.value) and command[0] in ("MODULE", "DEBUG"):
        assert refusal_of(broker.url, command) == str(refusal.value)
    else:
        assert isinstance(refusal.value, redis.exceptions.NoPermissionError)
    client.close()


def refusal_of(url: str, command: tuple[str, ...]) -> str:
    """What the server says when it refuses a command to a user, nothing where it obeys."""
    client = connect(url, retries=0)
    try:
        client.execute_command(*command)  # type: ignore[no-untyped-call]
    except redis.exceptions.ResponseError as error:
        return str(error)
    finally:
        client.close()
    return ""
