"""Objectives that can be computed without an evaluation, from the parameters, for all candidates a search looks at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.arrays import FloatArray, ParamArray
from orchestrator.objectives import Objectives
from orchestrator.records import Params
from orchestrator.space import SearchSpace

Known = Callable[[FloatArray], FloatArray]
"""Outcomes that need no evaluation: candidates (q, d), encoded and snapped, to (q, m) in the units of the history
(minimised, divided by their limits); NaN in every row of a column that is not known."""

KnownValues = Callable[[Params], Mapping[str, float]]
"""A candidate's parameters to the amounts of the objectives that are known of it, by name, in natural units. It is
asked thousands of times a proposal, so it has to be a formula, not a build."""


@dataclass(frozen=True, slots=True)
class Vectorised:
    """Known objectives of many candidates at once, much faster than one by one: ``values`` gets an array (q,) of each
    parameter, by name, and gives an array (q,) or one number of each known objective."""

    values: Callable[[Mapping[str, ParamArray]], Mapping[str, FloatArray | float]]


CheckedValues = Callable[[Params, int], Mapping[str, float] | None]
"""Parameters and the number of the trial that may get them, to the amounts that a look at the candidate gives, by the
objective's name; None where it does not fit. It is asked about a few candidates a proposal, so it may be a build of
seconds."""

Checked = Callable[[FloatArray], FloatArray]
"""What a look at few candidates (k, d) gives of their outcomes (k, m), in the units of the history: NaN where nothing,
inf in every column of one that does not fit."""


def checked_outcomes(
    values: CheckedValues, space: SearchSpace, objectives: Objectives, signs: Sequence[float] | FloatArray, trial: int
) -> Checked:
    """``values`` as proposers ask for them."""
    scale = objectives.normalised(np.array(signs, dtype=np.float64))

    def outcome(point: FloatArray) -> FloatArray:
        amounts = values(space.decode(point), trial)
        if amounts is None:
            return np.full(len(scale), np.inf)
        return np.array([s * amounts.get(name, np.nan) for s, name in zip(scale, objectives.names, strict=True)])

    return lambda points: np.array([outcome(point) for point in points]).reshape(len(points), len(scale))


def known_outcomes(
    values: KnownValues | Vectorised, space: SearchSpace, objectives: Objectives, signs: Sequence[float] | FloatArray
) -> Known:
    """``values`` as proposers ask for them; ``signs`` (m,) are -1 where an objective is maximised.

    Values of other names are passed over. Equal candidates are asked about once.
    """
    scale = objectives.normalised(np.array(signs, dtype=np.float64))
    if isinstance(values, Vectorised):
        return _all_at_once(values, space, objectives, scale)
    return _one_by_one(values, space, objectives, scale)


def _all_at_once(values: Vectorised, space: SearchSpace, objectives: Objectives, scale: FloatArray) -> Known:
    def outcomes(points: FloatArray) -> FloatArray:
        amounts = values.values(space.decode_all(points))
        found = np.full((len(points), len(scale)), np.nan)
        for j, name in enumerate(objectives.names):
            if name in amounts:
                found[:, j] = scale[j] * np.asarray(amounts[name], dtype=np.float64)
        return found

    return outcomes


def _one_by_one(values: KnownValues, space: SearchSpace, objectives: Objectives, scale: FloatArray) -> Known:
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
