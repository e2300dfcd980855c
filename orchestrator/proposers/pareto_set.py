"""Where policies start: the best candidates told so far."""

from __future__ import annotations

import numpy as np

from orchestrator.arrays import FloatArray
from orchestrator.pareto import non_dominated
from orchestrator.proposers.protocol import History


def pareto_set(history: History) -> FloatArray:
    """Points (k, d) of the feasible trials that no other dominates; where there is none, those nearest to feasible."""
    if history.feasible.any():
        return np.asarray(history.points[history.feasible][non_dominated(history.outcomes[history.feasible])])
    return np.asarray(history.points[np.argsort(history.margins, kind="stable")[: max(1, len(history) // 4)]])
