"""The Pareto fronts of a study: the joint one, and with several boards the front of each.

A board's front is made of the complete trials, those that fit and were measured on every board, by that board's own
values. A trial can be on it without being on the joint front, and the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

from orchestrator.arrays import FloatArray
from orchestrator.boards import on_board
from orchestrator.objectives import Objectives
from orchestrator.pareto import hypervolume, non_dominated
from orchestrator.records import Ending, Outcome


class _Trial(Protocol):
    @property
    def state(self) -> str: ...
    @property
    def outcome(self) -> Outcome | None: ...


T = TypeVar("T", bound=_Trial)


def vector(trial: _Trial, objectives: Objectives, kind: str = "") -> FloatArray:
    """The objectives (m,) of a complete trial in natural units: the worst of the boards, or those of ``kind``."""
    assert trial.outcome is not None
    values = trial.outcome.values
    return objectives.vector(on_board(values, kind) if kind else values)


def front(trials: Sequence[T], objectives: Objectives, kind: str = "") -> list[T]:
    """The complete trials that no other dominates, in their order; on one board if ``kind`` is given."""
    complete = [trial for trial in trials if trial.state == Ending.COMPLETE.value]
    if not complete:
        return []
    mask = non_dominated(np.array([vector(trial, objectives, kind) for trial in complete]))
    return [trial for trial, is_best in zip(complete, mask, strict=True) if is_best]


def front_hypervolume(members: Sequence[_Trial], objectives: Objectives, kind: str = "") -> float:
    """What ``members`` dominate of the box under the limits, 0 to 1. The limits, and with them the reference, are the
    same for all boards and for the joint front, so these numbers compare."""
    if not members:
        return 0.0
    points = np.array([objectives.normalised(vector(trial, objectives, kind)) for trial in members])
    return hypervolume(points, objectives.reference)
