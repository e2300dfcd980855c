"""Reading firmware images and the mailbox."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcu_agent import mailbox
from mcu_agent.errors import ImageRejected
from mcu_agent.image import built_for, read_image, without_peripherals
from mcu_agent.kinds import load_kind
from mcu_agent.mailbox import Mailbox
from tasks.firmware.compiler import compile_graph
from tests.support.boards import firmware
from tests.support.graphs import small_cnn

WORD = st.integers(min_value=0, max_value=2**32 - 1)


def test_an_image_tells_its_identity_and_symbols() -> None:
    image = read_image(firmware(), load_kind("nrf52-dk"))
    assert image.image_id == bytes(range(1, 33))
    assert image.symbols["edgefront_run"].is_function
    assert image.address("edgefront_mailbox") >= 0x20000000
    assert all(segment.address < 0x80000 for segment in image.segments)


def test_addresses_are_named_by_the_function_around_them() -> None:
    image = read_image(firmware(), load_kind("nrf52-dk"))
    start = image.address("edgefront_run")
    assert image.where(start) == "edgefront_run"
    assert image.where(start + 6) == "edgefront_run+0x6"
    assert image.where(0x70000000) == "0x70000000"


def test_an_image_for_other_flash_is_refused() -> None:
    elf = firmware("nucleo-f446re")
    with pytest.raises(ImageRejected, match=r"segment at 0x08000000.* outside the flash of nrf52-dk"):
        read_image(elf, load_kind("nrf52-dk"))


@pytest.mark.parametrize("data", [b"", b"not an ELF file", firmware()[:100], b"\x7fELF" + bytes(60)])
def test_what_is_no_elf_file_is_refused(data: bytes) -> None:
    with pytest.raises(ImageRejected):
        read_image(data, load_kind("nrf52-dk"))


def test_an_image_for_another_processor_is_refused() -> None:
    elf = bytearray(firmware())
    elf[18] = 62  # e_machine: x86-64
    with pytest.raises(ImageRejected, match="EM_X86_64"):
        read_image(bytes(elf), load_kind("nrf52-dk"))


def test_an_image_without_the_protocols_symbols_is_refused() -> None:
    elf = firmware().replace(b"edgefront_after_run\0", b"edgefront_other_run\0")
    with pytest.raises(ImageRejected, match="no symbol edgefront_after_run"):
        read_image(elf, load_kind("nrf52-dk"))


def test_an_image_for_another_board_kind_is_refused_though_its_memory_would_do() -> None:
    made = compile_graph(small_cnn(), load_kind("nrf52-dk"))
    assert read_image(made.image.elf, load_kind("nrf52-dk")).kind == built_for(made.image.elf) == "nrf52-dk"
    with pytest.raises(ImageRejected, match="the image is built for nrf52-dk, not for nrf52840-dk"):
        read_image(made.image.elf, load_kind("nrf52840-dk"))


def test_an_image_that_names_no_board_kind_is_taken_at_its_word() -> None:
    assert read_image(firmware(), load_kind("nrf52840-dk")).kind == built_for(firmware()) == ""


def test_an_image_for_an_emulator_differs_in_one_word() -> None:
    kind = load_kind("nrf52-dk")
    image = read_image(compile_graph(small_cnn(), kind).image.elf, kind)
    changed = without_peripherals(image)
    at = image.address("edgefront_has_peripherals")
    differing = [
        old.address + i
        for old, new in zip(image.segments, changed.segments, strict=True)
        for i, (a, b) in enumerate(zip(old.data, new.data, strict=True))
        if a != b
    ]
    assert differing == [at]
    assert without_peripherals(changed) == changed
    hand_written = read_image(firmware(), kind)
    assert without_peripherals(hand_written) is hand_written


@given(
    words=st.lists(WORD, min_size=20, max_size=20),
    identity=st.binary(min_size=32, max_size=32),
    cycles=st.integers(min_value=0, max_value=2**64 - 1),
    temperature=st.integers(min_value=-(2**31), max_value=2**31 - 1),
)
def test_unpacking_a_packed_mailbox_is_identity(
    words: list[int], identity: bytes, cycles: int, temperature: int
) -> None:
    others = {"image_id": identity, "window_cycles": cycles, "temperature_mdeg": temperature}
    names = [field.name for field in dataclasses.fields(Mailbox) if field.name not in others]
    box = Mailbox(**dict(zip(names, words, strict=True), **others))
    assert Mailbox.unpack(box.pack()) == box


def test_the_mailbox_has_its_fields_where_the_firmware_has_them() -> None:
    data = bytearray(mailbox.SIZE)
    for offset, value in ((40, 7), (68, 8), (92, 9), (96, 10), (100, 11), (104, 12), (108, 1), (112, 13), (120, 1)):
        data[offset : offset + 4] = value.to_bytes(4, "little")
    data[116:120] = (-2500).to_bytes(4, "little", signed=True)
    box = Mailbox.unpack(bytes(data))
    assert (box.command, box.input_crc, box.stack_used_bytes) == (7, 8, 9)
    assert (box.repeats, box.idle_ms, box.window_cycles, box.clock_hz) == (10, 11, 2**32 + 12, 13)
    assert (box.temperature_mdeg, box.keeps_input) == (-2500, 1)
    assert (mailbox.COMMAND_OFFSET, mailbox.INPUT_CRC_OFFSET, mailbox.SIZE) == (40, 68, 124)
    assert (mailbox.REPEATS_OFFSET, mailbox.IDLE_MS_OFFSET) == (96, 100)


def test_a_mailbox_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="124 bytes, not 4"):
        Mailbox.unpack(bytes(4))
