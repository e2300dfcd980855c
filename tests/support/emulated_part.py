"""A whole part behind a debug port: an emulated Cortex-M4 with halting debug, and an nRF52's flash controller.

It runs only while somebody asks whether it still runs: every read of DHCSR lets a running core go on by some
instructions, so a test is the same every time. Sources: Armv7-M Architecture Reference Manual, C1 (debug), B1.5
(exceptions); nRF52832 Product Specification 1.4, "NVMC".
"""

from __future__ import annotations

from dataclasses import dataclass, field

from unicorn import (
    UC_ARCH_ARM,
    UC_HOOK_BLOCK,
    UC_HOOK_INTR,
    UC_HOOK_MEM_INVALID,
    UC_HOOK_MEM_WRITE,
    UC_MEM_FETCH_UNMAPPED,
    UC_MODE_THUMB,
    UC_PROT_ALL,
    Uc,
    UcError,
)
from unicorn.arm_const import (
    UC_ARM_REG_APSR,
    UC_ARM_REG_D0,
    UC_ARM_REG_FPSCR,
    UC_ARM_REG_LR,
    UC_ARM_REG_PC,
    UC_ARM_REG_R0,
    UC_ARM_REG_SP,
    UC_CPU_ARM_CORTEX_M4,
)

from mcu_agent.kinds import BoardKind

CPUID_M4 = 0x410FC241
_SLICE = 20_000  # halfwords of code that a running core executes each time somebody asks
_NEVER = 0xFFFFFFFE
_SCS, _DWT, _FPB, _ROM_TABLE, _PAGE = 0xE000E000, 0xE0001000, 0xE0002000, 0xE00FF000, 0x1000
_FICR, _UICR, _NVMC, _WDT = 0x10000000, 0x10001000, 0x4001E000, 0x40010000
_NVMC_READY, _NVMC_CONFIG, _NVMC_ERASEPAGE, _NVMC_ERASEALL = 0x4001E400, 0x4001E504, 0x4001E508, 0x4001E50C
_WRITE_ENABLED, _ERASE_ENABLED = 1, 2
_FLASH_PAGE = 0x1000
_EXCEPTION_RETURN = 0xFFFFFFF9
_LOCKUP_PC = 0xEFFFFFFE
DHCSR, _DCRSR, _DCRDR, _DEMCR = 0xE000EDF0, 0xE000EDF4, 0xE000EDF8, 0xE000EDFC
_CPUID, _AIRCR, _CFSR, _DFSR, _BFAR = 0xE000ED00, 0xE000ED0C, 0xE000ED28, 0xE000ED30, 0xE000ED38
_CYCCNT, _DWT_CTRL = 0xE0001004, 0xE0001000
_HALTED, _BKPT, _VCATCH = 1, 2, 8  # of DFSR
_VC_CORERESET, _VC_HARDERR = 1, 1 << 10
_COMPARATORS = [_FPB + 8 + 4 * index for index in range(6)]


def _identification(part: int) -> dict[int, int]:
    """Component registers at the end of a page: Arm (JEP106 0x3B, bank 4), class 0xE (generic IP) or 1 (ROM table)."""
    kind = 0x10 if part == 0x4C4 else 0xE0
    values = {
        0xFE0: part & 0xFF,
        0xFE4: 0xB0 | part >> 8,
        0xFE8: 0x0B,
        0xFEC: 0,
        0xFD0: 4,
        0xFD4: 0,
        0xFD8: 0,
        0xFDC: 0,
    }
    return values | {0xFF0: 0x0D, 0xFF4: kind, 0xFF8: 0x05, 0xFFC: 0xB1}


