"""The stream of a Power Profiler Kit II, decoded in one go; pure.

A reading is a little-endian word of 32 bits: 14 bits of the converter, 3 of the range, one unused, 6 of a counter that
goes up by one with every reading, and 8 logic channels.

Source:
    Nordic's Power Profiler app (pc-nrfconnect-ppk, ``serialDevice.ts``) for the layout and the calibration; the package
    ppk2-api applies the same calibration but ignores the counter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from mcu_agent.meters.protocol import BoolArray, FloatArray

RATE_HZ = 100_000.0
N_RANGES = 5
COUNTER_PERIOD = 64
FULL_SCALE = 0x3FFF
MAX_CURRENT_A = 1.0  # what the kit is specified for
SETTLING_READINGS = 3  # after a change of range, as in the vendor's filter

ADC_VOLTS = 1.8 / 163_840
_GROUPS = ("R", "GS", "GI", "O", "S", "I", "UG")
_ALPHA, _ALPHA_TOP_RANGE = 0.18, 0.06
_TAPS = 320  # (1 - 0.06)^320 is 3e-9 of a step
_MAX_FILLED_SHARE = 0.05  # beyond it the stream is garbage: filling its gaps would only use up memory

Words = npt.NDArray[np.uint32]
Indices = npt.NDArray[np.int64]


class SpikeFilter(StrEnum):
    """What is done with the three readings after a change of range, which show the switching of the shunt.

    ``SETTLED`` puts the first settled reading in their place: a step of current that causes the change then keeps its
    charge. ``VENDOR`` puts the vendor's moving average there, which lags behind such a step by about two readings.
    ``OFF`` leaves them.
    """

    SETTLED = "settled"
    VENDOR = "vendor"
    OFF = "off"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Calibration:
    """The kit's own constants, one a range (5,): shunt ``r`` in ohms, gains ``gs``, ``gi`` and ``ug``, converter offset
    ``o``, and offset current ``s`` (a volt of supply) and ``i``."""

    r: FloatArray
    gs: FloatArray
    gi: FloatArray
    o: FloatArray
    s: FloatArray
    i: FloatArray
    ug: FloatArray

    @staticmethod
    def from_modifiers(modifiers: Mapping[str, Any]) -> Calibration:
        """From what ppk2-api read: a mapping of group to mapping of range ("0" to "4").

        Raises:
            ValueError: a shunt is not positive or a constant is not finite.
        """
        groups = {name.lower(): np.array([float(modifiers[name][str(k)]) for k in range(N_RANGES)]) for name in _GROUPS}
        if not (groups["r"] > 0).all() or not all(np.isfinite(values).all() for values in groups.values()):
            raise ValueError(f"the calibration constants {groups} are impossible")
        return Calibration(**groups)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Decoded:
    """Readings of a stream (t,), those lost included unless ``n_lost`` is more than a twentieth of them."""

    current_a: FloatArray
    trigger: BoolArray
    saturated: BoolArray
    n_lost: int


def decode(
    data: bytes,
    calibration: Calibration,
    *,
    supply_v: float,
    trigger: int,
    spike_filter: SpikeFilter = SpikeFilter.SETTLED,
) -> Decoded:
    """The readings in ``data``, whose first byte begins a word; a word cut off at its end is left out.

    ``trigger`` is the logic channel, 0 to 7. The counter shows any number of lost readings that is no multiple of 64.
    """
    words = np.frombuffer(data, dtype="<u4", count=len(data) // 4)
    missing = missing_before(words)
    ranges = np.minimum((words >> 14) & 7, N_RANGES - 1).astype(np.intp)
    adc = (words & FULL_SCALE).astype(np.uint32)
    current = to_amperes(adc, ranges, calibration, supply_v)
    saturated = (adc == FULL_SCALE) | ((ranges == N_RANGES - 1) & (current > MAX_CURRENT_A))
    current = _FILTERS[spike_filter](current, ranges)
    level = ((words >> (24 + trigger)) & 1).astype(np.bool_)
    n_lost = int(missing.sum())
    if 0 < n_lost <= _MAX_FILLED_SHARE * len(words):
        times = np.ones(len(words), dtype=np.int64)
        times[:-1] += missing[1:]
        current, level, saturated = (np.repeat(values, times) for values in (current, level, saturated))
    return Decoded(current_a=current, trigger=level, saturated=saturated, n_lost=n_lost)


def missing_before(words: Words) -> Indices:
    """How many readings are missing before each of ``words`` (t,), modulo 64, by the counter."""
    counters = ((words >> 18) & (COUNTER_PERIOD - 1)).astype(np.int64)
    missing = np.zeros(len(words), dtype=np.int64)
    missing[1:] = (np.diff(counters) - 1) % COUNTER_PERIOD
    return missing


def to_amperes(adc: Words, ranges: Indices, calibration: Calibration, supply_v: float) -> FloatArray:
    """The calibrated current of every reading (t,), before any filter."""
    c, n = calibration, len(adc)
    scale = ADC_VOLTS / c.r
    # One polynomial a range: ug * (x * (gs * x + gi) + s * supply + i) with x = (4 * adc - o) * scale.
    current = np.empty(n)
    for k in np.flatnonzero(np.bincount(ranges, minlength=N_RANGES)):
        where = ranges == k
        x = (adc[where] * 4.0 - c.o[k]) * scale[k]
        current[where] = c.ug[k] * (x * (c.gs[k] * x + c.gi[k]) + c.s[k] * supply_v + c.i[k])
    return current


def _after_changes(ranges: Indices) -> Indices:
    """Indices of the readings that still settle: the first three after every change of range."""
    changes = np.flatnonzero(np.diff(ranges)) + 1
    settling = np.unique((changes[:, None] + np.arange(SETTLING_READINGS)).ravel())
    return settling[settling < len(ranges)]


def _settled(current: FloatArray, ranges: Indices) -> FloatArray:
    settling = _after_changes(ranges)
    if not len(settling) or len(settling) == len(current):
        return current
    is_settled = np.ones(len(current), dtype=np.bool_)
    is_settled[settling] = False
    settled = np.flatnonzero(is_settled)
    # The next settled reading; at the end of the trace, where there is none, the last one.
    source = settled[np.minimum(np.searchsorted(settled, settling), len(settled) - 1)]
    filtered = current.copy()
    filtered[settling] = current[source]
    return filtered


def _vendor(current: FloatArray, ranges: Indices) -> FloatArray:
    settling = _after_changes(ranges)
    if not len(settling):
        return current
    # In the top range the first two readings after a change do not enter the averages.
    changed = np.zeros(len(current), dtype=np.int64)
    changed[np.flatnonzero(np.diff(ranges)) + 1] = 1
    since = np.arange(len(current)) - np.maximum.accumulate(np.where(changed, np.arange(len(current)), -(10**9)))
    entering = np.flatnonzero(~((since < 2) & (ranges == N_RANGES - 1)))
    padded = np.concatenate([np.full(_TAPS, current[0]), current[entering]])
    at = np.searchsorted(entering, settling, side="right") + _TAPS - 1  # the last entering reading, itself included
    filtered = current.copy()
    is_top = ranges[settling] == N_RANGES - 1
    for where, alpha in ((~is_top, _ALPHA), (is_top, _ALPHA_TOP_RANGE)):
        taps = at[where][:, None] - np.arange(_TAPS)
        filtered[settling[where]] = padded[taps] @ (alpha * (1 - alpha) ** np.arange(_TAPS))
    return filtered


def _unfiltered(current: FloatArray, ranges: Indices) -> FloatArray:
    del ranges
    return current


_FILTERS = {SpikeFilter.SETTLED: _settled, SpikeFilter.VENDOR: _vendor, SpikeFilter.OFF: _unfiltered}
