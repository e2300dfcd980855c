"""The registers of an emulated board, without a core."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from unicorn import UC_ARCH_ARM, UC_MODE_THUMB, UC_PROT_READ, UC_PROT_WRITE, Uc

from mcu_agent.boards.peripherals import (
    SCB_ICSR,
    SYST_CSR,
    Alarm,
    Bus,
    Gate,
    Mirror,
    Peripherals,
    Pin,
    Strobe,
    peripherals_of,
)
from mcu_agent.kinds import PORTS, kinds

BASE = 0x40000000
CORE = 0xE000E000


class Board:
    """A bus with an emulator whose memory is read and written by the host."""

    def __init__(self, model: Peripherals) -> None:
        self.levels: list[bool] = []
        self.strays: list[int] = []
        self.emulator = Uc(UC_ARCH_ARM, UC_MODE_THUMB)
        self.emulator.mem_map(CORE, 0x1000, UC_PROT_READ | UC_PROT_WRITE)
        self.bus = Bus(model, self.levels.append, self.strays.append)
        self.bus.attach(self.emulator)

    def read(self, address: int) -> int:
        return int.from_bytes(self.emulator.mem_read(address, 4), "little")

    def write(self, address: int, value: int) -> None:
        self.emulator.mem_write(address, value.to_bytes(4, "little"))


def test_a_register_is_memory_with_a_value_after_reset() -> None:
    board = Board(Peripherals(registers={BASE: 5}))
    assert board.read(BASE) == 5
    board.write(BASE, 0xFFFFFFFF)
    assert board.read(BASE) == board.bus.value(BASE) == 0xFFFFFFFF
    assert board.strays == []


def test_a_register_that_does_not_exist_is_a_stray_access() -> None:
    board = Board(Peripherals(registers={BASE: 5}))
    board.write(BASE + 4, 1)
    assert board.read(BASE + 8) == 0
    assert board.strays == [BASE + 4, BASE + 8]


@pytest.mark.parametrize("shift", [4, -4, 0])
def test_a_mirror_follows_its_source_up_and_down(shift: int) -> None:
    target = BASE + 4
    mirror = Mirror(source=BASE, mask=0xF0, target=target, shift=shift)
    board = Board(Peripherals(registers={BASE: 0, target: 0x80000001}, rules=[mirror]))
    moved: Callable[[int], int] = lambda bits: bits << shift if shift >= 0 else bits >> -shift  # noqa: E731  # a table of one
    board.write(BASE, 0xFF)
    assert board.read(target) == 0x80000001 & ~moved(0xF0) | moved(0xF0)
    board.write(BASE, 0x0F)
    assert board.read(target) == 0x80000001 & ~moved(0xF0)


def test_a_strobe_sets_and_clears_bits_and_keeps_nothing() -> None:
    out, on, off = BASE, BASE + 4, BASE + 8
    rules = [Strobe(source=on, target=out), Strobe(source=off, target=out, is_set=False)]
    board = Board(Peripherals(registers={out: 0, on: 0, off: 0}, rules=rules))
    board.write(on, 0b1010)
    board.write(off, 0b0010)
    assert [board.read(one) for one in (out, on, off)] == [0b1000, 0, 0]


def test_a_block_without_its_clock_ignores_writes_and_reads_as_zero() -> None:
    block, enable = BASE + 0x400, BASE
    board = Board(Peripherals(registers={enable: 0, block: 7}, gates=[Gate(block=block, enable=enable, mask=2)]))
    board.write(block, 1)
    assert (board.read(block), board.bus.value(block)) == (0, 7)
    board.write(enable, 2)
    board.write(block, 1)
    assert board.read(block) == 1


def test_a_pin_has_a_level_only_as_an_output() -> None:
    out, mode = BASE, BASE + 4
    pin = Pin(out=out, bit=1, direction=mode, mask=0b11, output=0b01)
    board = Board(Peripherals(registers={out: 0, mode: 0b11}, pin=pin))
    for address, value in ((out, 1), (out, 0), (mode, 0b01), (out, 1), (out, 3), (out, 2), (out, 1), (mode, 0b00)):
        board.write(address, value)
    assert board.levels == [True, False, True, False]


def test_a_core_is_woken_by_the_alarm_that_is_set_and_by_none_otherwise() -> None:
    alarm = Alarm(when=[(BASE, 1), (BASE + 4, 2)], then=[(BASE + 8, 4)])
    systick = Peripherals().alarms[0]
    board = Board(Peripherals(registers={BASE: 1, BASE + 4: 0, BASE + 8: 0}, alarms=[systick, alarm]))
    assert not board.bus.wake(board.emulator)
    board.write(BASE + 4, 2)
    assert board.bus.wake(board.emulator)
    assert (board.bus.value(BASE + 8), board.read(SCB_ICSR), board.bus.n_wakes) == (4, 0, 1)
    board.write(SYST_CSR, 0b111)
    assert board.bus.wake(board.emulator)
    assert (board.read(SYST_CSR), board.read(SCB_ICSR), board.bus.n_wakes) == (0x10007, 1 << 26, 2)


def test_every_port_of_the_catalogue_has_its_registers_and_its_pin() -> None:
    assert {kind.port for kind in kinds().values()} | {""} == set(PORTS)
    for kind in kinds().values():
        model = peripherals_of(kind)
        touched = {rule.source for rule in model.rules} | {rule.target for rule in model.rules}
        assert model.pin is not None and touched <= set(model.registers)
        inside = range(kind.ram_origin, kind.ram_end), range(kind.flash_origin, kind.flash_end)
        assert not any(address in memory for address in model.registers for memory in inside), kind.name
