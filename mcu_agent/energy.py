"""Energy of an inference: measured in windows with a recorder, or without one a model, cycles times energy of a cycle.

A window is a row of inferences between two edges of the board's trigger pin, with idling on both sides. What happens to
the numbers is pure; :func:`measure_energy` alone drives a meter.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mcu_agent.errors import CyclesUnknown, MeterDrift, MeterError, MeterLost
from mcu_agent.kinds import BoardKind
from mcu_agent.meters.protocol import EnergyReading, Recorder, Trace, WindowBy
from mcu_agent.windows import Call, Window, check_trace, cut

RunWindow = Callable[[int, int], int]

OUTLIER_SIGMAS = 5.0
LEAST_COVERAGE = 0.93
_SIGMA_PER_MAD = 1.4826  # of a normal distribution
_FLAT_SHARE = 1e-4  # windows this close to the median are never outliers, however alike the others are
_TAIL = 0.025
_LONGEST_S = 10.0  # a window so long is long enough for a slow meter too
_MAX_REPEATS = 2**31
_TRIAL_READINGS = 1000
_HOST_WINDOW_S, _HOST_IDLE_MS = 5.0, 500
_KNOWN_LOAD_S = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowPlan:
    """How an energy is measured: ``n_warm_up`` windows that do not count, then ``n_windows`` that do.

    A window lasts ``least_s``, ``least_readings`` of the meter (or ten seconds), or its share of ``total_s``, whichever
    is the longest. The board idles for ``idle_ms`` before and after each. A window that fails a check is tried again
    ``n_retries`` times.

    ``n_windows`` is odd, and such that the interval covers the median in at least 93 of 100 cases: 9 windows do in
    96.1, 7 only in 87.5 (:func:`coverage`).

    Raises:
        ValueError: a number is out of range.
    """

    n_windows: int = 9
    n_warm_up: int = 1
    idle_ms: int = 50
    least_s: float = 0.1
    least_readings: int = 10_000
    total_s: float = 1.0
    n_retries: int = 2

    def __post_init__(self) -> None:
        if self.n_windows < 3 or self.n_windows % 2 == 0:
            raise ValueError(f"{self.n_windows} windows: must be an odd number from 3")
        if coverage(self.n_windows) < LEAST_COVERAGE:
            good = [n for n in range(3, 26, 2) if coverage(n) >= LEAST_COVERAGE]
            raise ValueError(
                f"{self.n_windows} windows: their interval would cover the median in {coverage(self.n_windows):.1%} "
                f"of all cases; take {', '.join(map(str, good))}"
            )
        if min(self.n_warm_up, self.idle_ms, self.n_retries) < 0 or self.idle_ms == 0:
            raise ValueError(f"{self}: counts must not be negative, and the board must idle")

    def window_s(self, rate_hz: float, window_by: WindowBy = WindowBy.PIN) -> float:
        """How long a window is with a meter of ``rate_hz``."""
        by_readings = min(_LONGEST_S, self.least_readings / rate_hz)
        found_late = _HOST_WINDOW_S if window_by is WindowBy.HOST else 0.0
        return max(self.least_s, by_readings, self.total_s / self.n_windows, found_late)

    def idle_ms_for(self, window_by: WindowBy) -> int:
        """How long the board idles on each side: longer where the window is found by the host's clock."""
        return max(self.idle_ms, _HOST_IDLE_MS) if window_by is WindowBy.HOST else self.idle_ms


def estimate_energy_j(cycles: float, kind: BoardKind) -> float:
    """Joules that ``cycles`` core cycles take at the operating point of the catalogue entry.

    Source:
        ``kind.nj_per_cycle_source``. Published figures of one board vary by ±8 % over networks, so this ranks
        networks as latency does; it says nothing about the spread between boards or supply voltages.

    Raises:
        ValueError: ``cycles`` is negative.
    """
    if cycles < 0:
        raise ValueError(f"{cycles} cycles: must not be negative")
    return cycles * kind.nj_per_cycle * 1e-9


def _rank(n: int) -> int:
    """The rank k (from 1) such that the 2.5 % quantile of the bootstrapped median of ``n`` values is the k-th smallest.

    The median of a resample is at most the k-th smallest value if at least half of its draws are, and each is with
    probability k / n: the quantile follows exactly from the binomial distribution, without drawing.
    """
    half = (n + 1) // 2
    return next(k for k in range(1, n + 1) if _at_least(n, k / n, half) >= _TAIL)


