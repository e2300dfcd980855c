"""Meters on pseudo-terminals: they speak their protocol to the unmodified vendor's library, or to ours."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import termios
import threading
import time
import tty
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from mcu_agent.meters.ppk2_encode import TYPICAL, encode, logic_of, metadata
from mcu_agent.windows import Call

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

RUN_A, IDLE_A, WAITING_A = 6.0e-3, 20e-6, 3.0e-3
LEAD_S = 0.02
_PIECE_S = 0.005


@dataclass
class Played:
    """The windows that a board plays, by numbers of readings: (idle from, high from, high to, idle to)."""

    windows: list[tuple[int, int, int, int]]
    dropped: list[tuple[int, int]]

    def at(self, index: npt.NDArray[np.int64]) -> tuple[Floats, Bools]:
        """Current and trigger pin at readings of these numbers."""
        current, high = np.full(len(index), WAITING_A), np.zeros(len(index), dtype=np.bool_)
        for start, rise, fall, end in self.windows:
            current[(index >= start) & (index < end)] = IDLE_A
            inside = (index >= rise) & (index < fall)
            current[inside] = RUN_A
            high |= inside
        return current, high

    def arriving(self, index: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Those of these readings that are not dropped on their way."""
        kept = np.ones(len(index), dtype=np.bool_)
        for first, end in self.dropped:
            kept &= ~((index >= first) & (index < end))
        return index[kept]


class PtyMeter(threading.Thread):
    """The common part: a terminal, commands, and readings that flow while it is started.

    A piece of 5 ms is sent when the one before has been read, and :meth:`clock` goes by what has been sent: however
    busy this host is, the meter is never more than two pieces ahead of its reader.
    """

    rate_hz: float = 100_000.0

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._master, self._slave = pty.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.path = os.ttyname(self._slave)
        self.commands: list[bytes] = []
        self.is_mute = False
        self.drop_next = 0
        self.played = Played([], [])
        self._is_streaming = False
        self._epoch_s, self._rested_s = 0.0, time.monotonic()
        self._n_sent = 0
        self._out = b""
        self._changed = threading.Condition()
        self._is_over = False
        self.start()

    def clock(self) -> float:
        """Seconds: of readings while they flow, of real time in between."""
        with self._changed:
            moved = self._n_sent / self.rate_hz if self._is_streaming else time.monotonic() - self._rested_s
            return self._epoch_s + moved

    # What a board does, called by the test.

    def window(self, idle_s: float, length_s: float) -> Call:
        """Have the board play one window; returns when the meter has sent all of it."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._is_streaming, 5.0)
            began_s = self.clock()
            start = self._n_sent + round(LEAD_S * self.rate_hz)
            n_idle, n_high = round(idle_s * self.rate_hz), round(length_s * self.rate_hz)
            rise, fall = start + n_idle, start + n_idle + n_high
            self.played.windows.append((start, rise, fall, fall + n_idle))
            if self.drop_next:
                middle = (rise + fall) // 2
                self.played.dropped.append((middle, middle + self.drop_next))
                self.drop_next = 0
            end = fall + n_idle + round(LEAD_S * self.rate_hz)
            assert self._changed.wait_for(lambda: self._n_sent >= end, 30.0)
            returned_s = self.clock()
        return Call(began_s=began_s, returned_s=returned_s, idle_s=idle_s, length_s=n_high / self.rate_hz)

    def has_heard(self, command: bytes) -> bool:
        """Whether ``command`` arrives; waits for it."""
        with self._changed:
            return self._changed.wait_for(lambda: command in self.commands, 5.0)

    def unplug(self) -> None:
        """Pull the cable."""
        self._is_over = True
        self.join()

    # The meter's side.

    def run(self) -> None:
        while not self._is_over:
            ready, _, _ = select.select([self._master], [], [], 0.0005 if self._is_streaming else 0.01)
            if ready:
                self._take(self._received())
            with self._changed:
                self._stream()
                self._changed.notify_all()
            self._flush()
        os.close(self._slave)
        os.close(self._master)

    def _received(self) -> bytes:
        try:
            return os.read(self._master, 4096)
        except OSError:
            return b""

    def _take(self, data: bytes) -> None:
        raise NotImplementedError

    def _encoded(self, index: npt.NDArray[np.int64]) -> bytes:
        raise NotImplementedError

    def _begin(self) -> None:
        with self._changed:
            self._epoch_s, self._n_sent, self._is_streaming = self.clock(), 0, True
            self.played = Played([], [])
            self._changed.notify_all()

    def _end(self) -> None:
        with self._changed:
            self._epoch_s, self._rested_s, self._is_streaming = self.clock(), time.monotonic(), False

    def _stream(self) -> None:
        if not self._is_streaming or self._out or self._n_unread():
            return
        index = np.arange(self._n_sent, self._n_sent + round(_PIECE_S * self.rate_hz))
        self._out += self._encoded(index)
        self._n_sent += len(index)

    def _n_unread(self) -> int:
        """Bytes that wait to be read on the other side."""
        return int.from_bytes(fcntl.ioctl(self._slave, termios.FIONREAD, bytes(4)), "little")

    def _flush(self) -> None:
        while self._out:
            try:
                sent = os.write(self._master, self._out)
            except BlockingIOError:
                return
            self._out = self._out[sent:]


class FakePpk2(PtyMeter):
    """A Power Profiler Kit II. Logic channel ``channel`` is wired to the board's trigger pin."""

    _LENGTHS: ClassVar = {0x19: 1, 0x06: 1, 0x07: 1, 0x0D: 3, 0x0C: 2, 0x11: 2}

    def __init__(self, channel: int = 2, metadata_text: str | None = None, *, is_streaming: bool = False) -> None:
        self._channel = channel
        self._metadata = metadata(TYPICAL) if metadata_text is None else metadata_text
        self._in = b""
        self.supply_v = 0.0
        self.is_on = False
        super().__init__()
        if is_streaming:
            self._begin()

    def _take(self, data: bytes) -> None:
        self._in += data
        while self._in and len(self._in) >= (length := self._LENGTHS[self._in[0]]):
            command, self._in = self._in[:length], self._in[length:]
            self.commands.append(command)
            if not self.is_mute:
                self._obey(command)

    def _obey(self, command: bytes) -> None:
        kind = command[0]
        if kind == 0x19:
            self._out += self._metadata.encode()
        elif kind == 0x06:
            self._begin()
        elif kind == 0x07:
            self._end()
        elif kind == 0x0D:
            self.supply_v = (800 + (command[1] - 3) * 256 + command[2] - 32) / 1000
        elif kind == 0x0C:
            self.is_on = command[1] == 1

    def _encoded(self, index: npt.NDArray[np.int64]) -> bytes:
        current, high = self.played.at(index)
        words = encode(
            current, logic_of(high, self._channel), TYPICAL, supply_v=self.supply_v or 3.0, first_count=int(index[0])
        )
        return words[np.isin(index, self.played.arriving(index))].tobytes()


