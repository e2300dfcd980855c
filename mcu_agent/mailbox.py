"""The mailbox in the device's RAM through which inputs go in and outputs and counters come out.

Little endian, at the symbol ``edgefront_mailbox``; the firmware sets the magic number when it is ready for a command.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

MAGIC = 0x45464D42
VERSION = 2
COMMAND_RUN = 1
COMMAND_WINDOW = 2
LONGEST_IDLE_MS = 60_000
NO_TEMPERATURE = -(2**31)

_LAYOUT = struct.Struct("<II32s" + "I" * 14 + "IIQIiI")
SIZE = _LAYOUT.size
COMMAND_OFFSET = 40
INPUT_CRC_OFFSET = 68
REPEATS_OFFSET = 96
IDLE_MS_OFFSET = 100


ERROR_CRC = 2  # the input's checksum is wrong


class Status(IntEnum):
    """What the firmware says of itself."""

    READY = 0
    RUNNING = 1
    DONE = 2
    ERROR = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Mailbox:
    """The mailbox as it was read; see the field names for units. ``cycles`` and ``window_cycles`` are 0 where the
    device has no live counter, ``clock_hz`` is 0 where it does not know its clock, and ``temperature_mdeg``, in
    thousandths of a degree Celsius, is ``NO_TEMPERATURE`` where it is not measured.
    """

    magic: int
    version: int
    image_id: bytes
    command: int
    status: int
    error_code: int
    input_address: int
    input_bytes: int
    output_address: int
    output_bytes: int
    input_crc: int
    output_crc: int
    sequence: int
    has_cycle_counter: int
    cycles: int
    stack_reserved_bytes: int
    stack_used_bytes: int
    repeats: int
    idle_ms: int
    window_cycles: int
    clock_hz: int
    temperature_mdeg: int
    keeps_input: int

    def pack(self) -> bytes:
        """The 124 bytes as they lie in the device's RAM."""
        return _LAYOUT.pack(*(getattr(self, name) for name in _NAMES))

    @staticmethod
    def unpack(data: bytes) -> Mailbox:
        """The inverse of :meth:`pack`.

        Raises:
            ValueError: ``data`` is not exactly ``SIZE`` bytes long.
        """
        if len(data) != SIZE:
            raise ValueError(f"a mailbox has {SIZE} bytes, not {len(data)}")
        return Mailbox(**dict(zip(_NAMES, _LAYOUT.unpack(data), strict=True)))


_NAMES = tuple(Mailbox.__dataclass_fields__)
