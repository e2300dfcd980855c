"""The emulated board: what it counts, and that nothing gets past it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from unicorn import Uc

from mcu_agent.boards import blockcounter, virtual
from mcu_agent.boards.blockcounter import NativeCounter, PythonCounter, native_library
from mcu_agent.boards.protocol import Counts, Region
from mcu_agent.boards.virtual import VirtualBoard
from mcu_agent.errors import BoardLost, FirmwareFault, FirmwareHang, ImageRejected
from mcu_agent.image import Image, read_image
from mcu_agent.kinds import CORES, PLAIN_CORES, load_kind
from tests.support.boards import firmware

KIND = load_kind("nrf52-dk")
REGIONS = ("edgefront_run", "edgefront_layer_00_loop", "edgefront_layer_01_mixed", "edgefront_after_run")


@pytest.fixture(params=["native", "python"])
def counter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test with either block counter."""
    library = native_library()
    if request.param == "native":
        if library is None:
            pytest.skip("no C compiler for the native block counter")
        monkeypatch.setattr(virtual, "attach_counter", lambda emulator: NativeCounter(emulator, library))
    else:
        monkeypatch.setattr(virtual, "attach_counter", PythonCounter)
    return str(request.param)


@pytest.fixture
def board() -> Iterator[VirtualBoard]:
    board = VirtualBoard("v1", KIND)
    yield board
    board.close()


def counted_image(kind_name: str = "nrf52-dk") -> Image:
    return read_image(firmware(kind_name, "counted.s"), load_kind(kind_name))


def regions_of(image: Image) -> list[Region]:
    symbols = [image.symbols[name] for name in REGIONS]
    return [Region(name=s.name, start=s.address, end=s.address + s.size) for s in symbols]


def test_the_native_counter_is_available_where_the_compiler_is() -> None:
    assert native_library() is not None


@pytest.mark.usefixtures("counter")
def test_instructions_and_cycles_are_those_counted_by_hand(board: VirtualBoard) -> None:
    image = counted_image()
    board.load(image)
    board.run_until([image.address("edgefront_ready")], 5.0)
    assert board.counter is not None
    board.counter.start(regions_of(image))
    after = image.address("edgefront_after_run")
    assert board.run_until([after], 5.0) == after
    # counted.s lists every instruction; run has one more, the call of edgefront_after_run: 1 + 2 cycles taken
    by_hand = [Counts(instructions=4 + 1, cycles=14 + 3), Counts(instructions=22, cycles=42)]
    by_hand += [Counts(instructions=18, cycles=38), Counts(instructions=0, cycles=0)]
    assert list(board.counter.read()) == by_hand
    board.run_until([after], 5.0)
    assert list(board.counter.read())[:3] == by_hand[:3]  # since the last reading, not in all


