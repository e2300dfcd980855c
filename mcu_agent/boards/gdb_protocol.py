"""The packets of the GDB remote protocol: framing, escaping, and the few answers that need reading.

Source: GDB manual, appendix "GDB Remote Serial Protocol". Everything here is pure but :class:`Connection`, which owns
the socket.
"""

from __future__ import annotations

import re
import socket
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from mcu_agent.errors import BoardLost, TransferCorrupt

REPLY_TIMEOUT_S = 10.0
INTERRUPT = b"\x03"
_ESCAPE, _REPEAT = 0x7D, 0x2A
_MAX_REPEATS = 3  # of a damaged packet
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True, kw_only=True, slots=True)
class Packet:
    """A packet as it came: ``payload`` decoded, and whether its checksum fits."""

    payload: bytes
    is_intact: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class FlashRegion:
    """Flash that the server programs: [start, start + size), erased in blocks of ``block`` bytes."""

    start: int
    size: int
    block: int

    @property
    def end(self) -> int:
        """First address after the region."""
        return self.start + self.size


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """Why the core stands: the signal, or that the program behind the server has ended."""

    signal: int
    has_ended: bool = False


def escape(data: bytes) -> bytes:
    """``data`` with the characters that frame packets replaced, for the binary commands."""
    if not any(byte in b"#$}*" for byte in data):
        return data
    return b"".join(bytes((_ESCAPE, byte ^ 0x20)) if byte in b"#$}*" else bytes((byte,)) for byte in data)


def expand(body: bytes) -> bytes:
    """The payload of a received packet: escapes undone, run lengths written out."""
    if _ESCAPE not in body and _REPEAT not in body:
        return body
    out, at = bytearray(), 0
    while at < len(body):
        byte, following = body[at], body[at + 1 : at + 2]
        if byte == _ESCAPE and following:
            out.append(following[0] ^ 0x20)
            at += 2
        elif byte == _REPEAT and out and following:
            out += out[-1:] * (following[0] - 29)
            at += 2
        else:
            out.append(byte)
            at += 1
    return bytes(out)


def frame(payload: bytes) -> bytes:
    """The packet that carries ``payload``."""
    return b"$%b#%02x" % (payload, sum(payload) & 0xFF)


def take(buffer: bytes) -> tuple[Packet | bytes | None, bytes]:
    """The first packet or acknowledgement (``+``, ``-``) in ``buffer``, and what comes after it.

    None when there is no whole one yet. Notifications, which may come at any time, and noise between packets are left
    out.
    """
    at = 0
    while at < len(buffer):
        head = buffer[at : at + 1]
        if head in (b"+", b"-"):
            return head, buffer[at + 1 :]
        if head not in (b"$", b"%"):
            at += 1
            continue
        end = buffer.find(b"#", at)
        if end < 0 or len(buffer) < end + 3:
            return None, buffer[at:]
        body, rest = buffer[at + 1 : end], buffer[end + 3 :]
        if head == b"%":
            buffer, at = rest, 0
            continue
        is_intact = buffer[end + 1 : end + 3].lower() == b"%02x" % (sum(body) & 0xFF)
        return Packet(payload=expand(body) if is_intact else body, is_intact=is_intact), rest
    return None, b""


def parse_features(answer: bytes) -> Mapping[str, str]:
    """What ``qSupported`` says: values of ``name=value``, ``+`` and ``-`` of the others."""
    found: dict[str, str] = {}
    for item in answer.decode("ascii", "replace").split(";"):
        name, equals, value = item.partition("=")
        if equals:
            found[name] = value
        elif item[-1:] in ("+", "-"):
            found[item[:-1]] = item[-1]
    return found


def parse_memory_map(text: str) -> Sequence[FlashRegion]:
    """The flash regions of a memory map, in its order.

    Raises:
        ValueError: it is no memory map.
    """
    try:
        root = ElementTree.fromstring(re.sub(r"<!DOCTYPE[^>]*>", "", text))
        found = []
        for memory in root.iter("memory"):
            if memory.get("type") == "flash":
                start, size = int(memory.get("start", ""), 0), int(memory.get("length", ""), 0)
                block = memory.find("property[@name='blocksize']")
                found.append(
                    FlashRegion(start=start, size=size, block=int((block.text or "1") if block is not None else "1", 0))
                )
        return found
    except ElementTree.ParseError as error:
        raise ValueError(f"no memory map: {error}") from error


def parse_registers(text: str, first: int = 0) -> Mapping[str, int]:
    """Numbers of the registers in a target description, by name; ``first`` is that of the first one without a number.

    Raises:
        ValueError: it is no target description.
    """
    try:
        root = ElementTree.fromstring(re.sub(r"<!DOCTYPE[^>]*>", "", text))
    except ElementTree.ParseError as error:
        raise ValueError(f"no target description: {error}") from error
    found, number = {}, first
    for register in root.iter("reg"):
        number = int(register.get("regnum") or number)
        found[(register.get("name") or "").lower()] = number
        number += 1
    return found


