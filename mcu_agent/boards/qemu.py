"""The virtual board's other emulator: QEMU, spoken to through its GDB server.

QEMU has the core's exceptions and interrupts, which the first emulator has not, but counts nothing: no instructions,
and its cycle counter stands still. Outputs are verified; how long they took is not known.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache

from mcu_agent.boards.gdb import GdbBoard
from mcu_agent.boards.protocol import Counter
from mcu_agent.errors import BoardLost, FaultSite, FirmwareFault, ImageRejected, InventoryError
from mcu_agent.image import Image
from mcu_agent.kinds import BoardKind

PROGRAM = "qemu-system-arm"
_INSTALL = "apt-get install -y --no-install-recommends qemu-system-arm"
_END_TIMEOUT_S = 5.0
_OUTPUT_CHARACTERS = 300
_KIB, _MIB = 1 << 10, 1 << 20


@dataclass(frozen=True, slots=True)
class Memory:
    """Where a machine has the memory that stands for flash and RAM, and how many bytes."""

    flash_origin: int
    flash_bytes: int
    ram_origin: int
    ram_bytes: int


_STM32F4 = Memory(0x08000000, _MIB, 0x20000000, 128 * _KIB)
_MPS2 = Memory(0x00000000, 4 * _MIB, 0x20000000, 4 * _MIB)
MACHINES = {  # source: QEMU 7.2, hw/arm; on the mps2 boards both are RAM, and the AN505 starts in the secure world
    "netduinoplus2": _STM32F4,
    "olimex-stm32-h405": _STM32F4,
    "netduino2": Memory(0x08000000, _MIB, 0x20000000, 128 * _KIB),
    "mps2-an385": _MPS2,
    "mps2-an386": _MPS2,
    "mps2-an500": _MPS2,
    "mps2-an505": Memory(0x10000000, 4 * _MIB, 0x38000000, 2 * _MIB),
    "microbit": Memory(0x00000000, 256 * _KIB, 0x20000000, 16 * _KIB),
}


class QemuBoard:
    """See :class:`mcu_agent.boards.protocol.Board`. ``machine`` is QEMU's name of the machine that stands for the part;
    ``prepare`` takes out of an image what the machine does not have.

    The process ends with the board, and with the thread that loaded the image.

    Raises:
        InventoryError: QEMU is not installed, or the kind has no machine.
    """

    is_emulated = True
    counter: Counter | None = None

    def __init__(
        self, board_id: str, kind: BoardKind, machine: str, *, prepare: Callable[[Image], Image] = lambda image: image
    ) -> None:
        if machine not in MACHINES:
            raise InventoryError(
                f"board {board_id}: no machine of QEMU stands for the kind {kind.name} "
                f'(qemu_machine is {machine!r}; known: {", ".join(MACHINES)}); use emulator = "unicorn"'
            )
        self.board_id = board_id
        self.kind = kind
        self.emulator = f"QEMU {version()}"
        self._machine = machine
        self._prepare = prepare
        self._process: subprocess.Popen[bytes] | None = None
        self._board = GdbBoard(board_id, kind, f"QEMU's machine {machine}", server="qemu", connect=self._start)

    def load(self, image: Image) -> None:
        """Start QEMU with ``image`` in its flash, halted at the reset handler.

        Raises:
            ImageRejected: the image lies outside the machine's memory, or its vector table points there.
        """
        self.close()
        image = self._prepare(image)
        self._check_memory(image)
        try:
            self._board.load(image)
        except BaseException as error:
            text = self._end()
            if isinstance(error, BoardLost):
                raise BoardLost(self.board_id, f"{PROGRAM} -M {self._machine} does not start: {text}") from error
            raise

    def run_until(self, addresses: Collection[int], timeout_s: float, quiet_s: float = 0.0) -> int:
        """Run to the first of ``addresses``."""
        try:
            return self._board.run_until(addresses, timeout_s, quiet_s)
        except BoardLost as error:
            if self._process is None:
                raise
            text = self._end()
            if "Lockup" in text:  # QEMU ends where a core would stand still: a fault within the fault handler
                site = FaultSite(address=None, pc=_program_counter(text), symbol="")
                raise FirmwareFault(f"the core has locked up: {text}", site) from error
            raise BoardLost(self.board_id, f"{PROGRAM} has ended: {text}") from error

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes of the device's memory."""
        return self._board.read(address, size)

    def write(self, address: int, data: bytes) -> None:
        """Write into the device's RAM."""
        self._board.write(address, data)

    def close(self) -> None:
        """End QEMU."""
        self._board.close()
        self._end()

    def _start(self) -> socket.socket:
        """A connection to a fresh process, over a pair of sockets: no address that somebody else could take."""
        ours, theirs = socket.socketpair()
        command = [PROGRAM, "-M", self._machine, "-display", "none", "-monitor", "none", "-serial", "none", "-S"]
        command += ["-chardev", f"socket,id=gdb,fd={theirs.fileno()}", "-gdb", "chardev:gdb"]
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [*_dies_with_us(), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=(theirs.fileno(),),
                )
        except OSError:
            ours.close()
            raise
        return ours

    def _end(self) -> str:
        """End the process, if there is one; gives the end of what it printed."""
        process, self._process = self._process, None
        if process is None:
            return ""
        with process:
            process.kill()
            printed = process.stdout.read() if process.stdout else b""
            process.wait(_END_TIMEOUT_S)
        return printed.decode("utf-8", "replace").strip()[:_OUTPUT_CHARACTERS]

    def _check_memory(self, image: Image) -> None:
        memory, kind = MACHINES[self._machine], self.kind
        if (memory.flash_origin, memory.ram_origin) != (kind.flash_origin, kind.ram_origin):
            raise InventoryError(
                f"board {self.board_id}: QEMU's machine {self._machine} has flash at {memory.flash_origin:#010x} and "
                f"RAM at {memory.ram_origin:#010x}; {kind.name} has them at {kind.flash_origin:#010x} and "
                f"{kind.ram_origin:#010x}"
            )
        flash_end, ram_end = memory.flash_origin + memory.flash_bytes, memory.ram_origin + memory.ram_bytes
        last = max((segment.address + len(segment.data) for segment in image.segments), default=flash_end)
        used = [s.address + s.size for s in image.symbols.values() if kind.ram_origin <= s.address < kind.ram_end]
        if last > flash_end or max(used, default=0) > ram_end:
            raise ImageRejected(
                f"the image reaches to {last:#010x} in flash and {max(used, default=0):#010x} in RAM; QEMU's machine "
                f"{self._machine} ends at {flash_end:#010x} and {ram_end:#010x}"
            )


@lru_cache
def version() -> str:
    """QEMU's version, as in ``7.2.22``.

    Raises:
        InventoryError: it is not installed.
    """
    if shutil.which(PROGRAM) is None:
        raise InventoryError(f"{PROGRAM} is not installed; {_INSTALL}")
    printed = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=False, timeout=30).stdout
    found = re.search(r"version (\d[\w.]*)", printed)
    return found[1] if found else "of unknown version"


@lru_cache
def _dies_with_us() -> list[str]:
    """What to put before a command so that the kernel ends it with the thread that starts it, however that ends."""
    return ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []


def _program_counter(text: str) -> int:
    found = re.search(r"R15=([0-9a-f]{8})", text)
    return int(found[1], 16) if found else 0
