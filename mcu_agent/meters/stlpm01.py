"""ST's X-NUCLEO-LPM01A and STLINK-V3PWR: commands in text over a serial port, answered by ``ack``.

Source:
    ST UM2269 (PowerShield firmware); for the STLINK-V3PWR also ST's x-cube-n6-ai-power-measurement, ``pwr_scripts``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from mcu_agent.errors import InventoryError, MeterError, MeterLost, TraceSaturated
from mcu_agent.meters.protocol import Trace, WindowBy
from mcu_agent.meters.serialport import Clock, StreamReader, drain, find_port, port_error, serial_module
from mcu_agent.meters.stlpm01_stream import Stream, decode_binary, decode_text
from mcu_agent.meters.timing import END_S, arrival_span

FORMATS = ("ascii_dec", "bin_hexa")
RATES_HZ = (1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)
FASTEST_TEXT_HZ = 5_000  # above, the firmware limits a recording in text to a second
_BAUD = 921_600  # USB ignores it; the separate UART connector of the LPM01A is set to it at delivery
_ANSWER_S = 5.0
_RESTART_S = 15
_READING_BYTES = {"ascii_dec": 9, "bin_hexa": 2}
_END = b"Acquisition completed"


@dataclass(frozen=True, kw_only=True, slots=True)
class StMeter:
    """What differs between ST's meters. ``control`` are the commands that take and release it."""

    title: str
    usb_ids: tuple[tuple[int, int], ...]
    interface: str
    lowest_v: float
    highest_v: float
    highest_a: float
    accuracy: str
    control: tuple[str, str]
    has_events: bool


LPM01A = StMeter(
    title="X-NUCLEO-LPM01A",
    usb_ids=((0x0483, 0x5740),),
    interface="",
    lowest_v=1.8,
    highest_v=3.3,
    highest_a=0.05,
    accuracy="dynamic mode, 100 nA to 50 mA, ±2 % by its maker",
    control=("htc", "hrc"),
    has_events=True,
)
V3PWR = StMeter(
    title="STLINK-V3PWR",
    usb_ids=((0x0483, 0x3757),),
    interface="PWR",
    lowest_v=1.6,
    highest_v=3.6,
    highest_a=0.55,
    accuracy="automatic range, 100 nA to 550 mA, ±0.5 % by its maker",
    control=("power_monitor", ""),
    has_events=False,
)


