"""What a session needs from a board, real, virtual or fake."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from mcu_agent.image import Image
from mcu_agent.kinds import BoardKind


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """A named part of the program: blocks whose address lies in [start, end)."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Instructions executed in a region and the core cycles they take."""

    instructions: int
    cycles: int


class Counter(Protocol):
    """The optional ability to count exactly, region by region.

    ``start`` names the regions and sets all counts to zero; code outside every region counts for the region entered
    last, and before any was entered for none. ``read`` gives the counts since it was called last (or since ``start``),
    in the order of the regions.
    """

    def start(self, regions: Sequence[Region]) -> None: ...

    def read(self) -> Sequence[Counts]: ...


class Board(Protocol):
    """One physical or emulated board.

    Order of calls: ``load`` → ``run_until``, ``read``, ``write`` (any number) → ``close``. ``load`` programs an
    image, checks it and leaves the core halted at its reset handler; after ``run_until`` the core is halted too.
    ``close`` leaves the board without power or halted; it may follow any state, twice included. One owner; not
    thread-safe.

    ``counter`` is None on boards that cannot count instructions; those report the cycles of their own counter.

    For the first ``quiet_s`` seconds ``run_until`` leaves the probe alone: a debugger that asks disturbs what is being
    measured. Emulators ignore it.

    Raises:
        BoardLost: the board or its probe went away (transient).
        FirmwareHang: no address in ``addresses`` was reached in time.
        FirmwareFault: the firmware accessed memory the board does not have, or executed something undefined.
    """

    board_id: str
    kind: BoardKind
    is_emulated: bool
    emulator: str  # with its version; empty for a device

    @property
    def counter(self) -> Counter | None: ...

    def load(self, image: Image) -> None: ...

    def run_until(self, addresses: Collection[int], timeout_s: float, quiet_s: float = 0.0) -> int: ...

    def read(self, address: int, size: int) -> bytes: ...

    def write(self, address: int, data: bytes) -> None: ...

    def close(self) -> None: ...
