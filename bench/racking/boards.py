"""Virtual boards for the bench: some misbehave by chance, some take as long as a real board.

A rack file names them: ``driver = "bench.racking.boards:faulty"``. What goes wrong is drawn for each load of an image,
so that a repeated measurement is another draw.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Collection

from mcu_agent.boards.protocol import Counter
from mcu_agent.boards.virtual import VirtualBoard
from mcu_agent.errors import BoardLost, FirmwareHang, VerifyFailed
from mcu_agent.image import Image
from mcu_agent.kinds import load_kind
from mcu_agent.rack import RackBoard

SHARE_VARIABLE = "EDGEFRONT_BENCH_FAULTS"  # share of loads that go wrong, 0 to 1
LOG_VARIABLE = "EDGEFRONT_BENCH_FAULT_LOG"  # a file that every fault appends its name to
FAULTS = ("hang", "wrong_hash", "lost_probe", "killed_process")
WAIT_S = 0.4  # what a small network takes on a board that is flashed and asked over a probe


def faulty(entry: RackBoard) -> FaultyBoard:
    """A virtual board that misbehaves in the share of loads that the environment names."""
    return FaultyBoard(entry)


def waiting(entry: RackBoard) -> WaitingBoard:
    """A virtual board whose programming takes as long as a real one's; the host has nothing to do meanwhile."""
    return WaitingBoard(entry)


class _Wrapped:
    """A virtual board with something around it; see :class:`mcu_agent.boards.protocol.Board`."""

    is_emulated = True
    emulator = VirtualBoard.emulator

    def __init__(self, entry: RackBoard) -> None:
        self.board_id = entry.board_id
        self.kind = load_kind(entry.kind)
        self._board = VirtualBoard(entry.board_id, self.kind)

    @property
    def counter(self) -> Counter | None:
        return self._board.counter

    def load(self, image: Image) -> None:
        self._board.load(image)

    def run_until(self, addresses: Collection[int], timeout_s: float, quiet_s: float = 0.0) -> int:
        return self._board.run_until(addresses, timeout_s, quiet_s)

    def read(self, address: int, size: int) -> bytes:
        return self._board.read(address, size)

    def write(self, address: int, data: bytes) -> None:
        self._board.write(address, data)

    def close(self) -> None:
        self._board.close()


class WaitingBoard(_Wrapped):
    """Waits at every load."""

    def load(self, image: Image) -> None:
        time.sleep(WAIT_S)
        super().load(image)


class FaultyBoard(_Wrapped):
    """Draws at every load whether and how to misbehave."""

    def __init__(self, entry: RackBoard) -> None:
        super().__init__(entry)
        self._random = random.Random(os.urandom(8))
        self._trouble = ""

    def load(self, image: Image) -> None:
        is_fault = self._random.random() < float(os.environ.get(SHARE_VARIABLE, "0"))
        self._trouble = self._random.choice(FAULTS) if is_fault else ""
        if self._trouble:
            _note(self._trouble)
        if self._trouble == "wrong_hash":
            raise VerifyFailed(self.board_id, "what is in flash is not what was programmed", self.kind.flash_origin)
        super().load(image)

    def run_until(self, addresses: Collection[int], timeout_s: float, quiet_s: float = 0.0) -> int:
        if self._trouble == "killed_process":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._trouble == "lost_probe":
            raise BoardLost(self.board_id, "the probe does not answer; check its cable")
        if self._trouble == "hang":
            raise FirmwareHang(f"board {self.board_id}: the firmware does not come back", is_transient=True)
        return super().run_until(addresses, timeout_s, quiet_s)


def _note(fault: str) -> None:
    path = os.environ.get(LOG_VARIABLE)
    if path:
        with open(path, "a", encoding="utf-8") as log:  # noqa: PTH123 - one write of a few bytes is atomic
            log.write(fault + "\n")
