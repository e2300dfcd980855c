"""The logarithm of the expected hypervolume improvement, exact for independent outcomes.

A point's expected improvement is, over the boxes in which a front leaves room, the sum of products of expected lengths:
E[(t − Y)₊] taken between a box's sides, for every objective's Y. With normal or log-normal Y this is a closed form, so
the reward has no random numbers in it and thousands of points cost milliseconds. An outcome that is known has no spread
and the same form.

The logarithm makes rewards of very different size comparable, which is what tells a policy the way where almost nothing
is to be gained yet (Ament et al., NeurIPS 2023, for gradients; here for the differences ARS takes).

Source of the sum over boxes: Yang, Emmerich, Deutz, Bäck, Journal of Global Optimization 75, 2019.

Shapes: q points, m objectives, c boxes, k different sides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from orchestrator.acquisition import Chebyshev, base_draws, draw_weights
from orchestrator.arrays import FloatArray
from orchestrator.beliefs import Beliefs
from orchestrator.boxes import Boxes

# Deviations below this (in the units of the outcomes, or of their logarithms) are none.
_NO_SPREAD = 1e-9
# The expectation of anything worse is nothing; keeps logarithms finite.
_NOTHING = 1e-280
# From here on the closed form cancels, and its asymptotic series is exact to four digits.
_FAR_BELOW = -8.0
# Posterior draws of a scalarised improvement.
_DRAWS = 32
# Points scored at once: what a core's cache holds beside a few hundred trials and boxes.
_BLOCK = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sides:
    """One ``objective``'s sides of all boxes: ``values`` (k,), and per box the indices (c,) of two; k is -inf."""

    objective: int
    values: Tensor
    lower: Tensor
    upper: Tensor

    @staticmethod
    def of(objective: int, boxes: Boxes) -> _Sides:
        lower, upper = boxes.lower[:, objective], boxes.upper[:, objective]
        values = np.unique(np.concatenate([lower, upper]))
        values = values[np.isfinite(values)]
        index = np.searchsorted(values, lower)
        return _Sides(
            objective=objective,
            values=torch.as_tensor(values),
            lower=torch.as_tensor(np.where(np.isfinite(lower), index, len(values))),
            upper=torch.as_tensor(np.searchsorted(values, upper)),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LogHypervolumeImprovement:
    """A :class:`~orchestrator.acquisition.Reward`: log E[hypervolume gained] under ``beliefs``, over ``boxes``.

    Of the posterior's deviations only the share ``optimism`` counts. Where outcomes that are known exclude every
    improvement, the reward is that of nothing, less by how far a known outcome is beyond ``reference`` (m,), so that
    there is a way back.
    """

    beliefs: Beliefs
    sides: tuple[_Sides, ...]
    reference: Tensor
    optimism: float = 1.0

    @staticmethod
    def over(boxes: Boxes, beliefs: Beliefs, reference: FloatArray, optimism: float = 1.0) -> LogHypervolumeImprovement:
        """Objectives of which nothing is believed do not count; then no front is known either, and ``boxes`` is one."""
        return LogHypervolumeImprovement(
            beliefs=beliefs,
            sides=tuple(_Sides.of(objective, boxes) for objective in beliefs.believed),
            reference=torch.as_tensor(reference),
            optimism=optimism,
        )

    def __call__(self, points: Tensor) -> Tensor:
        """(q, d) → (q,)"""
        known = self.beliefs.computed_outcomes(points)
        blocks = zip(torch.split(points, _BLOCK), torch.split(known, _BLOCK), strict=True)
        return torch.cat([self._reward(*self.beliefs.posterior_given(block, outcomes)) for block, outcomes in blocks])

    def knowing(self, points: Tensor, outcomes: Tensor) -> Tensor:
        """The reward of ``points`` (q, d) of which outcomes (q, m) have become known, NaN where not → (q,)"""
        mean, deviation = self.beliefs.posterior(points)
        known = outcomes.isfinite()
        natural = torch.where(self.beliefs.is_log, outcomes.clamp_min(_NOTHING).log(), outcomes)
        return self._reward(torch.where(known, natural, mean), torch.where(known, 0.0, deviation))

    def _reward(self, mean: Tensor, deviation: Tensor) -> Tensor:
        deviation = self.optimism * deviation
        expected: Tensor | None = None
        for side in self.sides:
            j = side.objective
            is_log = bool(self.beliefs.is_log[j])
            below = _expected_below(side.values[:, None], mean[:, j], deviation[:, j], is_log=is_log)
            below = torch.cat([below, torch.zeros_like(below[:1])])  # (k + 1, q); nothing is below -inf
            lengths = (below.index_select(0, side.upper) - below.index_select(0, side.lower)).clamp_min_(0.0)
            expected = lengths if expected is None else expected.mul_(lengths)
        if expected is None:
            return torch.zeros(len(mean), dtype=torch.float64)
        reward = expected.sum(dim=0).clamp_min_(_NOTHING).log_()
        natural = torch.where(self.beliefs.is_log, mean.exp(), mean)
        beyond = torch.where(deviation <= _NO_SPREAD, natural - self.reference, 0.0).nan_to_num(0.0)
        excess = beyond.clamp(0.0, 10.0).sum(dim=-1)
        return reward - excess


@dataclass(frozen=True, kw_only=True, slots=True)
class LogChebyshevImprovement:
    """The logarithm of the expected improvement of a scalarisation of what is believed, over ``best``, by the fixed
    ``draws`` (s, b) of the b ``believed`` objectives. Another reward beside the hypervolume's: each set of weights
    looks in one direction only."""

    beliefs: Beliefs
    scalarisation: Chebyshev
    best: float
    draws: Tensor

    @staticmethod
    def over(reached: FloatArray, beliefs: Beliefs, rng: np.random.Generator) -> LogChebyshevImprovement:
        """With fresh weights, over the outcomes ``reached`` (n, m), n ≥ 1."""
        believed = reached[:, list(beliefs.believed)]
        scalarisation = Chebyshev.over(believed, draw_weights(believed.shape[1], rng))
        return LogChebyshevImprovement(
            beliefs=beliefs,
            scalarisation=scalarisation,
            best=float(scalarisation(torch.as_tensor(believed)).min()),
            draws=base_draws(_DRAWS, believed.shape[1], rng),
        )

    def __call__(self, points: Tensor) -> Tensor:
        """(q, d) → (q,)"""
        columns = list(self.beliefs.believed)
        mean, deviation = (part[:, columns] for part in self.beliefs.posterior(points))
        drawn = mean + deviation * self.draws[:, None, :]  # (s, q, b)
        outcomes = torch.where(self.beliefs.is_log[columns], drawn.exp(), drawn)
        improvement = (self.best - self.scalarisation(outcomes)).clamp_min(0.0).mean(dim=0)
        return improvement.clamp_min(_NOTHING).log()


def _expected_below(limit: Tensor, mean: Tensor, deviation: Tensor, *, is_log: bool) -> Tensor:
    """E[(limit − Y)₊] of Y normal, or with a normal logarithm: (k, 1), (q,), (q,) → (k, q)."""
    deviation = deviation.clamp_min(_NO_SPREAD)
    if not is_log:
        return deviation * _standard_below((limit - mean) / deviation)
    positive = limit.clamp_min(1e-300)
    standard = (positive.log() - mean) / deviation
    exact = torch.special.ndtr(standard - deviation) * (mean + 0.5 * deviation.square()).exp()
    below: Tensor = (positive * torch.special.ndtr(standard) - exact).clamp_min_(0.0)
    return below


def _standard_below(standard: Tensor) -> Tensor:
    """E[(z − Z)₊] = z Φ(z) + φ(z) of a standard normal Z, in double precision down to where it underflows."""
    density = torch.exp(-0.5 * standard.square()) / math.sqrt(2.0 * math.pi)
    square = standard.clamp_max(_FAR_BELOW).square()
    far = density / square * (1.0 - 3.0 / square + 15.0 / square.square())
    return torch.where(standard < _FAR_BELOW, far, standard * torch.special.ndtr(standard) + density)
