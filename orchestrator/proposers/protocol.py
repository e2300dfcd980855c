"""What every proposer gets and gives back: history in, candidate out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from orchestrator.arrays import BoolArray, FloatArray, check_shape


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """All trials told so far, in the order of their numbers; faults are not among them.

    Shapes:
        points: (n, d) in the unit cube; the encoded candidates.
        outcomes: (n, m), minimised and divided by their limits; NaN where unknown, as only infeasible trials may have.
        feasible: (n,).
        margins: (n,), the largest of amount / limit − 1 over everything with a limit: above 0 where infeasible, at most
            0 where feasible (-1 where nothing has a limit).
        unbounded: the columns of objectives without a limit, whose outcomes are in natural units.

    Raises:
        ShapeError: lengths differ.
        ValueError: a feasible trial with an unknown outcome, or a margin that contradicts ``feasible``.
    """

    points: FloatArray
    outcomes: FloatArray
    feasible: BoolArray
    margins: FloatArray
    unbounded: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_shape("points", self.points, None, None)
        check_shape("outcomes", self.outcomes, len(self.points), None)
        check_shape("feasible", self.feasible, len(self.points))
        check_shape("margins", self.margins, len(self.points))
        if not np.isfinite(self.outcomes[self.feasible]).all():
            raise ValueError("a feasible trial has an outcome that is not a finite number")
        if not np.array_equal(self.margins <= 0, self.feasible):
            raise ValueError("margins must be above 0 exactly where a trial is infeasible")

    @property
    def bounded(self) -> BoolArray:
        """Which objectives (m,) have a limit, at which their outcome is 1."""
        bounded = np.ones(self.outcomes.shape[1], dtype=np.bool_)
        bounded[list(self.unbounded)] = False
        return bounded

    @staticmethod
    def empty(dim: int, n_objectives: int) -> History:
        """The history of a study in which nothing has been told."""
        return History(
            points=np.zeros((0, dim)),
            outcomes=np.zeros((0, n_objectives)),
            feasible=np.zeros(0, dtype=np.bool_),
            margins=np.zeros(0),
        )

    def __len__(self) -> int:
        return len(self.points)


class Proposer(Protocol):
    """A method of search. It keeps no state: the same history, pending points and generator give the same proposal."""

    def propose(self, history: History, pending: FloatArray, rng: np.random.Generator) -> FloatArray:
        """The next point (d,) of the unit cube to evaluate.

        ``pending`` (k, d) are proposed and not told yet. While a candidate is left that is neither told nor pending, no
        other is proposed.
        """
        ...
