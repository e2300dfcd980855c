"""What is believed of every objective at any point: computed where it can be, modelled where it must be.

Known objectives come from a function of the candidate and take no surrogate, so no trial is spent on learning them; as
features they help to model the others. Those are Gaussian processes with bent columns, of the outcome or of its
logarithm, whichever explains the trials better.

Shapes: n points told, q points asked, d columns, m objectives.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from orchestrator.arrays import BoolArray, FloatArray, check_shape
from orchestrator.features import CostFeatures
from orchestrator.known import Known
from orchestrator.surrogate import Hyperparameters, Observations, Surrogate, fit, log_likelihood

_log = logging.getLogger(__name__)

# A logarithm must explain each trial this much better (in nats). Where it is only a little better, outcomes near 0
# become far outliers, and their large deviations promise improvements that are not there.
_CLEARLY_BETTER = 0.25

# An outcome that is this much smaller than the largest is a 0 (cos(π/2) is 6e-17): its logarithm says nothing of size,
# and one of them promises improvements of any size in every corner.
_NEXT_TO_NOTHING = 1e-6

# Hyperparameters are fitted on at most this many trials, spread evenly over the history; the posterior uses all.
_FITTED = 400
# Every so many trials hyperparameters are fitted from the priors' centres; in between, from there.
_ANCHOR = 16
_COLD_STEPS, _WARM_STEPS = 60, 15


@dataclass(frozen=True, kw_only=True, slots=True)
class Beliefs:
    """``posterior`` of all objectives. ``computed`` columns come from ``known``, ``modelled`` ones are the
    surrogate's outputs, and ``is_log`` (m,) says of which columns mean and deviation are those of the logarithm. The
    surrogate sees points and the ``features`` of what is known of them."""

    n_objectives: int
    surrogate: Surrogate | None
    modelled: tuple[int, ...]
    is_log: Tensor
    computed: tuple[int, ...]
    features: CostFeatures
    known: Known | None

    @property
    def believed(self) -> tuple[int, ...]:
        """The objectives of which anything is believed."""
        return tuple(sorted(self.modelled + self.computed))

    @staticmethod
    def learn(
        points: FloatArray,
        outcomes: FloatArray,
        pending: FloatArray,
        known: Known | None,
        elsewhere: FloatArray | None = None,
    ) -> Beliefs:
        """From outcomes (n, m) at points (n, d), n ≥ 1, NaN where not known, and the points (k, d) waiting for theirs.

        Points ``elsewhere`` (r, d) tell how far known objectives range; without, those told do. A column without any
        outcome is neither modelled nor known: nothing is believed of it (NaN).
        """
        computed = _computed(known, points, outcomes.shape[1])
        is_known: BoolArray = np.asarray(np.isfinite(computed).all(axis=0))
        features = CostFeatures.over(computed if elsewhere is None else _computed(known, elsewhere, outcomes.shape[1]))
        modelled = [j for j in range(outcomes.shape[1]) if not is_known[j] and np.isfinite(outcomes[:, j]).any()]
        is_log = np.zeros(outcomes.shape[1], dtype=np.bool_)
        surrogate = None
        if modelled:
            seen = _seen(points, computed, features)
            is_log[modelled] = _better_as_log(seen, outcomes[:, modelled])
            scaled = np.where(is_log, np.log(np.where(is_log, outcomes, 1.0)), outcomes)[:, modelled]
            waiting = _seen(pending, _computed(known, pending, outcomes.shape[1]), features)
            surrogate = _surrogate(seen, scaled, waiting)
        return Beliefs(
            n_objectives=outcomes.shape[1],
            surrogate=surrogate,
            modelled=tuple(modelled),
            is_log=torch.as_tensor(is_log),
            computed=tuple(int(j) for j in np.flatnonzero(is_known)),
            features=features,
            known=known,
        )

    def posterior(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (q, m) at ``points`` (q, d); deviation 0 where known, NaN where nothing is."""
        return self.posterior_given(points, self.computed_outcomes(points))

    def computed_outcomes(self, points: Tensor) -> Tensor:
        """What is known at ``points`` (q, d) without any model, (q, m), NaN where that is nothing."""
        if self.known is None:
            return torch.full((len(points), self.n_objectives), torch.nan, dtype=torch.float64)
        return torch.as_tensor(np.asarray(self.known(points.numpy()), dtype=np.float64))

    def posterior_given(self, points: Tensor, computed: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`posterior` where the outcomes ``computed`` (q, m) of these points are there already."""
        if self.surrogate is None:
            return computed, torch.zeros_like(computed)
        columns = list(self.modelled)
        mean, deviation = computed.clone(), torch.zeros_like(computed)
        seen = torch.cat([points, self.features(computed)], dim=1)
        mean[:, columns], deviation[:, columns] = self.surrogate.posterior(seen)
        return mean, deviation

    def doubt(self, points: Tensor) -> float:
        """The deviation of what is modelled, as a share of the outcomes' own, on average over ``points`` (q, d) and
        objectives; 0 where nothing is."""
        if self.surrogate is None:
            return 0.0
        deviation = self.posterior(points)[1][:, list(self.modelled)]
        return float((deviation / self.surrogate.observations.spread).mean())

    def expected(self, points: FloatArray) -> FloatArray:
        """The outcomes (q, m) believed in, in their own units (the median where the logarithm is modelled)."""
        mean = self.posterior(torch.as_tensor(points))[0]
        return torch.where(self.is_log, mean.exp(), mean).numpy()


def margin_surrogate(points: FloatArray, margins: FloatArray, pending: FloatArray) -> Surrogate:
    """A model of ``margins`` (n,), clipped to ±1 so that a far excess does not hide where the limit is."""
    return _surrogate(points, np.clip(margins, -1.0, 1.0)[:, None], pending)


def _computed(known: Known | None, points: FloatArray, n_objectives: int) -> FloatArray:
    """What is known of ``points`` (n, d) without a model, (n, m)."""
    if known is None or not len(points):
        return np.full((len(points), n_objectives), np.nan)
    values = np.asarray(known(points), dtype=np.float64)
    check_shape("known objectives", values, len(points), n_objectives)
    finite = np.isfinite(values)
    if not np.array_equal(finite.any(axis=0), finite.all(axis=0)):
        raise ValueError("a known objective must be known of every candidate, or NaN for every one")
    return values


def _seen(points: FloatArray, computed: FloatArray, features: CostFeatures) -> FloatArray:
    """What the surrogate sees of points (n, d) with these outcomes (n, m), (n, d + k)."""
    return np.hstack([points, features(torch.as_tensor(computed)).numpy()])


def _better_as_log(points: FloatArray, outcomes: FloatArray) -> BoolArray:
    """Of which columns (m,) the logarithm is the more likely Gaussian process, before any fitting."""
    known = np.isfinite(outcomes)
    least = _NEXT_TO_NOTHING * np.where(known, outcomes, 0.0).max(axis=0)
    positive = np.all((outcomes > np.maximum(least, 0.0)) | ~known, axis=0)
    logs = np.log(np.where(known & positive, outcomes, 1.0))
    plain = log_likelihood(points, outcomes)
    # The density of Y is that of log Y divided by Y.
    as_logs = log_likelihood(points, np.where(known & positive, logs, np.nan)) - np.where(known, logs, 0.0).sum(axis=0)
    return np.asarray(positive & (as_logs - plain > _CLEARLY_BETTER * known.sum(axis=0)))


def _surrogate(points: FloatArray, outcomes: FloatArray, pending: FloatArray) -> Surrogate:
    surrogate = _fitted(points, outcomes)
    if not len(pending):
        return surrogate
    return surrogate.believing(torch.as_tensor(pending, dtype=torch.float64))


def _fitted(points: FloatArray, outcomes: FloatArray) -> Surrogate:
    """Fitted from where the fit of the last :data:`_ANCHOR`-th trial ended; in long histories its hyperparameters
    themselves, because a few trials more hardly change them."""
    n_anchored = len(points) - len(points) % _ANCHOR
    anchor = _anchor(_Frozen.of(points[:n_anchored], outcomes[:n_anchored])) if n_anchored else None
    if anchor is not None and (n_anchored == len(points) or len(points) > _FITTED):
        return _conditioned(Observations.standardise(points, outcomes), anchor)
    fitted = fit(
        points, outcomes, bent=True, start=anchor, max_iterations=_COLD_STEPS if anchor is None else _WARM_STEPS
    )
    if fitted.warning:
        _log.warning("%s", fitted.warning)
    return fitted.surrogate


@dataclass(frozen=True, slots=True)
class _Frozen:
    """Trials as a key."""

    points: bytes
    outcomes: bytes
    shape: tuple[int, int, int]

    @staticmethod
    def of(points: FloatArray, outcomes: FloatArray) -> _Frozen:
        return _Frozen(points.tobytes(), outcomes.tobytes(), (*points.shape, outcomes.shape[1]))

    def thawed(self) -> tuple[FloatArray, FloatArray]:
        n, d, m = self.shape
        return np.frombuffer(self.points).reshape(n, d).copy(), np.frombuffer(self.outcomes).reshape(n, m).copy()


@lru_cache(maxsize=16)
def _anchor(trials: _Frozen) -> Hyperparameters:
    """The fit from the priors' centres of the first so many trials; a memory, not a state: asked again after a restart
    it gives the same."""
    points, outcomes = trials.thawed()
    rows = np.linspace(0, len(points) - 1, min(len(points), _FITTED)).round().astype(int)
    fitted = fit(points[rows], outcomes[rows], bent=True)
    if fitted.warning:
        _log.warning("%s", fitted.warning)
    return fitted.surrogate.hyperparameters


def _conditioned(observations: Observations, hyperparameters: Hyperparameters) -> Surrogate:
    try:
        return Surrogate.condition(observations, hyperparameters)
    except ArithmeticError:
        noisy = replace(hyperparameters, noise=hyperparameters.noise.clamp_min(0.5))
        return Surrogate.condition(observations, noisy)