class StPowerMeter:
    """An X-NUCLEO-LPM01A or STLINK-V3PWR; see :class:`mcu_agent.meters.protocol.Recorder`. Both supply the board.

    Neither sends the level of the trigger pin with its readings. The LPM01A reports falling edges of its pin D7 in a
    text stream, which is the end of the window. In a binary stream, and on the STLINK-V3PWR, the window is found by the
    host's clock.
    """

    def __init__(
        self,
        *,
        kind: StMeter,
        supply_v: float,
        serial: str = "",
        port: str = "",
        data_format: str = "",
        rate_hz: int = 0,
        timing_error_s: float = 0.005,
        clock: Clock = time.monotonic,
    ) -> None:
        data_format = data_format or ("ascii_dec" if kind.has_events else "bin_hexa")
        rate_hz = rate_hz or (FASTEST_TEXT_HZ if data_format == "ascii_dec" else 10_000)
        _check(kind, supply_v, data_format, rate_hz)
        self.name = f"{kind.title} {serial or port}".strip()
        self.rate_hz = float(rate_hz)
        self.accuracy = kind.accuracy
        self.window_by = WindowBy.END if kind.has_events and data_format == "ascii_dec" else WindowBy.HOST
        self.supply_v = supply_v
        self._kind, self._format = kind, data_format
        self._serial, self._port_name = serial, port
        self._timing_error_s, self._clock = timing_error_s, clock
        self._end_bytes = round(END_S * rate_hz) * _READING_BYTES[data_format]
        self._port: Any = None
        self._reader: StreamReader | None = None

    def open(self) -> None:
        """Connect, take control, configure and switch the board on."""
        if self._port is not None:
            return
        name = find_port(self._kind.title, self._kind.usb_ids, self._serial, self._port_name, self._kind.interface)
        try:
            port = serial_module().Serial(name, _BAUD, timeout=0.02, write_timeout=1.0, exclusive=True)
        except (OSError, ValueError) as error:
            raise port_error(self._kind.title, name, error) from error
        self._port = port
        try:
            self._take_control()
            for command in self._settings():
                self._ask(command)
        except BaseException:
            self._port = None
            port.close()
            raise

    def start(self) -> None:
        """Start to record; returns when the first readings have arrived."""
        if self._port is None or self._reader is not None:
            raise MeterLost(f"{self.name}: not open, or recording already")
        self._ask("start")
        self._reader = StreamReader(self._port, self._clock)
        self._reader.start()
        if not self._reader.wait_for(self._end_bytes):
            self._end_reader()
            raise MeterLost(f"{self.name}: no readings after the command to start; unplug it and plug it in again")

    def stop(self) -> Trace:
        """Stop recording and decode."""
        if self._port is None or self._reader is None:
            raise MeterLost(f"{self.name}: nothing is being recorded")
        reader, self._reader = self._reader, None
        try:
            is_alive = reader.wait_for(self._end_bytes)
            self._port.write(b"stop\r\n")
            data, times, counts = reader.stop()
        except OSError as error:
            raise port_error(self._kind.title, self._port.port, error) from error
        stream = _decode(data, self._format)
        self._check_stream(stream)
        if not is_alive:
            raise MeterLost(f"{self.name}: the readings stopped; unplug it and plug it in again")
        # The bytes of a reading differ by little; what matters is how the stream falls behind, not where it begins.
        per_byte = len(stream.current_a) / max(1, len(data))
        readings = [round(count * per_byte) for count in counts]
        started_s, seconds = arrival_span(times, readings, self.rate_hz)
        trigger = np.zeros(len(stream.current_a), dtype=np.bool_)
        if self.window_by is WindowBy.END:
            trigger[[min(event, len(trigger) - 1) for event in stream.events]] = True
        return Trace(
            current_a=stream.current_a,
            trigger=trigger,
            saturated=stream.current_a >= self._kind.highest_a,
            rate_hz=self.rate_hz,
            supply_v=self.supply_v,
            seconds=seconds,
            n_lost=stream.n_lost(self.rate_hz),
            started_s=started_s,
            timing_error_s=self._timing_error_s,
        )

    def close(self) -> None:
        """Stop, switch the board off, give the meter and its port back."""
        port = self._port
        if port is None:
            return
        self._end_reader()
        release = self._kind.control[1]
        try:
            for command in ("pwr off", release):
                if command:
                    self._ask(command)
        except MeterError:
            pass  # it is gone or silent: nothing is left to switch off
        finally:
            self._port = None
            port.close()

    def _settings(self) -> list[str]:
        if not self._kind.has_events:
            first = []
        else:
            first = ["acqmode dyn", "output current", f"funcmode {'high' if self.rate_hz >= 50_000 else 'optim'}"]
        events = ["eventsrc d7 fal"] if self.window_by is WindowBy.END else []
        return [
            f"volt {round(self.supply_v * 1000)}m",
            *first,
            f"format {self._format}",
            f"freq {round(self.rate_hz)}",
            "trigsrc sw",
            *events,
            "acqtime inf",
            "pwr on",
        ]

    def _take_control(self) -> None:
        """Take the meter over, from whatever its last owner left it in."""
        try:
            self._ask(self._kind.control[0], timeout_s=1.0)
        except MeterLost:
            self._send("stop")
            try:
                self._ask(self._kind.control[0])
            except MeterLost as error:
                self._send("psrst")
                raise MeterLost(
                    f"{self.name}: did not answer and was told to restart, which takes {_RESTART_S} s; try again then"
                ) from error

    def _send(self, command: str) -> None:
        try:
            drain(self._port)
            self._port.write(f"{command}\r\n".encode("ascii"))
        except OSError as error:
            raise port_error(self._kind.title, self._port.port, error) from error

    def _ask(self, command: str, timeout_s: float = _ANSWER_S) -> str:
        """The meter's answer to ``command``.

        Raises:
            MeterError: it refuses the command; MeterLost: it does not answer.
        """
        self._send(command)
        deadline = self._clock() + timeout_s
        answer = b""
        while self._clock() < deadline:
            try:
                answer += self._port.read_until(b"\n")
            except OSError as error:
                raise port_error(self._kind.title, self._port.port, error) from error
            text: str = answer.decode("ascii", errors="replace")
            if f"ack {command}" in text and text.endswith("\n"):
                return text
            if "err" in text.replace(command, "").lower() and text.endswith("\n"):
                raise MeterError(f"{self.name}: refuses {command!r}: {' '.join(text.split())}; update its firmware")
        raise MeterLost(f"{self.name}: no answer to {command!r} in {timeout_s:g} s; unplug it and plug it in again")

    def _check_stream(self, stream: Stream) -> None:
        if stream.is_overcurrent:
            raise TraceSaturated(
                f"{self.name}: overcurrent; the board draws more than {self._kind.highest_a * 1000:g} mA, which is "
                "what this meter can supply"
            )
        if stream.faults:
            raise MeterError(f"{self.name}: reports {'; '.join(stream.faults)}")

    def _end_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is None:
            return
        try:
            self._port.write(b"stop\r\n")
            reader.stop()
        except OSError:
            return  # the meter is gone, and with it what we wanted to end


def _decode(data: bytes, data_format: str) -> Stream:
    """Cut off what the firmware says before and after the readings, then decode."""
    if data_format == "ascii_dec":
        return decode_text(data)
    if data.startswith(b"\r\n"):  # the rest of its answer to `start`
        data = data[2:]
    end = data.rfind(_END)
    if end >= 0:
        data = data[: max(0, data.rfind(b"\r\n", 0, end))]
    return decode_binary(data)


def _check(kind: StMeter, supply_v: float, data_format: str, rate_hz: int) -> None:
    if not kind.lowest_v <= supply_v <= kind.highest_v:
        raise InventoryError(f"{kind.title}: supply_v {supply_v}; allowed: {kind.lowest_v} to {kind.highest_v} V")
    if data_format not in FORMATS:
        raise InventoryError(f"{kind.title}: format {data_format!r}; allowed: {', '.join(FORMATS)}")
    allowed = [rate for rate in RATES_HZ if data_format != "ascii_dec" or rate <= FASTEST_TEXT_HZ]
    if rate_hz not in allowed:
        raise InventoryError(
            f"{kind.title}: rate_hz {rate_hz} in format {data_format}; allowed: {', '.join(map(str, allowed))}"
        )
