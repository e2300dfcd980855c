"""Joulescope JS110 and JS220 through their maker's package: current, voltage and an input pin with every reading."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mcu_agent.errors import InventoryError, MeterLost
from mcu_agent.meters.protocol import BoolArray, FloatArray, Trace, WindowBy
from mcu_agent.meters.serialport import FIRST_DATA_S, Clock
from mcu_agent.meters.timing import arrival_span

RATES_HZ = (10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000)
HIGHEST_A = 3.0  # of both for as long as one likes
_BUFFER_S = 2
_IO_LEVELS_V = (1.8, 2.1, 2.5, 2.7, 3.0, 3.3, 3.6, 5.0)
_GPI_FIELDS = ((5, 0), (5, 1))

Find = Callable[[str], Any]


@dataclass(kw_only=True, slots=True)
class Drain:
    """Copies new readings out of the vendor's ring buffer whenever it has some; called from the vendor's thread."""

    clock: Clock
    gpi: int
    driver_active: bool = True  # the vendor's code looks at it
    current: list[npt.NDArray[np.float32]] = field(default_factory=list)
    voltage: list[npt.NDArray[np.float32]] = field(default_factory=list)
    trigger: list[BoolArray] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    n_overrun: int = 0
    is_flowing: threading.Event = field(default_factory=threading.Event)
    _next: int | None = None

    def stream_notify(self, buffer: Any) -> bool:
        """Take what is new; False lets the stream go on."""
        first, end = buffer.sample_id_range
        if first is None or end <= first:
            return False
        start = first if self._next is None else self._next
        if start < first:  # the ring went round before we came
            self.n_overrun += first - start
            start = first
        if end <= start:
            return False
        signals = buffer.samples_get(start, end, fields=["current", "voltage"])["signals"]
        level = buffer.buffers[_GPI_FIELDS[self.gpi]].get_range(start, end)
        self.current.append(np.array(signals["current"]["value"]))
        self.voltage.append(np.array(signals["voltage"]["value"]))
        self.trigger.append(np.array(level, dtype=np.bool_))
        self._next = end
        self.times_s.append(self.clock())
        self.counts.append((self.counts[-1] if self.counts else 0) + end - start)
        self.is_flowing.set()
        return False


class Joulescope:
    """A JS110 or JS220; see :class:`mcu_agent.meters.protocol.Recorder`. It only measures: the board has a supply of
    its own. ``trigger`` is the input pin, 0 or 1."""

    window_by = WindowBy.PIN

    def __init__(
        self,
        *,
        serial: str = "",
        trigger: int = 0,
        io_v: float = 3.3,
        rate_hz: int = 100_000,
        timing_error_s: float = 0.005,
        patience_s: float = FIRST_DATA_S,
        clock: Clock = time.monotonic,
        find: Find | None = None,
    ) -> None:
        if rate_hz not in RATES_HZ:
            raise InventoryError(f"joulescope: rate_hz {rate_hz}; allowed: {', '.join(map(str, RATES_HZ))}")
        if trigger not in (0, 1):
            raise InventoryError(f"joulescope: trigger {trigger}; allowed: input 0 or 1")
        self.name = f"Joulescope {serial}".strip()
        self.supply_v = io_v
        self.rate_hz = float(rate_hz)
        self.accuracy = "automatic range, ±0.5 % of current and voltage by its maker"
        self._serial, self._trigger, self._io_v = serial, trigger, io_v
        self._timing_error_s, self._clock, self._find = timing_error_s, clock, find or find_device
        self._patience_s = patience_s
        self._device: Any = None
        self._drain: Drain | None = None

    def open(self) -> None:
        """Connect and configure."""
        if self._device is not None:
            return
        device = self._find(self._serial)
        level = min(_IO_LEVELS_V, key=lambda one: abs(one - self._io_v))
        try:
            device.parameter_set("sampling_frequency", int(self.rate_hz))
            device.parameter_set("buffer_duration", _BUFFER_S)
            device.parameter_set("io_voltage", f"{level:.1f}V")
            device.open()
        except (OSError, RuntimeError) as error:
            raise _lost(self.name, error) from error
        self._device = device
        self.name = str(device)

    def start(self) -> None:
        """Let the stream flow; returns when the first readings have arrived."""
        if self._device is None or self._drain is not None:
            raise MeterLost(f"{self.name}: not open, or recording already")
        drain = Drain(clock=self._clock, gpi=self._trigger)
        try:
            self._device.stream_process_register(drain)
            self._device.start()
        except (OSError, RuntimeError) as error:
            raise _lost(self.name, error) from error
        self._drain = drain
        if not drain.is_flowing.wait(self._patience_s):
            self._end()
            raise MeterLost(f"{self.name}: no readings after the command to start; unplug it and plug it in again")

    def stop(self) -> Trace:
        """End the stream; readings that the vendor's library marks as dropped (NaN) are counted as lost."""
        if self._device is None or self._drain is None:
            raise MeterLost(f"{self.name}: nothing is being recorded")
        drain = self._drain
        self._await_last(drain)
        self._end()
        current, n_lost = held(np.concatenate(drain.current).astype(np.float64))
        voltage, _ = held(np.concatenate(drain.voltage).astype(np.float64))
        started_s, seconds = arrival_span(drain.times_s, drain.counts, self.rate_hz)
        return Trace(
            current_a=current,
            trigger=np.concatenate(drain.trigger),
            saturated=np.abs(current) >= HIGHEST_A,
            rate_hz=self.rate_hz,
            supply_v=float(voltage.mean()),
            seconds=seconds,
            n_lost=n_lost + drain.n_overrun,
            voltage_v=voltage,
            started_s=started_s,
            timing_error_s=self._timing_error_s,
        )

    def close(self) -> None:
        """End the stream and give the device back."""
        device = self._device
        if device is None:
            return
        try:
            self._end()
            device.close()
        except (OSError, RuntimeError, MeterLost):
            return  # it is gone, and with it what we wanted to end
        finally:
            self._device = None

    def _await_last(self, drain: Drain) -> None:
        """Wait for what is on its way. A device that has gone sends nothing more."""
        drain.is_flowing.clear()
        if not drain.is_flowing.wait(self._patience_s):
            self._end()
            raise MeterLost(f"{self.name}: the stream has stopped; check the cable, then try again")

    def _end(self) -> None:
        drain, self._drain = self._drain, None
        if drain is None:
            return
        try:
            self._device.stop()
            self._device.stream_process_unregister(drain)
        except (OSError, RuntimeError) as error:
            raise _lost(self.name, error) from error