def _fixed_registers() -> dict[int, int]:
    found = {_ROM_TABLE + at: value for at, value in _identification(0x4C4).items()}
    found |= {_ROM_TABLE: 0xFFF0F003, _ROM_TABLE + 4: 0xFFF02003, _ROM_TABLE + 8: 0xFFF03003, _ROM_TABLE + 12: 0}
    found[_ROM_TABLE + 0xFCC] = 1  # system memory is on this bus
    for page, part in ((_SCS, 0x00C), (_DWT, 0x002), (_FPB, 0x003)):
        found |= {page + at: value for at, value in _identification(part).items()}
    return found | {_DWT_CTRL: 0x40000000, 0xE000EF40: 0x10110021, 0xE000EF44: 0x11000011}


@dataclass(kw_only=True)
class Misbehaviour:
    """What is wrong with the part. ``stuck_at`` is an address in flash whose lowest bit always reads 1."""

    cpuid: int = CPUID_M4
    stuck_at: int | None = None


class MemoryFault(Exception):
    """The bus answers an access by the debugger with an error."""


@dataclass
class _Core:
    is_running: bool = False
    is_locked_up: bool = False
    is_asleep: bool = False
    was_reset: bool = False
    exception: int = 0
    control: int = 0
    skip: int | None = None
    stop: str = ""
    fault: tuple[int, int | None] = (0, None)
    cycles: int = 0
    budget: int = 0
    restore: list[tuple[int, bytes]] = field(default_factory=list)


