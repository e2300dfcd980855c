"""TI's INA226 current and voltage monitor on an I²C bus of the host.

It averages all the time, so no charge goes unseen as long as every result is read; but it is slow and knows nothing of
the trigger pin, so the window is found by the host's clock.

Source:
    TI SBOS547, INA226 data sheet: registers in table 7-3, calibration in section 6.5.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np

from mcu_agent.errors import InventoryError, MeterLost
from mcu_agent.meters.protocol import Trace, WindowBy
from mcu_agent.meters.serialport import FIRST_DATA_S, Clock

CONVERSION_US = (140, 204, 332, 588, 1100, 2116, 4156, 8244)
AVERAGES = (1, 4, 16, 64, 128, 256, 512, 1024)
FULL_SCALE_V = 0.08192  # over the shunt
_BUS_LSB_V, _CURRENT_STEPS = 0.00125, 2**15
_CONFIG, _SHUNT, _BUS, _CURRENT, _CALIBRATION, _MASK, _LIMIT = 0x00, 0x01, 0x02, 0x04, 0x05, 0x06, 0x07
_MAKER, _MAKER_TI = 0xFE, 0x5449
_RESET, _CONTINUOUS_BOTH = 0x8000, 0b111
_OVER_LIMIT, _LATCH = 0x8000, 0x0001  # alert on a shunt voltage above the limit, kept until read
_ALERTED, _READY, _OVERFLOWED = 0x0010, 0x0008, 0x0004
_MISSED = 1.6  # periods between two results, beyond which one was overwritten unread


class Ina226:
    """An INA226; see :class:`mcu_agent.meters.protocol.Recorder`. It only measures: the board has a supply of its own.

    ``bus`` is the number of the I²C bus (``/dev/i2c-1`` is 1). ``smbus`` stands in for one in tests: an object with
    ``read_word_data``, ``write_word_data`` and ``close``.
    """

    window_by = WindowBy.HOST

    def __init__(
        self,
        *,
        shunt_ohms: float,
        bus: int = 1,
        address: int = 0x40,
        conversion_us: int = 332,
        averages: int = 4,
        supply_v: float | None = None,
        clock: Clock = time.monotonic,
        smbus: Any = None,
    ) -> None:
        _check(shunt_ohms, address, conversion_us, averages)
        self.supply_v = supply_v
        self.name = f"INA226 i2c-{bus} {address:#04x}"
        self.rate_hz = 1e6 / (2 * conversion_us * averages)  # a shunt and a bus conversion a result
        self._highest_a = FULL_SCALE_V / shunt_ohms
        self.accuracy = (
            f"shunt {shunt_ohms:g} ohm, up to {self._highest_a:.3g} A, ±0.1 % and ±{1e-5 / shunt_ohms * 1e6:.3g} µA "
            "by its maker, besides the shunt's tolerance"
        )
        self._shunt_ohms, self._bus_number, self._address = shunt_ohms, bus, address
        self._config = (
            (0x4000 | AVERAGES.index(averages) << 9 | CONVERSION_US.index(conversion_us) << 6)
            | CONVERSION_US.index(conversion_us) << 3
            | _CONTINUOUS_BOTH
        )
        self._clock, self._given = clock, smbus
        self._bus: Any = None
        self._poll: _Poll | None = None

    @property
    def current_lsb_a(self) -> float:
        """Amperes of one step of the current register."""
        return self._highest_a / _CURRENT_STEPS

    def open(self) -> None:
        """Connect, check that it is one, configure and calibrate."""
        if self._bus is not None:
            return
        bus = self._given if self._given is not None else _open_bus(self._bus_number)
        try:
            maker = _read(bus, self._address, _MAKER)
            if maker != _MAKER_TI:
                raise MeterLost(f"{self.name}: answers with maker {maker:#06x} instead of {_MAKER_TI:#06x}; no INA226")
            _write(bus, self._address, _CONFIG, _RESET)
            _write(bus, self._address, _CONFIG, self._config)
            _write(bus, self._address, _CALIBRATION, round(0.00512 / (self.current_lsb_a * self._shunt_ohms)))
            _write(bus, self._address, _LIMIT, 0x7FF8)
            _write(bus, self._address, _MASK, _OVER_LIMIT | _LATCH)
        except OSError as error:
            bus.close()
            raise self._lost(error) from error
        except MeterLost:
            bus.close()
            raise
        self._bus = bus

    def start(self) -> None:
        """Poll for results; returns when the first has been read."""
        if self._bus is None or self._poll is not None:
            raise MeterLost(f"{self.name}: not open, or recording already")
        poll = _Poll(self._bus, self._address, self._clock)
        poll.start()
        self._poll = poll
        if not poll.has_data.wait(FIRST_DATA_S) or poll.error is not None:
            self._end()
            raise self._lost(poll.error or OSError("no result became ready"))

    def stop(self) -> Trace:
        """End polling. The rate is the one found, for the chip's own clock is only good to ±10 %."""
        if self._bus is None or self._poll is None:
            raise MeterLost(f"{self.name}: nothing is being recorded")
        poll = self._poll
        poll.has_data.clear()
        is_alive = poll.error is None and poll.has_data.wait(FIRST_DATA_S)  # a chip that has gone would end unnoticed
        self._end()
        if poll.error is not None or not is_alive:
            raise self._lost(poll.error or OSError("no result became ready"))
        raw = np.array(poll.results, dtype=np.float64)
        times, current = raw[:, 0], raw[:, 1] * self.current_lsb_a
        if len(times) < 3:
            raise MeterLost(f"{self.name}: only {len(times)} results; record for longer")
        steps = np.diff(times)
        period = float(np.median(steps))
        n_missed = int(np.rint(steps[steps > _MISSED * period] / period - 1).sum())
        seconds = float(times[-1] - times[0]) + period
        return Trace(
            current_a=current,
            trigger=np.zeros(len(current), dtype=np.bool_),
            saturated=raw[:, 3].astype(np.bool_),
            rate_hz=len(current) / seconds,
            supply_v=float(raw[:, 2].mean() * _BUS_LSB_V),
            seconds=seconds,
            n_lost=n_missed,
            voltage_v=raw[:, 2] * _BUS_LSB_V,
            started_s=float(times[0]) - period,
            timing_error_s=2 * period,
        )

    def close(self) -> None:
        """Give the bus back."""
        bus, self._bus = self._bus, None
        self._end()
        if bus is not None:
            bus.close()

    def _end(self) -> None:
        poll, self._poll = self._poll, None
        if poll is not None:
            poll.stop()

    def _lost(self, error: BaseException) -> MeterLost:
        return MeterLost(
            f"{self.name}: {error}; check wiring, address and pull-ups, and that I²C is enabled on this host"
        )


