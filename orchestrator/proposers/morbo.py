"""MORBO-1: one trust region around the front point that contributes most, Thompson sampling by hypervolume.

Source: Daulton, Eriksson, Balandat, Bakshy, UAI 2022 (MORBO), with one region. The models are of all the region's
trials, which are few enough not to need the publication's local subsets.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from orchestrator.arrays import FloatArray
from orchestrator.boxes import Boxes, free_boxes
from orchestrator.pareto import hypervolume, non_dominated
from orchestrator.proposers.front import reference_point, unexplained_margins
from orchestrator.proposers.models import length_scales, model_of
from orchestrator.proposers.protocol import History
from orchestrator.proposers.trust_region import RegionSearch, perturbed, sides_of
from orchestrator.space import SearchSpace


@dataclass(frozen=True, kw_only=True, slots=True)
class MorboProposer:
    """Candidates of the region by the hypervolume that one draw of the posterior says they add."""

    space: SearchSpace
    region: RegionSearch = field(default_factory=RegionSearch)

    def propose(self, history: History, pending: FloatArray, rng: np.random.Generator) -> FloatArray:
        """See :class:`orchestrator.proposers.protocol.Proposer`."""
        return self.region.propose(
            self.space, history, pending, rng, lambda recent, side: self._ranked(history, recent, side, rng)
        )

    def _ranked(self, history: History, recent: History, side: float, rng: np.random.Generator) -> FloatArray:
        columns = _columns(recent)
        model = model_of(recent.points, -columns, is_bent=bool(self.region.bent))
        sides = sides_of(side, np.exp(np.log(length_scales(model)).mean(axis=0)))
        found = perturbed(self.space, recent.points[_centre(recent)], sides, self.region.candidates, rng)
        with torch.no_grad():
            draws = -model.posterior(torch.as_tensor(found)).sample(torch.Size([1]))[0].numpy()
        if not recent.feasible.any():
            return found[np.argsort(draws[:, 0], kind="stable")]
        m = recent.outcomes.shape[1]
        front = history.outcomes[history.feasible]
        reference = reference_point(history, front)
        gains = _gains(draws[:, :m], free_boxes(front, reference))
        if draws.shape[1] > m:
            gains = np.where(draws[:, m] > 0, 0.0, gains)
        # Without any gain: the least excess over the reference point, or over the front where there is none.
        excess = (draws[:, :m] - reference).max(axis=1)
        return found[np.lexsort([excess, -gains])]


def _columns(history: History) -> FloatArray:
    """What is modelled: the objectives and a margin they do not explain, or the margin alone."""
    if not history.feasible.any():
        return np.clip(history.margins, -1.0, 1.0)[:, None]
    margins = unexplained_margins(history)
    if margins is None:
        return history.outcomes
    return np.column_stack([history.outcomes, np.clip(margins, -1.0, 1.0)])


def _centre(history: History) -> int:
    """The front's point that adds most to its hypervolume; the smallest margin where nothing is feasible."""
    if not history.feasible.any():
        return int(history.margins.argmin())
    rows = np.flatnonzero(history.feasible)
    rows = rows[non_dominated(history.outcomes[rows])]
    front = history.outcomes[rows]
    reference = reference_point(history, front)
    without = [hypervolume(np.delete(front, index, axis=0), reference) for index in range(len(front))]
    return int(rows[int(np.argmin(without))])


def _gains(outcomes: FloatArray, boxes: Boxes) -> FloatArray:
    """The hypervolume (q,) each of ``outcomes`` (q, m) would add."""
    gains = np.zeros(len(outcomes))
    for lower, upper in zip(boxes.lower, boxes.upper, strict=True):
        gains += np.prod((upper - np.maximum(lower, outcomes)).clip(min=0.0), axis=1)
    return gains
