"""Windows in a trace: whether the trace can be believed, where the window is, what it holds; pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mcu_agent.errors import MeterDrift, TraceGap, TraceSaturated, TriggerMissing, WrongSupply
from mcu_agent.meters.protocol import FloatArray, Trace, WindowBy

GAP_SHARE = 0.001  # of the readings
RATE_SHARE = 0.001  # between the meter's clock and the host's
SUPPLY_SHARE = 0.02
LENGTH_SHARE = 0.005  # between the trigger pin and the board's cycles
SATURATED_SHARE = 0.001
_SETTLE_SHARE = 0.1  # of the idle time beside a window: the supply's capacitors settle
_IDLE_SHARE = 0.9  # how far from the window idling is believed; beyond, the board takes commands
_LEAST_IDLE_READINGS = 10
_LEAST_INNER_SHARE = 0.5  # of a window found by the host's clock


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A call that had the board run one window: when it began and returned by the host's clock, how long the board
    idled before and after the window, and how long the window took by the board's cycles (0: unknown)."""

    began_s: float
    returned_s: float
    idle_s: float
    length_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """One window: energy and duration of all its inferences, power of idling beside it."""

    energy_j: float
    seconds: float
    idle_w: float


def check_trace(trace: Trace, supply_v: float) -> None:
    """Whether ``trace`` can be believed at all.

    Raises:
        TraceGap: more than 0.1 % of the readings are missing.
        MeterDrift: the readings took longer or shorter than they should by more than 0.1 %, or than the host can tell.
        WrongSupply: the voltage is off by more than 2 %.
    """
    n = len(trace.current_a)
    if n == 0:
        raise TraceGap("the trace is empty; check the meter's cable")
    if trace.n_lost > GAP_SHARE * n:
        raise TraceGap(
            f"{trace.n_lost:,} of {n:,} readings are missing ({trace.n_lost / n:.2%}, allowed {GAP_SHARE:.1%}); use "
            "another USB port, without a hub, and less load on this host"
        )
    late_s = trace.seconds - n / trace.rate_hz
    if abs(late_s) > max(RATE_SHARE * trace.seconds, trace.timing_error_s):
        raise MeterDrift(
            f"{n:,} readings at {trace.rate_hz:,.0f} Hz took {trace.seconds:.4f} s by the host's clock, "
            f"{late_s * 1e3:+.2f} ms "
            f"(allowed {RATE_SHARE:.1%} or {trace.timing_error_s * 1e3:g} ms): readings were lost unseen, or the "
            "meter's clock is off"
        )
    if abs(trace.supply_v - supply_v) > SUPPLY_SHARE * supply_v:
        raise WrongSupply(
            f"the supply is {trace.supply_v:.3f} V, the rack file says {supply_v:g} V (allowed ±{SUPPLY_SHARE:.0%}); "
            "correct `supply` or the supply"
        )


def cut(trace: Trace, call: Call, window_by: WindowBy) -> Window:
    """The window that ``call`` left in ``trace``, after :func:`check_trace`.

    Raises:
        TriggerMissing: it cannot be found, or is not as long as the board's cycles say.
        TraceSaturated: the current left the meter's range in it.
    """
    return _FINDERS[window_by](trace, call)


def _by_pin(trace: Trace, call: Call) -> Window:
    steps = np.diff(trace.trigger.astype(np.int8))
    rises, falls = np.flatnonzero(steps == 1) + 1, np.flatnonzero(steps == -1) + 1
    if len(rises) != 1 or len(falls) != 1 or rises[0] > falls[0]:
        raise TriggerMissing(
            f"the trigger pin rose {len(rises)} times and fell {len(falls)} times, expected once each; check the wire "
            "from the board's trigger pin to the meter's input and that `trigger` in the rack file names that input"
        )
    rise, fall = int(rises[0]), int(falls[0])
    seconds = (fall - rise) / trace.rate_hz
    # Each edge is known to one reading.
    allowed = LENGTH_SHARE * call.length_s + 1 / trace.rate_hz
    if call.length_s and abs(seconds - call.length_s) > allowed:
        raise TriggerMissing(
            f"the trigger pin was high for {seconds * 1e3:.3f} ms, the board counted {call.length_s * 1e3:.3f} ms "
            f"(allowed {LENGTH_SHARE:.1%} apart); readings were lost, the pin is disturbed, or the board's clock is "
            "not what the catalogue says"
        )
    return _measure(trace, rise, fall, call, seconds)


