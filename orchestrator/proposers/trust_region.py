"""A trust region whose state follows from the history.

The region is a box around a centre. Its side doubles after some successes in a row and halves after some failures in a
row; when it has become too small, it starts anew somewhere else. Nothing is stored: the trials told, in their order,
are gone through again at every proposal.

Source: Eriksson, Pearce, Gardner, Turner, Poloczek, NeurIPS 2019 (TuRBO), with its lengths and tolerances.

Shapes: n points, d columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from orchestrator.arrays import FloatArray
from orchestrator.pareto import non_dominated
from orchestrator.proposers.protocol import History
from orchestrator.space import SearchSpace

_FIRST_SIDE, _LARGEST_SIDE, _SMALLEST_SIDE = 0.8, 1.6, 0.5**7
_SUCCESSES = 3
_FEWEST_FAILURES = 4
# Columns that change in a candidate, on average, as in TuRBO.
_CHANGED = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TrustRegion:
    """``side`` of the box, and the trial from which on this region counts: those before belong to earlier ones."""

    side: float
    first: int


def replayed(history: History, *, design: int, n_parameters: int) -> TrustRegion:
    """The region after all trials: its first ``design`` ones are the initial design and neither succeed nor fail.

    A trial succeeds when no earlier one of its region dominates or equals it, and it is feasible; as long as nothing
    feasible is known, when its margin is smaller than all before.
    """
    tolerance = max(_FEWEST_FAILURES, n_parameters)
    side, first, successes, failures = _FIRST_SIDE, 0, 0, 0
    for index in range(design, len(history)):
        if index - first < design:
            continue
        if _succeeds(history, first, index):
            successes, failures = successes + 1, 0
        else:
            successes, failures = 0, failures + 1
        if successes == _SUCCESSES:
            side, successes = min(2.0 * side, _LARGEST_SIDE), 0
        elif failures == tolerance:
            side, failures = side / 2.0, 0
        if side < _SMALLEST_SIDE:
            side, first, successes, failures = _FIRST_SIDE, index + 1, 0, 0
    return TrustRegion(side=side, first=first)


def perturbed(
    space: SearchSpace,
    centre: FloatArray,
    sides: FloatArray,
    count: int,
    rng: np.random.Generator,
) -> FloatArray:
    """``count`` candidates in the box of ``sides`` (d,) around ``centre`` (d,), most columns left as they are."""
    lower, upper = np.clip(centre - sides / 2, 0.0, 1.0), np.clip(centre + sides / 2, 0.0, 1.0)
    drawn = lower + (upper - lower) * rng.random((count, len(centre)))
    n_parameters = len(space.axes)
    chosen = rng.random((count, n_parameters)) < min(1.0, _CHANGED / n_parameters)
    chosen[np.arange(count), rng.integers(n_parameters, size=count)] = True
    return space.snap(np.where(space.spread(chosen), drawn, centre))


def sides_of(side: float, lengths: FloatArray) -> FloatArray:
    """The box's sides (d,): long where the surrogate's length scale is, with the volume of side ** d."""
    weights = lengths / lengths.mean()
    return np.asarray(side * weights / math.exp(float(np.log(weights).mean())))


def _succeeds(history: History, first: int, index: int) -> bool:
    earlier = slice(first, index)
    feasible = history.feasible[earlier]
    if not feasible.any():
        return bool(history.margins[index] < history.margins[earlier].min(initial=np.inf))
    if not history.feasible[index]:
        return False
    front = history.outcomes[earlier][feasible]
    both = np.vstack([front, history.outcomes[index]])
    return bool(non_dominated(both)[-1] and not (front == history.outcomes[index]).all(axis=1).any())