def _at_least(n: int, p: float, k: int) -> float:
    return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))


def coverage(n: int) -> float:
    """How often the interval of :func:`interval_of_median` of ``n`` independent values (odd) covers the median."""
    return 1 - 2 * _at_least(n, 0.5, n - _rank(n) + 1)


def interval_of_median(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the median of an odd number of values, exact and so the same each time.

    It is what infinitely many resamples give: the k-th smallest and the k-th largest value.

    Raises:
        ValueError: their number is even or zero.
    """
    if len(values) % 2 == 0:
        raise ValueError(f"{len(values)} values: the number must be odd")
    k, ordered = _rank(len(values)), sorted(values)
    return ordered[k - 1], ordered[-k]


def outliers(values: Sequence[float]) -> tuple[int, ...]:
    """Indices of the values further than five robust standard deviations from the median, to flag, not to remove."""
    x = np.asarray(values, dtype=np.float64)
    distance = np.abs(x - np.median(x))
    sigma = _SIGMA_PER_MAD * float(np.median(distance))
    limit = max(OUTLIER_SIGMAS * sigma, _FLAT_SHARE * abs(float(np.median(x))))
    return tuple(int(i) for i in np.flatnonzero(distance > limit))


def repeats_for(window_s: float, cycles: float, clock_hz: float) -> int:
    """How many inferences of ``cycles`` fill a window."""
    return min(_MAX_REPEATS, max(1, math.ceil(window_s * clock_hz / cycles)))


def measure_energy(
    recorder: Recorder,
    run_window: RunWindow,
    plan: WindowPlan,
    *,
    cycles: float,
    clock_hz: float,
    supply_v: float,
    clock: Callable[[], float] = time.monotonic,
) -> EnergyReading:
    """The energy of one inference, measured: median of the windows, gross and above idling, with its interval.

    ``recorder`` is open. ``run_window(repeats, idle_ms)`` has the board idle, raise its trigger pin, run ``repeats``
    inferences, lower the pin and idle again; it returns the cycles counted while the pin was high (0: unknown; counters
    of 32 bits must have been extended). ``cycles`` are those of one inference (0: unknown, found by trial),
    ``clock_hz`` the board's clock. ``clock`` is the one the recorder uses.

    Raises:
        MeterError: a window failed its checks more often than the plan allows, with the last reason (transient).
        CyclesUnknown: the meter does not see both edges of the pin, and the board has no cycles.
        Anything that ``run_window`` raises; the recorder is stopped, not closed.
    """
    rig = _Rig(recorder, run_window, plan, clock_hz, supply_v, clock)
    if cycles <= 0 and recorder.window_by is not WindowBy.PIN:
        raise CyclesUnknown(f"{recorder.name} does not see the trigger pin, so energy needs the cycles of an inference")
    per_inference_s = cycles / clock_hz if cycles > 0 else rig.try_length_s()
    window_s = plan.window_s(recorder.rate_hz, recorder.window_by)
    repeats = repeats_for(window_s, per_inference_s, 1.0)
    for _ in range(plan.n_warm_up):
        rig.warm_up(repeats)
    windows = [rig.window(repeats) for _ in range(plan.n_windows)]
    return summarise_windows(windows, repeats, _basis(recorder, plan, repeats, windows, supply_v))


def summarise_windows(windows: Sequence[Window], repeats: int, basis: str) -> EnergyReading:
    """Windows of ``repeats`` inferences each as the energy of one."""
    gross = [window.energy_j / repeats for window in windows]
    net = [(window.energy_j - window.idle_w * window.seconds) / repeats for window in windows]
    return EnergyReading(
        energy_j=float(np.median(gross)),
        is_measured=True,
        basis=basis,
        interval_j=interval_of_median(gross),
        net_j=float(np.median(net)),
        idle_w=float(np.median([window.idle_w for window in windows])),
        windows_j=tuple(gross),
        outliers=outliers(gross),
    )


def check_known_load(
    recorder: Recorder,
    ohms: float,
    supply_v: float,
    tolerance: float = 0.05,
    wait: Callable[[float], None] = time.sleep,
) -> float:
    """Record a reference resistor with nothing else switched on; gives the amperes read.

    Raises:
        MeterDrift: the mean current is not ``supply_v / ohms`` within ``tolerance``.
        TraceGap, WrongSupply: as :func:`mcu_agent.windows.check_trace`.
    """
    recorder.start()
    try:
        wait(_KNOWN_LOAD_S)
    finally:
        trace = recorder.stop()
    check_trace(trace, supply_v)
    found, expected = float(np.mean(trace.current_a)), trace.supply_v / ohms
    if abs(found - expected) > tolerance * expected:
        raise MeterDrift(
            f"{recorder.name} reads {found * 1e3:.4g} mA through {ohms:g} ohm at {trace.supply_v:.3f} V, expected "
            f"{expected * 1e3:.4g} mA (allowed ±{tolerance:.0%}); calibrate the meter, or check that nothing else "
            f"draws current"
        )
    return found


class _Rig:
    """A recorder and a board, for one measurement."""

    def __init__(
        self,
        recorder: Recorder,
        run_window: RunWindow,
        plan: WindowPlan,
        clock_hz: float,
        supply_v: float,
        clock: Callable[[], float],
    ) -> None:
        self._recorder, self._run_window, self._plan = recorder, run_window, plan
        self._clock_hz, self._supply_v, self._clock = clock_hz, supply_v, clock
        self._idle_ms = plan.idle_ms_for(recorder.window_by)

    def record(self, repeats: int) -> tuple[Trace, Call]:
        """One window, unchecked."""
        self._recorder.start()
        try:
            began_s = self._clock()
            counted = self._run_window(repeats, self._idle_ms)
            returned_s = self._clock()
        except BaseException:
            _stop_quietly(self._recorder)
            raise
        trace = self._recorder.stop()
        idle_s, length_s = self._idle_ms / 1000, counted / self._clock_hz
        return trace, Call(began_s=began_s, returned_s=returned_s, idle_s=idle_s, length_s=length_s)

    def warm_up(self, repeats: int) -> None:
        """One window that does not count; neither does what the meter finds wrong with it, unless it went away."""
        try:
            self.record(repeats)
        except MeterLost:
            raise
        except MeterError:
            return

    def window(self, repeats: int) -> Window:
        """One window that passes its checks."""
        for attempt in range(self._plan.n_retries + 1):
            try:
                trace, call = self.record(repeats)
                check_trace(trace, self._supply_v)
                return cut(trace, call, self._recorder.window_by)
            except MeterLost:
                raise
            except MeterError as error:
                if attempt == self._plan.n_retries:
                    raise type(error)(f"{self._recorder.name}: {error} ({attempt + 1} attempts)") from error
        raise AssertionError("the loop returns or raises")

    def try_length_s(self) -> float:
        """How long one inference takes, by the pin: more of them until the pin was high for a thousand readings."""
        repeats = 1
        while True:
            seconds = self.window(repeats).seconds
            readings = seconds * self._recorder.rate_hz
            if readings >= _TRIAL_READINGS or repeats >= _MAX_REPEATS:
                return max(seconds, 1 / self._recorder.rate_hz) / repeats
            repeats *= max(2, math.ceil(_TRIAL_READINGS / max(readings, 1.0)))


def _stop_quietly(recorder: Recorder) -> None:
    """End a recording whose window has failed already; that failure is the one to report."""
    try:
        recorder.stop()
    except MeterLost:
        return


_FOUND = {
    WindowBy.PIN: "cut by the trigger pin",
    WindowBy.END: "ending at the trigger pin's edge, length by cycles",
    WindowBy.HOST: "found by the host's clock (less accurate: the meter does not see the pin), length by cycles",
}


def _basis(recorder: Recorder, plan: WindowPlan, repeats: int, windows: Sequence[Window], supply_v: float) -> str:
    seconds = float(np.median([window.seconds for window in windows]))
    return (
        f"{recorder.name} ({recorder.accuracy}), {supply_v:g} V; median of {plan.n_windows} windows of {repeats:,} "
        f"inferences, {seconds:.3f} s each, {_FOUND[recorder.window_by]}, after {plan.n_warm_up} to warm up; 95 % "
        "interval of that median by bootstrap"
    )
