"""SEGGER's RTT: where the text lies, and what a damaged block is taken for."""

from __future__ import annotations

import struct

import pytest

from mcu_agent.errors import FirmwareError
from mcu_agent.rtt import ID, Channel, count_channels, parse_channel


@pytest.mark.parametrize(
    ("write", "read", "expected"),
    [(5, 5, []), (7, 5, [(105, 2)]), (2, 5, [(105, 3), (100, 2)]), (0, 5, [(105, 3)])],
    ids=["empty", "straight", "wraps", "to-the-end"],
)
def test_unread_text_lies_between_the_pointers(write: int, read: int, expected: list[tuple[int, int]]) -> None:
    assert Channel(buffer=100, size=8, write=write, read=read).unread() == expected


def test_a_block_without_its_name_has_no_channels_yet() -> None:
    assert count_channels(bytes(24)) == 0
    assert count_channels(ID + struct.pack("<II", 2, 3)) == 2


@pytest.mark.parametrize("counts", [(33, 0), (1, 2**31)])
def test_a_block_with_impossible_counts_was_overwritten(counts: tuple[int, int]) -> None:
    with pytest.raises(FirmwareError, match="overwritten"):
        count_channels(ID + struct.pack("<II", *counts))


@pytest.mark.parametrize("pointers", [(8, 0), (0, 8), (2**32 - 1, 0)])
def test_pointers_outside_the_buffer_were_overwritten(pointers: tuple[int, int]) -> None:
    with pytest.raises(FirmwareError, match="of 8 bytes has its pointers at"):
        parse_channel(struct.pack("<6I", 0, 0x20000000, 8, *pointers, 0))


def test_a_channel_that_nobody_set_up_is_empty() -> None:
    assert parse_channel(bytes(24)).unread() == []
