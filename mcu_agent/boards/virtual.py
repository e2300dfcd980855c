"""A board that is an emulated Arm core with exactly the flash and RAM of its kind.

The firmware runs as it would on the real part: programmed into flash, started through the reset vector, RAM with
arbitrary content at power-up. Whatever lies outside flash, RAM and the core's own registers faults, so an overflow
cannot hide. The core's registers (debug, system control) are plain memory here: they can be set and read back, but
nothing counts, so firmware must notice that the cycle counter is dead. Of the peripherals, those that the kind's port
touches are there (:mod:`mcu_agent.boards.peripherals`); a core that sleeps until an alarm is woken at once.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from importlib import metadata

import numpy as np
from unicorn import (
    UC_ARCH_ARM,
    UC_HOOK_MEM_INVALID,
    UC_MODE_THUMB,
    UC_PROT_EXEC,
    UC_PROT_READ,
    UC_PROT_WRITE,
    Uc,
    UcError,
)
from unicorn.arm_const import (
    UC_ARM_REG_PC,
    UC_ARM_REG_SP,
    UC_CPU_ARM_CORTEX_M0,
    UC_CPU_ARM_CORTEX_M3,
    UC_CPU_ARM_CORTEX_M4,
    UC_CPU_ARM_CORTEX_M7,
    UC_CPU_ARM_CORTEX_M33,
)

from mcu_agent.boards.blockcounter import BlockCounter, Halt, Range, attach_counter
from mcu_agent.boards.debug import vectors
from mcu_agent.boards.peripherals import Bus, Peripherals, peripherals_of
from mcu_agent.boards.protocol import Counts, Region
from mcu_agent.boards.thumb import CORE_FACTORS, TAKEN_PENALTY, block_cost
from mcu_agent.errors import AgentError, BoardLost, FaultSite, FirmwareFault, FirmwareHang, ImageRejected, OutOfTime
from mcu_agent.image import Image
from mcu_agent.kinds import BoardKind

_CPU_MODELS = {
    "cortex-m0plus": UC_CPU_ARM_CORTEX_M0,  # the same instructions; unaligned words fault on both
    "cortex-m3": UC_CPU_ARM_CORTEX_M3,
    "cortex-m4": UC_CPU_ARM_CORTEX_M4,
    "cortex-m7": UC_CPU_ARM_CORTEX_M7,
    "cortex-m33": UC_CPU_ARM_CORTEX_M33,
}
_CORE_REGISTERS = 0xE0000000  # private peripheral bus: ITM, DWT, FPB, system control space
_CORE_REGISTERS_BYTES = 0x10000
_NEVER = 0xFFFFFFFE  # an address no firmware runs at: the counter does the stopping
_POWER_UP_BYTE = b"\xa5"  # RAM is not zero at power-up, so firmware that forgets to clear its variables must fail here


class VirtualBoard:
    """An emulated board; see :class:`mcu_agent.boards.protocol.Board` for the contract.

    It counts for the cores of :data:`mcu_agent.boards.thumb.CORE_FACTORS` only; the others run, without a counter.

    ``trigger_edges`` are the changes of the trigger pin since ``load``, each with the instructions executed before it
    since counting began, its own block included, and whether the pin went high. ``peripherals`` are those of the kind
    unless others are given.
    """

    is_emulated = True
    emulator = f"Unicorn {metadata.version('unicorn')}"

    def __init__(self, board_id: str, kind: BoardKind, peripherals: Peripherals | None = None) -> None:
        self.board_id = board_id
        self.kind = kind
        self.counter: EmulatedCounter | None = None
        self.trigger_edges: list[tuple[int, bool]] = []
        self.bus: Bus | None = None
        self._peripherals = peripherals_of(kind) if peripherals is None else peripherals
        self._image: Image | None = None
        self._emulator: Uc | None = None
        self._blocks: BlockCounter | None = None
        self._halted_at: int | None = None
        self._pc = 0
        self._invalid: tuple[int, int] | None = None

    def load(self, image: Image) -> None:
        """Power the board up with ``image`` in its flash, halted at the reset handler.

        Raises:
            ImageRejected: the vector table does not point into RAM and flash.
        """
        self.close()
        kind = self.kind
        # Not UC_MODE_MCLASS: it makes every core a Cortex-M33, whatever the model.
        emulator = Uc(UC_ARCH_ARM, UC_MODE_THUMB)
        emulator.ctl_set_cpu_model(_CPU_MODELS[kind.core])
        emulator.mem_map(kind.flash_origin, kind.flash_bytes, UC_PROT_READ | UC_PROT_EXEC)
        emulator.mem_map(kind.ram_origin, kind.ram_bytes, UC_PROT_READ | UC_PROT_WRITE)
        emulator.mem_map(_CORE_REGISTERS, _CORE_REGISTERS_BYTES, UC_PROT_READ | UC_PROT_WRITE)
        emulator.mem_write(kind.ram_origin, _POWER_UP_BYTE * kind.ram_bytes)
        for segment in image.segments:
            emulator.mem_write(segment.address, segment.data)
        stack, reset = vectors(image, kind)
        emulator.reg_write(UC_ARM_REG_SP, stack)
        emulator.hook_add(UC_HOOK_MEM_INVALID, self._on_invalid)
        self.trigger_edges = []
        self.bus = Bus(self._peripherals, self._on_trigger, self._on_stray)
        self.bus.attach(emulator)
        self._image, self._emulator, self._pc, self._halted_at = image, emulator, reset & ~1, None
        self._blocks = attach_counter(emulator)
        if kind.core in CORE_FACTORS:
            self.counter = EmulatedCounter(emulator, self._blocks, kind)

    def run_until(self, addresses: Collection[int], timeout_s: float, quiet_s: float = 0.0) -> int:
        """Run to the first of ``addresses`` (function entries) and give back which it was."""
        emulator, blocks, image = self._powered()
        if timeout_s <= 0:
            raise OutOfTime(f"the time for this job was used up, in {image.where(self._pc)}")
        fault = image.symbols.get("edgefront_fault")
        stops = {*addresses, fault.address} if fault else set(addresses)
        blocks.arm(stops, timeout_s, self._halted_at)
        self._invalid = None
        try:
            is_late = self._execute(emulator, blocks, time.monotonic() + timeout_s)
        except UcError as error:
            raise self._fault(emulator, image, str(error)) from error
        if self._invalid is not None:
            raise self._fault(emulator, image, "")
        halt, address = blocks.halt()
        self._pc, self._halted_at = (address, address) if halt else (emulator.reg_read(UC_ARM_REG_PC), None)
        if halt is Halt.AT_STOP and fault and address == fault.address and fault.address not in addresses:
            site = FaultSite(address=None, pc=address, symbol=fault.name)
            raise FirmwareFault("the firmware ended in its own fault handler", site)
        if halt is Halt.AT_STOP:
            return address
        if halt is Halt.OUT_OF_MEMORY:
            raise AgentError(f"board {self.board_id}: no memory left for counting blocks")
        found = (
            f"still running after {timeout_s:.3g} s"
            if halt is Halt.PAST_DEADLINE or is_late
            else "asleep, with nothing to wake it"
        )
        raise self._hang(image, found)

    def _execute(self, emulator: Uc, blocks: BlockCounter, deadline: float) -> bool:
        """Run until the counter stops, nothing wakes the core any more, or a register is missing; whether the core is
        woken again and again until the deadline."""
        emulator.emu_start(self._pc | 1, _NEVER)
        while blocks.halt()[0] is Halt.NONE and self._invalid is None and self.bus and self.bus.wake(emulator):
            if time.monotonic() > deadline:
                return True
            emulator.emu_start(emulator.reg_read(UC_ARM_REG_PC) | 1, _NEVER)
        return False

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes of the device's memory, or of its registers in whole words."""
        emulator, _, _ = self._powered()
        text = f"{size} bytes at {address:#010x} lie outside the memory of {self.kind.name}"
        self._invalid = None
        try:
            data = bytes(emulator.mem_read(address, size))
        except UcError as error:
            raise ImageRejected(text) from error
        if self._invalid is not None:
            raise ImageRejected(text)
        return data

    def write(self, address: int, data: bytes) -> None:
        """Write into the device's RAM."""
        emulator, _, _ = self._powered()
        if address < self.kind.ram_origin or address + len(data) > self.kind.ram_end:
            raise ImageRejected(f"{len(data)} bytes at {address:#010x} lie outside the RAM of {self.kind.name}")
        emulator.mem_write(address, data)

    def close(self) -> None:
        """Switch the board off."""
        self.counter = None
        self._emulator = None
        if self._blocks is not None:
            self._blocks.close()
        self._blocks = None

    def _powered(self) -> tuple[Uc, BlockCounter, Image]:
        if self._emulator is None or self._blocks is None or self._image is None:
            raise BoardLost(self.board_id, "it has no power; load an image first")
        return self._emulator, self._blocks, self._image

    def _on_invalid(self, _uc: Uc, access: int, address: int, size: int, value: int, user: object) -> bool:
        self._invalid = (access, address)
        return False

    def _on_stray(self, address: int) -> None:
        emulator, _, _ = self._powered()
        self._invalid = (0, address)
        emulator.emu_stop()

    def _on_trigger(self, is_high: bool) -> None:
        emulator, blocks, _ = self._powered()
        entries = blocks.entries()
        costs = (block_cost(bytes(emulator.mem_read(int(one["address"]), int(one["size"])))) for one in entries)
        done = sum(int(one["count"]) * cost.instructions for one, cost in zip(entries, costs, strict=True))
        self.trigger_edges.append((done, is_high))

    def _hang(self, image: Image, found: str) -> FirmwareHang:
        where = image.where(self._pc)
        return FirmwareHang(f"the firmware did not reach its next stop: {found}, in {where}", where)

    def _fault(self, emulator: Uc, image: Image, error: str) -> FirmwareFault:
        pc = emulator.reg_read(UC_ARM_REG_PC) & ~1
        where, stack = image.where(pc), emulator.reg_read(UC_ARM_REG_SP)
        address = self._invalid[1] if self._invalid else None
        site = FaultSite(address=address, pc=pc, symbol=where)
        if address is None:
            return FirmwareFault(f"the core faulted at {where} (pc {pc:#010x}): {error}", site)
        kind = self.kind
        is_flash = kind.flash_origin <= address < kind.flash_end
        what = "write to flash at" if is_flash else f"{kind.name} has no memory at"
        text = f"{what} {address:#010x}, accessed in {where} (pc {pc:#010x})"
        if 0 < kind.ram_origin - address <= 0x10000 and stack <= address + 0x1000:
            text += f"; the stack has overflowed by at least {kind.ram_origin - address} bytes"
        return FirmwareFault(text, site)