def test_both_counters_agree_on_a_whole_firmware(board: VirtualBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    image = read_image(firmware(), KIND)
    found = []
    for attach in (virtual.attach_counter, PythonCounter):
        monkeypatch.setattr(virtual, "attach_counter", attach)
        board.load(image)
        counter = board.counter
        assert counter is not None
        start = image.address("Reset_Handler")
        counter.start([Region(name="all", start=0, end=KIND.flash_end)])
        board.run_until([image.address("edgefront_ready")], 5.0)
        found.append((start, list(counter.read())))
    assert found[0] == found[1]
    assert found[0][1][0].instructions > 500  # the stack is painted word by word


def test_an_m7_is_modelled_by_a_factor_on_the_cycles() -> None:
    image = counted_image("nucleo-h743zi")
    board = VirtualBoard("v1", load_kind("nucleo-h743zi"))
    board.load(image)
    assert board.counter is not None
    board.counter.start(regions_of(image))
    board.run_until([image.address("edgefront_after_run")], 5.0)
    assert board.counter.read()[1] == Counts(instructions=22, cycles=25)  # 42 x 0.6
    board.close()


@pytest.mark.usefixtures("counter")
def test_a_firmware_that_never_arrives_ends_at_the_deadline(board: VirtualBoard) -> None:
    image = counted_image()
    board.load(image)
    started = time.monotonic()
    with pytest.raises(FirmwareHang, match=r"still running after 0\.1 s, in ") as caught:
        board.run_until([image.address("helper") + 2], 0.1)
    assert 0.1 <= time.monotonic() - started < 1.0
    assert caught.value.where


def test_no_time_left_is_a_hang_at_once(board: VirtualBoard) -> None:
    image = counted_image()
    board.load(image)
    with pytest.raises(FirmwareHang, match="time for this job was used up"):
        board.run_until([image.address("edgefront_ready")], 0.0)


def test_stopping_twice_at_the_same_place_needs_one_more_round(board: VirtualBoard) -> None:
    image = counted_image()
    board.load(image)
    ready, run = image.address("edgefront_ready"), image.address("edgefront_run")
    assert [board.run_until([ready, run], 5.0) for _ in range(4)] == [ready, run, ready, run]


def test_ram_holds_rubbish_at_power_up(board: VirtualBoard) -> None:
    board.load(counted_image())
    assert board.read(KIND.ram_end - 4, 4) == b"\xa5" * 4


def test_memory_is_exactly_that_of_the_board(board: VirtualBoard) -> None:
    board.load(counted_image())
    board.write(KIND.ram_end - 1, b"\x01")
    assert board.read(KIND.ram_end - 1, 1) == b"\x01"
    with pytest.raises(ImageRejected, match="outside the RAM"):
        board.write(KIND.ram_end - 1, b"\x01\x02")
    with pytest.raises(ImageRejected, match="outside the RAM"):
        board.write(KIND.flash_origin, b"\x01")
    with pytest.raises(ImageRejected, match="outside the memory"):
        board.read(KIND.ram_end, 1)


def test_registers_that_the_port_needs_can_be_read_and_others_are_not_there(board: VirtualBoard) -> None:
    image = counted_image()
    board.load(image)
    assert board.read(0x10000104, 4) == b"0FAA"  # the part's variant, AAF0
    with pytest.raises(ImageRejected, match="4 bytes at 0x10000108 lie outside the memory of nrf52-dk"):
        board.read(0x10000108, 4)
    assert board.run_until([image.address("edgefront_ready")], 5.0) == image.address("edgefront_ready")


@pytest.mark.parametrize(
    ("offset", "word", "message"),
    [(0, 0x20000001, "initial stack pointer"), (0, 0x30000000, "initial stack pointer"), (4, 0x8, "no Thumb address")],
)
def test_a_broken_vector_table_is_refused(board: VirtualBoard, offset: int, word: int, message: str) -> None:
    image = counted_image()
    first = image.segments[0]
    data = first.data[:offset] + word.to_bytes(4, "little") + first.data[offset + 4 :]
    broken = dataclasses.replace(image, segments=[dataclasses.replace(first, data=data), *image.segments[1:]])
    with pytest.raises(ImageRejected, match=message):
        board.load(broken)


def test_a_board_that_was_closed_has_no_power(board: VirtualBoard) -> None:
    board.load(counted_image())
    board.close()
    board.close()
    with pytest.raises(BoardLost, match="board v1: it has no power"):
        board.read(KIND.ram_origin, 4)


def test_an_emulator_error_outside_memory_is_a_fault_with_its_place(board: VirtualBoard) -> None:
    image = counted_image()
    first = image.segments[0]
    at = image.address("edgefront_ready")
    data = first.data[:at] + b"\x00\xde" + first.data[at + 2 :]  # udf #0
    board.load(dataclasses.replace(image, segments=[dataclasses.replace(first, data=data), *image.segments[1:]]))
    with pytest.raises(FirmwareFault, match="faulted at edgefront_ready") as caught:
        board.run_until([image.address("edgefront_run")], 5.0)
    assert (caught.value.site.pc, caught.value.site.address) == (at, None)


def test_an_unaligned_word_faults_on_a_cortex_m0plus_alone() -> None:
    image = counted_image()
    first = image.segments[0]
    at = image.address("Reset_Handler") & ~1
    code = b"\x01\x21\x08\x68\xff\xe7"  # movs r1, #1; ldr r0, [r1]; b to the next instruction
    data = first.data[:at] + code + first.data[at + len(code) :]
    loads = dataclasses.replace(image, segments=[dataclasses.replace(first, data=data), *image.segments[1:]])
    for core in CORES:
        plain = {"fpu": "", "has_dsp": False} if core in PLAIN_CORES else {}
        board = VirtualBoard("v1", dataclasses.replace(KIND, core=core, **plain))
        board.load(loads)
        if core == "cortex-m0plus":
            with pytest.raises(FirmwareFault):
                board.run_until([at + len(code)], 5.0)
        else:
            assert board.run_until([at + len(code)], 5.0) == at + len(code)
        board.close()


def test_the_attached_counter_is_the_native_one_by_default() -> None:
    emulator = Uc(virtual.UC_ARCH_ARM, virtual.UC_MODE_THUMB)
    counter = virtual.attach_counter(emulator)
    assert isinstance(counter, NativeCounter)
    counter.close()


def test_two_boards_run_at_the_same_time_without_disturbing_each_other() -> None:
    image = counted_image()

    def count(name: str) -> list[list[Counts]]:
        board = VirtualBoard(name, KIND)
        board.load(image)
        assert board.counter is not None
        board.counter.start(regions_of(image))
        found = []
        for _ in range(50):
            board.run_until([image.address("edgefront_after_run")], 5.0)
            found.append(list(board.counter.read()))
        board.close()
        return found

    alone = count("alone")
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(count, "abcdefgh")) == [alone] * 8


