"""Instruction counts and cycles of single Thumb-2 instructions, encodings checked with GNU objdump 2.40."""

from __future__ import annotations

import struct

import pytest

from mcu_agent.boards.thumb import BlockCost, block_cost, is_wide


def code(*halves: int) -> bytes:
    return struct.pack(f"<{len(halves)}H", *halves)


@pytest.mark.parametrize(
    ("name", "halves", "cycles"),
    [
        ("movs r0, #1", (0x2001,), 1),
        ("adds r0, r1, r2", (0x1888,), 1),
        ("muls r0, r1", (0x4348,), 1),
        ("bx lr", (0x4770,), 1),
        ("ldr r0, [r1]", (0x6808,), 2),
        ("ldr r0, [pc, #4]", (0x4801,), 2),
        ("strb r0, [r1, r2]", (0x5488,), 2),
        ("ldrh r0, [r1]", (0x8808,), 2),
        ("str r0, [sp, #4]", (0x9001,), 2),
        ("push {r4, lr}", (0xB510,), 3),
        ("pop {r4, r5, pc}", (0xBD30,), 4),
        ("cbz r0, +4", (0xB108,), 1),
        ("it ne", (0xBF18,), 1),
        ("nop", (0xBF00,), 1),
        ("stmia r0!, {r1, r2}", (0xC006,), 3),
        ("ldmia r0!, {r1, r2, r3}", (0xC80E,), 4),
        ("bne", (0xD1FE,), 1),
        ("b", (0xE7FE,), 1),
        ("push.w {r4-r11, lr}", (0xE92D, 0x4FF0), 10),
        ("ldrd r2, r3, [r0]", (0xE9D0, 0x2300), 3),
        ("strd r2, r3, [r0]", (0xE9C0, 0x2300), 3),
        ("ldrex r0, [r1]", (0xE851, 0x0F00), 2),
        ("tbb [pc, r0]", (0xE8DF, 0xF000), 2),
        ("add.w r0, r1, r2, lsl #2", (0xEB01, 0x0082), 1),
        ("movw r0, #1", (0xF240, 0x0001), 1),
        ("bl", (0xF000, 0xF800), 1),
        ("mrs r0, ipsr", (0xF3EF, 0x8005), 2),
        ("dsb sy", (0xF3BF, 0x8F4F), 2),
        ("ubfx r0, r1, #0, #8", (0xF3C1, 0x0007), 1),
        ("ssat r0, #8, r1", (0xF301, 0x0007), 1),
        ("usat r0, #8, r1", (0xF381, 0x0008), 1),
        ("ldr.w r0, [r1, #4]", (0xF8D1, 0x0004), 2),
        ("str.w r0, [r1, #4]", (0xF8C1, 0x0004), 2),
        ("ldrsb.w r0, [r1, #1]", (0xF991, 0x0001), 2),
        ("sxtb16 r0, r1", (0xFA2F, 0xF081), 1),
        ("smlad r0, r1, r2, r3", (0xFB21, 0x3002), 1),
        ("smmlar r0, r1, r2, r3", (0xFB51, 0x3012), 1),
        ("mla r0, r1, r2, r3", (0xFB01, 0x3002), 1),
        ("smull r0, r1, r2, r3", (0xFB82, 0x0103), 1),
        ("sdiv r0, r1, r2", (0xFB91, 0xF0F2), 7),
        ("udiv r0, r1, r2", (0xFBB1, 0xF0F2), 7),
        ("vldr s0, [r0]", (0xED90, 0x0A00), 2),
        ("vldr d0, [r0]", (0xED90, 0x0B00), 3),
        ("vpush {s0-s3}", (0xED2D, 0x0A04), 5),
        ("vmov r0, r1, d0", (0xEC51, 0x0B10), 2),
        ("vmov s0, r0", (0xEE00, 0x0A10), 1),
        ("vadd.f32 s0, s0, s1", (0xEE30, 0x0A20), 1),
        ("vmul.f32 s0, s0, s1", (0xEE20, 0x0A20), 1),
        ("vmla.f32 s0, s0, s1", (0xEE00, 0x0A20), 3),
        ("vfma.f32 s0, s0, s1", (0xEEA0, 0x0A20), 3),
        ("vdiv.f32 s0, s0, s1", (0xEE80, 0x0A20), 14),
        ("vsqrt.f32 s0, s1", (0xEEB1, 0x0AE0), 14),
        ("vmrs apsr_nzcv, fpscr", (0xEEF1, 0xFA10), 1),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_one_instruction_costs_what_the_table_says(name: str, halves: tuple[int, ...], cycles: int) -> None:
    assert block_cost(code(*halves)) == BlockCost(instructions=1, cycles=cycles)
    assert is_wide(halves[0]) == (len(halves) == 2)


def test_loads_in_a_row_overlap() -> None:
    load, add = 0x6808, 0x1888
    assert block_cost(code(load, load, load)) == BlockCost(3, 2 + 1 + 1)
    assert block_cost(code(load, add, load)) == BlockCost(3, 2 + 1 + 2)


def test_an_empty_block_costs_nothing() -> None:
    assert block_cost(b"") == BlockCost(0, 0)
