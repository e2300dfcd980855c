"""When an agent tests its boards, and what it does about those that cannot be tested."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from mcu_agent.boards.fake import FakeBoard
from mcu_agent.boards.protocol import Board
from mcu_agent.errors import InventoryError
from mcu_agent.kinds import load_kind
from mcu_agent.leases import State
from mcu_agent.pool import Pool
from mcu_agent.rack import RackBoard, virtual_rack
from mcu_agent.recovery import ignore
from tasks.agent_tests import SelfTests

KIND = "nrf52-dk"


def _wait() -> None:
    for thread in threading.enumerate():
        if thread.name == "self-test":
            thread.join(20)


def test_a_test_that_cannot_be_carried_out_is_told_and_put_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(entry: RackBoard) -> Board:
        raise InventoryError(f"board {entry.board_id}: its library is missing")

    tests = SelfTests(Pool(virtual_rack(KIND, 1), tmp_path, make=refuse), 3600.0, ignore)
    for _ in range(3):
        tests.start_due()
        _wait()
    tests.close(0.0)
    assert [record.message for record in caplog.records] == [
        f"self-test of virtual-{KIND} put off for 60 s: board virtual-{KIND}: its library is missing"
    ]


def test_closing_begins_no_more_and_waits_no_longer_than_it_is_told(tmp_path: Path) -> None:
    go_on = threading.Event()

    def make(entry: RackBoard) -> Board:
        go_on.wait(20)
        return FakeBoard(entry.board_id, load_kind(KIND))

    pool = Pool(virtual_rack(KIND, 6), tmp_path, make=make)
    tests = SelfTests(pool, 3600.0, ignore)
    tests.start_due()
    tests.close(0.0)
    assert not go_on.is_set()
    tests.start_due()
    assert sum(thread.name == "self-test" for thread in threading.enumerate()) == 4
    go_on.set()
    tests.close(20.0)
    assert not [thread for thread in threading.enumerate() if thread.name == "self-test"]
    assert {status.state for status in pool.statuses()} <= {State.IDLE, State.QUARANTINED}