class _Poll(threading.Thread):
    """Reads every result as soon as it is ready: time, current and bus registers, and whether it went out of range."""

    def __init__(self, bus: Any, address: int, clock: Clock) -> None:
        super().__init__(name="ina226-poll", daemon=True)
        self._bus, self._address, self._clock = bus, address, clock
        self._is_stopping = threading.Event()
        self.has_data = threading.Event()
        self.results: list[tuple[float, int, int, bool]] = []
        self.error: OSError | None = None

    def run(self) -> None:
        """Poll until told to stop or until the bus fails."""
        try:
            _read(self._bus, self._address, _MASK)  # a result from before the start is not ours
            while not self._is_stopping.is_set():
                self._poll_once()
        except OSError as error:
            self.error = error
        finally:
            self.has_data.set()

    def stop(self) -> None:
        """End; returns when the bus is free."""
        self._is_stopping.set()
        self.join()

    def _poll_once(self) -> None:
        flags = _read(self._bus, self._address, _MASK)  # reading clears them
        if not flags & _READY:
            return
        now = self._clock()
        current = _signed(_read(self._bus, self._address, _CURRENT))
        volts = _read(self._bus, self._address, _BUS)
        is_beyond = bool(flags & (_OVERFLOWED | _ALERTED)) or abs(current) >= _CURRENT_STEPS - 1
        self.results.append((now, current, volts, is_beyond))
        self.has_data.set()


def _read(bus: Any, address: int, register: int) -> int:
    """A register; the chip sends the upper byte first, SMBus takes it for the lower one."""
    word = int(bus.read_word_data(address, register))
    return (word & 0xFF) << 8 | word >> 8


def _write(bus: Any, address: int, register: int, value: int) -> None:
    bus.write_word_data(address, register, (value & 0xFF) << 8 | value >> 8)


def _signed(word: int) -> int:
    return word - 0x1_0000 if word & 0x8000 else word


def _open_bus(number: int) -> Any:
    try:
        import smbus2  # an extra of its own
    except ImportError as error:
        raise InventoryError(f"an INA226 needs smbus2: pip install 'edgefront[ina226]' ({error})") from error
    try:
        return smbus2.SMBus(number)
    except OSError as error:
        raise MeterLost(
            f"INA226: /dev/i2c-{number}: {error}; enable I²C on this host and let this user use it"
        ) from error


def _check(shunt_ohms: float, address: int, conversion_us: int, averages: int) -> None:
    if not 0.0005 <= shunt_ohms <= 100:
        raise InventoryError(f"ina226: shunt_ohms {shunt_ohms}; allowed: 0.0005 to 100")
    if not 0x40 <= address <= 0x4F:
        raise InventoryError(f"ina226: address {address:#04x}; allowed: 0x40 to 0x4f")
    for name, value, allowed in (
        ("conversion_us", conversion_us, CONVERSION_US),
        ("averages", averages, AVERAGES),
    ):
        if value not in allowed:
            raise InventoryError(f"ina226: {name} {value}; allowed: {', '.join(map(str, allowed))}")
