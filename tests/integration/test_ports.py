"""The firmware's ports on emulated boards: the clock they set up, the trigger pin, sleep, and what they do where
something of that is missing."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from mcu_agent.boards.peripherals import Mirror, Peripherals, peripherals_of
from mcu_agent.boards.virtual import VirtualBoard
from mcu_agent.errors import FirmwareFault, FirmwareHang
from mcu_agent.image import Image, read_image, without_peripherals
from mcu_agent.kinds import PORTS, BoardKind, kinds, load_kind
from mcu_agent.session import Job, Link, opened
from tasks.firmware.compiler import compile_graph
from tasks.quant import reference
from tests.support import qemu
from tests.support.clocks import CLOCKS, SETTINGS
from tests.support.compilers import COMPILERS, require
from tests.support.graphs import small_cnn
from tests.support.networks import random_inputs

GRAPH = small_cnn()
INPUTS = random_inputs(GRAPH, 3).reshape(3, -1)
EXPECTED = reference.output_of(GRAPH, random_inputs(GRAPH, 3)).reshape(3, -1)
NAMES = sorted(kinds())
RESET_HZ = {"stm32l4": 4e6, "stm32f4": 16e6, "stm32h7": 64e6, "stm32u5": 4e6, "nrf52": 64e6, "nrf53": 64e6}
SYST_RVR, RTC_CC0 = 0xE000E014, {"nrf52": 0x4000B540, "nrf53": 0x50014540}


@lru_cache
def image_for(kind: BoardKind, compiler: str = "zig") -> Image:
    return read_image(compile_graph(GRAPH, kind, compiler=compiler).image.elf, kind)


@contextmanager
def running(board: VirtualBoard, image: Image) -> Iterator[Link]:
    job = Job(elf=b"", inputs=INPUTS, expected=EXPECTED, timeout_s=20.0)
    with opened(job, image, board) as link:
        link.check_identity()
        yield link


def value(board: VirtualBoard, address: int) -> int:
    assert board.bus is not None
    return board.bus.value(address)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("name", NAMES)
def test_the_clock_that_the_registers_say_is_the_catalogues_and_the_mailboxs(name: str, compiler: str) -> None:
    require(compiler)
    kind = load_kind(name)
    board = VirtualBoard("v1", kind)
    with running(board, image_for(kind, compiler)) as link:
        set_up = CLOCKS[kind.port](lambda address: value(board, address))
        assert set_up == kind.clock_hz == link.report().clock_hz
        found = [(address, mask, value(board, address) & mask) for address, mask, _ in SETTINGS[kind.port]]
        assert found == SETTINGS[kind.port]
        assert np.array_equal(link.run(INPUTS[2]).output, EXPECTED[2])


@pytest.mark.parametrize("name", NAMES)
def test_the_firmware_boots_at_the_clock_it_reports_whatever_never_becomes_ready(name: str) -> None:
    kind = load_kind(name)
    model = peripherals_of(kind)
    reported = set()
    for rule in model.rules:
        if isinstance(rule, Mirror) or rule.shift == 0:  # ready bits and events; a missing one must end a wait
            board = VirtualBoard("v1", kind, replace(model, rules=[one for one in model.rules if one is not rule]))
            with running(board, image_for(kind)) as link:
                clock_hz = link.report().clock_hz
                assert clock_hz == CLOCKS[kind.port](lambda address, board=board: value(board, address)), rule
                assert np.array_equal(link.run(INPUTS[2]).output, EXPECTED[2])
                reported.add(clock_hz)
    assert reported == {RESET_HZ[kind.port], kind.clock_hz}


def test_early_silicon_of_the_h743_runs_at_400_mhz() -> None:
    kind = load_kind("nucleo-h743zi")
    model = peripherals_of(kind)
    board = VirtualBoard("v1", kind, replace(model, registers={**model.registers, 0x5C001000: 0x10036450}))
    with running(board, image_for(kind)) as link:
        clock_hz = CLOCKS["stm32h7"](lambda address: value(board, address))
        assert clock_hz == link.report().clock_hz == 400_000_000
        assert (value(board, 0x52002000) & 0x3F, value(board, 0x5800042C)) == (0x22, 0)  # 2 wait states, no scale 0


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("name", NAMES)
def test_a_window_is_one_high_level_with_all_its_inferences_inside_and_sleep_around(name: str, compiler: str) -> None:
    require(compiler)
    kind = load_kind(name)
    board = VirtualBoard("v1", kind)
    with running(board, image_for(kind, compiler)) as link:
        one = link.run(INPUTS[2])
        assert board.trigger_edges == [] and board.bus is not None and board.bus.n_wakes == 0
        window = link.window(3, 40, quiet_s=0.0)
        (rise, is_high), (fall, is_still_high) = board.trigger_edges
        n_wakes, report = board.bus.n_wakes, link.report()
        ticks = int.from_bytes(board.read(RTC_CC0.get(kind.port, SYST_RVR), 4), "little")
    assert (is_high, is_still_high) == (True, False)
    instructions, cycles = one.counts[0].instructions, one.counts[0].cycles
    assert 3 * instructions < fall - rise < 3 * instructions + 3 * 40 * len(INPUTS[0]) / 4
    assert window.keeps_input and np.array_equal(window.output, EXPECTED[2])
    assert window.cycles == pytest.approx(3 * cycles, abs=2)  # each run's are rounded
    assert (window.repeats, report.window_cycles) == (3, 0)  # the device's own counter stands still
    assert window.temperature_c == (23.5 if kind.port == "nrf52" else None)
    if kind.port in RTC_CC0:
        assert (ticks, n_wakes) == (int(0.040 * 32768), 2)
    else:
        assert (ticks, n_wakes) == (kind.clock_hz // 1000 - 1, 2 * 40)


def test_without_idle_time_nothing_sleeps() -> None:
    kind = load_kind("nucleo-l4r5zi")
    board = VirtualBoard("v1", kind)
    with running(board, image_for(kind)) as link:
        link.window(1, 0, quiet_s=0.0)
        assert board.bus is not None and board.bus.n_wakes == 0
        assert [is_high for _, is_high in board.trigger_edges] == [True, False]


def test_the_probe_keeps_quiet_for_as_long_as_it_is_told() -> None:
    class Attentive(VirtualBoard):
        quiet = ()

        def run_until(self, addresses: Collection[int], timeout_s: float, quiet_s: float = 0.0) -> int:
            self.quiet = (*self.quiet, quiet_s)
            return super().run_until(addresses, timeout_s, quiet_s)

    kind = load_kind("nrf52-dk")
    board = Attentive("v1", kind)
    with running(board, image_for(kind)) as link:
        link.run(INPUTS[0])
        link.window(1, 0, quiet_s=7.5)
    assert board.quiet == (0.0, 0.0, 0.0, 7.5)


def test_a_core_that_is_woken_for_longer_than_the_job_may_take_is_a_hang() -> None:
    kind = load_kind("nucleo-l4r5zi")
    job = Job(elf=b"", inputs=INPUTS, expected=EXPECTED, timeout_s=0.2)
    with (
        opened(job, image_for(kind), VirtualBoard("v1", kind)) as link,
        pytest.raises(FirmwareHang, match=r"still running after .* in edgefront_port_sleep"),
    ):
        link.window(1, 60_000, quiet_s=0.0)


def test_where_there_is_no_room_for_a_copy_only_the_first_inference_has_the_input() -> None:
    kind = load_kind("nrf52-dk")
    used = compile_graph(GRAPH, kind).image.ram.total_bytes
    for spare, keeps_input in ((len(INPUTS[0]) - 1, False), (len(INPUTS[0]), True)):
        tight = replace(kind, ram_bytes=used + spare)  # the emulated board has all of its RAM
        with running(VirtualBoard("v1", kind), image_for(tight)) as link:
            once, twice = (link.window(repeats, 0, quiet_s=0.0) for repeats in (1, 2))
        assert once.keeps_input == twice.keeps_input == keeps_input
        assert np.array_equal(once.output, EXPECTED[0])
        assert np.array_equal(twice.output, EXPECTED[0]) == keeps_input  # its arena lies over the input


@pytest.mark.parametrize(("name", "pin"), [("nucleo-f446re", "PB7"), ("nrf52840-dk", "P1.05"), ("nrf5340-dk", "P1.31")])
def test_the_trigger_pin_is_the_catalogues(name: str, pin: str) -> None:
    elsewhere = replace(load_kind(name), trigger_pin=pin)
    board = VirtualBoard("v1", elsewhere)
    with running(board, image_for(elsewhere)) as link:
        link.window(1, 0, quiet_s=0.0)
        assert [is_high for _, is_high in board.trigger_edges] == [True, False]
    with (
        pytest.raises(FirmwareFault, match=r"has no memory at 0x[45]0\w+, accessed in edgefront_port_init"),
        running(VirtualBoard("v1", load_kind(name)), image_for(elsewhere)),
    ):
        pass


@pytest.mark.parametrize("name", NAMES)
def test_peripherals_that_an_emulator_lacks_can_be_switched_off_and_are_missed_otherwise(name: str) -> None:
    kind, core_alone = load_kind(name), Peripherals()
    image = image_for(kind)
    with (
        pytest.raises(FirmwareFault, match=f"{name} has no memory at 0x"),
        running(VirtualBoard("v1", kind, core_alone), image),
    ):
        pass
    with running(VirtualBoard("v1", kind, core_alone), without_peripherals(image)) as link:
        window = link.window(2, 100, quiet_s=0.0)
        report = link.report()
    assert (report.clock_hz, window.temperature_c, window.keeps_input) == (0, None, True)
    assert np.array_equal(window.output, EXPECTED[0])


def test_a_kind_without_a_port_runs_at_an_unknown_clock() -> None:
    bare = replace(load_kind("nrf52840-dk"), name="bare", port="", trigger_pin="")
    with running(VirtualBoard("v1", bare), image_for(bare)) as link:
        window = link.window(2, 100, quiet_s=0.0)
        assert (link.report().clock_hz, window.temperature_c) == (0, None)
        assert np.array_equal(window.output, EXPECTED[0])


def test_the_thermometer_has_its_calibration() -> None:
    kind = load_kind("nrf52-dk")
    board = VirtualBoard("v1", kind)
    with running(board, image_for(kind)):
        words = [0x4000C520 + 4 * i for i in range(6)] + [0x4000C540 + 4 * i for i in range(6)]
        words += [0x4000C560 + 4 * i for i in range(5)]
        assert [value(board, word) for word in words] == [value(board, 0x10000404 + 4 * i) for i in range(17)]


def test_old_nordic_silicon_is_not_told_about_its_debug_port() -> None:
    kind = load_kind("nrf52-dk")
    model = peripherals_of(kind)
    board = VirtualBoard("v1", kind, replace(model, registers={**model.registers, 0x10000104: 0x41414530}))  # AAE0
    with running(board, image_for(kind)):
        assert value(board, 0x40000558) == 0


def test_every_port_is_a_file_and_every_file_a_port() -> None:
    folder = resources.files("tasks.firmware") / "csrc" / "board" / "ports"
    files = {entry.name.removesuffix(".c") for entry in folder.iterdir() if entry.name.endswith(".c")}
    assert files == {port or "none" for port in PORTS}


@pytest.mark.skipif(bool(qemu.why_not()), reason=qemu.why_not() or "QEMU is there")
@pytest.mark.parametrize("name", [name for name in NAMES if load_kind(name).qemu_machine])
def test_a_kind_boots_on_its_machine_of_qemu_with_its_peripherals_switched_off(name: str, tmp_path: Path) -> None:
    kind = load_kind(name)
    machine = next(one for one in qemu.MACHINES if one.name == kind.qemu_machine)
    elf = compile_graph(GRAPH, kind).image.elf
    outputs, _ = qemu.run_on_qemu(elf, INPUTS, tmp_path, machine=machine)
    assert np.array_equal(outputs, EXPECTED)