def _by_end(trace: Trace, call: Call) -> Window:
    ends = np.flatnonzero(trace.trigger)
    if len(ends) != 1:
        raise TriggerMissing(
            f"the meter saw the trigger pin fall {len(ends)} times, expected once; check the wire from the board's "
            "trigger pin to the meter's pin D7"
        )
    fall = int(ends[0])
    rise = fall - round(_known(call) * trace.rate_hz)
    if rise < 0:
        raise TriggerMissing(
            f"the trigger pin fell {fall / trace.rate_hz:.3f} s after the start of the trace, but the board counted "
            f"{call.length_s:.3f} s; the pin is disturbed, or the board's clock is not what the catalogue says"
        )
    return _measure(trace, rise, fall, call, call.length_s)


def _measure(trace: Trace, rise: int, fall: int, call: Call, seconds: float) -> Window:
    far, near = (int(share * call.idle_s * trace.rate_hz) for share in (_IDLE_SHARE, _SETTLE_SHARE))
    first, last = max(0, rise - far), fall + far
    _check_range(trace, first, last)
    power = _power(trace)
    idle = np.concatenate([power[first : max(0, rise - near)], power[fall + near : last]])
    if len(idle) < _LEAST_IDLE_READINGS:
        raise TriggerMissing(
            f"only {len(idle)} readings of idling beside the window; the board did not idle, or the trace ended too "
            f"early"
        )
    return Window(energy_j=float(power[rise:fall].sum()) / trace.rate_hz, seconds=seconds, idle_w=float(np.mean(idle)))


def _by_host(trace: Trace, call: Call) -> Window:
    """What lies inside the window whatever the delays before and after it were.

    Of the time of the call, ``slack`` is neither idling nor window: the command's way to the board and its answer's way
    back. The window begins between ``idle`` and ``idle + slack`` after the call, so its part from ``idle + slack`` to
    ``idle + length`` is certain. Mean power there times the board's own length is the energy.
    """
    length, idle = _known(call), call.idle_s
    margin = trace.timing_error_s
    slack = call.returned_s - call.began_s - 2 * idle - length
    if slack < -LENGTH_SHARE * length - margin:
        raise TriggerMissing(
            f"the board counted {length:.3f} s, but only {length + slack:.3f} s passed on the host; the board's clock "
            "is not what the catalogue says"
        )
    slack = max(slack, 0.0)
    begin = call.began_s - trace.started_s
    inner = _between(trace, begin + idle + slack + margin, begin + idle + length - margin)
    if inner.stop - inner.start < _LEAST_INNER_SHARE * length * trace.rate_hz:
        raise TriggerMissing(
            f"the call took {slack:.3f} s longer than idling and a window of {length:.3f} s, so the window cannot be "
            "found by the host's clock; wire the trigger pin, use longer windows, or a faster debug probe"
        )
    before = _between(trace, begin + slack + margin, begin + idle - margin)
    after = _between(trace, begin + idle + length + slack + margin, begin + 2 * idle + length - margin)
    power = _power(trace)
    resting = np.concatenate([power[before], power[after]])
    if len(resting) < _LEAST_IDLE_READINGS:
        raise TriggerMissing(
            f"no idling is certain beside the window: the delays are {slack:.3f} s, idling {idle:.3f} s"
        )
    _check_range(trace, inner.start, inner.stop)
    return Window(energy_j=float(np.mean(power[inner])) * length, seconds=length, idle_w=float(np.mean(resting)))


_FINDERS = {WindowBy.PIN: _by_pin, WindowBy.END: _by_end, WindowBy.HOST: _by_host}


def _known(call: Call) -> float:
    if call.length_s <= 0:
        raise TriggerMissing("this meter needs the board's cycles to know how long the window was, and there are none")
    return call.length_s


def _between(trace: Trace, start_s: float, end_s: float) -> slice:
    """Readings that were taken wholly within a span of the trace's time, by the share of the trace that it is."""
    per_second = len(trace.current_a) / trace.seconds
    start = max(0, int(np.ceil(start_s * per_second)))
    return slice(start, max(start, min(len(trace.current_a), int(end_s * per_second))))


def _power(trace: Trace) -> FloatArray:
    return trace.current_a * (trace.supply_v if trace.voltage_v is None else trace.voltage_v)


def _check_range(trace: Trace, first: int, last: int) -> None:
    saturated = trace.saturated[first:last]
    share = float(saturated.mean()) if len(saturated) else 0.0
    if share > SATURATED_SHARE:
        raise TraceSaturated(
            f"{share:.2%} of the readings are at the end of the meter's range (allowed {SATURATED_SHARE:.1%}); the "
            "board draws more than this meter, or its shunt, can measure"
        )
