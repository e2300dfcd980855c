"""Holding a meter against a resistor does not concern the board it belongs to."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcu_agent import measuring
from mcu_agent.errors import MeterError
from mcu_agent.meters.fake import FakeRecorder
from mcu_agent.pool import Pool
from mcu_agent.rack import MeterEntry, Rack, RackBoard


def test_a_meter_is_checked_beside_a_quarantined_board_and_blames_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = MeterEntry(driver="ppk2", supply_v=3.0, options={"known_load_ohms": 100})
    board = RackBoard(board_id="b", kind="nrf52-dk", driver="gdb", connection="localhost:1", meter=meter)
    pool = Pool(Rack(boards=(board,)), tmp_path)
    pool.quarantine("b", "its wires", by="somebody")
    lost = FakeRecorder()
    lost.is_busy = True
    monkeypatch.setattr(measuring, "recorder_of", lambda entry: lost)
    for _ in range(3):
        with pytest.raises(MeterError, match="another program has it open"):
            measuring.read_known_load(pool, "b")
    assert (pool.record("b").faults, pool.record("b").quarantine) == (0, "its wires")
