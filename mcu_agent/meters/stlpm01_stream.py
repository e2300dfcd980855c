"""The streams of ST's PowerShield firmware (X-NUCLEO-LPM01A, STLINK-V3PWR), decoded in one go; pure.

Text: a line a reading (``6409-07`` is 640.9 µA), between them lines such as ``TimeStamp: 001s 000ms, buff 02%`` and
``event 1 ris``. Binary: two bytes a reading, big endian, mantissa of 12 bits times 16 to the minus the upper four;
between them messages ``F0 <kind> … FF FF``, which no reading begins with.

Source:
    ST UM2269 (commands and formats); the messages of the STLINK-V3PWR as in ST's x-cube-n6-ai-power-measurement.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from mcu_agent.meters.protocol import FloatArray

_READING = re.compile(r"^(\d{4})([+-]\d{2})$")
_STAMP = re.compile(r"^TimeStamp:\s*(\d+)s\s*(\d+)ms(?:,\s*buff\s*(\d+)%)?", re.IGNORECASE)
_EVENT = re.compile(r"^event\b", re.IGNORECASE)
_FAULT = re.compile(r"\berr(?:or)?\b", re.IGNORECASE)
_OVERCURRENT = re.compile(r"over.?current", re.IGNORECASE)
_PROMPT = "PowerShield > "

_TEXT_KINDS = (0xF1, 0xF2)
_STAMP_KIND, _END_KIND, _OVERCURRENT_KIND = 0xF3, 0xF4, 0xF5
# Length of a message with its F0 and FF FF. The overcurrent message has four bytes more on the STLINK-V3PWR.
_LENGTHS = {
    0xF3: (9,),
    0xF4: (4,),
    0xF5: (4, 8),
    0xF6: (4,),
    0xF7: (6,),
    0xF8: (6,),
    0xF9: (5,),
    0xFA: (4,),
    0xFB: (4,),
}
_LONGEST_TEXT = 512


@dataclass(kw_only=True, slots=True)
class Stream:
    """What a stream held: ``current_a`` (t,) amperes, and by the number of readings before each: ``stamps`` (readings,
    milliseconds on the meter's clock) and ``events`` (readings). ``faults`` are the meter's own words."""

    current_a: FloatArray
    stamps: list[tuple[int, int]] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    is_overcurrent: bool = False
    n_garbled: int = 0

    def n_lost(self, rate_hz: float) -> int:
        """Readings missing between one time stamp and the next, and garbled ones.

        A stamp is exact to the millisecond, so what a stamp's rounding explains is not counted.
        """
        missing = 0
        for (before, before_ms), (after, after_ms) in zip(self.stamps, self.stamps[1:], strict=False):
            expected = (after_ms - before_ms) * rate_hz / 1000
            rounding = max(1.0, rate_hz / 1000)
            if expected - (after - before) > rounding:
                missing += round(expected - (after - before))
        return missing + self.n_garbled


def decode_text(data: bytes) -> Stream:
    """A stream in the format ``ascii_dec``; an unfinished line at its end is left out."""
    mantissas: list[int] = []
    exponents: list[int] = []
    stream = Stream(current_a=np.empty(0))
    lines = data.decode("ascii", errors="replace").split("\n")[:-1]
    for raw in lines:
        line = raw.replace("\0", "").replace(_PROMPT, "").strip()
        if match := _READING.match(line):
            mantissas.append(int(match[1]))
            exponents.append(int(match[2]))
        elif line:
            _note_line(stream, line, len(mantissas))
    stream.current_a = np.array(mantissas, dtype=np.float64) * 10.0 ** np.array(exponents, dtype=np.float64)
    return stream


def _note_line(stream: Stream, line: str, position: int) -> None:
    if match := _STAMP.match(line):
        stream.stamps.append((position, int(match[1]) * 1000 + int(match[2])))
    elif _EVENT.match(line):
        stream.events.append(position)
    elif _OVERCURRENT.search(line):
        stream.is_overcurrent = True
    elif _FAULT.search(line):
        stream.faults.append(line)
    elif line[0].isdigit():
        stream.n_garbled += 1


def decode_binary(data: bytes) -> Stream:
    """A stream in the format ``bin_hexa``; a reading or message cut off at its end is left out."""
    stream = Stream(current_a=np.empty(0))
    parts: list[FloatArray] = []
    position = at = 0
    while at < len(data):
        found = _next_message(data, at)
        end = len(data) if found < 0 else found
        parts.append(_readings(data[at : end - (end - at) % 2]))
        stream.n_garbled += (end - at) % 2 if found >= 0 else 0
        position += len(parts[-1])
        if found < 0:
            break
        at = _take_message(data, found, stream, position)
    stream.current_a = np.concatenate(parts) if parts else np.empty(0)
    return stream


def _next_message(data: bytes, start: int) -> int:
    """Where the next message begins, at ``start`` plus a multiple of two; -1 where there is none.

    The second byte of a reading may be F0 too, so only even distances count.
    """
    found = data.find(b"\xf0", start)
    while found >= 0 and ((found - start) % 2 or (found + 1 < len(data) and data[found + 1] < 0xF1)):
        found = data.find(b"\xf0", found + 1)
    return found


def _take_message(data: bytes, start: int, stream: Stream, position: int) -> int:
    """Note the message at ``start``; gives where the stream goes on."""
    kind = data[start + 1] if start + 1 < len(data) else 0
    end = _message_end(data, start, kind)
    if end < 0:
        return len(data)
    body = data[start + 2 : end - 2]
    if kind == _STAMP_KIND:
        stream.stamps.append((position, int.from_bytes(body[:4], "big") & 0x7FFF_FFFF))
    elif kind == _OVERCURRENT_KIND:
        stream.is_overcurrent = True
    elif kind in _TEXT_KINDS:
        _note_line(stream, body.decode("ascii", errors="replace").strip() or "-", position)
        if kind == _TEXT_KINDS[0] and not stream.faults and not stream.is_overcurrent:
            stream.faults.append(body.decode("ascii", errors="replace").strip())
    return end


def _message_end(data: bytes, start: int, kind: int) -> int:
    """The index after the message at ``start``; -1 where it is cut off or never ends."""
    for length in _LENGTHS.get(kind, ()):
        if data[start + length - 2 : start + length] == b"\xff\xff":
            return start + length
    end = data.find(b"\xff\xff", start + 2, start + _LONGEST_TEXT)
    return end + 2 if end >= 0 else -1


def _readings(data: bytes) -> FloatArray:
    words = np.frombuffer(data, dtype=">u2").astype(np.int64)
    return (words & 0xFFF) * 16.0 ** -(words >> 12).astype(np.float64)
