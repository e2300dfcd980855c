"""The search space: named parameters to points of the unit cube, and back.

Every searched parameter is one *axis* and takes ``width`` columns of the encoded point (:mod:`orchestrator.axes`).
Fixed parameters take no column and are carried along by :meth:`SearchSpace.decode`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution

from orchestrator.arrays import BoolArray, FloatArray, ParamArray, check_shape
from orchestrator.axes import Axis, all_values, axis_of_distribution, axis_of_parameter, distribution_of
from orchestrator.errors import UsageError
from orchestrator.records import Params, ParamValue
from orchestrator.studyfile import FixedParameter, Parameter


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSpace:
    """Searched axes in a fixed order, and the parameters that stay fixed.

    Raises:
        UsageError: nothing is left to search.
    """

    axes: Mapping[str, Axis]
    fixed: Mapping[str, ParamValue]

    def __post_init__(self) -> None:
        if not any(axis.width for axis in self.axes.values()):
            raise UsageError(
                "space: every parameter has a single value, so there is nothing to search; "
                "give at least one parameter a range or two choices"
            )

    @staticmethod
    def from_parameters(parameters: Mapping[str, Parameter]) -> SearchSpace:
        """The space a study file describes."""
        fixed = {name: item.value for name, item in parameters.items() if isinstance(item, FixedParameter)}
        searched = {name: item for name, item in parameters.items() if not isinstance(item, FixedParameter)}
        return SearchSpace(axes={name: axis_of_parameter(item) for name, item in searched.items()}, fixed=fixed)

    @staticmethod
    def from_distributions(distributions: Mapping[str, BaseDistribution]) -> SearchSpace:
        """The space Optuna distributions describe."""
        return SearchSpace(axes={name: axis_of_distribution(item) for name, item in distributions.items()}, fixed={})

    @property
    def names(self) -> tuple[str, ...]:
        """The searched parameters, in the order of their columns."""
        return tuple(self.axes)

    @property
    def dim(self) -> int:
        """Columns of an encoded point."""
        return sum(axis.width for axis in self.axes.values())

    def size(self) -> float:
        """How many different candidates there are; infinite as soon as one parameter is a real number."""
        return math.prod(axis.size for axis in self.axes.values())

    def encode(self, params: Params) -> FloatArray:
        """The point (d,) in [0, 1] that stands for ``params``; parameters that are not searched are passed over.

        Raises:
            ValueError: a searched parameter is missing or has a value the space does not hold.
        """
        columns: list[float] = []
        for name, axis in self.axes.items():
            if name not in params:
                raise ValueError(f"parameter {name} is missing; found {', '.join(params) or 'none'}")
            try:
                columns += axis.encode(params[name])
            except ValueError as error:
                raise ValueError(f"parameter {name} {error}") from None
        return np.array(columns, dtype=np.float64)

    def decode(self, point: FloatArray) -> dict[str, ParamValue]:
        """The candidate nearest to ``point`` (d,), fixed parameters included; anything outside [0, 1] is clipped."""
        check_shape("point", point, self.dim)
        params = dict(self.fixed)
        for name, axis, columns in self._columns(point):
            params[name] = axis.decode(columns)
        return params

    def decode_all(self, points: FloatArray) -> dict[str, ParamArray]:
        """What :meth:`decode` says of every row of ``points`` (n, d), parameter by parameter, each (n,); real numbers
        may differ in their last bit."""
        check_shape("points", points, None, self.dim)
        columns = {name: np.full(len(points), value) for name, value in self.fixed.items()}
        return columns | {name: axis.decode_all(part) for name, axis, part in self._columns(points)}

    def snap(self, points: FloatArray) -> FloatArray:
        """``encode(decode(u))`` for every row of ``points`` (n, d); real numbers are clipped but not rounded."""
        check_shape("points", points, None, self.dim)
        return np.concatenate([axis.snap(columns) for _, axis, columns in self._columns(points)], axis=-1)

    def at_quantiles(self, quantiles: FloatArray) -> FloatArray:
        """Encoded candidates (n, d) at one quantile per searched parameter, (n, p) in [0, 1].

        Uniform quantiles give uniform parameters (log-uniform on a log scale), every level and choice equally often.
        This is the cube in which a Latin hypercube has one point per stratum; the encoded cube, with its one-hot
        columns, is not.
        """
        check_shape("quantiles", quantiles, None, len(self.axes))
        parts = [axis.at_quantiles(quantiles[:, index]) for index, axis in enumerate(self.axes.values())]
        return np.concatenate(parts, axis=1)

    def spread(self, flags: BoolArray) -> BoolArray:
        """One flag per searched parameter, (n, p), to one per column, (n, d)."""
        check_shape("flags", flags, None, len(self.axes))
        return np.repeat(flags, [axis.width for axis in self.axes.values()], axis=1)

    def all_points(self) -> Iterator[FloatArray]:
        """Every candidate, encoded; only for a space of finite ``size()``."""
        levels = [all_values(axis) for axis in self.axes.values()]
        for values in itertools.product(*levels):
            yield self.encode(dict(zip(self.axes, values, strict=True)))

    def distributions(self) -> dict[str, BaseDistribution]:
        """The space in Optuna's words; a fixed parameter is a choice of one."""
        fixed: dict[str, BaseDistribution] = {name: CategoricalDistribution([v]) for name, v in self.fixed.items()}
        return fixed | {name: distribution_of(axis) for name, axis in self.axes.items()}

    def _columns(self, points: FloatArray) -> Iterator[tuple[str, Axis, FloatArray]]:
        start = 0
        for name, axis in self.axes.items():
            yield name, axis, points[..., start : start + axis.width]
            start += axis.width