class EmulatedCounter:
    """Exact instructions and modelled cycles, by region."""

    def __init__(self, emulator: Uc, blocks: BlockCounter, kind: BoardKind) -> None:
        self._emulator = emulator
        self._blocks = blocks
        self._factor = CORE_FACTORS[kind.core]
        self._costs = np.zeros((0, 2), dtype=np.int64)
        self._totals = np.zeros((1, 2), dtype=np.int64)  # row 0: everything before the first region was entered

    def start(self, regions: Sequence[Region]) -> None:
        """Name the regions and set all counts to zero."""
        self._blocks.set_regions([Range(r.start, r.end, i + 1) for i, r in enumerate(regions)])
        self._costs = np.zeros((0, 2), dtype=np.int64)
        self._totals = np.zeros((len(regions) + 1, 2), dtype=np.int64)

    def read(self) -> Sequence[Counts]:
        """Counts since the last call, one a region; cycles are rounded to whole ones."""
        entries = self._blocks.entries()
        fresh = [self._cost(int(entry["address"]), int(entry["size"])) for entry in entries[len(self._costs) :]]
        self._costs = np.concatenate([self._costs, np.array(fresh, dtype=np.int64).reshape(-1, 2)])
        count, taken = entries["count"].astype(np.int64), entries["taken"].astype(np.int64)
        per_entry = self._costs * count[:, None]
        per_entry[:, 1] += TAKEN_PENALTY * taken
        before, self._totals = self._totals, np.zeros_like(self._totals)
        np.add.at(self._totals, entries["region"], per_entry)
        fresh_counts = (self._totals - before)[1:]
        return [Counts(instructions=int(n), cycles=round(int(c) * self._factor)) for n, c in fresh_counts]

    def _cost(self, address: int, size: int) -> tuple[int, int]:
        cost = block_cost(bytes(self._emulator.mem_read(address, size)))
        return cost.instructions, cost.cycles
