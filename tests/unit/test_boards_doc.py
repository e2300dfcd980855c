"""The page about boards says what the catalogue, the cost table and the mailbox say."""

from __future__ import annotations

import re
from pathlib import Path

from mcu_agent.boards.thumb import CORE_FACTORS, TAKEN_PENALTY
from mcu_agent.kinds import kinds
from mcu_agent.mailbox import (
    COMMAND_OFFSET,
    IDLE_MS_OFFSET,
    INPUT_CRC_OFFSET,
    LONGEST_IDLE_MS,
    MAGIC,
    NO_TEMPERATURE,
    REPEATS_OFFSET,
    SIZE,
    VERSION,
)

PAGE = (Path(__file__).parents[2] / "docs" / "boards.md").read_text(encoding="utf-8")


def test_the_table_of_kinds_is_the_catalogue() -> None:
    rows = [
        f"| `{kind.name}` | {kind.mcu} | {kind.core} | {kind.clock_hz // 10**6} MHz | {kind.flash_bytes // 1024} KiB "
        f"| {kind.ram_bytes // 1024} KiB | {kind.nj_per_cycle} | {kind.nj_per_cycle_source.split(':')[0]} |"
        for kind in kinds().values()
    ]
    assert re.findall(r"^\| `n[^|\n]*` \|(?:[^|\n]*\|){7}$", PAGE, re.MULTILINE) == rows


def test_the_cost_model_is_the_programs() -> None:
    assert f"**Cortex-M7 × {CORE_FACTORS['cortex-m7']}**" in PAGE
    assert f"**Cortex-M33 × {CORE_FACTORS['cortex-m33']}**" in PAGE
    assert f"when it is taken | + {TAKEN_PENALTY} |" in PAGE


def test_the_mailboxs_offsets_are_the_programs() -> None:
    assert f"`{MAGIC:#010X}`".replace("0X", "0x") in PAGE
    assert f"| {COMMAND_OFFSET} | command" in PAGE
    assert f"| {INPUT_CRC_OFFSET} | CRC-32 of the input" in PAGE
    assert f"| {REPEATS_OFFSET} | inferences of a window" in PAGE
    assert f"| {IDLE_MS_OFFSET} | milliseconds to sleep before and after them, at most {LONGEST_IDLE_MS:,};" in PAGE
    assert f"signed; −{-NO_TEMPERATURE}: not measured" in PAGE
    assert f"| {SIZE - 4} | whether the input was put back" in PAGE
    assert f"little endian, version {VERSION} " in PAGE


def test_ports_and_trigger_pins_are_the_catalogues() -> None:
    rows = re.findall(r"^\| (`n[^|]*`) \| `(\w+)` \|[^|]*\| (P\S+), A\d \|$", PAGE, re.MULTILINE)
    found = {name: (port, pin) for names, port, pin in rows for name in re.findall(r"`([^`]+)`", names)}
    assert found == {kind.name: (kind.port, kind.trigger_pin) for kind in kinds().values()}
