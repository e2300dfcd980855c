"""A trust region whose state follows from the history.

The region is a box around a centre. Its side doubles after some successes in a row and halves after some failures in a
row; when it has become too small, it starts anew somewhere else. Nothing is stored: the trials told, in their order,
are gone through again at every proposal.

Source: Eriksson, Pearce, Gardner, Turner, Poloczek, NeurIPS 2019 (TuRBO), with its lengths and tolerances.

Shapes: n points, d columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.arrays import FloatArray
from orchestrator.pareto import non_dominated
from orchestrator.proposers.bo import careful, check_bent
from orchestrator.proposers.protocol import History
from orchestrator.proposers.untried import Tried
from orchestrator.space import SearchSpace

_FIRST_SIDE, _LARGEST_SIDE, _SMALLEST_SIDE = 0.8, 1.6, 0.5**7
_SUCCESSES = 3
_FEWEST_FAILURES = 4
# Columns that change in a candidate, on average, as in TuRBO.
_CHANGED = 20.0

Ranked = Callable[[History, float], FloatArray]
"""The region's trials and its side to candidates (q, d), the best first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrustRegion:
    """``side`` of the box, and the trial from which on this region counts: those before belong to earlier ones."""

    side: float
    first: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RegionSearch:
    """What the methods with a trust region share: ``initial`` trials are the design, and random ones again after a
    restart; ``candidates`` of the region are compared; with ``bent`` 1 the processes bend their columns, with 0 not."""

    initial: int = 8
    candidates: int = 1000
    bent: int = 1

    def __post_init__(self) -> None:
        for name in ("initial", "candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, allowed are whole numbers from 1")
        check_bent(self.bent)

    def propose(
        self, space: SearchSpace, history: History, pending: FloatArray, rng: np.random.Generator, ranked: Ranked
    ) -> FloatArray:
        """The first new candidate (d,) of those that ``ranked`` finds in the region, the best first; a random one as
        long as the region has too few trials."""
        region = replayed(history, design=self.initial, n_parameters=len(space.axes))
        tried = Tried(space, history.points, pending)
        recent = _since(history, region.first)
        if len(recent) < (self.initial if region.first else 1):
            return np.asarray(tried.draw(1, rng)[0])
        with careful(rng):
            best_first = ranked(recent, region.side)
        proposal = tried.first_untried(best_first)
        return proposal if proposal is not None else np.asarray(tried.draw(1, rng)[0])


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


def _since(history: History, first: int) -> History:
    """The trials from number ``first`` of the history on."""
    part = slice(first, None)
    return replace(
        history,
        points=history.points[part],
        outcomes=history.outcomes[part],
        feasible=history.feasible[part],
        margins=history.margins[part],
    )


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
