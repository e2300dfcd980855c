"""Celery's Redis transport, with a check between the queue and Celery.

Whoever can reach the broker can put anything into a queue, and Celery's worker dies of some of it. So an entry is read
here first: bounded in size, strict JSON, of our content type, for one of our tasks, with time limits in range and one
argument. What passes is *made anew* from these facts – no call-backs, chains, dates, retries or replies of the sender's
survive – and what does not pass is dropped with a line in the log. Whether the argument is a message we understand is
seen by the task itself, which can answer.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
import re
import uuid
from collections.abc import Collection
from typing import Any

import redis
from kombu import serialization
from kombu import transport as kombu_transports
from kombu.transport import redis as kombu_redis

from orchestrator import fieldcheck
from orchestrator.records import Json
from tasks import strictjson
from tasks.messages import KNOWN_STAGES, MESSAGE_BYTES, REFUSED_TASK, TASK_PREFIX

SERIALIZER = "edgefront"
CONTENT_TYPE = "application/x-edgefront-json"
# The body travels in base64, with headers around it.
ENTRY_BYTES = MESSAGE_BYTES * 4 // 3 + 20_000
LONGEST_LIMIT_S = 6 * 3600.0
# From being interrupted to being killed.
HARD_LIMIT_MARGIN_S = 60.0
# What a worker allows a task at most (s), whatever its message says.
TIME_LIMIT_VARIABLE = "EDGEFRONT_TIME_LIMIT_S"
_TASK_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PRIORITY_SEPARATOR = "\x06\x16"

_log = logging.getLogger(__name__)


def encode(value: object) -> str:
    return json.dumps(value, allow_nan=False)


def decode(data: bytes | str) -> Any:
    """
    Raises:
        ValueError: see :func:`tasks.strictjson.loads`.
    """
    return strictjson.loads(data, MESSAGE_BYTES)


def checked_entry(item: bytes, queue: str, stages: Collection[str] = KNOWN_STAGES) -> bytes:
    """An entry of ``queue`` made anew from what may stand in one.

    A task for a stage that is not among ``stages`` becomes one that answers with a refusal.

    Raises:
        ValueError: it is no message of ours; the text says why in one line.
    """
    envelope = fieldcheck.a_map("entry", strictjson.loads(item, ENTRY_BYTES))
    fieldcheck.a_match("content-type", envelope.get("content-type"), re.compile(re.escape(CONTENT_TYPE)), CONTENT_TYPE)
    headers = fieldcheck.a_map("headers", envelope.get("headers"))
    task_id = fieldcheck.a_match("id", headers.get("id"), _TASK_ID, "a task id")
    task, limits = _task_name(headers.get("task"), stages), _limits(headers.get("timelimit"))
    return new_entry(task, task_id, _argument(envelope), limits, queue)


def new_entry(task: str, task_id: str, argument: Json, limits: list[float], queue: str) -> bytes:
    """The entry of ``queue`` by which the task is run, as Celery would write it. ``limits``: hard and soft (s)."""
    body = [[argument], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    fresh = {
        "body": base64.b64encode(encode(body).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": CONTENT_TYPE,
        "headers": _fresh_headers(task, task_id, limits),
        "properties": {
            "correlation_id": task_id,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }
    return json.dumps(fresh).encode()


def _argument(envelope: Json) -> Json:
    properties = fieldcheck.a_map("properties", envelope.get("properties"))
    if properties.get("body_encoding") != "base64" or not isinstance(envelope.get("body"), str):
        raise ValueError("the body is not a text in base64")
    try:
        body = decode(base64.b64decode(envelope["body"], validate=True))
    except binascii.Error as error:
        raise ValueError(f"the body is not base64: {error}") from None
    match body:
        case [[dict() as argument], dict() as named, _] if not named:
            return argument
    raise ValueError(f"the body is {fieldcheck.shown(body)}; expected one map as the only argument")


def _task_name(task: object, stages: Collection[str]) -> str:
    """The name of a registered task: boards of several kinds share one (``profile@nrf52-dk``)."""
    text = fieldcheck.a_text("task", task, 200)
    stage = text.removeprefix(TASK_PREFIX).partition("@")[0]
    if not text.startswith(TASK_PREFIX):
        raise ValueError(f"task is {fieldcheck.shown(task)}; ours begin with {TASK_PREFIX}")
    return TASK_PREFIX + stage if stage in stages else REFUSED_TASK


def _limits(given: Any) -> list[float]:
    """Hard and soft time limit (s), at most those of this worker."""
    limits = given if isinstance(given, list) else []
    numbers = [float(limit) for limit in limits if isinstance(limit, int | float) and 0 < limit <= LONGEST_LIMIT_S]
    if len(limits) == len(numbers) == 2:
        hard, soft = numbers
        own = float(os.environ.get(TIME_LIMIT_VARIABLE) or LONGEST_LIMIT_S)
        return [min(hard, own + HARD_LIMIT_MARGIN_S), min(soft, own)]
    expected = f"two numbers of seconds up to {LONGEST_LIMIT_S:g}"
    raise ValueError(f"timelimit is {fieldcheck.shown(given)}; expected {expected}")


def _fresh_headers(task: str, task_id: str, limits: list[float]) -> Json:
    return {
        "lang": "py",
        "task": task,
        "id": task_id,
        "root_id": task_id,
        "parent_id": None,
        "group": None,
        "eta": None,
        "expires": None,
        "retries": 0,
        "timelimit": limits,
        "argsrepr": "",
        "kwargsrepr": "",
        "origin": "",
        "ignore_result": True,
    }


def _accepted(item: bytes, key: bytes) -> bytes | None:
    queue = key.decode(errors="replace").partition(_PRIORITY_SEPARATOR)[0]
    try:
        return checked_entry(item, queue)
    except ValueError as error:
        _log.error("dropped an entry of queue %s that is no message of ours: %s", queue, error)
        return None


class _CheckedRedis(redis.Redis):
    """A client whose replies to BRPOP are checked entries; one that was dropped looks like an empty queue."""

    def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        reply: Any = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]
        if command_name != "BRPOP" or not reply:
            return reply
        key, item = reply
        fresh = _accepted(item, key)
        return None if fresh is None else (key, fresh)


class _QoS(kombu_redis.QoS):  # type: ignore[misc]  # kombu ships no types
    """Messages under way, of which one that cannot be read is dropped instead of stopping the others' return."""

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        try:
            super().restore_by_tag(tag, client, leftmost)
        except (ValueError, TypeError, KeyError, RecursionError, AttributeError) as error:
            _log.error("dropped a message under way that cannot be read: %s", error)
            with self.channel.conn_or_acquire(client) as connection, connection.pipeline() as pipeline:
                self._remove_from_indices(tag, pipeline).execute()


class Channel(kombu_redis.Channel):  # type: ignore[misc]  # kombu ships no types
    QoS = _QoS

    def _get_client(self) -> type[redis.Redis]:
        super()._get_client()  # checks the version of redis-py
        return _CheckedRedis

    def _get(self, queue: str) -> Any:
        # Celery's worker waits with BRPOP; this is for a consumer without an event loop, which we do not have.
        raise NotImplementedError(f"queue {queue} is read by the worker's event loop only")


class Transport(kombu_redis.Transport):  # type: ignore[misc]  # kombu ships no types
    Channel = Channel


def install() -> None:
    """Make this the transport of every Redis address in this process, and register the form of our messages."""
    for scheme in ("redis", "rediss"):
        kombu_transports.TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
    serialization.register(SERIALIZER, encode, decode, content_type=CONTENT_TYPE, content_encoding="utf-8")