def held(values: FloatArray) -> tuple[FloatArray, int]:
    """``values`` (t,) with every NaN replaced by the value before it (at the start: after it), and how many there were.

    Raises:
        MeterLost: there is nothing but NaN.
    """
    is_missing = np.isnan(values)
    n_missing = int(is_missing.sum())
    if not n_missing:
        return values, 0
    if n_missing == len(values):
        raise MeterLost("the meter sent no valid reading; check its cable")
    last = np.maximum.accumulate(np.where(is_missing, -1, np.arange(len(values))))
    last[last < 0] = int(np.argmin(is_missing))
    return values[last], n_missing


def find_device(serial: str) -> Any:
    """The device with a serial number, or the only one there is.

    Raises:
        MeterLost: none is plugged in, or several are and nothing says which.
        InventoryError: the package is not installed.
    """
    try:
        import joulescope  # an extra of its own
    except ImportError as error:
        raise InventoryError(
            f"a Joulescope needs its package: pip install 'edgefront[joulescope]' ({error})"
        ) from error
    found = joulescope.scan(config="auto")
    if serial:
        found = [device for device in found if device.serial_number == serial]
    if not found:
        which = f"with serial number {serial}" if serial else "at all"
        raise MeterLost(f"no Joulescope {which} is plugged in; check cable and power")
    if len(found) > 1:
        listed = ", ".join(str(device) for device in found)
        raise MeterLost(f"several Joulescopes are plugged in ({listed}); name one by `serial` in the rack file")
    return found[0]


def _lost(name: str, error: BaseException) -> MeterLost:
    return MeterLost(
        f"{name}: {error}; check the cable, and that no other program (the Joulescope UI, another agent) uses it"
    )
