"""What every driver does that has a debugger and nothing more: run to an address, and say what went wrong there.

The drivers bring a :class:`DebugPort`; these functions are the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Set
from typing import Protocol

from mcu_agent.errors import (
    FaultSite,
    FirmwareFault,
    FirmwareHang,
    ImageRejected,
    MemoryRefused,
    OutOfTime,
    VerifyFailed,
)
from mcu_agent.image import IMAGE_ID_BYTES, Image, Segment
from mcu_agent.kinds import BoardKind
from mcu_agent.mailbox import SIZE, Mailbox

FAULT_HANDLER = "edgefront_fault"
_CORE_REGISTERS = (0xE0000000, 0xE0100000)  # private peripheral bus (Armv7-M ARM, B3.1)
_CFSR, _MMFAR, _BFAR = 0xE000ED28, 0xE000ED34, 0xE000ED38  # Armv7-M ARM, B3.2.15 to B3.2.18
_MMFAR_VALID, _BFAR_VALID = 1 << 7, 1 << 15
_EXCEPTION_RETURN = 0xFFFFFF00  # what the link register holds at the entry of a handler starts so (B1.5.8)
_FRAME_PC = 24  # offset of the program counter in what an exception pushes (B1.5.6)
LOCKUP_PC = 0xEFFFFFFE  # where a core that faults in its fault handler stands (B1.5.15)
_STACK_REACH = 0x10000  # how far below the RAM a stack pointer tells of an overflow
_EXCEPTIONS = {2: "NMI", 3: "HardFault", 4: "MemManage", 5: "BusFault", 6: "UsageFault", 7: "SecureFault"}
_THUMB_STATE = 1 << 24  # of xPSR


class DebugPort(Protocol):
    """A halted core behind a debugger.

    ``register`` and ``set_register`` know ``sp``, ``lr``, ``pc`` and ``xpsr``. ``set_breakpoints`` replaces all there
    are. ``run`` lets the core go and gives True when it came to a halt by itself; otherwise it is halted after
    ``timeout_s``. ``read`` raises ImageRejected where no memory answers.
    """

    def read(self, address: int, size: int) -> bytes: ...

    def write(self, address: int, data: bytes) -> None: ...

    def register(self, name: str) -> int: ...

    def set_register(self, name: str, value: int) -> None: ...

    def set_breakpoints(self, addresses: Set[int]) -> None: ...

    def step(self) -> None: ...

    def run(self, timeout_s: float, quiet_s: float) -> bool: ...


def vectors(image: Image, kind: BoardKind) -> tuple[int, int]:
    """Initial stack pointer and reset vector of ``image``, whose vector table lies at the start of the flash.

    Raises:
        ImageRejected: there is none, or it does not point into RAM and flash.
    """
    first = next((segment for segment in image.segments if segment.address == kind.flash_origin), None)
    if first is None or len(first.data) < 8:
        raise ImageRejected(f"the image has no vector table at {kind.flash_origin:#010x}, the start of the flash")
    stack, reset = (int.from_bytes(first.data[at : at + 4], "little") for at in (0, 4))
    if not (kind.ram_origin < stack <= kind.ram_end and stack % 8 == 0):
        raise ImageRejected(f"the initial stack pointer {stack:#010x} lies outside the RAM of {kind.name}")
    if not (kind.flash_origin <= reset < kind.flash_end and reset & 1):
        raise ImageRejected(f"the reset vector {reset:#010x} is no Thumb address in the flash of {kind.name}")
    return stack, reset


def check_readable(kind: BoardKind, address: int, size: int) -> None:
    """Pass for ranges within flash, RAM or the core's own registers.

    Raises:
        ImageRejected: the range lies elsewhere.
    """
    regions = ((kind.flash_origin, kind.flash_end), (kind.ram_origin, kind.ram_end), _CORE_REGISTERS)
    if not any(start <= address and address + size <= end for start, end in regions):
        raise ImageRejected(f"{size} bytes at {address:#010x} lie outside the memory of {kind.name}")


def check_writable(kind: BoardKind, address: int, size: int) -> None:
    """Pass for ranges within RAM.

    Raises:
        ImageRejected: the range lies elsewhere.
    """
    if address < kind.ram_origin or address + size > kind.ram_end:
        raise ImageRejected(f"{size} bytes at {address:#010x} lie outside the RAM of {kind.name}")


def holds(image: Image, read: Callable[[int, int], bytes], is_same: Callable[[Segment], bool]) -> bool:
    """Whether the flash holds ``image`` already: its identity first, which is quick, then every segment."""
    at = image.address("edgefront_image_id")
    return read(at, IMAGE_ID_BYTES) == image.image_id and all(is_same(segment) for segment in image.segments)


def verify(board_id: str, segment: Segment, found: bytes) -> None:
    """Pass when ``found`` is what the segment holds.

    Raises:
        VerifyFailed: it is not; names the first differing byte.
    """
    if found == segment.data:
        return
    pairs = zip(found, segment.data, strict=False)
    at = next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(found), len(segment.data)))
    address = segment.address + at
    wrong = sum(one != other for one, other in zip(found, segment.data, strict=False))
    raise VerifyFailed(
        board_id,
        f"after programming, {wrong} of {len(segment.data)} bytes at {segment.address:#010x} differ, the first at "
        f"{address:#010x}: {found[at : at + 4].hex()} instead of {segment.data[at : at + 4].hex()}; check cable, "
        "supply and debug clock, and whether the flash is worn or protected",
        address,
    )


def start_at_reset(port: DebugPort, image: Image, kind: BoardKind) -> int:
    """Put the core to where a reset would, by the vector table; gives the program counter."""
    stack, reset = vectors(image, kind)
    port.set_register("sp", stack)
    port.set_register("pc", reset & ~1)
    if not port.register("xpsr") & _THUMB_STATE:  # the reset found no vector table: an empty flash
        port.set_register("xpsr", _THUMB_STATE)
    return reset & ~1


def run_to(
    port: DebugPort,
    image: Image,
    kind: BoardKind,
    addresses: Collection[int],
    timeout_s: float,
    quiet_s: float = 0.0,
    *,
    is_transient: bool,
    halted_at: int | None,
) -> int:
    """Run to the first of ``addresses`` and give back which it was.

    ``halted_at`` is where the last run ended, None before the first: a core that stands on an address it already
    stopped at goes past it. ``is_transient`` says whether a hang may be the rig's fault.

    Raises:
        FirmwareHang: none was reached in time; the core is halted.
        FirmwareFault: the firmware ended in its fault handler, or halted by itself elsewhere.
    """
    fault = image.symbols.get(FAULT_HANDLER)
    wanted = set(addresses)
    stops = wanted | {fault.address} if fault else wanted
    pc = port.register("pc")
    if timeout_s <= 0:
        raise OutOfTime(f"the time for this job was used up, in {image.where(pc)}")
    if pc in stops:
        if pc != halted_at:
            return _stopped(port, image, kind, wanted)
        port.set_breakpoints(stops - {pc})
        port.step()
        pc = port.register("pc")
        if pc in stops and pc != halted_at:
            return _stopped(port, image, kind, wanted)
    port.set_breakpoints(stops)
    has_halted = port.run(timeout_s, quiet_s)
    pc = port.register("pc")
    is_known = pc in stops or _is_in_handler(image, pc) or pc & ~1 == LOCKUP_PC
    if not has_halted and not is_known:
        raise hang(image, pc, f"still running after {timeout_s:.3g} s", is_transient=is_transient)
    return _stopped(port, image, kind, wanted)


def hang(image: Image, pc: int, found: str, *, is_transient: bool) -> FirmwareHang:
    """The error for a firmware that was last seen at ``pc``."""
    where = image.where(pc)
    return FirmwareHang(
        f"the firmware did not reach its next stop: {found}, in {where}", where, is_transient=is_transient
    )


def _stopped(port: DebugPort, image: Image, kind: BoardKind, wanted: Set[int]) -> int:
    pc = port.register("pc")
    if pc in wanted:
        return pc
    if _is_in_handler(image, pc):
        raise _fault(port, image, kind)
    if pc & ~1 == LOCKUP_PC:
        raise _lockup(port, image)
    where = image.where(pc)
    overflow = _overflow(port.register("sp"), kind)
    text = overflow or "; it met a BKPT instruction, or a debug event of the part"
    site = FaultSite(address=None, pc=pc, symbol=where)
    raise FirmwareFault(f"the core halted by itself in {where} (pc {pc:#010x}){text}", site)


def _is_in_handler(image: Image, pc: int) -> bool:
    fault = image.symbols.get(FAULT_HANDLER)
    return fault is not None and fault.address <= pc < fault.address + max(fault.size, 2)


def _overflow(stack: int, kind: BoardKind) -> str:
    """In words, that the stack has left the RAM, at whose start it ends; empty where it has not."""
    below = kind.ram_origin - stack
    if not 0 <= below <= _STACK_REACH:
        return ""
    return "; the stack has overflowed" + (f" by at least {below} bytes" if below else "")


def _lockup(port: DebugPort, image: Image) -> FirmwareFault:
    stack = port.register("sp")
    site = FaultSite(address=None, pc=LOCKUP_PC, symbol="")
    return FirmwareFault(f"the core has locked up: a fault in the fault handler; stack pointer {stack:#010x}", site)


def _fault(port: DebugPort, image: Image, kind: BoardKind) -> FirmwareFault:
    """What the core says of the fault whose handler it stands at: who did it, and at which address."""
    stack, link = port.register("sp"), port.register("lr")
    if link < _EXCEPTION_RETURN:
        site = FaultSite(address=None, pc=link & ~1, symbol=image.where(link & ~1))
        return FirmwareFault(f"the firmware called its own fault handler from {site.symbol}{_error(port, image)}", site)
    frame, status = _try_read(port, stack, 32), _word(_try_read(port, _CFSR, 4))
    pc = _word(frame[_FRAME_PC : _FRAME_PC + 4]) if frame else None
    address = None
    if status and status & _BFAR_VALID:
        address = _word(_try_read(port, _BFAR, 4))
    elif status and status & _MMFAR_VALID:
        address = _word(_try_read(port, _MMFAR, 4))
    where = image.where(pc) if pc is not None else ""
    text = "the firmware ended in its own fault handler: "
    text += f"accessed {address:#010x}, " if address is not None else ""
    text += f"in {where} (pc {pc:#010x})" if pc is not None else f"nothing is at its stack pointer {stack:#010x}"
    text += f", fault status {status:#010x}" if status else ""
    text += _overflow(stack, kind) + _error(port, image)
    return FirmwareFault(text, FaultSite(address=address, pc=pc or 0, symbol=where))


def _error(port: DebugPort, image: Image) -> str:
    """The exception the core is in, and the error code of the mailbox if the handler has come to writing it."""
    exception = port.register("xpsr") & 0x1FF
    text = f", exception {exception} ({_EXCEPTIONS.get(exception, 'no fault')})" if exception else ""
    box = _try_read(port, image.address("edgefront_mailbox"), SIZE)
    error = Mailbox.unpack(box).error_code if box else 0
    return text + (f", error code {error:#x}" if error else "")


def _try_read(port: DebugPort, address: int, size: int) -> bytes:
    """Bytes for an explanation; none where the memory does not answer, as at the stack pointer after an overflow."""
    try:
        return port.read(address, size)
    except (ImageRejected, MemoryRefused):
        return b""


def _word(data: bytes) -> int | None:
    return int.from_bytes(data[:4], "little") if len(data) >= 4 else None
