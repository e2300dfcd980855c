"""Benchmark problems: what is searched, what is minimised, and the unit box in which it is scored.

A problem of the user's own is any object with the attributes of :class:`Problem`; those with a default may be left out.
It is named as ``module:attribute`` and read by :func:`adopt`.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from orchestrator.arrays import FloatArray, ParamArray
from orchestrator.errors import UsageError
from orchestrator.known import KnownValues, Vectorised
from orchestrator.pareto import hypervolume
from orchestrator.records import Params
from orchestrator.space import SearchSpace
from orchestrator.studyfile import Parameter, SpaceEntry

_PARAMETERS: TypeAdapter[dict[str, Parameter]] = TypeAdapter(dict[str, SpaceEntry])
_NEEDED = ("name", "parameters", "objectives", "limits", "evaluate")
_SCALES = ("linear", "log")


def _nothing_known(params: Params) -> Mapping[str, float]:
    return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something to search, all of whose objectives are minimised.

    Every objective is mapped to a *share*, 0 at its floor and 1 at its limit:

    ``linear``
        (value − floor) / (limit − floor); the floors are 0 where none are given.
    ``log``
        log₁₀(value / floor) / log₁₀(limit / floor), so that halving a value is worth the same everywhere. Floors are
        needed, above 0 and at or below anything the problem can reach.

    Proposers are told shares, under limits of 1, and the score is the hypervolume of the shares up to (1, …, 1): a
    number in [0, 1]. Shares below 0 score as 0.

    ``evaluate(params, seed)`` gives the objectives as a trial would measure them, noise included; the same seed gives
    the same noise. ``truth(params)`` is the same without noise and is what is scored. ``known_values(params)`` gives
    the objectives listed in ``known``, which need no evaluation; where ``known_columns`` is given, it does the same
    for many candidates at once, arrays in and arrays out, which is much faster. ``best_hv`` is the largest score there
    can be, where that is known exactly.

    Raises:
        UsageError: lengths differ, a limit is not above its floor, or a known objective is not an objective.
    """

    name: str
    parameters: Mapping[str, Parameter]
    objectives: tuple[str, ...]
    limits: tuple[float, ...]
    evaluate: Callable[[Params, int], Mapping[str, float]]
    truth: Callable[[Params], Mapping[str, float]]
    floors: tuple[float, ...] = ()
    scale: Literal["linear", "log"] = "linear"
    known: frozenset[str] = frozenset()
    known_values: Callable[[Params], Mapping[str, float]] = _nothing_known
    known_columns: Callable[[Mapping[str, ParamArray]], Mapping[str, FloatArray]] | None = None
    best_hv: float | None = None

    def __post_init__(self) -> None:
        where = f"problem {self.name}"
        if not self.objectives:
            raise UsageError(f"{where}: objectives is empty; name at least one")
        if len(set(self.objectives)) != len(self.objectives):
            raise UsageError(f"{where}: objectives {list(self.objectives)} holds the same name twice")
        if len(self.limits) != len(self.objectives):
            raise UsageError(f"{where}: found {len(self.limits)} limits for {len(self.objectives)} objectives")
        self._check_scale(where)
        unknown = sorted(self.known - set(self.objectives))
        if unknown:
            raise UsageError(f"{where}: known names {', '.join(unknown)}, allowed are {', '.join(self.objectives)}")

    def _check_scale(self, where: str) -> None:
        if self.scale not in _SCALES:
            raise UsageError(f"{where}: scale is {self.scale!r}, allowed are {', '.join(_SCALES)}")
        if self.scale == "log" and not self.floors:
            raise UsageError(f"{where}: a log scale needs floors, one above 0 for each objective")
        if len(self.all_floors) != len(self.objectives):
            raise UsageError(f"{where}: found {len(self.floors)} floors for {len(self.objectives)} objectives")
        for name, floor, limit in zip(self.objectives, self.all_floors, self.limits, strict=True):
            if not (math.isfinite(floor) and math.isfinite(limit) and floor < limit):
                raise UsageError(f"{where}: {name} has floor {floor} and limit {limit}; the limit must be the larger")
            if self.scale == "log" and floor <= 0:
                raise UsageError(f"{where}: {name} has floor {floor}; on a log scale it must be above 0")

    @property
    def all_floors(self) -> tuple[float, ...]:
        """A floor for each objective."""
        return self.floors or (0.0,) * len(self.objectives)

    @property
    def space(self) -> SearchSpace:
        return SearchSpace.from_parameters(self.parameters)

    def shares(self, values: Mapping[str, float]) -> dict[str, float]:
        """The shares of the objectives among ``values``.

        Raises:
            UsageError: a value is not a finite number, or not above 0 on a log scale.
        """
        bounds = zip(self.objectives, self.all_floors, self.limits, strict=True)
        return {
            name: float(self._share(name, np.array(values[name], dtype=np.float64), low, high))
            for name, low, high in bounds
            if name in values
        }

    def known_shares(self) -> KnownValues | Vectorised | None:
        """The known objectives' shares, as samplers ask for them; None where nothing is known."""
        if not self.known:
            return None
        if self.known_columns is None:
            return lambda params: self.shares(self.known_values(params))
        return Vectorised(self._shares_of_columns)

    def _shares_of_columns(self, params: Mapping[str, ParamArray]) -> dict[str, FloatArray]:
        assert self.known_columns is not None
        values = self.known_columns(params)
        bounds = zip(self.objectives, self.all_floors, self.limits, strict=True)
        return {
            name: self._share(name, np.asarray(values[name], dtype=np.float64), low, high)
            for name, low, high in bounds
            if name in values
        }

    def vector(self, values: Mapping[str, float]) -> FloatArray:
        """The shares (m,) in the order of the objectives.

        Raises:
            UsageError: an objective is missing, or :meth:`shares` refuses one.
        """
        missing = [name for name in self.objectives if name not in values]
        if missing:
            raise UsageError(f"problem {self.name}: no value for {', '.join(missing)}; found {', '.join(values)}")
        shares = self.shares(values)
        return np.array([shares[name] for name in self.objectives])

    def score(self, vectors: FloatArray) -> float:
        """The hypervolume of shares (n, m) up to ones, in [0, 1]."""
        return hypervolume(np.maximum(vectors, 0.0), np.ones(len(self.objectives)))

    def _share(self, name: str, values: FloatArray, floor: float, limit: float) -> FloatArray:
        """Of one objective, one value or many (q,)."""
        allowed = np.isfinite(values) & ((values > 0) | (self.scale != "log"))
        if not allowed.all():
            wanted = "numbers above 0 on a log scale" if self.scale == "log" else "finite numbers"
            found = float(values[~allowed].flat[0])
            raise UsageError(f"problem {self.name}: {name} is {found}, allowed are {wanted}")
        if self.scale == "log":
            return np.asarray(np.log(values / floor) / math.log(limit / floor))
        return np.asarray((values - floor) / (limit - floor))


