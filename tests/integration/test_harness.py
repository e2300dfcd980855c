"""The firmware's side of the mailbox, on the emulated board."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import pytest

from mcu_agent import mailbox
from mcu_agent.boards.virtual import VirtualBoard
from mcu_agent.image import Image, read_image
from mcu_agent.kinds import load_kind
from mcu_agent.mailbox import Mailbox, Status
from tasks.firmware.compiler import STACK_BYTES, Compiled, compile_graph
from tasks.quant import reference
from tests.support.graphs import small_cnn
from tests.support.networks import random_inputs

KIND = load_kind("nrf52840-dk")


class Device:
    def __init__(self, image: Image) -> None:
        self.image = image
        self.board = VirtualBoard("virtual", KIND)
        self.board.load(image)
        self.to_ready()

    def to_ready(self) -> None:
        self.board.run_until([self.image.address("edgefront_ready")], timeout_s=10)

    def report(self) -> Mailbox:
        return Mailbox.unpack(self.board.read(self.image.address("edgefront_mailbox"), mailbox.SIZE))

    def command(
        self, data: bytes, *, command: int = 1, crc: int | None = None, repeats: int = 0, idle_ms: int = 0
    ) -> Mailbox:
        place = self.image.address("edgefront_mailbox")
        checksum = zlib.crc32(data) if crc is None else crc
        words = {mailbox.REPEATS_OFFSET: repeats, mailbox.IDLE_MS_OFFSET: idle_ms, mailbox.INPUT_CRC_OFFSET: checksum}
        self.board.write(self.report().input_address, data)
        for offset, word in (words | {mailbox.COMMAND_OFFSET: command}).items():
            self.board.write(place + offset, word.to_bytes(4, "little"))
        self.to_ready()
        return self.report()


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return compile_graph(small_cnn(), KIND)


@pytest.fixture
def device(compiled: Compiled) -> Iterator[Device]:
    device = Device(read_image(compiled.image.elf, KIND))
    yield device
    device.board.close()


def test_a_started_firmware_says_who_it_is_and_where_to_write(device: Device, compiled: Compiled) -> None:
    report = device.report()
    assert (report.magic, report.version) == (mailbox.MAGIC, mailbox.VERSION)
    assert report.image_id == compiled.image.image_id
    assert (report.status, report.sequence, report.error_code) == (Status.READY, 0, 0)
    assert (report.input_bytes, report.output_bytes) == (128, 5)
    arena = device.image.address("edgefront_arena")
    assert report.input_address == arena + compiled.plan.offsets["x"]
    assert report.output_address == arena + compiled.plan.offsets["y"]
    assert report.stack_reserved_bytes == STACK_BYTES


def test_a_run_leaves_its_output_checksum_and_stack_mark(device: Device) -> None:
    graph = small_cnn()
    x = random_inputs(graph, 3)
    for number, row in enumerate(x, start=1):
        report = device.command(row.tobytes())
        output = device.board.read(report.output_address, 5)
        assert (report.status, report.sequence) == (Status.DONE, number)
        assert zlib.crc32(output) == report.output_crc
        assert np.frombuffer(output, np.int8).tolist() == reference.output_of(graph, row[np.newaxis])[0].tolist()
    assert 64 <= report.stack_used_bytes < STACK_BYTES / 2
    assert (report.has_cycle_counter, report.cycles) == (0, 0)  # the emulator's counter stands still


def test_a_damaged_input_is_refused_and_the_next_one_runs(device: Device) -> None:
    data = random_inputs(small_cnn(), 3)[2].tobytes()
    report = device.command(data, crc=zlib.crc32(data) ^ 1)
    assert (report.status, report.error_code, report.sequence) == (Status.ERROR, 2, 0)
    report = device.command(data)
    assert (report.status, report.error_code, report.sequence) == (Status.DONE, 0, 1)


def test_an_unknown_command_is_an_error(device: Device) -> None:
    report = device.command(bytes(128), command=7)
    assert (report.status, report.error_code, report.sequence) == (Status.ERROR, 1, 0)


def test_a_window_leaves_its_output_checksum_and_stack_mark_like_a_run(device: Device) -> None:
    graph = small_cnn()
    row = random_inputs(graph, 3)[2]
    report = device.command(row.tobytes(), command=mailbox.COMMAND_WINDOW, repeats=2, idle_ms=1)
    output = device.board.read(report.output_address, 5)
    assert (report.status, report.sequence, report.keeps_input) == (Status.DONE, 1, 1)
    assert zlib.crc32(output) == report.output_crc
    assert np.frombuffer(output, np.int8).tolist() == reference.output_of(graph, row[np.newaxis])[0].tolist()
    assert 64 <= report.stack_used_bytes < STACK_BYTES / 2


@pytest.mark.parametrize(("repeats", "idle_ms"), [(0, 0), (1, mailbox.LONGEST_IDLE_MS + 1)])
def test_a_window_without_repeats_or_with_too_long_an_idle_time_is_an_error(
    device: Device, repeats: int, idle_ms: int
) -> None:
    data = bytes(128)
    report = device.command(data, command=mailbox.COMMAND_WINDOW, repeats=repeats, idle_ms=idle_ms)
    assert (report.status, report.error_code, report.sequence) == (Status.ERROR, 3, 0)
    assert device.command(data).status == Status.DONE
