"""What travels through Redis comes back as it was."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import fieldcheck
from orchestrator.records import Ending, Event, StageResult
from tasks import messages
from tasks.messages import Holder, TaskMessage
from tests.support.studies import request


def as_bytes(entry: dict[str, str]) -> dict[bytes, bytes]:
    return {key.encode(): value.encode() for key, value in entry.items()}


def result() -> StageResult:
    return StageResult(study_id="s", trial=3, stage="gate", attempt=2, ending=Ending.COMPLETE, seconds=0.5)


def test_messages_survive_the_journey() -> None:
    task = TaskMessage(request=request(), artifacts="/somewhere")
    assert TaskMessage.from_json(task.to_json()) == task
    assert messages.decode_result(as_bytes(messages.encode_result(result()))) == result()
    event = Event(name="epoch_finished", fields={"trial": 1, "loss": 0.5})
    assert messages.decode_event(as_bytes(messages.encode_event(event))) == event
    holder = Holder(worker="train-1", host="lab", pid=42, born=1.5)
    assert Holder.from_text(holder.to_text()) == holder


def test_a_message_of_another_version_is_refused() -> None:
    data = TaskMessage(request=request(), artifacts="/somewhere").to_json()
    with pytest.raises(ValueError, match="version 2"):
        TaskMessage.from_json({**data, "version": 2})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"study_id": "../up"}, "study_id is '../up'"),
        ({"study_id": ""}, "study_id is ''"),
        ({"study_id": "a\n"}, "study_id is"),
        ({"trial": -1}, "trial is int -1; expected a whole number from 0"),
        ({"trial": True}, "trial is bool True"),
        ({"trial": 1.5}, "trial is float 1.5"),
        ({"trial": 10**5000}, "trial is int; expected"),
        ({"attempt": 0}, "attempt is int 0; expected a whole number from 1"),
        ({"stage": "polish"}, "stage is 'polish'; there are gate, build"),
        ({"stage": "profile@"}, "stage is 'profile@'"),
        ({"stage": "profile@../x"}, "stage is"),
        ({"params": {"a": float("nan")}}, "params.a is float nan"),
        ({"params": {"a": [1]}}, "params.a is list"),
        ({"params": {"a": None}}, "params.a is NoneType"),
        ({"params": {str(index): 0 for index in range(1001)}}, "params has 1001 entries; allowed are 1000"),
        ({"seed": "7"}, "seed is '7'"),
        ({"inputs": {"elf": "0" * 63}}, "inputs.elf is '000"),
        ({"inputs": {"elf": "../" + "0" * 61}}, "inputs.elf is '../0"),
        ({"inputs": {"a\nb": "0" * 64}}, "a name in inputs is"),
        ({"inputs": ["elf"]}, "inputs is list"),
        ({"study": "x"}, "study is 'x'; expected a map"),
        ({"sources": {"dataset": 1}}, "sources.dataset is int 1"),
        ({"stopping": []}, "stopping is list"),
        ({"more": 1}, "stage request has the field 'more'; known are attempt, inputs"),
    ],
)
def test_a_field_that_is_not_what_it_must_be_is_refused_by_name(changes: dict[str, Any], text: str) -> None:
    data = TaskMessage(request=request(), artifacts="/somewhere").to_json()
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        TaskMessage.from_json({**data, "request": {**data["request"], **changes}})
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("artifacts", ["", "a\nb", "a\x00b", 5, None, ["/somewhere"], "x" * 5000])
def test_a_store_is_a_text_on_one_line(artifacts: object) -> None:
    data = TaskMessage(request=request(), artifacts="/somewhere").to_json()
    with pytest.raises(ValueError, match="artifacts is"):
        TaskMessage.from_json({**data, "artifacts": artifacts})


@pytest.mark.parametrize("missing", ["study_id", "trial", "stage", "attempt", "params", "seed", "inputs", "study"])
def test_a_field_that_is_missing_is_named(missing: str) -> None:
    data = TaskMessage(request=request(), artifacts="/somewhere").to_json()
    del data["request"][missing]
    with pytest.raises(ValueError, match=f"lacks the field {missing}"):
        TaskMessage.from_json(data)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"worker": "w", "host": "h", "pid": "1", "born": 0}',
        '{"worker": "w", "host": "h", "pid": 1}',
        "[" * 9999,
    ],
)
def test_what_is_no_holder_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Holder.from_text(text)


@pytest.mark.parametrize(
    "entry",
    [{}, {b"name": b"x"}, {b"name": b"a b", b"fields": b"{}"}, {b"name": b"x", b"fields": b"[]"}],
)
def test_what_is_no_event_is_a_value_error(entry: dict[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match=r"."):
        messages.decode_event(entry)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_whatever_is_shown_of_a_message_is_short_and_on_one_line(value: object) -> None:
    text = fieldcheck.shown(value)
    assert len(text) <= 61
    assert text.isprintable()


def test_a_result_knows_the_id_of_its_task() -> None:
    one = request("gate", study_id="s", trial=3, attempt=2)
    assert messages.task_id_of(result()) == one.task_id


@pytest.mark.parametrize(
    ("stage", "queue"),
    [
        ("gate", "build"),
        ("build", "build"),
        ("final", "build"),
        ("train", "train"),
        ("compress", "train"),
        ("profile", "board.nrf52-dk"),
        ("profile@nucleo-h743zi", "board.nucleo-h743zi"),
    ],
)
def test_each_stage_has_its_queue(stage: str, queue: str) -> None:
    assert messages.queue_of(stage, "nrf52-dk") == queue


def test_an_unknown_stage_has_none() -> None:
    with pytest.raises(ValueError, match="polish"):
        messages.queue_of("polish", "nrf52-dk")


def test_the_boards_of_all_agents_are_counted_by_state_for_the_kinds_of_a_study() -> None:
    def report(version: int, *boards: tuple[str, str]) -> bytes:
        entries = [{"board": "b", "kind": kind, "state": state, "detail": ""} for kind, state in boards]
        return json.dumps({"version": version, "boards": entries}).encode()

    reports = [
        report(1, ("nrf52-dk", "idle"), ("nrf52-dk", "leased"), ("nucleo-f446re", "idle")),
        report(1, ("nrf52-dk", "quarantined"), ("nrf52-dk", "idle")),
        report(2, ("nrf52-dk", "idle")),
    ]
    assert messages.board_counts(reports, {"nrf52-dk"}) == {"free": 2, "busy": 1, "quarantined": 1}
    assert messages.board_counts([], {"nrf52-dk"}) == {}


def test_stages_that_differ_in_the_board_alone_are_one_task_for_celery() -> None:
    assert messages.task_name("profile@nrf52-dk") == messages.task_name("profile") == "edgefront.profile"
