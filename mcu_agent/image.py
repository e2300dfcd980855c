"""A finished firmware image, read from its ELF file: what to program where, and where its parts lie."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from mcu_agent.errors import ImageRejected
from mcu_agent.kinds import BoardKind

IMAGE_ID_BYTES = 32
KIND_SECTION = ".edgefront.kind"  # of the ELF file: the board kind's name, ending in a zero byte; loaded nowhere
_PERIPHERALS = "edgefront_has_peripherals"
_UNSIZED_REACH = 256  # how far after the start of a function without a size an address is still called its own
REQUIRED_SYMBOLS = (
    "edgefront_ready",
    "edgefront_run",
    "edgefront_after_run",
    "edgefront_mailbox",
    "edgefront_image_id",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """Bytes to program at ``address``."""

    address: int
    data: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Symbol:
    """A named range of the image; ``size`` is 0 where the ELF file does not say. Thumb bits are cleared."""

    name: str
    address: int
    size: int
    is_function: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """A firmware image for one board kind. ``image_id`` is what the device must report; ``kind`` the board kind that it
    says it was built for, empty where it says nothing."""

    segments: Sequence[Segment]
    symbols: Mapping[str, Symbol]
    image_id: bytes
    kind: str = ""

    def address(self, name: str) -> int:
        """Where ``name`` lies.

        Raises:
            ImageRejected: the image has no such symbol.
        """
        if name not in self.symbols:
            raise ImageRejected(f"the image has no symbol {name}; was it built by this version of the compiler?")
        return self.symbols[name].address

    def where(self, address: int) -> str:
        """The function around ``address`` in words, as in ``edgefront_run+0x12``; the bare address when there is
        none.
        """
        functions = sorted((s.address, s.name, s.size) for s in self.symbols.values() if s.is_function)
        index = bisect_right(functions, address, key=lambda function: function[0]) - 1
        if index < 0:
            return f"{address:#010x}"
        start, name, size = functions[index]
        if address >= start + max(size, _UNSIZED_REACH):
            return f"{address:#010x}"
        return name if address == start else f"{name}+{address - start:#x}"


def read_image(elf: bytes, kind: BoardKind) -> Image:
    """The image in an ELF file, checked against the board it shall run on.

    Raises:
        ImageRejected: not a 32-bit little-endian Arm ELF file, built for another board kind, a symbol is missing, or a
            segment lies outside the flash of the board.
    """
    try:
        file = ELFFile(io.BytesIO(elf))
        if file["e_machine"] != "EM_ARM" or file.elfclass != 32 or not file.little_endian:
            raise ImageRejected(f"the image is built for {file['e_machine']}, not for 32-bit little-endian Arm")
        segments = [
            Segment(address=segment["p_paddr"], data=segment.data())
            for segment in file.iter_segments()
            if segment["p_type"] == "PT_LOAD" and segment["p_filesz"] > 0
        ]
        symbols, named = _symbols(file), _named_kind(file)
    except (ELFError, ValueError, KeyError, AttributeError) as error:
        raise ImageRejected(_unreadable(elf, error)) from error
    if named and named != kind.name:
        raise ImageRejected(f"the image is built for {named}, not for {kind.name}; build it for this board kind")
    for segment in segments:
        _check_segment(segment, kind)
    missing = [name for name in REQUIRED_SYMBOLS if name not in symbols]
    if missing:
        raise ImageRejected(
            f"the image has no symbol {', '.join(missing)}; was it built by this version of the compiler?"
        )
    return Image(
        segments=segments,
        symbols=symbols,
        image_id=_bytes_at(segments, symbols["edgefront_image_id"].address, IMAGE_ID_BYTES),
        kind=named,
    )


def without_peripherals(image: Image) -> Image:
    """``image`` for an emulator that has the core and the memory of its board and nothing else: its firmware leaves
    clocks and pins alone, and says that it does not know its clock. The same image where it never touches any.

    Raises:
        ImageRejected: the word that says so does not lie in flash.
    """
    symbol = image.symbols.get(_PERIPHERALS)
    return image if symbol is None else replace(image, segments=_patched(image.segments, symbol.address, bytes(4)))


def _patched(segments: Sequence[Segment], address: int, data: bytes) -> list[Segment]:
    index, at = _place(segments, address, len(data), _PERIPHERALS)
    old = segments[index]
    new = replace(old, data=old.data[:at] + data + old.data[at + len(data) :])
    return [*segments[:index], new, *segments[index + 1 :]]


def built_for(elf: bytes) -> str:
    """The board kind that an ELF file says it was built for; empty where it says nothing.

    Raises:
        ImageRejected: not an ELF file.
    """
    try:
        return _named_kind(ELFFile(io.BytesIO(elf)))
    except (ELFError, ValueError) as error:
        raise ImageRejected(_unreadable(elf, error)) from error


def _unreadable(elf: bytes, error: Exception) -> str:
    """The parser's own words (``expected 4, found 0``) say nothing to who gave a wrong file."""
    if not elf.startswith(b"\x7fELF"):
        return f"not an ELF file ({len(elf)} bytes); give the firmware.elf that edgefront compile or export writes"
    return f"not a readable ELF file ({len(elf)} bytes, cut off or damaged: {error}); build or copy it again"


def _named_kind(file: ELFFile) -> str:
    section = file.get_section_by_name(KIND_SECTION)
    return "" if section is None else section.data().rstrip(b"\0").decode("ascii")


def _symbols(file: ELFFile) -> dict[str, Symbol]:
    found: dict[str, Symbol] = {}
    for section in file.iter_sections():
        if not isinstance(section, SymbolTableSection):
            continue
        for symbol in section.iter_symbols():
            kind = symbol["st_info"]["type"]
            if not symbol.name or symbol["st_shndx"] == "SHN_UNDEF" or kind in ("STT_FILE", "STT_SECTION"):
                continue
            if symbol.name.startswith("$"):  # Arm's mapping symbols mark code and data, they name nothing
                continue
            is_function = kind == "STT_FUNC"
            address = symbol["st_value"] & ~1 if is_function else symbol["st_value"]
            found[symbol.name] = Symbol(
                name=symbol.name, address=address, size=symbol["st_size"], is_function=is_function
            )
    return found


def _check_segment(segment: Segment, kind: BoardKind) -> None:
    end = segment.address + len(segment.data)
    if segment.address < kind.flash_origin or end > kind.flash_end:
        raise ImageRejected(
            f"a segment at {segment.address:#010x}..{end:#010x} lies outside the flash of {kind.name}, "
            f"{kind.flash_origin:#010x}..{kind.flash_end:#010x}"
        )


def _bytes_at(segments: Sequence[Segment], address: int, size: int) -> bytes:
    index, at = _place(segments, address, size, "the image id")
    return segments[index].data[at : at + size]


def _place(segments: Sequence[Segment], address: int, size: int, what: str) -> tuple[int, int]:
    """Which segment holds the bytes, and where in it."""
    for index, segment in enumerate(segments):
        offset = address - segment.address
        if offset >= 0 and offset + size <= len(segment.data):
            return index, offset
    raise ImageRejected(f"{what} at {address:#010x} does not lie in flash")
