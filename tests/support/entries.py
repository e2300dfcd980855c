"""Entries of a queue as Celery writes them, to be spoilt."""

from __future__ import annotations

import base64
import json
import pickle
from typing import Any

from tasks import transport
from tasks.messages import TaskMessage
from tests.support.studies import request


def task(stage: str = "profile", artifacts: str = "/artifacts", **changes: Any) -> TaskMessage:
    return TaskMessage(request=request(stage, **changes), artifacts=artifacts)


def entry(message: TaskMessage, *, body: Any = None, raw: bytes | None = None) -> dict[str, Any]:
    """The entry of ``message``; ``body`` replaces Celery's body, ``raw`` its bytes."""
    content = transport.encode([[message.to_json()], {}, {}] if body is None else body).encode()
    return {
        "body": base64.b64encode(content if raw is None else raw).decode(),
        "content-encoding": "utf-8",
        "content-type": transport.CONTENT_TYPE,
        "headers": {
            "lang": "py",
            "task": f"edgefront.{message.request.stage}",
            "id": message.request.task_id,
            "timelimit": [180, 120],
        },
        "properties": {"body_encoding": "base64", "delivery_tag": "tag", "delivery_info": {}},
    }


def with_header(name: str, value: Any) -> dict[str, Any]:
    given = entry(task())
    given["headers"][name] = value
    return given


# What each is called, the entry, and a word of the reason it is refused for.
NASTY: list[tuple[str, bytes, str]] = [
    ("no JSON", b"hello", "Expecting value"),
    ("no UTF-8", b"\xff\xfe\x00", "decode"),
    ("nothing", b"", "Expecting value"),
    ("a list", b"[]", "expected a map"),
    ("a pickle", pickle.dumps({"a": 1}), "decode"),
    ("nested without end", b"[" * 100_000, "nested deeper"),
    ("nested too deep", b"[" * 100 + b"]" * 100, "nested deeper"),
    ("NaN", json.dumps(with_header("timelimit", [float("nan"), 1.0])).encode(), "NaN is no number"),
    ("a number beyond all bounds", b'{"a": 1e999}', "too large"),
    ("a number of 10,000 digits", b"9" * 10_000, "limit"),
    ("too large", b'"' + b"x" * transport.ENTRY_BYTES + b'"', "allowed are"),
    ("a type of Celery's", b'{"__type__": "uuid", "__value__": {}}', "__type__"),
    (
        "pickled content",
        json.dumps({**entry(task()), "content-type": "application/x-python-serialize"}).encode(),
        "content-type",
    ),
    ("YAML content", json.dumps({**entry(task()), "content-type": "application/x-yaml"}).encode(), "content-type"),
    ("Celery's JSON", json.dumps({**entry(task()), "content-type": "application/json"}).encode(), "content-type"),
    ("raw content", json.dumps({**entry(task()), "content-type": "application/data"}).encode(), "content-type"),
    (
        "a list of content types",
        json.dumps({**entry(task()), "content-type": [transport.CONTENT_TYPE]}).encode(),
        "content-type",
    ),
    ("headers that are a list", json.dumps({**entry(task()), "headers": []}).encode(), "headers"),
    ("no properties", json.dumps({**entry(task()), "properties": None}).encode(), "properties"),
    ("a body that is no base64", json.dumps({**entry(task()), "body": "*"}).encode(), "base64"),
    ("a body of another kind", json.dumps({**entry(task()), "body": 3}).encode(), "base64"),
    ("a pickle as the body", json.dumps(entry(task(), raw=pickle.dumps([1]))).encode(), "decode"),
    ("a body of two arguments", json.dumps(entry(task(), body=[[{}, {}], {}, {}])).encode(), "only argument"),
    ("named arguments", json.dumps(entry(task(), body=[[{}], {"message": {}}, {}])).encode(), "only argument"),
    ("a body of the first protocol", json.dumps(entry(task(), body={"task": "x", "args": []})).encode(), "argument"),
    ("a task of somebody else", json.dumps(with_header("task", "celery.backend_cleanup")).encode(), "ours begin with"),
    ("a task that is a list", json.dumps(with_header("task", ["edgefront.profile"])).encode(), "task"),
    ("an id that is a path", json.dumps(with_header("id", "../../etc/passwd")).encode(), "task id"),
    ("no time limit", json.dumps(with_header("timelimit", [None, None])).encode(), "timelimit"),
    ("a time limit of a year", json.dumps(with_header("timelimit", [3e7, 3e7])).encode(), "timelimit"),
    ("a negative time limit", json.dumps(with_header("timelimit", [60, -1])).encode(), "timelimit"),
    ("a time limit in words", json.dumps(with_header("timelimit", "soon")).encode(), "timelimit"),
]
