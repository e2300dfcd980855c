"""Objectives: names, units, limits, and the way from a trial's values to the vector that is minimised.

All objectives are minimised. Dividing by the limit puts each on the scale where the study's reference point is 1, so
the hypervolume of normalised vectors up to ``reference`` is a number in [0, 1] that compares methods on one study.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from orchestrator.arrays import FloatArray, check_shape
from orchestrator.boards import MARK, base, kind_of
from orchestrator.errors import UsageError
from orchestrator.quantities import exact, rounded
from orchestrator.records import Value, Violation
from orchestrator.studyfile import OBJECTIVE_UNITS, StudyFile

# A violation without a meaningful size (training diverged: infinite loss) still needs a finite one.
LARGEST_EXCESS = 1e6


class HasMemory(Protocol):
    """What the limits need to know of a board kind."""

    @property
    def flash_bytes(self) -> float: ...

    @property
    def ram_bytes(self) -> float: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Objectives:
    """What is minimised, in the order of the vector. ``limits`` are in natural units; an infinite limit bounds nothing
    and scales by 1.

    Raises:
        UsageError: no objective, lengths that differ, or a limit that is not above 0.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    limits: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.names:
            raise UsageError("objectives: none given; name at least one")
        if not len(self.names) == len(self.units) == len(self.limits):
            raise UsageError(f"objectives: {len(self.names)} names, {len(self.units)} units, {len(self.limits)} limits")
        for name, limit in zip(self.names, self.limits, strict=True):
            if not limit > 0:
                raise UsageError(f"objectives.{name}.limit: found {limit}, allowed is any number above 0")

    @property
    def finite_limits(self) -> dict[str, float]:
        """The limits, in natural units, of the objectives that have one."""
        pairs = zip(self.names, self.limits, strict=True)
        return {name: limit for name, limit in pairs if math.isfinite(limit)}

    @staticmethod
    def from_study(study: StudyFile, flash_bytes: float, ram_bytes: float) -> Objectives:
        """The study's objectives on a board with this much flash and RAM.

        A limit left out is 1.0 for ``error``, 1e9 for ``flops`` and the board's memory for ``rom`` and ``ram``; one
        above the board's memory is lowered to it, because nothing larger can be flashed.

        Raises:
            UsageError: ``latency`` or ``energy`` has no limit.
        """
        board = {"rom": flash_bytes, "ram": ram_bytes}
        defaults = {"error": 1.0, "flops": 1e9, **board}
        limits = []
        for name, objective in study.objectives.items():
            limit = objective.limit if objective.limit is not None else defaults.get(name)
            if limit is None:
                example = "20 ms" if name == "latency" else "1 mJ"
                raise UsageError(
                    f"objectives.{name}: no limit given; {name} has no natural limit, so the study must set one, "
                    f"for example {name}: {{limit: {example}}}"
                )
            limits.append(min(limit, board.get(name, math.inf)))
        names = tuple(study.objectives)
        return Objectives(names=names, units=tuple(OBJECTIVE_UNITS[name] for name in names), limits=tuple(limits))

    @staticmethod
    def on_boards(study: StudyFile, kinds: Mapping[str, HasMemory]) -> Objectives:
        """The study's objectives on all of its boards: the limits are those of the smallest.

        The worst board's value must keep each limit, so every limit holds on every board. ``kinds`` maps the kinds'
        names to what they have.

        Raises:
            UsageError: as :meth:`from_study`.
        """
        boards = [kinds[kind] for kind in study.kinds]
        flash_bytes, ram_bytes = min(b.flash_bytes for b in boards), min(b.ram_bytes for b in boards)
        return Objectives.from_study(study, flash_bytes, ram_bytes)

    @property
    def reference(self) -> FloatArray:
        """The reference point (m,) in normalised space: ones, for every study, for ever."""
        return np.ones(len(self.names))

    def vector(self, values: Mapping[str, Value] | Mapping[str, float]) -> FloatArray:
        """The objectives (m,) in natural units; other values are passed over.

        Raises:
            ValueError: an objective is missing or not finite.
        """
        missing = [name for name in self.names if name not in values]
        if missing:
            raise ValueError(f"no value for {', '.join(missing)}; found {', '.join(values) or 'none'}")
        vector = [_amount(values[name]) for name in self.names]
        for name, amount in zip(self.names, vector, strict=True):
            if not math.isfinite(amount):
                raise ValueError(f"{name} is {amount}, which is not a finite number")
        return np.array(vector)

    def normalised(self, vectors: FloatArray) -> FloatArray:
        """Vectors (m,) or (n, m) in natural units, divided by the limits."""
        check_shape("vectors", np.atleast_2d(vectors), None, len(self.names))
        limits = np.array(self.limits)
        return np.asarray(vectors / np.where(np.isfinite(limits), limits, 1.0))

    def margins(self, values: Mapping[str, Value] | Mapping[str, float]) -> dict[str, float]:
        """How far each known, bounded objective is beyond its limit, as a share of the limit: 0.1 is 10 % over, -0.1 is
        10 % below."""
        amounts = _amounts(values)
        known = ((name, limit) for name, limit in zip(self.names, self.limits, strict=True) if name in amounts)
        return {name: amounts[name] / limit - 1.0 for name, limit in known if math.isfinite(limit)}

    def violations(self, values: Mapping[str, Value] | Mapping[str, float]) -> tuple[Violation, ...]:
        """The limits that the known values break; a value equal to its limit keeps it.

        Where boards have values of their own, each of them must keep the limit, and the message names the board.
        """
        amounts = _amounts(values)
        return tuple(
            _violation(place, amounts[place], limit, unit)
            for name, unit, limit in zip(self.names, self.units, self.limits, strict=True)
            for place in _places(name, amounts)
            if amounts[place] > limit
        )


def relative_excess(violation: Violation) -> float:
    """The violation's size as a share of its limit (of 1 where the limit is 0 or less): finite and above 0."""
    scale = violation.limit if violation.limit > 0 else 1.0
    return float(min(max(violation.excess / scale, 1e-9), LARGEST_EXCESS))


def _places(name: str, amounts: Mapping[str, float]) -> list[str]:
    """Under which names an objective is known: those of the boards, else its own, else none."""
    return [place for place in amounts if base(place) == name and MARK in place] or [name] * (name in amounts)


def _violation(place: str, amount: float, limit: float, unit: str) -> Violation:
    name, kind = base(place), kind_of(place)
    over, of = exact(amount - limit, unit, name), exact(limit, unit, name)
    if over.endswith("%"):
        # 30 % is 5 points over 25 %, but 20 per cent more; limits are round numbers.
        over, of = over.replace("%", "points"), rounded(limit, unit, name)
    what = f"{name} on {kind}" if kind else name
    message = f"{what} is {exact(amount, unit, name)}, {over} over the limit of {of}"
    return Violation(quantity=name, amount=amount, limit=limit, unit=unit, message=message)


def _amounts(values: Mapping[str, Value] | Mapping[str, float]) -> dict[str, float]:
    return {name: _amount(value) for name, value in values.items()}


def _amount(value: Value | float) -> float:
    return value.amount if isinstance(value, Value) else float(value)
