"""What a history says about the front: who is on it, where its reference point is, what keeps candidates off it."""

from __future__ import annotations

import numpy as np

from orchestrator.arrays import FloatArray
from orchestrator.pareto import non_dominated
from orchestrator.proposers.protocol import History

# An excess over a limit that no objective explains, beyond rounding.
_UNEXPLAINED = 1e-6
# Of the reference point of an objective without a limit: so far beyond the worst of the front, as a share of its range.
_BEYOND_NADIR = 0.1


def pareto_set(history: History) -> FloatArray:
    """Points (k, d) of the feasible trials that no other dominates; where there is none, those nearest to feasible."""
    if history.feasible.any():
        return np.asarray(history.points[history.feasible][non_dominated(history.outcomes[history.feasible])])
    return np.asarray(history.points[np.argsort(history.margins, kind="stable")[: max(1, len(history) // 4)]])


def reference_point(history: History, reached: FloatArray) -> FloatArray:
    """One where an objective has a limit; elsewhere a little beyond the worst of the front."""
    reference = np.ones(history.outcomes.shape[1])
    for j in np.flatnonzero(~history.bounded):
        known = history.outcomes[np.isfinite(history.outcomes[:, j]), j]
        front = reached[non_dominated(reached), j] if len(reached) else known
        if not len(front):
            continue
        span = np.ptp(front) or np.ptp(known) or abs(front[0]) or 1.0
        reference[j] = front.max() + _BEYOND_NADIR * span
    return reference


def unexplained_margins(history: History) -> FloatArray | None:
    """Margins (n,) for a model of what makes trials infeasible, if it is not their objectives' limits alone."""
    bounded = np.where(np.isfinite(history.outcomes), history.outcomes, -np.inf)[:, history.bounded]
    by_outcomes = bounded.max(axis=1, initial=-np.inf) - 1.0
    unexplained = ~history.feasible & (history.margins > by_outcomes + _UNEXPLAINED)
    return history.margins if unexplained.any() else None
