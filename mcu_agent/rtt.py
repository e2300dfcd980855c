"""Text that firmware writes through SEGGER's RTT: a ring buffer in RAM which the debugger empties.

For text only, between runs; outputs and figures go through the mailbox. Little endian, at the symbol ``_SEGGER_RTT``:
an identification of 16 bytes, the numbers of channels up and down, then 24 bytes a channel.
Source: SEGGER UM08001, "RTT".
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from mcu_agent.boards.protocol import Board
from mcu_agent.errors import FirmwareError
from mcu_agent.image import Image

SYMBOL = "_SEGGER_RTT"
ID = b"SEGGER RTT".ljust(16, b"\0")
_HEADER = struct.Struct("<16sII")
_CHANNEL = struct.Struct("<6I")
_READ_OFFSET = 16  # of the read pointer in a channel
_MAX_CHANNELS = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Channel:
    """One channel up. ``write`` and ``read`` are places in the buffer; it is empty where they are equal."""

    buffer: int
    size: int
    write: int
    read: int

    def unread(self) -> Sequence[tuple[int, int]]:
        """(address, bytes) of what has not been read: none, one, or two ranges where it wraps round."""
        if self.write >= self.read:
            ranges = [(self.buffer + self.read, self.write - self.read)]
        else:
            ranges = [(self.buffer + self.read, self.size - self.read), (self.buffer, self.write)]
        return [(address, size) for address, size in ranges if size]


def count_channels(header: bytes) -> int:
    """Channels up that a control block has by its first 24 bytes; 0 where the firmware has not set it up yet.

    Raises:
        FirmwareError: the block is damaged.
    """
    found, n_up, n_down = _HEADER.unpack(header)
    if found != ID:
        return 0
    if n_up > _MAX_CHANNELS or n_down > _MAX_CHANNELS:
        raise FirmwareError(f"the RTT block has {n_up} channels up and {n_down} down; it has been overwritten")
    return int(n_up)


def parse_channel(data: bytes) -> Channel:
    """One channel from its 24 bytes.

    Raises:
        FirmwareError: its pointers lie outside its buffer.
    """
    _, buffer, size, write, read, _ = _CHANNEL.unpack(data)
    if write >= max(size, 1) or read >= max(size, 1):
        raise FirmwareError(f"an RTT channel of {size} bytes has its pointers at {write} and {read}: overwritten")
    return Channel(buffer=buffer, size=size, write=write, read=read)


def drain(board: Board, image: Image, channel: int = 0) -> str:
    """What the firmware has written into a channel up since it was read last, as UTF-8; empty where it has none.

    The core must be halted. What is no UTF-8 is shown as the replacement character, so a character that is cut by a
    full buffer costs no more than itself.

    Raises:
        FirmwareError: the control block is damaged.
    """
    symbol = image.symbols.get(SYMBOL)
    if symbol is None or channel >= count_channels(board.read(symbol.address, _HEADER.size)):
        return ""
    at = symbol.address + _HEADER.size + channel * _CHANNEL.size
    found = parse_channel(board.read(at, _CHANNEL.size))
    data = b"".join(board.read(address, size) for address, size in found.unread())
    if data:
        board.write(at + _READ_OFFSET, found.write.to_bytes(4, "little"))
    return data.decode("utf-8", "replace")