def test_counts_are_gone_once_the_board_is_off(board: VirtualBoard) -> None:
    board.load(counted_image())
    counter = board.counter
    assert counter is not None
    board.close()
    with pytest.raises(ValueError, match="counter is closed"):
        counter.read()


def test_without_any_compiler_the_python_counter_takes_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(blockcounter, "_compilers", lambda: [["false"]])
    native_library.cache_clear()
    try:
        counter = blockcounter.attach_counter(Uc(virtual.UC_ARCH_ARM, virtual.UC_MODE_THUMB))
    finally:
        native_library.cache_clear()
    assert isinstance(counter, PythonCounter)
    assert "compiling the block counter with false failed" in caplog.text


def test_a_cache_folder_that_cannot_be_written_is_done_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "edgefront").write_text("a file where the folder should be")
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", str(blockcounter.cache_folder() / "zig"))  # else it is built anew
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native_library.cache_clear()
    try:
        assert native_library() is not None
    finally:
        native_library.cache_clear()
    assert "cannot keep the native block counter" in caplog.text


def test_without_ziglang_any_compiler_on_the_path_makes_the_counter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = blockcounter.shutil.which("cc") or blockcounter.shutil.which("clang") or blockcounter.shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler on the PATH")
    monkeypatch.setattr(blockcounter.util, "find_spec", lambda name: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert blockcounter._compilers()[0] == [compiler]
    native_library.cache_clear()
    try:
        assert native_library() is not None
    finally:
        native_library.cache_clear()
    assert list((tmp_path / "edgefront").glob("blockhook-*.so"))


def test_without_any_compiler_the_way_to_a_faster_counter_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(blockcounter.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert blockcounter._compilers() == []
    assert "install cc, clang or gcc, or pip install ziglang" in caplog.text


def test_a_compiler_that_hangs_or_is_none_is_a_reason_to_try_the_next(tmp_path: Path) -> None:
    (tmp_path / "cc").write_text("no program")
    (tmp_path / "cc").chmod(0o755)
    assert "format" in blockcounter._run_compiler([str(tmp_path / "cc")], {})
    assert blockcounter._run_compiler(["false"], {"PATH": "/usr/bin:/bin"}).startswith("exit code 1")
    assert blockcounter._run_compiler(["true"], {"PATH": "/usr/bin:/bin"}) == ""
