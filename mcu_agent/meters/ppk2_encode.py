"""The stream a Power Profiler Kit II would send for a known current, for tests and benches: ``ppk2_stream``
inverted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mcu_agent.meters.ppk2_stream import (
    ADC_VOLTS,
    COUNTER_PERIOD,
    FULL_SCALE,
    N_RANGES,
    SETTLING_READINGS,
    Calibration,
    Words,
)
from mcu_agent.meters.protocol import BoolArray, FloatArray

RANGE_ENDS_A = (50e-6, 500e-6, 5e-3, 50e-3)  # where the kit goes from one range to the next

# Of the size that kits have, but of no particular one.
TYPICAL = Calibration(
    r=np.array([1003.5, 101.6, 10.30, 0.963, 0.0561]),
    gs=np.array([0.0, 112.0, 18.1, 2.42, 0.073]),
    gi=np.array([1.0, 0.9695, 0.9610, 0.9520, 0.9580]),
    o=np.array([113.0, 75.5, 64.6, 49.7, 85.2]),
    s=np.array([4.8e-8, 6.0e-7, 5.3e-6, 6.3e-5, 2.9e-3]),
    i=np.array([-1.0e-7, -1.4e-6, 3.6e-5, -3.7e-4, -9.4e-3]),
    ug=np.array([1.0, 1.0, 1.0, 1.0, 1.0]),
)


def encode(
    current_a: FloatArray,
    logic: npt.NDArray[np.uint8],
    calibration: Calibration,
    *,
    supply_v: float,
    first_count: int = 0,
    switching_error: float = 0.0,
) -> Words:
    """Words for ``current_a`` (t,) amperes and ``logic`` (t,), the eight channels as bits.

    ``first_count`` is the counter of the first word. ``switching_error`` is by which share the readings after a change
    of range are too high, as the shunts switch.
    """
    ranges = np.searchsorted(RANGE_ENDS_A, current_a, side="right")
    current = current_a
    if switching_error:
        changes = np.flatnonzero(np.diff(ranges)) + 1
        settling = (changes[:, None] + np.arange(SETTLING_READINGS)).ravel()
        current = current_a.copy()
        current[settling[settling < len(current)]] *= 1 + switching_error
    adc = _to_adc(current, ranges, calibration, supply_v)
    counts = (np.arange(len(current), dtype=np.uint32) + first_count) % COUNTER_PERIOD
    words = adc | (ranges.astype(np.uint32) << 14) | (counts.astype(np.uint32) << 18)
    return (words | (logic.astype(np.uint32) << 24)).astype(np.uint32)


def logic_of(trigger: BoolArray, channel: int) -> npt.NDArray[np.uint8]:
    """The eight logic channels (t,) as bits, with ``trigger`` on one of them."""
    return (trigger.astype(np.uint8) << channel).astype(np.uint8)


def _to_adc(current: FloatArray, ranges: npt.NDArray[np.int64], c: Calibration, supply_v: float) -> Words:
    """The converter's value for each reading: the calibration's quadratic solved for it."""
    adc = np.empty(len(current))
    for k in range(N_RANGES):
        where = ranges == k
        if not where.any():
            continue
        y = current[where] / c.ug[k] - c.s[k] * supply_v - c.i[k]
        gs, gi = c.gs[k], c.gi[k]
        x = y / gi if gs == 0 else (np.sqrt(np.maximum(gi * gi + 4 * gs * y, 0.0)) - gi) / (2 * gs)
        adc[where] = (x * c.r[k] / ADC_VOLTS + c.o[k]) / 4
    return np.clip(np.rint(adc), 0, FULL_SCALE).astype(np.uint32)


def metadata(calibration: Calibration) -> str:
    """What the kit answers when asked for its calibration."""
    groups = {"R": "r", "GS": "gs", "GI": "gi", "O": "o", "S": "s", "I": "i", "UG": "ug"}
    lines = ["Calibrated: 0"]
    for name, attribute in groups.items():
        values = getattr(calibration, attribute)
        lines += [f"{name}{k}: {values[k]:.12g}" for k in range(N_RANGES)]
    return "\n".join([*lines, "VDD: 3000", "HW: 9173", "mode: 2", "IA: 56", "END"])
