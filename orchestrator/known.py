"""Objectives that can be computed without an evaluation, from the parameters, for all candidates a search looks at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from orchestrator.arrays import FloatArray
from orchestrator.beliefs import Known
from orchestrator.objectives import Objectives
from orchestrator.records import Params
from orchestrator.space import SearchSpace

KnownValues = Callable[[Params], Mapping[str, float]]
"""A candidate's parameters to the amounts of the objectives that are known of it, by name, in natural units. It is
asked thousands of times a proposal, so it has to be a formula, not a build."""


def known_outcomes(
    values: KnownValues, space: SearchSpace, objectives: Objectives, signs: Sequence[float] | FloatArray
) -> Known:
    """``values`` as proposers ask for them; ``signs`` (m,) are -1 where an objective is maximised.

    Values of other names are passed over. Equal candidates are asked about once.
    """
    scale = objectives.normalised(np.array(signs, dtype=np.float64))
    found: dict[bytes, FloatArray] = {}

    def outcomes(points: FloatArray) -> FloatArray:
        rows = np.ascontiguousarray(points, dtype=np.float64)
        return np.array([_remembered(row) for row in rows]).reshape(len(rows), len(scale))

    def _remembered(row: FloatArray) -> FloatArray:
        key = row.tobytes()
        if key not in found:
            amounts = values(space.decode(row))
            found[key] = scale * np.array([amounts.get(name, np.nan) for name in objectives.names], dtype=np.float64)
        return found[key]

    return outcomes
