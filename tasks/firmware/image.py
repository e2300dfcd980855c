"""What an ELF file needs of flash and RAM, counted section by section."""

from __future__ import annotations

import io
from dataclasses import dataclass

from elftools.elf.elffile import ELFFile

from mcu_agent.kinds import BoardKind

_ALLOCATED = 0x2  # SHF_ALLOC
REGION_SPAN = 2**28  # flash and RAM of the boards lie further apart than this
_TABLES = (
    *("_weights", "_tails", "_requant", "_params", "_bias", "_multipliers"),
    *("_quant", "_terms", "_table", "_parts"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RomSplit:
    """Bytes of flash. ``runtime_bytes``: start-up, harness, vectors and padding, what every firmware carries."""

    total_bytes: int
    weights_bytes: int
    code_bytes: int
    runtime_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RamSplit:
    """Bytes of RAM. ``static_bytes`` = .data + .bss (arena and mailbox included); the reserved stack comes on top."""

    static_bytes: int
    arena_bytes: int
    stack_reserved_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.static_bytes + self.stack_reserved_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class FirmwareImage:
    """A linked image; ``image_id`` (32 bytes) also stands in its flash and comes back through the mailbox."""

    elf: bytes
    image_id: bytes
    rom: RomSplit
    ram: RamSplit
    compiler: str
    board_kind: str


def measure(elf: bytes, kind: BoardKind, prefix: str = "edgefront") -> tuple[RomSplit, RamSplit]:
    """Flash from its origin to the last byte loaded there, RAM from its origin to the end of the last section."""
    file = ELFFile(io.BytesIO(elf))
    sections = [item for item in file.iter_sections() if item["sh_flags"] & _ALLOCATED and item["sh_size"]]
    stack = sum(item["sh_size"] for item in sections if item.name == ".stack")
    ram_end = max(
        (item["sh_addr"] + item["sh_size"] for item in sections if _is_at(item["sh_addr"], kind.ram_origin)), default=0
    )
    flash_end = max(
        (
            item["p_paddr"] + item["p_filesz"]
            for item in file.iter_segments("PT_LOAD")
            if item["p_filesz"] and _is_at(item["p_paddr"], kind.flash_origin)
        ),
        default=kind.flash_origin,
    )
    flash, ram = flash_end - kind.flash_origin, max(ram_end, kind.ram_origin) - kind.ram_origin
    sizes = _symbol_sizes(file)
    weights = sum(size for name, size in sizes.items() if _is_table(name, prefix))
    code = sum(size for name, size in sizes.items() if _is_model_code(name, prefix))
    rom = RomSplit(total_bytes=flash, weights_bytes=weights, code_bytes=code, runtime_bytes=flash - weights - code)
    arena = sizes.get(f"{prefix}_arena", 0)
    return rom, RamSplit(static_bytes=ram - stack, arena_bytes=arena, stack_reserved_bytes=stack)


def _is_at(address: int, origin: int) -> bool:
    return origin <= address < origin + REGION_SPAN


def _is_table(name: str, prefix: str) -> bool:
    return name.startswith(f"{prefix}_layer_") and name.endswith(_TABLES)


def _is_model_code(name: str, prefix: str) -> bool:
    names = (f"{prefix}_run", f"{prefix}_init", f"{prefix}_sizes", f"{prefix}_layout")
    own = (f"{prefix}_layer_", f"{prefix}_depthwise_", f"{prefix}_conv2d_", "ef_")
    return name in names or (name.startswith(own) and not name.endswith(_TABLES))


def _symbol_sizes(file: ELFFile) -> dict[str, int]:
    table = file.get_section_by_name(".symtab")
    return {} if table is None else {symbol.name: symbol["st_size"] for symbol in table.iter_symbols() if symbol.name}