def adopt(given: Any, where: str) -> Problem:
    """The problem behind any object with a problem's attributes; ``where`` names it in messages.

    Without ``truth`` the evaluation is taken to be free of noise. ``parameters`` may be written as in a study file.

    Raises:
        UsageError: an attribute is missing or has a value it cannot have.
    """
    if isinstance(given, Problem):
        return given
    missing = [name for name in _NEEDED if not hasattr(given, name)]
    if missing:
        raise UsageError(f"{where}: a problem needs {', '.join(_NEEDED)}; missing are {', '.join(missing)}")
    known = frozenset(getattr(given, "known", ()))
    if known and not hasattr(given, "known_values"):
        raise UsageError(f"{where}: known is {sorted(known)}, so known_values(params) is needed")
    try:
        parameters = _PARAMETERS.validate_python(dict(given.parameters))
    except (ValidationError, TypeError, ValueError) as error:
        raise UsageError(f"{where}: parameters: {error}") from None
    return Problem(
        name=str(given.name),
        parameters=parameters,
        objectives=tuple(given.objectives),
        limits=_numbers(given.limits, f"{where}: limits"),
        floors=_numbers(getattr(given, "floors", ()), f"{where}: floors"),
        scale=getattr(given, "scale", "linear"),
        known=known,
        evaluate=given.evaluate,
        truth=getattr(given, "truth", lambda params: given.evaluate(params, 0)),
        known_values=getattr(given, "known_values", _nothing_known),
        known_columns=getattr(given, "known_columns", None),
        best_hv=getattr(given, "best_hv", None),
    )


def load(text: str) -> Problem:
    """The problem named ``module:attribute``; a class or function without arguments is called.

    The module is looked for in the current folder, too.

    Raises:
        UsageError: the module or attribute does not exist, or is no problem.
    """
    module_name, _, attribute = text.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(f"problem {text}: cannot import {module_name}: {error}") from error
    if not hasattr(module, attribute):
        raise UsageError(f"problem {text}: module {module_name} has no {attribute!r}")
    found = getattr(module, attribute)
    return adopt(found() if callable(found) else found, f"problem {text}")


def _numbers(given: Sequence[float], where: str) -> tuple[float, ...]:
    try:
        return tuple(float(item) for item in given)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: found {given!r}, allowed are numbers, one for each objective") from error
