"""Nordic's Power Profiler Kit II: controlled through the package ppk2-api, its stream read and decoded by ourselves.

ppk2-api ignores the wrap counter, so a lost block goes unseen, and one lost byte shifts every word after it.
"""

from __future__ import annotations

import time
from typing import Any

from mcu_agent.errors import InventoryError, MeterDrift, MeterLost
from mcu_agent.meters.ppk2_stream import RATE_HZ, Calibration, SpikeFilter, decode
from mcu_agent.meters.protocol import Trace, WindowBy
from mcu_agent.meters.serialport import Clock, StreamReader, drain, find_port, port_error
from mcu_agent.meters.timing import END_S, arrival_span

USB_IDS = ((0x1915, 0xC00A),)
MODES = ("source", "ampere")
LOWEST_V, HIGHEST_V = 0.8, 5.0
_READ_TIMEOUT_S = 0.02
_SILENCE_READS = 100
_WORD_BYTES = 4
_END_BYTES = round(END_S * RATE_HZ) * _WORD_BYTES


class Ppk2:
    """A Power Profiler Kit II; see :class:`mcu_agent.meters.protocol.Recorder`.

    In ``source`` mode it supplies the board with ``supply_v``; in ``ampere`` mode it only measures, and ``supply_v`` is
    what the rack file says, for the kit measures no voltage.
    """

    rate_hz = RATE_HZ
    window_by = WindowBy.PIN

    def __init__(
        self,
        *,
        supply_v: float,
        serial: str = "",
        port: str = "",
        mode: str = "source",
        trigger: int = 0,
        spike_filter: SpikeFilter = SpikeFilter.SETTLED,
        timing_error_s: float = 0.0005,
        clock: Clock = time.monotonic,
    ) -> None:
        if mode not in MODES:
            raise InventoryError(f"ppk2: mode {mode!r}; allowed: {', '.join(MODES)}")
        if not LOWEST_V <= supply_v <= HIGHEST_V:
            raise InventoryError(f"ppk2: supply_v {supply_v}; allowed: {LOWEST_V} to {HIGHEST_V} V")
        if not 0 <= trigger <= 7:
            raise InventoryError(f"ppk2: trigger {trigger}; allowed: logic channel 0 to 7")
        self.name = f"PPK2 {serial or port}".strip()
        self.accuracy = f"{mode} mode, automatic range, ±10 % by its maker"
        self._serial, self._port_name = serial, port
        self.supply_v = supply_v
        self._mode, self._trigger = mode, trigger
        self._spike_filter, self._timing_error_s, self._clock = spike_filter, timing_error_s, clock
        self._kit: Any = None
        self._calibration: Calibration | None = None
        self._reader: StreamReader | None = None

    def open(self) -> None:
        """Connect, read the calibration, set mode and voltage, switch the board on."""
        if self._kit is not None:
            return
        port = find_port("PPK2", USB_IDS, self._serial, self._port_name)
        kit = _connect(port)
        try:
            _silence(kit)
            self._calibration = _read_calibration(kit, self.name)
            if self._mode == "source":
                kit.use_source_meter()
            else:
                kit.use_ampere_meter()
            kit.set_source_voltage(round(self.supply_v * 1000))
            kit.toggle_DUT_power("ON")
        except OSError as error:
            kit.ser.close()
            raise port_error("PPK2", port, error) from error
        except BaseException:
            kit.ser.close()
            raise
        self._kit = kit

    def start(self) -> None:
        """Let the stream flow; returns when the first readings have arrived."""
        if self._kit is None or self._reader is not None:
            raise MeterLost(f"{self.name}: not open, or recording already")
        port = self._kit.ser
        try:
            drain(port)  # what is left of an earlier stream may end within a word
        except OSError as error:
            raise port_error("PPK2", port.port, error) from error
        self._reader = StreamReader(port, self._clock)
        self._reader.start()
        self._kit.start_measuring()
        if not self._reader.wait_for(_END_BYTES):
            self._end_reader()
            raise MeterLost(f"{self.name}: no readings after the command to start; unplug it and plug it in again")

    def stop(self) -> Trace:
        """End the stream and decode it."""
        if self._kit is None or self._reader is None or self._calibration is None:
            raise MeterLost(f"{self.name}: nothing is being recorded")
        reader, self._reader = self._reader, None
        is_alive = reader.wait_for(_END_BYTES)
        self._kit.stop_measuring()
        try:
            data, times, counts = reader.stop()
        except OSError as error:
            raise port_error("PPK2", self._kit.ser.port, error) from error
        if not is_alive:
            raise MeterLost(f"{self.name}: the readings stopped; unplug it and plug it in again")
        decoded = decode(
            data,
            self._calibration,
            supply_v=self.supply_v,
            trigger=self._trigger,
            spike_filter=self._spike_filter,
        )
        started_s, seconds = arrival_span(times, [count // _WORD_BYTES for count in counts], RATE_HZ)
        return Trace(
            current_a=decoded.current_a,
            trigger=decoded.trigger,
            saturated=decoded.saturated,
            rate_hz=RATE_HZ,
            supply_v=self.supply_v,
            seconds=seconds,
            n_lost=decoded.n_lost,
            started_s=started_s,
            timing_error_s=self._timing_error_s,
        )

    def close(self) -> None:
        """Stop, switch the board off and give the port back."""
        kit, self._kit = self._kit, None
        if kit is None:
            return
        self._end_reader(kit)
        kit.toggle_DUT_power("OFF")  # logs, but does not raise, where the kit is gone
        kit.ser.close()

    def _end_reader(self, kit: Any = None) -> None:
        reader, self._reader = self._reader, None
        if reader is None:
            return
        (kit or self._kit).stop_measuring()
        try:
            reader.stop()
        except OSError:
            return  # the kit is gone, and with it what we wanted to end


def _connect(port: str) -> Any:
    try:
        from ppk2_api.ppk2_api import PPK2_API  # Nordic's kit is one of several meters
    except ImportError as error:
        raise InventoryError(f"a PPK2 needs ppk2-api: pip install 'edgefront[boards]' ({error})") from error
    try:
        return PPK2_API(port, timeout=_READ_TIMEOUT_S, write_timeout=1.0, exclusive=True)
    except (OSError, ValueError) as error:
        raise port_error("PPK2", port, error) from error


def _silence(kit: Any) -> None:
    """End a stream that an owner who died has left running; it would be taken for the calibration."""
    kit.stop_measuring()
    for _ in range(_SILENCE_READS):
        if not kit.ser.read(65_536):
            break


def _read_calibration(kit: Any, name: str) -> Calibration:
    try:
        is_read = kit.get_modifiers()
    except UnicodeDecodeError as error:
        raise MeterLost(f"{name}: answers with something that is no text; unplug it and plug it in again") from error
    if not is_read or kit.modifiers["HW"] is None:
        raise MeterLost(f"{name}: does not tell its calibration; unplug it, plug it in again, check it is a PPK2")
    try:
        return Calibration.from_modifiers(kit.modifiers)
    except ValueError as error:
        raise MeterDrift(f"{name}: {error}; have it calibrated or replaced") from error
