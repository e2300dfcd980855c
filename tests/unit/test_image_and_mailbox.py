"""Reading firmware images and the mailbox."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcu_agent import mailbox
from mcu_agent.errors import ImageRejected
from mcu_agent.image import read_image
from mcu_agent.kinds import load_kind
from mcu_agent.mailbox import Mailbox
from tests.support.boards import firmware

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


@given(words=st.lists(WORD, min_size=16, max_size=16), identity=st.binary(min_size=32, max_size=32))
def test_unpacking_a_packed_mailbox_is_identity(words: list[int], identity: bytes) -> None:
    names = [field.name for field in dataclasses.fields(Mailbox)]
    values = dict(zip([n for n in names if n != "image_id"], words, strict=True), image_id=identity)
    box = Mailbox(**values)
    assert Mailbox.unpack(box.pack()) == box


def test_the_mailbox_has_its_fields_where_the_firmware_has_them() -> None:
    data = bytearray(mailbox.SIZE)
    data[40:44] = (7).to_bytes(4, "little")
    data[68:72] = (8).to_bytes(4, "little")
    data[92:96] = (9).to_bytes(4, "little")
    box = Mailbox.unpack(bytes(data))
    assert (box.command, box.input_crc, box.stack_used_bytes) == (7, 8, 9)
    assert (mailbox.COMMAND_OFFSET, mailbox.INPUT_CRC_OFFSET, mailbox.SIZE) == (40, 68, 96)


def test_a_mailbox_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="96 bytes, not 4"):
        Mailbox.unpack(bytes(4))
