"""Invariants of leases and of the cycle model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcu_agent.boards.thumb import block_cost
from mcu_agent.errors import LeaseLost
from mcu_agent.leases import FAULTS_BEFORE_QUARANTINE, BoardRecord, Lease, check, clear, give_back, grant, is_offered


@given(st.lists(st.sampled_from(["good", "fault", "abandoned", "clear"]), max_size=30), st.floats(0.1, 1e6))
def test_only_the_newest_lease_holds_and_quarantine_follows_faults_in_a_row(steps: list[str], span: float) -> None:
    record, faults, granted, now = BoardRecord(board_id="b"), 0, list[Lease](), 0.0
    for step in steps:
        if step == "clear":
            record, faults = clear(record), 0
            continue
        if not is_offered(record, now):
            assert record.quarantine  # and nobody asks for a lease on it
            continue
        record, lease = grant(record, "me", now, span)
        check(lease, record, now)
        for older in granted:
            with pytest.raises(LeaseLost):
                check(older, record, now)
        granted.append(lease)
        if step != "abandoned":  # the holder died: nothing is given back, and the next lease follows
            faults = faults + 1 if step == "fault" else 0
            record = give_back(record, fault="lost" if step == "fault" else "")
        assert bool(record.quarantine) == (faults >= FAULTS_BEFORE_QUARANTINE)
    assert [lease.token for lease in granted] == list(range(1, len(granted) + 1))


@given(st.binary(max_size=200))
def test_any_bytes_decode_to_at_least_a_cycle_an_instruction(code: bytes) -> None:
    cost = block_cost(code)
    assert len(code) // 4 <= cost.instructions <= len(code) // 2
    assert cost.instructions <= cost.cycles <= 260 * cost.instructions


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_cutting_a_block_between_two_instructions_changes_nothing(first: bytes, second: bytes) -> None:
    """The first part ends in NOPs, so that the cut splits no instruction and no row of loads."""
    nop = b"\x00\xbf"
    head = first[: len(first) // 2 * 2] + nop + nop
    tail = second[: len(second) // 2 * 2]
    whole, one, other = block_cost(head + tail), block_cost(head), block_cost(tail)
    assert whole.instructions == one.instructions + other.instructions
    assert whole.cycles == one.cycles + other.cycles