def includes(text: str) -> Sequence[str]:
    """The parts that a target description takes from other documents of the server."""
    return re.findall(r"<xi:include\s+href=[\"']([^\"']+)[\"']", text)


def parse_stop(reply: bytes) -> Stop | None:
    """A stop reply; None for a packet that is none."""
    if reply[:1] in (b"T", b"S"):
        return Stop(signal=int(reply[1:3], 16))
    if reply[:1] in (b"W", b"X"):
        return Stop(signal=int(reply[1:3], 16), has_ended=True)
    return None


def crc(data: bytes) -> int:
    """The checksum of ``qCRC``: polynomial 0x04C11DB7, most significant bit first, from all ones, not inverted.

    It is zlib's of the data with the bits of every byte turned round.
    """
    turned = zlib.crc32(data.translate(_REVERSED)) ^ 0xFFFFFFFF
    return int(f"{turned:032b}"[::-1], 2)


class Connection:
    """Packets to and from one server. Errors name the board and the server.

    Raises:
        BoardLost: the server is gone, or does not answer in time (transient).
        TransferCorrupt: packets come damaged again and again (transient).
    """

    def __init__(
        self, connection: socket.socket, board_id: str, server: str, reply_timeout_s: float = REPLY_TIMEOUT_S
    ) -> None:
        self.reply_timeout_s = reply_timeout_s
        self._socket = connection
        self._board_id = board_id
        self._server = server
        self._buffer = b""
        self._acknowledges = True

    def stop_acknowledging(self) -> None:
        """Agree with the server, where it can, that packets need no acknowledgement."""
        if self.ask(b"QStartNoAckMode") == b"OK":
            self._acknowledges = False

    def ask(self, command: bytes, timeout_s: float | None = None) -> bytes:
        """The answer to ``command``; empty where the server does not know it."""
        timeout_s = self.reply_timeout_s if timeout_s is None else timeout_s
        self.send(command)
        answer = self.wait(timeout_s)
        if answer is None:
            raise BoardLost(
                self._board_id,
                f"the GDB server at {self._server} has not answered {_short(command)} within {timeout_s:g} s; "
                "check that it runs, is connected to its probe, and serves nobody else",
            )
        return answer

    def send(self, command: bytes) -> None:
        """Send ``command`` and see to it that it arrives."""
        packet = frame(command)
        for _ in range(_MAX_REPEATS):
            self._write(packet)
            if not self._acknowledges or self._next_acknowledgement(command) == b"+":
                return
        raise TransferCorrupt(
            f"board {self._board_id}: the GDB server at {self._server} received {_short(command)} damaged "
            f"{_MAX_REPEATS} times"
        )

    def interrupt(self) -> None:
        """Ask the server to halt the core; it answers with a stop reply."""
        self._write(INTERRUPT)

    def wait(self, timeout_s: float) -> bytes | None:
        """The next packet, or None when none came in time."""
        deadline, damaged = time.monotonic() + timeout_s, 0
        while True:
            item = self._next(deadline)
            if item is None:
                return None
            if isinstance(item, bytes):  # a late acknowledgement
                continue
            if item.is_intact:
                if self._acknowledges:
                    self._write(b"+")
                return item.payload
            damaged += 1
            if not self._acknowledges or damaged >= _MAX_REPEATS:
                raise TransferCorrupt(
                    f"board {self._board_id}: a packet from the GDB server at {self._server} has a wrong checksum "
                    f"({damaged} times): {_short(item.payload)}"
                )
            self._write(b"-")

    def close(self) -> None:
        """Close the connection; harmless when it is closed."""
        self._socket.close()

    def _next_acknowledgement(self, command: bytes) -> bytes:
        deadline = time.monotonic() + self.reply_timeout_s
        while True:
            item = self._next(deadline)
            if item is None:
                raise BoardLost(
                    self._board_id, f"the GDB server at {self._server} has not acknowledged {_short(command)}"
                )
            if isinstance(item, bytes):
                return item

    def _next(self, deadline: float) -> Packet | bytes | None:
        while True:
            item, self._buffer = take(self._buffer)
            if item is not None:
                return item
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            try:
                self._socket.settimeout(left)
                received = self._socket.recv(65536)
            except TimeoutError:
                return None
            except OSError as error:
                raise self._lost(str(error)) from error
            if not received:
                raise self._lost("it closed the connection")
            self._buffer += received

    def _write(self, data: bytes) -> None:
        try:
            self._socket.settimeout(self.reply_timeout_s)
            self._socket.sendall(data)
        except OSError as error:
            raise self._lost(str(error)) from error

    def _lost(self, why: str) -> BoardLost:
        return BoardLost(
            self._board_id,
            f"the GDB server at {self._server} is gone ({why}); start it again, and see its own output for the reason",
        )


def _short(payload: bytes) -> str:
    text = payload[:40].decode("ascii", "backslashreplace")
    return repr(text + ("…" if len(payload) > 40 else ""))
