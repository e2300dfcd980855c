"""What stands in a queue becomes a message of ours, made anew, or is refused with a reason."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import strictjson, transport
from tasks.messages import MESSAGE_BYTES, TaskMessage
from tasks.transport import CONTENT_TYPE, checked_entry
from tests.support.entries import NASTY, entry, task
from tests.support.studies import request

QUEUE = "board.nrf52-dk"


def checked(data: dict[str, Any] | bytes) -> dict[str, Any]:
    item = data if isinstance(data, bytes) else json.dumps(data).encode()
    fresh: dict[str, Any] = json.loads(checked_entry(item, QUEUE))
    return fresh


def body_of(fresh: dict[str, Any]) -> Any:
    return json.loads(base64.b64decode(fresh["body"]))


def test_a_message_passes_with_what_it_says() -> None:
    fresh = checked(entry(task()))
    (argument,), named, _ = body_of(fresh)
    assert TaskMessage.from_json(argument) == task()
    assert named == {}
    assert fresh["headers"]["task"] == "edgefront.profile"
    assert fresh["headers"]["timelimit"] == [180.0, 120.0]
    assert fresh["properties"]["delivery_info"]["routing_key"] == QUEUE


def test_nothing_that_celery_would_act_upon_passes_beside_the_argument() -> None:
    chain = {"chain": [{"task": "edgefront.train"}], "callbacks": [{"task": "x"}], "errbacks": [1], "chord": {}}
    given = entry(task(), body=[[task().to_json()], {}, chain])
    given["headers"] |= {"eta": "2099-01-01", "retries": 9, "reply_to": "x", "stamps": {}, "compression": "bzip2"}
    given["properties"] |= {"reply_to": "somebody", "delivery_tag": "../x", "priority": 9}
    fresh = checked(given)
    assert body_of(fresh)[2] == {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    assert (fresh["headers"]["eta"], fresh["headers"]["retries"]) == (None, 0)
    assert {"reply_to", "stamps", "compression"}.isdisjoint(fresh["headers"])
    assert "reply_to" not in fresh["properties"]
    assert fresh["properties"]["delivery_tag"] != "../x"


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("edgefront.profile@nrf52-dk", "edgefront.profile"),
        ("edgefront.polish", "edgefront.refused"),
        ("edgefront.", "edgefront.refused"),
    ],
)
def test_a_task_gets_a_name_that_is_registered(stage: str, name: str) -> None:
    given = entry(task())
    given["headers"]["task"] = stage
    assert checked(given)["headers"]["task"] == name


@pytest.mark.parametrize(("item", "reason"), [case[1:] for case in NASTY], ids=[case[0] for case in NASTY])
def test_what_is_no_message_is_refused_with_a_reason(item: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        checked_entry(item, QUEUE)
    assert len(str(caught.value)) < 500


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_reading_any_bytes_gives_json_or_a_value_error(data: bytes | str) -> None:
    try:
        value = strictjson.loads(data, 1000)
    except ValueError:
        return
    assert json.loads(json.dumps(value, allow_nan=False)) == value


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "body": JSON,
            "content-type": JSON | st.just(CONTENT_TYPE),
            "headers": JSON | st.fixed_dictionaries({"task": JSON, "id": JSON, "timelimit": JSON}),
            "properties": JSON | st.just({"body_encoding": "base64"}),
        },
    )
)
def test_any_entry_passes_or_is_refused(changes: dict[str, Any]) -> None:
    try:
        fresh = checked({**entry(task()), **changes})
    except ValueError:
        return
    assert fresh["headers"]["task"].startswith("edgefront.")
    assert isinstance(body_of(fresh)[0][0], dict)


FIELDS = tuple(request().to_json())


@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), JSON, max_size=3), JSON)
def test_any_argument_is_a_message_or_a_value_error(changes: dict[str, Any], artifacts: Any) -> None:
    data = {"version": 1, "request": {**request("profile").to_json(), **changes}, "artifacts": artifacts}
    try:
        message = TaskMessage.from_json(data)
    except ValueError:
        return
    assert TaskMessage.from_json(json.loads(transport.encode(message.to_json()))) == message


@given(JSON)
def test_anything_at_all_is_no_message_or_one(data: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        TaskMessage.from_json(data)


def test_a_message_at_the_limit_passes_and_one_beyond_does_not() -> None:
    large = task(params={f"p{index}": "x" * 4_000 for index in range(240)})
    assert body_of(checked(entry(large)))[0][0] == large.to_json()
    beyond = task(params={f"p{index}": "x" * 4_000 for index in range(251)})
    with pytest.raises(ValueError, match=f"allowed are {MESSAGE_BYTES}"):
        checked(entry(beyond))
