"""The Pareto fronts of a study: the joint one, and with several boards the front of each.

A board's front is made of the complete trials, those that fit and were measured on every board, by that board's own
values. A trial can be on it without being on the joint front, and the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar, cast

import numpy as np

from orchestrator.arrays import FloatArray
from orchestrator.boards import on_board
from orchestrator.objectives import Objectives
from orchestrator.pareto import hypervolume, non_dominated
from orchestrator.records import Ending, Value


class _Outcome(Protocol):
    @property
    def values(self) -> Mapping[str, Value] | Mapping[str, float]: ...


class Ended(Protocol):
    """What a front reads of a trial: a record, or the bare numbers of one."""

    @property
    def state(self) -> str: ...
    @property
    def outcome(self) -> _Outcome | None: ...


T = TypeVar("T", bound=Ended)


def vector(trial: Ended, objectives: Objectives, kind: str = "") -> FloatArray:
    """The objectives (m,) of a complete trial in natural units: the worst of the boards, or those of ``kind``."""
    assert trial.outcome is not None
    values = trial.outcome.values
    return objectives.vector(_on_board(values, kind) if kind else values)


def _on_board(
    values: Mapping[str, Value] | Mapping[str, float], kind: str
) -> Mapping[str, Value] | Mapping[str, float]:
    return on_board(cast("Mapping[str, Value]", values), kind)


def front(trials: Sequence[T], objectives: Objectives, kind: str = "") -> list[T]:
    """The complete trials that no other dominates, in their order; on one board if ``kind`` is given."""
    complete = [trial for trial in trials if trial.state == Ending.COMPLETE.value]
    if not complete:
        return []
    mask = non_dominated(np.array([vector(trial, objectives, kind) for trial in complete]))
    return [trial for trial, is_best in zip(complete, mask, strict=True) if is_best]


def front_hypervolume(members: Sequence[Ended], objectives: Objectives, kind: str = "") -> float:
    """What ``members`` dominate of the box under the limits, 0 to 1. The limits, and with them the reference, are the
    same for all boards and for the joint front, so these numbers compare."""
    if not members:
        return 0.0
    points = np.array([objectives.normalised(vector(trial, objectives, kind)) for trial in members])
    return hypervolume(points, objectives.reference)
