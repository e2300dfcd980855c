"""What every board driver must do, real, virtual or fake."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager

import numpy as np
import pytest

from mcu_agent import mailbox, rtt
from mcu_agent.boards.fake import FakeBoard, Script
from mcu_agent.boards.gdb import GdbBoard
from mcu_agent.boards.protocol import Board
from mcu_agent.boards.qemu import QemuBoard
from mcu_agent.boards.virtual import VirtualBoard
from mcu_agent.errors import (
    AgentError,
    BitMismatch,
    BoardLost,
    CyclesUnknown,
    FirmwareError,
    FirmwareFault,
    FirmwareHang,
    ImageRejected,
    OutOfTime,
    TransferCorrupt,
    WrongImage,
)
from mcu_agent.health import Fault, fault_of
from mcu_agent.image import Image, read_image
from mcu_agent.kinds import load_kind
from mcu_agent.mailbox import Mailbox
from mcu_agent.profiling import profile
from mcu_agent.session import opened, run_outputs
from tests.support import boards, gdb_servers
from tests.support.emulated_part import EmulatedPart

KIND = load_kind("nrf52-dk")


@contextmanager
def _on_qemus_server() -> Iterator[Board]:
    gdb_servers.require_qemu()
    with gdb_servers.qemu_server() as address, closing(GdbBoard("b1", KIND, address, server="qemu")) as board:
        yield board


@contextmanager
def _on_a_probe() -> Iterator[Board]:
    pytest.importorskip("pyocd")
    from mcu_agent.boards.pyocd import PyOcdBoard
    from tests.support.fake_probe import FakeProbe

    probe = FakeProbe(EmulatedPart(KIND))
    with closing(PyOcdBoard("b1", KIND, "FAKE01", "nrf52832", probes=lambda: [probe])) as board:
        yield board


@contextmanager
def _qemu() -> Iterator[Board]:
    gdb_servers.require_qemu()
    with closing(QemuBoard("b1", KIND, gdb_servers.MACHINE)) as board:
        yield board


DRIVERS: dict[str, Callable[[], AbstractContextManager[Board]]] = {
    "virtual": lambda: closing(VirtualBoard("b1", KIND)),
    "fake": lambda: closing(FakeBoard("b1", KIND, boards.fake_network())),
    "qemu": _qemu,
    "gdb-qemu": _on_qemus_server,
    "pyocd": _on_a_probe,
}
ON_PYOCDS_SERVER = "gdb-pyocd"


@pytest.fixture(scope="module")
def pyocd_address() -> Iterator[str]:
    """One server for all tests, as in a lab: it takes half a second to end."""
    pytest.importorskip("pyocd")
    with gdb_servers.pyocd_server(KIND) as address:
        yield address


@pytest.fixture(params=[*sorted(DRIVERS), ON_PYOCDS_SERVER])
def board(request: pytest.FixtureRequest) -> Iterator[Board]:
    if request.param == ON_PYOCDS_SERVER:
        made = closing(GdbBoard("b1", KIND, request.getfixturevalue("pyocd_address")))
    else:
        made = DRIVERS[request.param]()
    with made as board:
        yield board


@pytest.fixture
def image() -> Image:
    return read_image(boards.firmware(), KIND)


def test_a_board_names_itself_and_its_kind(board: Board) -> None:
    assert (board.board_id, board.kind) == ("b1", KIND)


def test_nothing_can_be_done_without_power(board: Board, image: Image) -> None:
    for operation in (
        lambda: board.run_until([image.address("edgefront_ready")], 1.0),
        lambda: board.read(KIND.ram_origin, 4),
        lambda: board.write(KIND.ram_origin, b"1234"),
    ):
        with pytest.raises(BoardLost):
            operation()


def test_what_is_written_is_read_back(board: Board, image: Image) -> None:
    board.load(image)
    board.write(KIND.ram_end - 16, b"0123456789abcdef")
    assert board.read(KIND.ram_end - 16, 16) == b"0123456789abcdef"


def test_memory_outside_the_board_is_refused(board: Board, image: Image) -> None:
    board.load(image)
    for operation in (lambda: board.read(KIND.ram_end - 2, 4), lambda: board.write(KIND.ram_origin - 2, b"1234")):
        with pytest.raises(ImageRejected):
            operation()


def test_a_job_without_time_left_says_nothing_about_the_firmware(board: Board, image: Image) -> None:
    board.load(image)
    ready = image.address("edgefront_ready")
    with pytest.raises(OutOfTime, match="the time for this job was used up") as caught:
        board.run_until([ready], 0.0)
    assert (caught.value.reason, fault_of(caught.value)) == ("out_of_time", Fault.RIG)
    assert board.run_until([ready], 5.0) == ready


def test_the_firmware_comes_to_wait_for_commands(board: Board, image: Image) -> None:
    board.load(image)
    ready = image.address("edgefront_ready")
    assert board.run_until([ready], 5.0) == ready


def test_no_time_is_a_hang(board: Board, image: Image) -> None:
    board.load(image)
    with pytest.raises(FirmwareHang):
        board.run_until([image.address("edgefront_ready")], 0.0)


def test_loading_again_starts_afresh(board: Board, image: Image) -> None:
    ready = image.address("edgefront_ready")
    for _ in range(2):
        board.load(image)
        assert board.run_until([ready], 5.0) == ready


def test_closing_is_always_allowed(board: Board, image: Image) -> None:
    board.close()
    board.load(image)
    board.close()
    board.close()
    assert board.counter is None


def test_outputs_are_bit_exact(board: Board) -> None:
    job = boards.make_job()
    outputs = run_outputs(job.elf, board, job.inputs, output_bytes=job.expected.shape[1])
    assert np.array_equal(outputs, job.expected)


def test_a_profile_is_bit_exact_and_says_where_its_figures_come_from(board: Board) -> None:
    job = boards.make_job()
    if board.emulator.startswith("QEMU"):  # it counts nothing, and says so once the outputs have been found right
        with pytest.raises(CyclesUnknown, match="the outputs are those expected"):
            profile(job, board)
        return
    found = profile(job, board)
    assert np.array_equal(found.outputs, job.expected)
    assert found.cycles_source == ("emulated" if board.is_emulated else "measured")
    assert found.cycles.median > 0
    assert found.stack_used_bytes > 0
    assert (found.instructions is None) == (not board.is_emulated)


def test_a_window_repeats_the_last_input_and_leaves_its_output(board: Board, image: Image) -> None:
    job = boards.make_job()
    with opened(job, image, board) as link:
        one = link.run(job.inputs[2])
        window = link.window(3, 5, quiet_s=0.0)
        again = link.run(job.inputs[1])
    assert np.array_equal(window.output, job.expected[2]) and np.array_equal(again.output, job.expected[1])
    each = one.counts[0].cycles + sum(part.cycles for part in one.counts[1:-2]) if one.counts else one.report.cycles
    assert (window.repeats, window.keeps_input) == (3, True)
    assert window.cycles == pytest.approx(3 * each, rel=0.0 if one.counts else 0.3)
    assert [part.instructions for part in one.counts[:-2]] == [part.instructions for part in again.counts[:-2]]
    assert window.temperature_c == (23.5 if isinstance(board, FakeBoard) else None)
    assert again.report.sequence == one.report.sequence + 2


@pytest.mark.parametrize(("repeats", "idle_ms"), [(0, 0), (2**32, 0), (1, -1), (1, 60_001)])
def test_an_impossible_window_is_refused_before_the_board_hears_of_it(
    board: Board, image: Image, repeats: int, idle_ms: int
) -> None:
    with (
        opened(boards.make_job(), image, board) as link,
        pytest.raises(ValueError, match=f"a window of {repeats} repeats and {idle_ms} ms"),
    ):
        link.window(repeats, idle_ms, quiet_s=0.0)


@pytest.mark.parametrize(("byte", "index", "name"), [(105, 0, "double"), (106, 1, "add")])
def test_a_wrong_layer_is_named(board: Board, byte: int, index: int, name: str) -> None:
    job = boards.make_job(byte)
    if isinstance(board, FakeBoard):
        board = FakeBoard("b1", KIND, boards.fake_network(), Script(wrong_layer=index))
    with pytest.raises(BitMismatch, match=f"first differing layer: {name}"):
        profile(job, board)


def test_a_hang_ends(board: Board) -> None:
    job = boards.make_job(101, timeout_s=0.5)
    if isinstance(board, FakeBoard):
        board = FakeBoard("b1", KIND, boards.fake_network(), Script(hang_at="edgefront_layer_01_add"))
    with pytest.raises(FirmwareHang) as caught:
        profile(job, board)
    assert caught.value.where
    assert caught.value.is_transient == (not board.is_emulated and not isinstance(board, FakeBoard))


@pytest.mark.parametrize(
    ("byte", "found"),
    [
        (102, "stack has overflowed"),
        (103, "0x60000000.*edgefront_run"),
        (104, "edgefront_run"),
        (109, "its own fault handler"),
        (110, "0x70000000"),
    ],
)
def test_a_fault_is_caught_and_its_place_named(board: Board, byte: int, found: str) -> None:
    if isinstance(board, FakeBoard):
        board = FakeBoard("b1", KIND, boards.fake_network(), Script(fault_at="edgefront_run"))
        found = "edgefront_run"
    with pytest.raises(FirmwareFault, match=found):
        profile(boards.make_job(byte), board)


def test_a_stop_that_is_reached_at_once_needs_no_run(board: Board, image: Image) -> None:
    board.load(image)
    reset = image.address("Reset_Handler")
    assert board.run_until([reset], 5.0) == reset


def test_the_same_stop_is_reached_again_and_again(board: Board, image: Image) -> None:
    board.load(image)
    ready = image.address("edgefront_ready")
    assert [board.run_until([ready], 5.0) for _ in range(3)] == [ready] * 3


def test_large_memory_survives_the_way_there_and_back(board: Board, image: Image) -> None:
    board.load(image)
    data = bytes(range(256)) * 40 + b"#$}*"  # more than a packet, with every character that packets escape
    board.write(KIND.ram_end - len(data), data)
    assert board.read(KIND.ram_end - len(data), len(data)) == data


def test_text_written_through_rtt_arrives(board: Board) -> None:
    if isinstance(board, FakeBoard):
        pytest.skip("the fake board runs no code")
    image = read_image(boards.firmware(source="rtt.c"), KIND)
    board.load(image)
    ready, after = image.address("edgefront_ready"), image.address("edgefront_after_run")
    found = [rtt.drain(board, image)]
    for one in boards.inputs(3):
        board.run_until([ready], 5.0)
        box = Mailbox.unpack(board.read(image.address("edgefront_mailbox"), mailbox.SIZE))
        board.write(box.input_address, one.tobytes())
        crc = zlib.crc32(one.tobytes()).to_bytes(4, "little")
        board.write(image.address("edgefront_mailbox") + mailbox.INPUT_CRC_OFFSET, crc)
        board.write(image.address("edgefront_mailbox") + mailbox.COMMAND_OFFSET, (1).to_bytes(4, "little"))
        board.run_until([after], 5.0)
        board.run_until([ready], 5.0)
        found.append(rtt.drain(board, image))
    assert found == ["", "run done: ä\n", "run done: ä\n", "run done: ä\n"]  # 13 bytes each, through a ring of 24


@pytest.mark.parametrize(
    ("script", "error", "message", "is_transient"),
    [
        (Script(wrong_image_id=True), WrongImage, "b1 runs image 00000000.*programmed was 01020304", False),
        (Script(fault_at="edgefront_run"), FirmwareFault, "faulted at edgefront_run", False),
        (Script(corrupt_transfer=True), TransferCorrupt, "checksum is wrong", True),
        (Script(reports_error=mailbox.ERROR_CRC), TransferCorrupt, "the input arrived damaged", True),
        (Script(reports_error=7), FirmwareError, "reports error 7", False),
        (Script(lost_after=0), BoardLost, "probe does not answer", True),
        (Script(lost_after=9), BoardLost, "probe does not answer", True),
    ],
)
def test_what_hardware_can_do_is_told_apart(
    script: Script, error: type[AgentError], message: str, *, is_transient: bool
) -> None:
    board = FakeBoard("b1", KIND, boards.fake_network(), script)
    with pytest.raises(error, match=message) as caught:
        profile(boards.make_job(), board)
    assert caught.value.is_transient is is_transient
    assert not board.is_powered  # undone whatever happened
