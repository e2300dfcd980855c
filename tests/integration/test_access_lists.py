"""The broker's users as docs/security.md has them: each role can do its work, and an agent no more than that."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from orchestrator.records import Ending, StageResult
from tasks import app, messages
from tasks.artifacts import ArtifactStore
from tasks.broker import EmbeddedBroker, connect
from tasks.evaluator import CeleryEvaluator
from tests.support.entries import entry, task
from tests.support.serving import serving
from tests.support.studies import BOARD, request
from tests.support.tls import documented

ROLES = ("orchestrator", "worker", "agent")
Url = Callable[[str], str]


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


def test_every_role_can_do_its_work(tmp_path: Path, url: Url, refused: Callable[[], set[tuple[str, str]]]) -> None:
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


def test_an_agent_puts_back_what_another_agent_has_left_lying(
    url: Url, broker: EmbeddedBroker, refused: Callable[[], set[tuple[str, str]]]
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
