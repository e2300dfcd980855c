"""What holds of early stopping for any front, any curves and any candidate."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from orchestrator.arrays import FloatArray
from orchestrator.objectives import Objectives
from orchestrator.pareto import hypervolume
from orchestrator.stopping import (
    Curve,
    Finished,
    StoppingRule,
    error_threshold,
    remaining_shares,
    stopping_rule,
    worthless_error,
)
from orchestrator.studyfile import EarlyStopping

# Few levels, so that equal values are common.
LEVELS = st.integers(0, 4).map(lambda level: level / 4)
FRONTS = st.integers(0, 6).flatmap(lambda n: arrays(np.float64, (n, 3), elements=LEVELS))
KNOWN = arrays(np.float64, 3, elements=LEVELS)
ERRORS = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8).map(tuple)
CURVES = st.lists(st.builds(Curve, errors=ERRORS, final=st.floats(0.0, 1.0)), min_size=6, max_size=12)
OBJECTIVES = Objectives(names=("error", "rom", "ram"), units=("1", "byte", "byte"), limits=(0.5, 100.0, 10.0))


def dominated(point: FloatArray, front: FloatArray) -> bool:
    """By the definition."""
    return any(all(row <= point) and any(row < point) for row in front)


@given(FRONTS, KNOWN, st.integers(0, 2), st.integers(-1, 9).map(lambda level: level / 8))
def test_above_the_threshold_a_candidate_is_dominated_and_below_it_is_not(
    front: FloatArray, known: FloatArray, error: int, amount: float
) -> None:
    threshold = error_threshold(front, known, error)
    point = known.copy()
    point[error] = amount
    if amount > threshold:
        assert dominated(point, front)
    if amount < threshold:
        assert not dominated(point, front)


@given(FRONTS, KNOWN, arrays(np.bool_, 3), KNOWN)
def test_what_is_not_known_never_lowers_the_threshold_below_what_it_will_be(
    front: FloatArray, known: FloatArray, is_known: FloatArray, less: FloatArray
) -> None:
    bounds = np.where(is_known, known - less, np.nan)
    assert error_threshold(front, bounds, 0) >= error_threshold(front, known, 0)


@given(FRONTS, KNOWN, st.sampled_from([0.0, 0.001, 0.05]), st.floats(0.0, 1.0))
def test_a_worthless_error_adds_no_more_than_the_least_gain(
    front: FloatArray, known: FloatArray, gain: float, beyond: float
) -> None:
    reference = np.ones(3)
    least = worthless_error(front, known, 0, reference, gain)
    assert least <= error_threshold(front, known, 0)
    if math.isfinite(least):
        point = known.copy()
        point[0] = least + beyond
        reached = hypervolume(front, reference)
        assert hypervolume(np.vstack([front, point]), reference) - reached <= gain * reached + 1e-12


@given(CURVES, st.integers(1, 12), st.floats(0.001, 0.15))
def test_no_finished_trial_that_would_make_the_front_would_have_been_stopped(
    curves: list[Curve], epochs: int, chance: float
) -> None:
    for curve in curves:
        rule = StoppingRule(threshold=curve.final + 1e-9, shares=remaining_shares(curves, len(curve.errors), chance))
        assert all(rule.look(curve.errors[:epoch]) is None for epoch in range(1, len(curve.errors) + 1))


@given(CURVES, KNOWN, FRONTS, st.floats(0.001, 0.5))
def test_a_trial_that_is_not_dominated_whatever_its_error_has_no_rule(
    curves: list[Curve], known: FloatArray, costs: FloatArray, chance: float
) -> None:
    rows = costs[np.arange(len(curves)) % len(costs)] if len(costs) else np.ones((len(curves), 3))
    limits = np.array(OBJECTIVES.limits)
    finished = [
        Finished(
            values=dict(zip(OBJECTIVES.names, [curve.final, *(row * limits)[1:]], strict=True)), errors=curve.errors
        )
        for curve, row in zip(curves, rows, strict=True)
    ]
    given_ = dict(zip(OBJECTIVES.names, known * limits, strict=True))
    del given_["error"]
    rule = stopping_rule(given_, 5, finished, OBJECTIVES, EarlyStopping(chance=chance, gain=0.0))
    worst = np.array([math.inf, *(known * limits)[1:]])
    front = np.array([OBJECTIVES.vector(trial.values) for trial in finished])
    if not dominated(worst, front):
        assert rule is None