class FakePowerShield(PtyMeter):
    """ST's PowerShield firmware: an X-NUCLEO-LPM01A, or with ``is_v3pwr`` a STLINK-V3PWR."""

    def __init__(self, *, is_v3pwr: bool = False, is_old: bool = False) -> None:
        self._known = ["volt", "format", "freq", "trigsrc", "acqtime", "pwr"]
        self._known += ["power_monitor"] if is_v3pwr else ["htc", "hrc", "acqmode", "output", "funcmode"]
        self._known += [] if is_v3pwr or is_old else ["eventsrc"]
        self._in = b""
        self._format = "ascii_dec"
        self._n_events = 0
        self.overcurrent_at: int | None = None
        self.is_on = False
        super().__init__()

    def _take(self, data: bytes) -> None:
        self._in += data
        while b"\n" in self._in:
            line, self._in = self._in.split(b"\n", 1)
            command = line.strip().decode()
            self.commands.append(command.encode())
            if command and not self.is_mute:
                self._obey(command)

    def _obey(self, command: str) -> None:
        verb, *arguments = command.split()
        if verb == "stop":
            if self._is_streaming:
                self._end()
                self._out += b"\r\nPowerShield > Acquisition completed\r\nPowerShield > "
            return
        if verb == "start":
            self._out += b"PowerShield > ack start\r\n\r\n"
            self._begin()
            return
        if verb not in self._known:
            self._out += f"PowerShield > error {command}\r\nError detail: unknown command\r\n\r\n".encode()
            return
        if verb == "format":
            self._format = arguments[0]
        elif verb == "freq":
            self.rate_hz = float(arguments[0])
        elif verb == "pwr":
            self.is_on = arguments[0] == "on"
        self._out += f"PowerShield > ack {command}\r\n\r\n".encode()

    def _encoded(self, index: npt.NDArray[np.int64]) -> bytes:
        arriving = self.played.arriving(index)
        current, _ = self.played.at(arriving)
        falls = {fall for _, _, fall, _ in self.played.windows}
        out = bytearray()
        for number, amperes in zip(arriving.tolist(), current.tolist(), strict=True):
            if number and number % 1000 == 0:
                out += self._stamp(number)
            if number in falls:
                self._n_events += 1
                out += b"" if self._format == "bin_hexa" else f"event {self._n_events} ris\r\n".encode()
            if self.overcurrent_at is not None and number >= self.overcurrent_at:
                out += b"\xf0\xf5\xff\xff" if self._format == "bin_hexa" else b"error: overcurrent\r\n"
                self.overcurrent_at = None
            out += self._reading(amperes)
        return bytes(out)

    def _stamp(self, number: int) -> bytes:
        ms = round(number / self.rate_hz * 1000)
        if self._format == "bin_hexa":
            return b"\xf0\xf3" + ms.to_bytes(4, "big") + b"\x05\xff\xff"
        return f"\0TimeStamp: {ms // 1000:03d}s {ms % 1000:03d}ms, buff 05%\r\n\0".encode()

    def _reading(self, amperes: float) -> bytes:
        if self._format == "bin_hexa":
            power = next(k for k in range(14, -1, -1) if round(amperes * 16**k) < 4096)
            return (power << 12 | round(amperes * 16**power)).to_bytes(2, "big")
        power = next(k for k in range(14, -1, -1) if round(amperes * 10**k) < 10_000)
        return f"{round(amperes * 10**power):04d}-{power:02d}\r\n".encode()
