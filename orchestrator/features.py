"""Known costs as features: what a network needs says much about how well it does.

Where objectives can be computed of every candidate, the processes of the others see them as further columns beside the
parameters. How error falls with weights and arithmetic is then one smooth curve to be learned, not a function of all
the parameters that make up a network's size.

Shapes: n candidates that fix the scale, q candidates asked about, m objectives, k features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from orchestrator.arrays import FloatArray


@dataclass(frozen=True, kw_only=True, slots=True)
class CostFeatures:
    """Maps known outcomes to [0, 1]: those of ``columns`` (k,), as they are or by their logarithm."""

    columns: tuple[int, ...]
    is_log: Tensor
    low: Tensor
    span: Tensor

    @staticmethod
    def over(outcomes: FloatArray) -> CostFeatures:
        """The features of outcomes like these (n, m), n ≥ 1; a column that is unknown (NaN) or never varies is none.

        Of a column and its logarithm the one is taken whose median lies nearer to the middle of its range.
        """
        columns = [j for j in range(outcomes.shape[1]) if np.isfinite(outcomes[:, j]).all() and np.ptp(outcomes[:, j])]
        chosen = outcomes[:, columns]
        is_log = np.array([_is_evener_as_log(column) for column in chosen.T], dtype=np.bool_)
        scaled = np.where(is_log, np.log(np.where(is_log, chosen, 1.0)), chosen)
        return CostFeatures(
            columns=tuple(columns),
            is_log=torch.as_tensor(is_log),
            low=torch.as_tensor(scaled.min(axis=0)),
            span=torch.as_tensor(np.ptp(scaled, axis=0)),
        )

    def __call__(self, outcomes: Tensor) -> Tensor:
        """(q, m) → (q, k); what is beyond the scale lies at its end."""
        chosen = outcomes[:, list(self.columns)]
        scaled = torch.where(self.is_log, chosen.clamp_min(1e-300).log(), chosen)
        return ((scaled - self.low) / self.span).clamp(0.0, 1.0)


def _is_evener_as_log(column: FloatArray) -> bool:
    return bool(column.min() > 0) and _imbalance(np.log(column)) < _imbalance(column)


def _imbalance(column: FloatArray) -> float:
    """How far the median is from the middle of the range, as a share of it."""
    return abs(float((np.median(column) - column.min()) / np.ptp(column)) - 0.5)
