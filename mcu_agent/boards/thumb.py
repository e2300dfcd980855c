"""How many instructions a basic block of Thumb-2 code has, and how many core cycles they take.

The costs are those of the Arm Cortex-M4 Technical Reference Manual (r0p1, tables 3-1 to 3-3 and chapter 7) with
memory that needs no wait states: arithmetic, multiplies and DSP 1; the first of a row of loads or stores 2, the next
ones 1; LDM, STM, PUSH and POP 1 + registers; LDRD and STRD 3; division 7 (the manual says 2 to 12); branches 1, and
:data:`TAKEN_PENALTY` more whenever they are taken, which a block counter sees and a decoder cannot.

Boards with flash wait states are slower, so these cycles are a lower bound; against published boards they are about
1.3 times too low.
"""

from __future__ import annotations

from dataclasses import dataclass

TAKEN_PENALTY = 2

# Cycles relative to the Cortex-M4 table. M7: published cycles of the same four MLPerf Tiny v1.2 networks on
# NUCLEO-H7A3ZI-Q over NUCLEO-L4R5ZI are 0.58, 0.61, 0.62 and 0.53 (dual issue, branch prediction). M33: CoreMark per
# MHz, 3.42 over 4.02. M0+ and M3 have none: two pipeline stages, and wide multiplies of several cycles, are no multiple
# of this table.
CORE_FACTORS = {"cortex-m4": 1.0, "cortex-m7": 0.6, "cortex-m33": 0.85}

_SINGLE = 0  # a single load or store: 2 cycles, or 1 right after another one
_DIVIDE = 7
_FLOAT_DIVIDE = 14
_FLOAT_MULTIPLY_ADD = 3


@dataclass(frozen=True, slots=True)
class BlockCost:
    """``cycles`` when the block is left to the next instruction, without the penalty of a taken branch."""

    instructions: int
    cycles: int


def block_cost(code: bytes) -> BlockCost:
    """Decode a whole basic block; a trailing half of a 32-bit instruction counts as one instruction."""
    halves = [int.from_bytes(code[at : at + 2], "little") for at in range(0, len(code) - 1, 2)]
    at = instructions = cycles = 0
    is_after_single = False
    while at < len(halves):
        first = halves[at]
        if is_wide(first):
            cost = _wide_cost(first, halves[at + 1] if at + 1 < len(halves) else 0)
            at += 2
        else:
            cost = _narrow_cost(first)
            at += 1
        instructions += 1
        cycles += cost if cost != _SINGLE else (1 if is_after_single else 2)
        is_after_single = cost == _SINGLE
    return BlockCost(instructions, cycles)


def is_wide(first: int) -> bool:
    """Whether a halfword starts a 32-bit instruction (Armv7-M ARM, A5.1)."""
    return first >> 11 in (0b11101, 0b11110, 0b11111)


def _narrow_cost(code: int) -> int:
    """Armv7-M ARM, A5.2."""
    top = code >> 12
    if top in (0b0110, 0b0111, 0b1000, 0b1001, 0b0101) or code >> 11 == 0b01001:
        return _SINGLE
    if code & 0xF600 == 0xB400:  # PUSH, POP with LR or PC
        return 1 + (code & 0x1FF).bit_count()
    if top == 0b1100:  # STM, LDM
        return 1 + (code & 0xFF).bit_count()
    return 1


def _wide_cost(first: int, second: int) -> int:
    """Armv7-M ARM, A5.3: by the top seven bits of the first half."""
    group = first >> 9 & 0x7F
    if group == 0b1110100:  # 0xE800: multiple, dual, exclusive, table branch
        return _multiple_cost(first, second)
    if first >> 10 == 0b111011:  # 0xEC00: floating point
        return _float_cost(first, second)
    if group == 0b1111100:  # 0xF800: single loads and stores
        return _SINGLE
    if first & 0xFFD0 == 0xFB90 and second & 0x00F0 == 0x00F0:  # SDIV 0xFB9x, UDIV 0xFBBx
        return _DIVIDE
    if first & 0xFF80 == 0xF380 and second & 0xD000 == 0x8000:  # MSR, MRS, barriers
        return 2
    return 1


def _multiple_cost(first: int, second: int) -> int:
    if not first & 0x0040:  # LDM, STM
        return 1 + second.bit_count()
    if first & 0x0120 == 0:  # LDREX, STREX
        return 2
    if first & 0xFFF0 == 0xE8D0:  # TBB, TBH and the exclusive byte and halfword loads
        return 2
    return 3  # LDRD, STRD


def _float_cost(first: int, second: int) -> int:
    if first & 0xFF20 == 0xED00:  # VLDR, VSTR; a double takes two words
        return 3 if second & 0x0100 else _SINGLE
    if first & 0xFFE0 == 0xEC40:  # VMOV of two core registers
        return 2
    if first & 0xFE00 == 0xEC00:  # VLDM, VSTM, VPUSH, VPOP
        return 1 + (second & 0xFF)
    return _float_arithmetic_cost(first, second)


def _float_arithmetic_cost(first: int, second: int) -> int:
    if second & 0x0010:  # VMOV, VMRS, VMSR
        return 1
    operation = first & 0xFFB0
    if operation == 0xEE80:
        return _FLOAT_DIVIDE
    if operation == 0xEEB0 and first & 0xF == 1 and second & 0x00C0 == 0x00C0:
        return _FLOAT_DIVIDE  # VSQRT
    if operation in (0xEE00, 0xEE10, 0xEE90, 0xEEA0):  # VMLA, VNMLA, VFNMA, VFMA
        return _FLOAT_MULTIPLY_ADD
    return 1
