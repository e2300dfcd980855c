"""The agent's errors. Each class says who is at fault and so whether trying again can help.

``is_transient`` is True where the rig is at fault (a probe that went away, a board that stopped answering): the same
image may well run on the next attempt. It is False where the image, its maker or the user's input is at fault.
"""

from __future__ import annotations

from dataclasses import dataclass


class AgentError(Exception):
    """Base of everything the agent raises on purpose; the text says what failed, the numbers, and what to try."""

    is_transient = False
    reason = "agent_error"


class InventoryError(AgentError):
    """A rack file or a catalogue entry is wrong; the text names file, line, field, what was found and what is
    allowed."""

    reason = "inventory"


class UnknownKind(InventoryError):
    """A board kind that the catalogue does not have."""

    reason = "unknown_board_kind"


class NoBoardFree(AgentError):
    """Every board of the kind is leased or quarantined; ask again later."""

    is_transient = True
    reason = "no_board_free"


class LeaseLost(AgentError):
    """The lease of a board has ended while it was in use; what was measured since is void."""

    is_transient = True
    reason = "lease_lost"


class BoardLost(AgentError):
    """The board or its probe went away or does not answer; ``board_id`` says which."""

    is_transient = True
    reason = "board_lost"

    def __init__(self, board_id: str, detail: str) -> None:
        super().__init__(f"board {board_id}: {detail}")
        self.board_id = board_id


class MemoryRefused(BoardLost):
    """The probe or its server could not read or write memory that the part has: a wire, a supply, a protected part."""


class WrongBoard(AgentError):
    """The part on the board is not the one of its kind: the rack file or the cabling is wrong.

    Transient, because the image is not at fault and may run on another board; on this one trying again cannot help.
    """

    is_transient = True
    reason = "wrong_board"

    def __init__(self, board_id: str, detail: str) -> None:
        super().__init__(f"board {board_id}: {detail}")
        self.board_id = board_id


class ProgrammingFailed(AgentError):
    """The flash could not be erased or programmed."""

    is_transient = True
    reason = "programming_failed"

    def __init__(self, board_id: str, detail: str) -> None:
        super().__init__(f"board {board_id}: {detail}")
        self.board_id = board_id


class VerifyFailed(ProgrammingFailed):
    """Memory does not hold what was programmed; ``address`` is the first that differs, or the start of the range whose
    checksum is wrong."""

    reason = "verify_failed"

    def __init__(self, board_id: str, detail: str, address: int) -> None:
        super().__init__(board_id, detail)
        self.address = address


class FirmwareError(AgentError):
    """The firmware did something it must not do."""

    reason = "firmware"


class ImageRejected(FirmwareError):
    """The file is no firmware image for this board: no ELF, a symbol missing, or a segment outside flash and RAM."""

    reason = "image_rejected"


class FirmwareHang(FirmwareError):
    """The firmware did not reach the expected point in time; ``where`` is the function it was last seen in.

    On an emulator a hang is deterministic, on hardware it may be the rig's, so ``is_transient`` is set by the driver.
    """

    reason = "firmware_hang"

    def __init__(self, detail: str, where: str = "", *, is_transient: bool = False) -> None:
        super().__init__(detail)
        self.where = where
        self.is_transient = is_transient


class OutOfTime(FirmwareHang):
    """The time for the whole job was used up before the firmware was let go: nothing is said about the firmware."""

    reason = "out_of_time"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, is_transient=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultSite:
    """Where a fault happened: the accessed address (None where unknown), the program counter and its symbol."""

    address: int | None
    pc: int
    symbol: str


class FirmwareFault(FirmwareError):
    """The firmware accessed memory that the board does not have, or executed something undefined."""

    reason = "firmware_fault"

    def __init__(self, detail: str, site: FaultSite) -> None:
        super().__init__(detail)
        self.site = site


class CyclesUnknown(AgentError):
    """Nothing says how long the firmware took: the board has no live cycle counter, and no cost table fits its core."""

    reason = "cycles_unknown"


class WrongImage(FirmwareError):
    """The device reports the identity of another image than the one that was loaded."""

    reason = "wrong_image"


class TransferCorrupt(AgentError):
    """Bytes read from or written to the device fail their checksum."""

    is_transient = True
    reason = "transfer_corrupt"


class BitMismatch(FirmwareError):
    """The device's outputs differ from the reference for the input ``index``; ``layer`` names the first layer whose
    output differs, and is empty where the job's layer outputs, which are those of the first input, do not show it."""

    reason = "bit_mismatch"

    def __init__(self, detail: str, layer: str, index: int = 0) -> None:
        super().__init__(detail)
        self.layer = layer
        self.index = index


class WrongClock(AgentError):
    """The core does not run at the clock of its board kind."""

    is_transient = True
    reason = "wrong_clock"


class UnstableOutput(FirmwareError):
    """The device gives different outputs for the same input."""

    reason = "unstable_output"


class CalibrationError(AgentError):
    """A board's cycles and those of the emulator cannot be brought together by one factor."""

    reason = "calibration"


class MeterError(AgentError):
    """A power meter's readings cannot be believed; the measurement is repeated or refused, never reported."""

    is_transient = True
    reason = "meter"


class MeterLost(MeterError):
    """The meter went away or does not answer."""

    reason = "meter_lost"


class TraceGap(MeterError):
    """Readings are missing from a trace."""

    reason = "meter_gap"


class TraceSaturated(MeterError):
    """The current went beyond the meter's range."""

    reason = "meter_saturated"


class MeterDrift(MeterError):
    """The meter reads a known load wrongly, its rate is off, or its zero has moved."""

    reason = "meter_drift"


class WrongSupply(MeterError):
    """The supply voltage is not the one the rack file names."""

    reason = "wrong_supply"


class TriggerMissing(MeterError):
    """The trace has no window, or one that does not last as long as the board says."""

    reason = "trigger_missing"


class PowerFault(AgentError):
    """A board's power could not be switched: the program that does it is missing, failed or took too long."""

    is_transient = True
    reason = "power"


class PowerNotCut(PowerFault):
    """The board was switched off and on, and yet its RAM has kept what was in it: it has power from elsewhere, or the
    hub does not switch."""

    reason = "power_not_cut"


class ImageAtFault(FirmwareError):
    """The image fails in the same way on boards that pass their self-test; ``cause`` is the reason of that failure."""

    reason = "image_at_fault"

    def __init__(self, detail: str, cause: str) -> None:
        super().__init__(detail)
        self.cause = cause
