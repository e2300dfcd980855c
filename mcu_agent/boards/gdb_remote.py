"""A core behind a GDB server: memory, flash, registers, breakpoints, reset. One command of the protocol a method."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence, Set

from mcu_agent.boards.gdb_protocol import (
    Connection,
    FlashRegion,
    Stop,
    crc,
    escape,
    includes,
    parse_features,
    parse_memory_map,
    parse_registers,
    parse_stop,
)
from mcu_agent.errors import BoardLost, InventoryError, MemoryRefused, ProgrammingFailed
from mcu_agent.image import Segment

SERVERS = ("pyocd", "openocd", "jlink", "qemu")
RESET_COMMANDS: Mapping[str, Sequence[str]] = {
    "pyocd": ("reset halt",),
    "openocd": ("reset halt",),
    "jlink": ("reset",),  # halts after it
    "qemu": ("system_reset",),
}
_SIGNS = {  # what each prints for the command "version"
    "openocd": b"Open On-Chip Debugger",
    "pyocd": b"unrecognized command 'version'",
    "qemu": b"unknown command: 'version'",
}
_PACKET_BYTES = 1024  # where the server does not say; every server takes as much
_OVERHEAD = 32  # of a packet: command, address, length, checksum
_FLASH_TIMEOUT_S = 120.0  # erasing 2 MB of an STM32 takes up to half a minute
_RESET_TIMEOUT_S = 20.0
_PLACES = {"sp": 104, "lr": 112, "pc": 120, "xpsr": 128}  # of their digits in the answer that has all of them
_REGISTERS = {
    "sp": 13,
    "lr": 14,
    "pc": 15,
    "xpsr": 25,
}  # of org.gnu.gdb.arm.m-profile, where the server has no own ones


class GdbRemote:
    """See :class:`mcu_agent.boards.debug.DebugPort`. ``server`` is one of :data:`SERVERS`, empty to ask it.

    Raises:
        BoardLost: the server is gone, does not answer, or refuses what every server can do (transient).
        InventoryError: it does not say what it is.
    """

    def __init__(self, connection: Connection, board_id: str, server: str = "") -> None:
        self._connection = connection
        self._board_id = board_id
        self._breakpoints: dict[int, bytes] = {}
        features = parse_features(connection.ask(b"qSupported:swbreak+;hwbreak+"))
        self._packet_bytes = int(features.get("PacketSize", f"{_PACKET_BYTES:x}"), 16)
        if features.get("QStartNoAckMode") == "+":
            connection.stop_acknowledging()
        self._halt()
        self._numbers = dict(_REGISTERS)
        if features.get("qXfer:features:read") == "+":
            self._numbers |= self._described_registers()
        self.server = server or self._ask_server()
        has_map = features.get("qXfer:memory-map:read") == "+"
        self.flash: Sequence[FlashRegion] = parse_memory_map(self._transfer("memory-map", "")) if has_map else ()
        self._has_binary_write = connection.ask(b"X0,0:") == b"OK"
        self._has_crc: bool | None = None
        self._has_single_reads = True

    def read(self, address: int, size: int) -> bytes:
        """Bytes of memory.

        Raises:
            MemoryRefused: the server cannot read there.
        """
        step = max((self._packet_bytes - _OVERHEAD) // 2, 1)
        return b"".join(self._read(at, n) for at, n in _chunks(address, size, step))

    def write(self, address: int, data: bytes) -> None:
        """Write into memory that needs no programming.

        Raises:
            MemoryRefused: the server cannot write there.
        """
        step = max((self._packet_bytes - _OVERHEAD) // 2, 1)
        for at, n in _chunks(address, len(data), step):
            part = data[at - address : at - address + n]
            if self._has_binary_write:
                answer = self._connection.ask(b"X%x,%x:%b" % (at, n, escape(part)))
            else:
                answer = self._connection.ask(b"M%x,%x:%b" % (at, n, part.hex().encode()))
            if answer != b"OK":
                raise MemoryRefused(
                    self._board_id,
                    f"the GDB server refuses {n} bytes for {at:#010x} ({_text(answer)}); check the wires",
                )

    def has(self, segment: Segment) -> bool:
        """Whether the memory holds ``segment``: by the server's checksum if it can, else by reading it."""
        if self._has_crc is not False:
            answer = self._connection.ask(b"qCRC:%x,%x" % (segment.address, len(segment.data)), _FLASH_TIMEOUT_S)
            self._has_crc = answer[:1] == b"C"
            if self._has_crc:
                return int(answer[1:], 16) == crc(segment.data)
        return self.read(segment.address, len(segment.data)) == segment.data

    def program(self, segments: Sequence[Segment]) -> None:
        """Bring ``segments`` into memory: flash is erased and programmed, anything else written.

        Raises:
            ProgrammingFailed: the server says that it could not.
        """
        ranges = erase_ranges(self.flash, segments)
        for start, size in ranges:
            self._flash(b"vFlashErase:%x,%x" % (start, size), f"erase {size} bytes at {start:#010x}")
        for segment in segments:
            if self._is_flash(segment):
                self._write_flash(segment)
            else:
                self.write(segment.address, segment.data)
        if ranges:
            self._flash(b"vFlashDone", "finish programming")

    def reset(self) -> None:
        """Reset part and core; the core is halted afterwards."""
        for command in RESET_COMMANDS[self.server]:
            self.monitor(command)
        self._halt()

    def monitor(self, command: str) -> bytes:
        """What the server's own ``command`` prints."""
        printed = b""
        answer = self._connection.ask(b"qRcmd,%b" % command.encode().hex().encode(), _RESET_TIMEOUT_S)
        while answer[:1] == b"O" and answer != b"OK":
            printed += bytes.fromhex(answer[1:].decode())
            following = self._connection.wait(_RESET_TIMEOUT_S)
            if following is None:
                raise BoardLost(self._board_id, f"the GDB server has not ended its command {command!r}")
            answer = following
        if answer[:1] == b"E" and len(answer) == 3:
            raise BoardLost(self._board_id, f"the GDB server fails at its command {command!r} ({_text(answer)})")
        return printed + (bytes.fromhex(answer.decode()) if answer != b"OK" else b"")

    def register(self, name: str) -> int:
        """Value of a core register."""
        answer = self._connection.ask(b"p%x" % self._numbers[name]) if self._has_single_reads else b""
        if not answer:  # pyOCD 0.46 takes the command and gives nothing; all registers at once it does give
            self._has_single_reads = False
            answer = self._connection.ask(b"g")[_PLACES[name] :]
        if not re.match(rb"[0-9a-f]{8}", answer):
            raise BoardLost(self._board_id, f"the GDB server cannot read register {name} ({_text(answer)})")
        return int.from_bytes(bytes.fromhex(answer[:8].decode()), "little")

    def set_register(self, name: str, value: int) -> None:
        """Set a core register."""
        data = value.to_bytes(4, "little").hex().encode()
        answer = self._connection.ask(b"P%x=%b" % (self._numbers[name], data))
        if answer != b"OK":
            raise BoardLost(self._board_id, f"the GDB server cannot set register {name} ({_text(answer)})")

    def set_breakpoints(self, addresses: Set[int]) -> None:
        """Have breakpoints at ``addresses`` and nowhere else."""
        for address in sorted(self._breakpoints.keys() - addresses):
            self._connection.ask(b"z%b,%x,2" % (self._breakpoints.pop(address), address))
        for address in sorted(addresses - self._breakpoints.keys()):
            for kind in (b"1", b"0"):  # in hardware; flash takes no others, unless the server knows better
                if self._connection.ask(b"Z%b,%x,2" % (kind, address)) == b"OK":
                    self._breakpoints[address] = kind
                    break
            else:
                raise BoardLost(
                    self._board_id,
                    f"the GDB server sets no breakpoint at {address:#010x}; {len(self._breakpoints)} are set: does "
                    "another debugger use them?",
                )

    def watch_writes(self, address: int, size: int) -> None:
        """Halt the core when it writes into a range, if the server can."""
        self._connection.ask(b"Z2,%x,%x" % (address, size))

    def step(self) -> None:
        """Execute one instruction."""
        self._connection.send(b"s")
        if self._wait_stop(self._connection.reply_timeout_s) is None:
            raise BoardLost(self._board_id, "the core does not come back from a single step; reset or power-cycle it")

    def run(self, timeout_s: float, quiet_s: float) -> bool:
        """Let the core run; nothing is sent until it stops or its time is over."""
        self._connection.send(b"c")
        if self._wait_stop(timeout_s) is not None:
            return True
        self._connection.interrupt()
        if self._wait_stop(self._connection.reply_timeout_s) is None:
            raise BoardLost(self._board_id, "the core cannot be halted; reset or power-cycle the board")
        return False

    def _wait_stop(self, timeout_s: float) -> Stop | None:
        """The next stop reply, or None when none came in time; what the server prints meanwhile is left out."""
        while True:
            reply = self._connection.wait(timeout_s)
            if reply is None:
                return None
            if reply[:1] == b"E" and len(reply) == 3:
                raise BoardLost(self._board_id, f"the GDB server cannot run the core ({_text(reply)})")
            stop = parse_stop(reply)
            if stop is not None and stop.has_ended:
                raise BoardLost(self._board_id, f"the GDB server says that its program has ended ({_text(reply)})")
            if stop is not None:
                return stop

    def _halt(self) -> None:
        """See to it that the core stands, which most servers do when somebody connects."""
        answer = self._connection.ask(b"?")
        if parse_stop(answer) is None:
            self._connection.interrupt()
            if self._wait_stop(self._connection.reply_timeout_s) is None:
                raise BoardLost(self._board_id, f"the core cannot be halted ({_text(answer)}); is it in reset?")

    def _read(self, address: int, size: int) -> bytes:
        answer = self._connection.ask(b"m%x,%x" % (address, size))
        try:
            data = bytes.fromhex(answer.decode())
        except ValueError:
            data = b""
        if len(data) != size:  # servers may give less, and then have met memory that is not there
            raise MemoryRefused(
                self._board_id,
                f"{size} bytes at {address:#010x} cannot be read ({_text(answer[:20])}); check the wires",
            )
        return data

    def _transfer(self, what: str, annex: str) -> str:
        """A document of the server, in as many parts as it takes."""
        text, size = b"", self._packet_bytes - _OVERHEAD
        while True:
            answer = self._connection.ask(b"qXfer:%b:read:%b:%x,%x" % (what.encode(), annex.encode(), len(text), size))
            if answer[:1] not in (b"m", b"l"):
                raise BoardLost(self._board_id, f"the GDB server does not give its {what} ({_text(answer)})")
            text += answer[1:]
            if answer[:1] == b"l":
                return text.decode("utf-8", "replace")

    def _described_registers(self) -> Mapping[str, int]:
        text = self._transfer("features", "target.xml")
        found: dict[str, int] = dict(parse_registers(text.replace("xi:include", "include")))
        for part in includes(text):
            found |= parse_registers(self._transfer("features", part), max(found.values(), default=-1) + 1)
        return {name: number for name, number in found.items() if name in _REGISTERS}

    def says_it_is(self, server: str) -> bool:
        """Whether the server, whatever it was called, prints what ``server`` does."""
        return _SIGNS[server] in self.monitor("version")

    def _ask_server(self) -> str:
        printed = self.monitor("version")
        for name, sign in _SIGNS.items():
            if sign in printed:
                return name
        raise InventoryError(
            f"board {self._board_id}: the GDB server does not say what it is; set server to one of "
            f"{', '.join(SERVERS)} in the rack file"
        )

    def _is_flash(self, segment: Segment) -> bool:
        return any(region.start <= segment.address < region.end for region in self.flash)

    def _write_flash(self, segment: Segment) -> None:
        step = max((self._packet_bytes - _OVERHEAD) // 2, 1)  # escaping may double a packet
        for at, n in _chunks(segment.address, len(segment.data), step):
            part = segment.data[at - segment.address : at - segment.address + n]
            self._flash(b"vFlashWrite:%x:%b" % (at, escape(part)), f"program {n} bytes at {at:#010x}")

    def _flash(self, command: bytes, what: str) -> None:
        answer = self._connection.ask(command, _FLASH_TIMEOUT_S)
        if answer != b"OK":
            raise ProgrammingFailed(
                self._board_id,
                f"the GDB server cannot {what} ({_text(answer)}); see its own output, and whether the flash is "
                "protected",
            )


def erase_ranges(flash: Sequence[FlashRegion], segments: Sequence[Segment]) -> Sequence[tuple[int, int]]:
    """(start, bytes) of the whole blocks of flash that ``segments`` lie in, neighbours together, none twice."""
    blocks: dict[int, int] = {}
    for region, segment in itertools.product(flash, segments):
        first = max(segment.address, region.start)
        last = min(segment.address + len(segment.data), region.end)
        if first < last:
            start = first - (first - region.start) % region.block
            blocks |= dict.fromkeys(range(start, last, region.block), region.block)
    ranges: list[tuple[int, int]] = []
    for at, size in sorted(blocks.items()):
        if ranges and sum(ranges[-1]) == at:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + size)
        else:
            ranges.append((at, size))
    return ranges


def _chunks(address: int, size: int, step: int) -> Iterable[tuple[int, int]]:
    """(address, bytes) of parts of at most ``step`` bytes; whole multiples of 4, for servers that read by words."""
    step = max(step - step % 4, 4)
    return ((at, min(step, address + size - at)) for at in range(address, address + size, step))


def _text(answer: bytes) -> str:
    return repr(answer.decode("ascii", "backslashreplace")) if answer else "it does not know the command"