class EmulatedPart:
    """Memory, registers and core, as the debugger's bus sees them: ``read`` and ``write`` of 1, 2 or 4 bytes."""

    def __init__(self, kind: BoardKind, misbehaviour: Misbehaviour | None = None) -> None:
        self.kind = kind
        self.misbehaviour = misbehaviour or Misbehaviour()
        self.erased_pages = 0
        self._registers = _fixed_registers()
        self._core = _Core()
        self._nvmc = 0
        self._uc = Uc(UC_ARCH_ARM, UC_MODE_THUMB)
        self._uc.ctl_set_cpu_model(UC_CPU_ARM_CORTEX_M4)
        for origin, size in self._memories().values():
            self._uc.mem_map(origin, size, UC_PROT_ALL)
            self._uc.mem_write(origin, b"\xff" * size if origin != kind.ram_origin else b"\xa5" * size)
        for page in (_SCS, _DWT, _FPB, _NVMC, _WDT):
            self._uc.mmio_map(page, _PAGE, self._mmio_read, page, self._mmio_write, page)
        self._uc.hook_add(UC_HOOK_BLOCK, self._on_block)
        self._uc.hook_add(UC_HOOK_INTR, self._on_interrupt)
        self._uc.hook_add(UC_HOOK_MEM_INVALID, self._on_invalid)
        self._uc.hook_add(UC_HOOK_MEM_WRITE, self._on_flash_write, begin=kind.flash_origin, end=kind.flash_end - 1)
        self.reset()

    def read(self, address: int, size: int) -> int:
        """What the bus gives the debugger.

        Raises:
            MemoryFault: nothing is there.
        """
        word = address & ~3
        if self._is_register(word):
            value = self._read_register(word)
            return value >> 8 * (address & 3) & (1 << 8 * size) - 1
        return int.from_bytes(self._memory(address, size), "little")

    def write(self, address: int, value: int, size: int) -> None:
        """What the debugger writes to the bus.

        Raises:
            MemoryFault: nothing is there.
        """
        if self._is_register(address & ~3):
            self._write_register(address & ~3, value)
            return
        data, kind = value.to_bytes(size, "little"), self.kind
        before = self._memory(address, size)
        if kind.flash_origin <= address < kind.flash_end or _UICR <= address < _UICR + _PAGE:
            data = bytes(old & new for old, new in zip(before, data, strict=True)) if self._nvmc == 1 else before
        self._uc.mem_write(address, data)
        self._uc.ctl_remove_cache(address & ~3, (address & ~3) + 4)

    def reset(self) -> None:
        """Reset the core, as its pin or AIRCR does; debug registers stay."""
        kind, core = self.kind, self._core
        catches = self._registers.get(_DEMCR, 0) & _VC_CORERESET
        is_debugged = bool(self._registers.get(DHCSR, 0) & 1)
        self._core = _Core(was_reset=True, is_running=not (catches and is_debugged))
        self._core.cycles = core.cycles
        self._nvmc = 0
        self._registers[_CFSR] = 0
        stack, entry = (int.from_bytes(self._memory(kind.flash_origin + at, 4), "little") for at in (0, 4))
        self._uc.reg_write(UC_ARM_REG_SP, stack & ~3)
        self._uc.reg_write(UC_ARM_REG_LR, 0xFFFFFFFF)
        self._uc.reg_write(UC_ARM_REG_PC, entry & ~1)
        self._pc = entry & ~1
        if not self._core.is_running:
            self._registers[_DFSR] = self._registers.get(_DFSR, 0) | _VCATCH

    def _memories(self) -> dict[str, tuple[int, int]]:
        kind = self.kind
        return {
            "flash": (kind.flash_origin, kind.flash_bytes),
            "ram": (kind.ram_origin, kind.ram_bytes),
            "ficr": (_FICR, _PAGE),
            "uicr": (_UICR, _PAGE),
        }

    def _memory(self, address: int, size: int) -> bytes:
        if not any(
            start <= address and address + size <= start + length for start, length in self._memories().values()
        ):
            raise MemoryFault(f"{address:#010x}")
        data = bytearray(self._uc.mem_read(address, size))
        stuck = self.misbehaviour.stuck_at
        if stuck is not None and address <= stuck < address + size:
            data[stuck - address] ^= 1
        return bytes(data)

    @staticmethod
    def _is_register(word: int) -> bool:
        return word & ~(_PAGE - 1) in (_SCS, _DWT, _FPB, _ROM_TABLE, _NVMC, _WDT)

    # Registers, seen by the debugger and by the core.

    def _read_register(self, word: int) -> int:
        if word == DHCSR:
            return self._read_dhcsr()
        if word == _CPUID:
            return self.misbehaviour.cpuid
        if word == _CYCCNT:
            self._core.cycles += 1
            return self._core.cycles & 0xFFFFFFFF
        if word == _NVMC_READY:
            return 1
        if word == _NVMC_CONFIG:
            return self._nvmc
        if word == _FPB:
            return self._registers.get(_FPB, 0) & 1 | 0x260
        if word == _AIRCR:
            return 0xFA050000
        return self._registers.get(word, 0)

    def _write_register(self, word: int, value: int) -> None:
        if word == DHCSR:
            self._write_dhcsr(value)
        elif word == _DCRSR:
            self._transfer(value)
        elif word == _AIRCR and value >> 16 == 0x05FA and value & 5:
            self.reset()
        elif word in (_DFSR, _CFSR):
            self._registers[word] = self._registers.get(word, 0) & ~value
        elif word == _CYCCNT:
            self._core.cycles = value
        elif word == _NVMC_CONFIG:
            self._nvmc = value & 3
        elif word == _NVMC_ERASEPAGE and self._nvmc == _ERASE_ENABLED:
            self._erase(value & ~(_FLASH_PAGE - 1), _FLASH_PAGE)
        elif word == _NVMC_ERASEALL and self._nvmc == _ERASE_ENABLED and value & 1:
            self._erase(self.kind.flash_origin, self.kind.flash_bytes)
        elif word not in (_CPUID, _NVMC_READY):
            self._registers[word] = value

    def _erase(self, address: int, size: int) -> None:
        self.erased_pages += size // _FLASH_PAGE
        self._uc.mem_write(address, b"\xff" * size)
        self._uc.ctl_remove_cache(address, address + size)

    def _mmio_read(self, _uc: Uc, offset: int, size: int, page: int) -> int:
        return self._read_register(page + offset & ~3) >> 8 * (offset & 3)

    def _mmio_write(self, _uc: Uc, offset: int, size: int, value: int, page: int) -> None:
        self._write_register(page + offset & ~3, value)

    # Halting debug.

    def _read_dhcsr(self) -> int:
        core = self._core
        if core.is_running:
            self._run()
        value = self._registers.get(DHCSR, 0) & 0xF | 1 << 16
        value |= (not core.is_running) << 17 | core.is_asleep << 18 | core.is_locked_up << 19
        value |= core.is_running << 24 | core.was_reset << 25
        core.was_reset = False
        return value

    def _write_dhcsr(self, value: int) -> None:
        if value >> 16 != 0xA05F:
            return
        core = self._core
        self._registers[DHCSR] = value & 0xF
        if value & 2:
            if core.is_running or core.is_locked_up:
                self._halt(_HALTED)
        elif value & 4:
            self._uc.ctl_flush_tb()  # a block that was translated as a whole would be executed as a whole
            self._emulate(count=1)
            self._halt(_HALTED)
        elif not core.is_running:
            core.is_running = True
            self._run()

    def _halt(self, reason: int) -> None:
        core = self._core
        core.is_running = core.is_asleep = core.is_locked_up = False
        self._registers[DHCSR] = self._registers.get(DHCSR, 0) | 2
        self._registers[_DFSR] = self._registers.get(_DFSR, 0) | reason

    def _transfer(self, selector: int) -> None:
        number = selector & 0x7F
        if selector >> 16 & 1:
            self._set_register(number, self._registers.get(_DCRDR, 0))
        else:
            self._registers[_DCRDR] = self._register(number) & 0xFFFFFFFF

    def _register(self, number: int) -> int:
        uc = self._uc
        if number < 13:
            return int(uc.reg_read(UC_ARM_REG_R0 + number))
        if 64 <= number < 96:
            pair = int(uc.reg_read(UC_ARM_REG_D0 + (number - 64) // 2))
            return pair >> 32 * (number & 1)
        return {
            13: lambda: uc.reg_read(UC_ARM_REG_SP),
            14: lambda: uc.reg_read(UC_ARM_REG_LR),
            15: lambda: self._pc,
            16: lambda: uc.reg_read(UC_ARM_REG_APSR) & 0xF8000000 | 1 << 24 | self._core.exception,
            17: lambda: uc.reg_read(UC_ARM_REG_SP),
            20: lambda: self._core.control,
            33: lambda: uc.reg_read(UC_ARM_REG_FPSCR),
        }.get(number, lambda: 0)()

    def _set_register(self, number: int, value: int) -> None:
        uc = self._uc
        if number < 13:
            uc.reg_write(UC_ARM_REG_R0 + number, value)
        elif number in (13, 17):
            uc.reg_write(UC_ARM_REG_SP, value & ~3)
        elif number == 14:
            uc.reg_write(UC_ARM_REG_LR, value)
        elif number == 15:
            self._pc = value & ~1
        elif number == 16:
            uc.reg_write(UC_ARM_REG_APSR, value & 0xF8000000)
            self._core.exception = value & 0x1FF
        elif number == 20:
            self._core.control = value

    # Running.

    def _run(self) -> None:
        core = self._core
        if core.is_asleep:  # no interrupt will ever wake it
            return
        self._emulate()
        if core.stop == "breakpoint":
            self._halt(_BKPT)

    def _emulate(self, *, count: int = 0) -> None:
        core, uc = self._core, self._uc
        core.stop, core.fault, core.restore = "", (0, None), []
        if count == 0 and self._breaks_at(self._pc):
            core.stop = "breakpoint"
            return
        core.skip, core.budget = self._pc, _SLICE
        try:
            uc.emu_start(self._pc | 1, _NEVER, count=count)
            self._after_run()
        except UcError:
            self._restore_flash()
            if core.stop == "":
                self._enter_fault()

    def _after_run(self) -> None:
        core = self._core
        self._restore_flash()
        if core.stop == "fault":
            self._enter_fault()
        elif core.stop == "":
            self._pc = int(self._uc.reg_read(UC_ARM_REG_PC)) & ~1
            core.is_asleep = bytes(self._uc.mem_read(self._pc - 2, 2)) == b"\x30\xbf"  # WFI

    def _restore_flash(self) -> None:
        for address, data in self._core.restore:
            self._uc.mem_write(address, data)
        self._core.restore = []

    def _enter_fault(self) -> None:
        """Take the HardFault exception at the instruction that is to blame (B1.5.6)."""
        core, uc = self._core, self._uc
        status, address = core.fault
        pc = int(uc.reg_read(UC_ARM_REG_PC)) & ~1
        self._registers[_CFSR] = self._registers.get(_CFSR, 0) | (status or 0x10000)
        if address is not None:
            self._registers[_BFAR] = address
        if core.exception == 3:
            core.is_locked_up, core.is_running, self._pc = True, False, _LOCKUP_PC
            return
        stack = int(uc.reg_read(UC_ARM_REG_SP)) - 32
        frame = [*(int(uc.reg_read(UC_ARM_REG_R0 + n)) for n in (0, 1, 2, 3, 12)), int(uc.reg_read(UC_ARM_REG_LR)), pc]
        frame.append(self._register(16))
        try:
            uc.mem_write(stack, b"".join(word.to_bytes(4, "little") for word in frame))
        except UcError:
            self._registers[_CFSR] |= 0x1000
        uc.reg_write(UC_ARM_REG_SP, stack)
        uc.reg_write(UC_ARM_REG_LR, _EXCEPTION_RETURN)
        core.exception = 3
        self._pc = int.from_bytes(self._memory(self.kind.flash_origin + 12, 4), "little") & ~1
        if self._registers.get(_DEMCR, 0) & _VC_HARDERR:
            self._halt(_VCATCH)

    def _breaks_at(self, address: int) -> bool:
        if not self._registers.get(_FPB, 0) & 1 or not self._registers.get(DHCSR, 0) & 1:
            return False
        for comparator in _COMPARATORS:
            value = self._registers.get(comparator, 0)
            half = {1: 0, 2: 2}.get(value >> 30, 0)
            if value & 1 and (value & 0x1FFFFFFC) + half == address:
                return True
        return False

    def _on_block(self, uc: Uc, address: int, size: int, _user: object) -> None:
        core = self._core
        core.cycles += size // 2
        is_first, core.skip = address == core.skip, None
        if not is_first and self._breaks_at(address):
            core.stop, self._pc = "breakpoint", address
            uc.emu_stop()
            return
        core.budget -= size // 2
        if core.budget <= 0:  # not the emulator's own time limit, which is lost when it comes before the start
            core.stop, self._pc = "slice", address
            uc.emu_stop()

    def _on_interrupt(self, uc: Uc, number: int, _user: object) -> None:
        pc = int(uc.reg_read(UC_ARM_REG_PC)) & ~1
        if number == 7:  # BKPT
            core = self._core
            core.stop, self._pc = "breakpoint", pc
        else:
            self._core.stop = "fault"
        uc.emu_stop()

    def _on_invalid(self, _uc: Uc, access: int, address: int, size: int, value: int, _user: object) -> bool:
        self._core.fault = (0x100, None) if access == UC_MEM_FETCH_UNMAPPED else (0x8200, address)
        return False

    def _on_flash_write(self, uc: Uc, _access: int, address: int, size: int, value: int, _user: object) -> None:
        core = self._core
        if self._nvmc != _WRITE_ENABLED:
            core.restore.append((address, bytes(uc.mem_read(address, size))))
            core.stop, core.fault = "fault", (0x8200, address)
            uc.emu_stop()
            return
        old = int.from_bytes(uc.mem_read(address, size), "little")
        mask = (1 << 8 * size) - 1
        core.restore.append((address, (old & value & mask).to_bytes(size, "little")))
