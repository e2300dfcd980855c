"""Looking at a broker: boards that agents report, epochs that trainings report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.records import Event
from tasks import messages
from tasks.broker import EmbeddedBroker, connect
from tasks.watching import LabWatch, boards_of, newest_epochs

BOARD = {"board": "b-1", "kind": "nrf52-dk", "state": "idle", "detail": ""}


def epoch(trial: int, number: int) -> Event:
    return Event(name="epoch_finished", fields={"trial": trial, "epoch": number, "epochs": 9, "accuracy": 0.5})


def test_the_newest_epoch_of_a_trial_counts_until_it_goes_on_to_another_stage() -> None:
    later = Event(name="stage_started", fields={"trial": 2, "stage": "compress"})
    found = newest_epochs([epoch(1, 4), later, epoch(1, 3), epoch(2, 9), Event(name="other", fields={})])
    assert found == {1: {"epoch": 4, "epochs": 9, "accuracy": 0.5}}


def test_the_boards_of_all_agents_are_seen_and_what_is_no_report_is_passed_over(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path / "broker", tmp_path / "log")
    broker.start()
    client = connect(broker.url)
    try:
        client.set(messages.agent_key("z@lab"), json.dumps({"version": 1, "at": 5.0, "boards": [BOARD]}))
        client.set(messages.agent_key("a@lab"), json.dumps({"version": 1, "at": 6.0, "boards": [BOARD, BOARD]}))
        client.set(messages.agent_key("new@lab"), json.dumps({"version": 2, "at": 6.0, "boards": []}))
        client.set(messages.agent_key("bad@lab"), "{")
        client.xadd(messages.events_key("s"), messages.encode_event(epoch(1, 1)))  # type: ignore[arg-type]
        client.xadd(messages.events_key("s"), messages.encode_event(epoch(1, 2)))  # type: ignore[arg-type]
        watch = LabWatch(broker.url)
        found = watch.boards()
        assert [board["agent"] for board in found["boards"]] == ["a@lab", "a@lab", "z@lab"]
        assert found["boards"][2] == {**BOARD, "agent": "z@lab", "at": 5.0}
        assert watch.progress("s")[1]["epoch"] == 2
        broker.stop()
        assert watch.boards()["boards"] == [] and "away" in watch.boards()["text"]
        assert watch.progress("s") == {}
        watch.close()
    finally:
        client.close()
        broker.stop()


def test_who_still_looks_as_it_is_closed_leaves_no_connection(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path / "broker", tmp_path / "log")
    broker.start()
    client = connect(broker.url)
    try:
        watch = LabWatch(broker.url)
        watch.close()
        assert watch.boards()["text"] == "no agent reports any"
        assert watch.progress("s") == {}
        assert len(client.client_list()) == 1  # the test's own
    finally:
        client.close()
        broker.stop()


@pytest.mark.parametrize("report", [b"[]", b'{"version": 1, "boards": {}}', b'{"version": 1, "boards": ["x"]}', b""])
def test_a_report_of_another_form_is_an_error(report: bytes) -> None:
    with pytest.raises(ValueError):
        boards_of("a", report)
