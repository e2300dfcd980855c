"""What travels through Redis comes back as it was."""

from __future__ import annotations

import json

import pytest

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
