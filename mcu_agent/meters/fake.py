"""A recorder and the board wired to it, as a script: a known current on a clock of its own, and faults on demand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np

from mcu_agent.errors import MeterLost
from mcu_agent.meters.protocol import Trace, WindowBy


class Fault(Enum):
    """What can go wrong with one trace."""

    GAP = auto()  # a hundredth of the readings is missing, and the meter knows
    UNSEEN_GAP = auto()  # the same, and it does not
    SATURATED = auto()
    WRONG_SUPPLY = auto()
    SLOW_CLOCK = auto()
    NO_TRIGGER = auto()
    DOUBLE_TRIGGER = auto()
    SHORT_TRIGGER = auto()
    LOST = auto()  # the meter goes away


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """A board: cycles of one inference, its clock, what it draws while it runs, while it idles and beside that, and the
    noise of a reading. ``extra_w`` adds power to the windows by their number."""

    cycles: float = 64_000
    clock_hz: float = 64e6
    run_a: float = 4e-3
    idle_a: float = 20e-6
    waiting_a: float = 3e-3
    noise_a: float = 0.0
    extra_a: Mapping[int, float] | None = None


class FakeRecorder:
    """See :class:`mcu_agent.meters.protocol.Recorder`; :meth:`run_window` is the board's side of it.

    ``faults`` names the fault of a trace by its number, from 0; ``is_busy`` has somebody else hold it. :meth:`clock` is
    the clock that both live on; it stands still unless a window runs.
    """

    def __init__(
        self,
        load: Load | None = None,
        *,
        rate_hz: float = 100_000.0,
        supply_v: float = 3.0,
        window_by: WindowBy = WindowBy.PIN,
        faults: Mapping[int, Fault] | None = None,
        delay_s: float = 0.01,
        seed: int = 0,
    ) -> None:
        self.name, self.accuracy, self.rate_hz, self.window_by = "fake", "exact", rate_hz, window_by
        self.load = load or Load()
        self.n_traces = 0
        self.is_open = False
        self.faults = dict(faults or {})
        self.is_busy = False
        self.supply_v = supply_v
        self._delay_s = delay_s
        self._rng = np.random.default_rng(seed)
        self._now_s = 0.0
        self._started_s: float | None = None
        self._window: tuple[float, float] | None = None
        self._idle: list[tuple[float, float]] = []

    def clock(self) -> float:
        """Seconds on the clock of meter and board."""
        return self._now_s

    def pass_time(self, seconds: float) -> None:
        """Let time pass, with the board waiting for commands."""
        self._now_s += seconds

    def run_window(self, repeats: int, idle_ms: int) -> int:
        """What the board's firmware does; gives the cycles with the pin high."""
        cycles = round(repeats * self.load.cycles)
        idle_s, length_s = idle_ms / 1000, cycles / self.load.clock_hz
        self.pass_time(self._delay_s)
        rise = self._now_s + idle_s
        fall = rise + length_s
        self._idle = [(self._now_s, rise), (fall, fall + idle_s)]
        self._window = (rise, fall)
        self._now_s = fall + idle_s
        self.pass_time(self._delay_s)
        return cycles

    def open(self) -> None:
        """Connect."""
        if self.is_busy:
            raise MeterLost("fake: another program has it open; close it and try again")
        self.is_open = True

    def start(self) -> None:
        """Start a trace at the clock's present time."""
        if not self.is_open or self._started_s is not None:
            raise MeterLost("fake: not open, or recording already")
        self._started_s, self._window, self._idle = self._now_s, None, []

    def stop(self) -> Trace:
        """The trace of all that happened since ``start``, with its fault."""
        if not self.is_open or self._started_s is None:
            raise MeterLost("fake: nothing is being recorded")
        started, self._started_s = self._started_s, None
        number, self.n_traces = self.n_traces, self.n_traces + 1
        fault = self.faults.get(number)
        if fault is Fault.LOST:
            raise MeterLost("fake: it is gone")
        return self._with_fault(self._trace(started, number), fault)

    def close(self) -> None:
        """Disconnect, whatever the state."""
        self.is_open, self._started_s = False, None

    def _trace(self, started: float, number: int) -> Trace:
        n = round((self._now_s - started) * self.rate_hz)
        times = started + (np.arange(n) + 0.5) / self.rate_hz
        current = np.full(n, self.load.waiting_a)
        for start, end in self._idle:
            current[(times >= start) & (times < end)] = self.load.idle_a
        trigger = np.zeros(n, dtype=np.bool_)
        if self._window is not None:
            high = (times >= self._window[0]) & (times < self._window[1])
            current[high] = self.load.run_a + (self.load.extra_a or {}).get(number, 0.0)
            trigger = self._mark(high)
        if self.load.noise_a:
            current = current + self._rng.normal(0.0, self.load.noise_a, n)
        return Trace(
            current_a=current,
            trigger=trigger,
            saturated=np.zeros(n, dtype=np.bool_),
            rate_hz=self.rate_hz,
            supply_v=self.supply_v,
            seconds=n / self.rate_hz,
            started_s=started,
        )

    def _mark(self, high: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        marks = np.zeros(len(high), dtype=np.bool_)
        if self.window_by is WindowBy.PIN:
            marks = high
        elif self.window_by is WindowBy.END:
            marks[np.flatnonzero(np.diff(high.astype(np.int8)) == -1) + 1] = True
        return marks

    def _with_fault(self, trace: Trace, fault: Fault | None) -> Trace:
        if fault is None:
            return trace
        n = len(trace.current_a)
        current, trigger, saturated = trace.current_a, trace.trigger.copy(), trace.saturated
        seconds, n_lost, supply_v, keep = trace.seconds, 0, trace.supply_v, np.ones(n, dtype=np.bool_)
        if fault is Fault.GAP:
            n_lost = n // 100
        elif fault is Fault.UNSEEN_GAP:
            keep[n // 2 : n // 2 + n // 100] = False
        elif fault is Fault.SATURATED:
            saturated = current >= 0.9 * self.load.run_a
        elif fault is Fault.WRONG_SUPPLY:
            supply_v *= 1.03
        elif fault is Fault.SLOW_CLOCK:
            seconds *= 1.01
        elif fault is Fault.NO_TRIGGER:
            trigger[:] = False
        else:
            high = np.flatnonzero(trigger)
            middle = high[len(high) // 2 :]
            trigger[middle[: max(1, len(middle) // 50)] if fault is Fault.DOUBLE_TRIGGER else middle] = False
        return Trace(
            current_a=current[keep],
            trigger=trigger[keep],
            saturated=saturated[keep],
            rate_hz=trace.rate_hz,
            supply_v=supply_v,
            seconds=seconds,
            n_lost=n_lost,
            started_s=trace.started_s,
        )
