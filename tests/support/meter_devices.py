"""Meters that are no serial ports: an INA226 on an I²C bus, and what is below Joulescope's own package."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from mcu_agent.meters.ina226 import AVERAGES, CONVERSION_US, FULL_SCALE_V
from mcu_agent.windows import Call
from tests.support.meter_ptys import IDLE_A, LEAD_S, RUN_A, WAITING_A, Played

_TRANSFER_S, _RESTING_S = 200e-6, 10e-6


class FakeInaBus:
    """An SMBus with one INA226, on a clock of its own: a transfer takes 200 µs of it, between windows 10 µs."""

    def __init__(self, shunt_ohms: float, supply_v: float = 3.0, address: int = 0x40) -> None:
        self._shunt_ohms, self._supply_v, self._address = shunt_ohms, supply_v, address
        self._registers = {0x00: 0x4127, 0x05: 0, 0x06: 0, 0x07: 0, 0xFE: 0x5449}
        self._now_s = 0.0
        self._windows: list[tuple[float, float, float, float]] = []
        self._last_read = 0
        self._changed = threading.Condition()
        self.stall_next_s = 0.0
        self.factor = 1.0
        self.is_gone = False
        self.n_closed = 0

    def clock(self) -> float:
        return self._now_s

    def window(self, idle_s: float, length_s: float) -> Call:
        with self._changed:
            began = self._now_s
            start = began + LEAD_S
            rise, fall = start + idle_s, start + idle_s + length_s
            self._windows.append((start, rise, fall, fall + idle_s))
            end = fall + idle_s + LEAD_S
            assert self._changed.wait_for(lambda: self._now_s >= end, 30.0)
            return Call(began_s=began, returned_s=end, idle_s=idle_s, length_s=length_s)

    def read_word_data(self, address: int, register: int) -> int:
        with self._changed:
            self._pass(address)
            value = self._read(register)
            return (value & 0xFF) << 8 | value >> 8

    def write_word_data(self, address: int, register: int, value: int) -> None:
        with self._changed:
            self._pass(address)
            swapped = (value & 0xFF) << 8 | value >> 8
            self._registers[register] = 0x4127 if register == 0 and swapped & 0x8000 else swapped

    def close(self) -> None:
        self.n_closed += 1

    @property
    def _period_s(self) -> float:
        config = self._registers[0]
        return (CONVERSION_US[config >> 6 & 7] + CONVERSION_US[config >> 3 & 7]) * AVERAGES[config >> 9 & 7] / 1e6

    def _pass(self, address: int) -> None:
        if self.is_gone or address != self._address:
            raise OSError(121, "Remote I/O error")
        is_playing = any(self._now_s < end + LEAD_S for *_, end in self._windows)
        self._now_s += _TRANSFER_S if is_playing else _RESTING_S
        rising = [rise for _, rise, fall, _ in self._windows if rise + 0.01 < self._now_s < fall]
        if self.stall_next_s and rising:
            self._now_s += self.stall_next_s
            self.stall_next_s = 0.0
        self._changed.notify_all()

    def _read(self, register: int) -> int:
        done = int(self._now_s / self._period_s)
        if register == 0x06:
            is_new, self._last_read = done > self._last_read, done
            is_beyond = is_new and abs(self._amperes(done)) * self._shunt_ohms >= FULL_SCALE_V * (1 - 1e-4)
            return (self._registers[6] & 0xFC01) | 0x0008 * is_new | 0x0010 * is_beyond
        if register == 0x04:
            steps = round(self._amperes(done) * self._shunt_ohms / 2.5e-6 * self._registers[5] / 2048)
            return min(steps, 0x7FFF) & 0xFFFF
        if register == 0x02:
            return round(self._supply_v / 0.00125)
        return self._registers[register]

    def _amperes(self, done: int) -> float:
        """The mean current over the conversion that ended last."""
        start, end = (done - 1) * self._period_s, done * self._period_s
        total = WAITING_A * (end - start)
        for idle, rise, fall, last in self._windows:
            total += (IDLE_A - WAITING_A) * _overlap(start, end, idle, last)
            total += (RUN_A - IDLE_A) * _overlap(start, end, rise, fall)
        return self.factor * total / (end - start)


def _overlap(start: float, end: float, first: float, last: float) -> float:
    return max(0.0, min(end, last) - max(start, first))


class FakeJoulescopeDriver(threading.Thread):
    """What lies below Joulescope's own device classes: topics, and a stream in pieces of 5 ms in real time."""

    PATH = "u/js220/002557"
    _FIELDS: ClassVar = {
        "s/i/": (1, 0),
        "s/v/": (2, 0),
        "s/p/": (3, 0),
        "s/i/range/": (4, 0),
        "s/gpi/0/": (5, 0),
        "s/gpi/1/": (5, 1),
    }

    def __init__(self, channel: int = 0, supply_v: float = 3.0) -> None:
        super().__init__(daemon=True)
        self._channel, self._supply_v = channel, supply_v
        self.rate_hz = 100_000.0
        self.played = Played([], [])
        self.drop_next = 0
        self.is_busy = self.is_gone = False
        self.published: dict[str, Any] = {}
        self._callbacks: dict[str, Callable[[str, Any], Any]] = {}
        self._n_sent = 0
        self._started_s = 0.0
        self._changed = threading.Condition()
        self._is_over = False
        self.start()

    def device(self) -> Any:
        """The maker's own device object on top of this."""
        from joulescope.v1.js220 import DeviceJs220

        return DeviceJs220(self, self.PATH)

    def window(self, idle_s: float, length_s: float) -> Call:
        began_s = time.monotonic()
        with self._changed:
            start = self._n_sent + round((LEAD_S + 0.01) * self.rate_hz)
            n_idle, n_high = round(idle_s * self.rate_hz), round(length_s * self.rate_hz)
            rise, fall = start + n_idle, start + n_idle + n_high
            self.played.windows.append((start, rise, fall, fall + n_idle))
            if self.drop_next:
                self.played.dropped.append((fall - self.drop_next, fall))
                self.drop_next = 0
            end = fall + n_idle + round(LEAD_S * self.rate_hz)
            assert self._changed.wait_for(lambda: self._n_sent >= end, 30.0)
        return Call(began_s=began_s, returned_s=time.monotonic(), idle_s=idle_s, length_s=n_high / self.rate_hz)

    def end(self) -> None:
        self._is_over = True
        self.join()

    # The interface of pyjoulescope_driver.Driver.

    def open(self, path: str, mode: Any = None, timeout: Any = None) -> int:
        if self.is_busy:
            raise RuntimeError("jsdrv open failed 11: device in use")
        return 0

    def close(self, path: str, timeout: Any = None) -> int:
        return 0

    def publish(self, topic: str, value: Any, timeout: Any = None) -> None:
        if self.is_gone:
            raise RuntimeError("jsdrv publish failed: device removed")
        self.published[topic.removeprefix(self.PATH + "/")] = value

    def subscribe(self, topic: str, flags: Any, fn: Callable[[str, Any], Any], timeout: Any = None) -> None:
        with self._changed:
            if not self._callbacks:
                self._n_sent, self._started_s, self.played = 0, time.monotonic(), Played([], [])
            self._callbacks[topic.removeprefix(self.PATH + "/").removesuffix("!data")] = fn

    def unsubscribe(self, topic: str, fn: Any, timeout: Any = None) -> None:
        with self._changed:
            self._callbacks.pop(topic.removeprefix(self.PATH + "/").removesuffix("!data"), None)

    def run(self) -> None:
        pause = threading.Event()
        while not self._is_over:
            pause.wait(0.005)
            with self._changed:
                callbacks = dict(self._callbacks)
            if len(callbacks) == len(self._FIELDS) and not self.is_gone:
                self._send(callbacks)

    def _send(self, callbacks: dict[str, Callable[[str, Any], Any]]) -> None:
        n = int((time.monotonic() - self._started_s) * self.rate_hz) - self._n_sent
        n -= n % 8  # pin levels come packed in bytes
        if n <= 0:
            return
        index = np.arange(self._n_sent, self._n_sent + n)
        arriving = self.played.arriving(index)
        for part in np.split(arriving, np.flatnonzero(np.diff(arriving) > 1) + 1):
            self._send_part(callbacks, part)
        with self._changed:
            self._n_sent += n
            self._changed.notify_all()

    def _send_part(self, callbacks: dict[str, Callable[[str, Any], Any]], index: np.ndarray[Any, Any]) -> None:
        if not len(index):
            return
        current, high = self.played.at(index)
        decimate = round(1_000_000 / self.rate_hz)
        for topic, (kind, place) in self._FIELDS.items():
            data: Any = {
                1: current.astype(np.float32),
                2: np.full(len(index), self._supply_v, dtype=np.float32),
                3: (current * self._supply_v).astype(np.float32),
                4: np.full(len(index), 2, dtype=np.uint8),
                5: np.packbits(high & (place == self._channel), bitorder="little"),
            }[kind]
            value = {
                "field_id": kind,
                "index": place,
                "sample_id": int(index[0]) * decimate,
                "sample_rate": 1_000_000,
                "decimate_factor": decimate,
                "data": data,
            }
            callbacks[topic](topic, value)
