"""The search space: named parameters to points of the unit cube, and back.

Every searched parameter is one *axis* and takes ``width`` columns of the encoded point:

float
    one column, linear or logarithmic from ``low`` (0) to ``high`` (1). Values are kept to ten significant digits, so
    that a value survives printing, YAML and the way through the cube unchanged.
int, or a float with a step
    one column; the levels lie evenly spaced from 0 to 1, or at their logarithms on a log scale. Decoding takes the
    nearest level.
categorical
    one column per choice (one-hot), decoded by the largest; one column is enough for two choices and none is needed
    for one. Choices have no order, and one-hot is the encoding that invents none: every two choices are equally far
    apart for the surrogate. An ordinal code would claim that the second choice lies between the first and the third.

Fixed parameters take no column and are carried along by :meth:`SearchSpace.decode`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from orchestrator.arrays import BoolArray, FloatArray, ParamArray, check_shape
from orchestrator.errors import UsageError
from orchestrator.records import Params, ParamValue
from orchestrator.studyfile import CategoricalParameter, FixedParameter, FloatParameter, IntParameter, Parameter

_SIGNIFICANT_DIGITS = 10


class Axis(Protocol):
    """One searched parameter; columns and quantiles are in [0, 1].

    ``snap`` moves columns (…, width) to those of the nearest value; ``at_quantiles`` (n,) gives columns (n, width);
    ``decode_all`` is ``decode`` of every row of columns (n, width).
    """

    @property
    def width(self) -> int: ...

    @property
    def size(self) -> float: ...

    def encode(self, value: ParamValue) -> list[float]: ...

    def decode(self, columns: FloatArray) -> ParamValue: ...

    def decode_all(self, columns: FloatArray) -> ParamArray: ...

    def at_quantiles(self, quantiles: FloatArray) -> FloatArray: ...

    def snap(self, columns: FloatArray) -> FloatArray: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class RealAxis:
    """A real number in [low, high]."""

    low: float
    high: float
    is_log: bool

    @property
    def width(self) -> int:
        return 1

    @property
    def size(self) -> float:
        return math.inf

    def encode(self, value: ParamValue) -> list[float]:
        number = _number(value)
        _check_inside(number, self.low, self.high)
        if self.is_log:
            return [math.log(number / self.low) / math.log(self.high / self.low)]
        return [(number - self.low) / (self.high - self.low)]

    def decode(self, columns: FloatArray) -> float:
        share = float(columns[0])
        if share <= 0:
            return self.low
        if share >= 1:
            return self.high
        if self.is_log:
            number = self.low * math.exp(share * math.log(self.high / self.low))
            magnitude = abs(number)
        else:
            number = self.low + share * (self.high - self.low)
            # Rounding is relative to the larger end: the way through the cube loses that much, however small the value.
            magnitude = max(abs(self.low), abs(self.high))
        digits = _SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(magnitude))
        return min(max(round(number, digits), self.low), self.high)

    def decode_all(self, columns: FloatArray) -> FloatArray:
        shares = np.clip(columns[:, 0], 0.0, 1.0)
        if self.is_log:
            numbers = self.low * np.exp(shares * math.log(self.high / self.low))
            magnitudes = np.abs(numbers)
        else:
            numbers = self.low + shares * (self.high - self.low)
            magnitudes = np.full_like(numbers, max(abs(self.low), abs(self.high)))
        units = 10.0 ** (_SIGNIFICANT_DIGITS - 1 - np.floor(np.log10(magnitudes)))
        rounded = np.clip(np.round(numbers * units) / units, self.low, self.high)
        return np.asarray(np.select([shares <= 0, shares >= 1], [self.low, self.high], rounded))

    def at_quantiles(self, quantiles: FloatArray) -> FloatArray:
        return quantiles[:, None]

    def snap(self, columns: FloatArray) -> FloatArray:
        return np.clip(columns, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class SteppedAxis:
    """``low``, ``low + step`` … (``n_levels`` of them), whole numbers when ``low`` and ``step`` are."""

    low: int | float
    step: int | float
    n_levels: int

    @property
    def width(self) -> int:
        return 1

    @property
    def size(self) -> float:
        return self.n_levels

    def level(self, index: int) -> int | float:
        return self.low + index * self.step

    def encode(self, value: ParamValue) -> list[float]:
        number = _number(value)
        _check_inside(number, self.low, self.level(self.n_levels - 1))
        index = round((number - self.low) / self.step)
        if not math.isclose(self.level(index), number, rel_tol=1e-9, abs_tol=1e-9 * self.step):
            raise ValueError(f"is {value!r}, allowed are steps of {self.step} from {self.low}")
        return [index / self._last]

    def decode(self, columns: FloatArray) -> int | float:
        return self.level(round(min(max(float(columns[0]), 0.0), 1.0) * self._last))

    def decode_all(self, columns: FloatArray) -> ParamArray:
        return np.asarray(
            self.low + np.round(np.clip(columns[:, 0], 0.0, 1.0) * self._last).astype(np.int64) * self.step
        )

    def at_quantiles(self, quantiles: FloatArray) -> FloatArray:
        return np.minimum(np.floor(quantiles * self.n_levels), self._last)[:, None] / self._last

    def snap(self, columns: FloatArray) -> FloatArray:
        return np.round(np.clip(columns, 0.0, 1.0) * self._last) / self._last

    @property
    def _last(self) -> int:
        return max(self.n_levels - 1, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class LogIntAxis:
    """The whole numbers in [low, high], placed at their logarithms."""

    low: int
    high: int

    @property
    def width(self) -> int:
        return 1

    @property
    def size(self) -> float:
        return self.high - self.low + 1

    def encode(self, value: ParamValue) -> list[float]:
        number = _number(value)
        _check_inside(number, self.low, self.high)
        if number != round(number):
            raise ValueError(f"is {value!r}, allowed are whole numbers")
        return [math.log(number / self.low) / math.log(self.high / self.low)]

    def decode(self, columns: FloatArray) -> int:
        exponent = min(max(float(columns[0]), 0.0), 1.0) * math.log(self.high / self.low)
        return min(max(round(self.low * math.exp(exponent)), self.low), self.high)

    def decode_all(self, columns: FloatArray) -> ParamArray:
        exponents = np.clip(columns[:, 0], 0.0, 1.0) * math.log(self.high / self.low)
        return np.asarray(np.clip(np.round(self.low * np.exp(exponents)), self.low, self.high).astype(np.int64))

    def at_quantiles(self, quantiles: FloatArray) -> FloatArray:
        # Half a step beyond both ends, so that the end values get their share.
        low, high = self.low - 0.5, self.high + 0.5
        return self._columns(low * np.exp(quantiles[:, None] * math.log(high / low)))

    def snap(self, columns: FloatArray) -> FloatArray:
        return self._columns(self.low * np.exp(np.clip(columns, 0.0, 1.0) * math.log(self.high / self.low)))

    def _columns(self, numbers: FloatArray) -> FloatArray:
        whole = np.clip(np.round(numbers), self.low, self.high)
        return np.asarray(np.log(whole / self.low) / math.log(self.high / self.low))


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoiceAxis:
    """One of ``choices``, without order."""

    choices: tuple[ParamValue, ...]

    @property
    def width(self) -> int:
        return len(self.choices) if len(self.choices) > 2 else len(self.choices) - 1

    @property
    def size(self) -> float:
        return len(self.choices)

    def encode(self, value: ParamValue) -> list[float]:
        if value not in self.choices:
            raise ValueError(f"is {value!r}, allowed are {', '.join(map(repr, self.choices))}")
        index = self.choices.index(value)
        if self.width <= 1:
            return [float(index)] * self.width
        return [float(i == index) for i in range(len(self.choices))]

    def decode(self, columns: FloatArray) -> ParamValue:
        if self.width == 0:
            return self.choices[0]
        if self.width == 1:
            return self.choices[int(columns[0] > 0.5)]
        return self.choices[int(np.argmax(columns))]

    def decode_all(self, columns: FloatArray) -> ParamArray:
        if self.width == 0:
            indices = np.zeros(len(columns), dtype=np.intp)
        else:
            indices = (columns[:, 0] > 0.5).astype(np.intp) if self.width == 1 else columns.argmax(axis=1)
        is_uniform = len({type(item) for item in self.choices}) == 1
        return np.array(self.choices, dtype=None if is_uniform else object)[indices]

    def at_quantiles(self, quantiles: FloatArray) -> FloatArray:
        indices = np.minimum((quantiles * len(self.choices)).astype(np.intp), len(self.choices) - 1)
        if self.width <= 1:
            return indices[:, None].astype(np.float64)[:, : self.width]
        return np.asarray(np.eye(self.width)[indices])

    def snap(self, columns: FloatArray) -> FloatArray:
        if self.width <= 1:
            return (columns > 0.5).astype(np.float64)
        return np.asarray(np.eye(self.width)[np.argmax(columns, axis=-1)])


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
        axes = {name: _axis(item) for name, item in parameters.items() if not isinstance(item, FixedParameter)}
        return SearchSpace(axes=axes, fixed=fixed)

    @staticmethod
    def from_distributions(distributions: Mapping[str, BaseDistribution]) -> SearchSpace:
        """The space Optuna distributions describe."""
        return SearchSpace(axes={name: _axis_of(item) for name, item in distributions.items()}, fixed={})

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
        levels = [_all_values(axis) for axis in self.axes.values()]
        for values in itertools.product(*levels):
            yield self.encode(dict(zip(self.axes, values, strict=True)))

    def distributions(self) -> dict[str, BaseDistribution]:
        """The space in Optuna's words; a fixed parameter is a choice of one."""
        fixed: dict[str, BaseDistribution] = {name: CategoricalDistribution([v]) for name, v in self.fixed.items()}
        return fixed | {name: _distribution(axis) for name, axis in self.axes.items()}

    def _columns(self, points: FloatArray) -> Iterator[tuple[str, Axis, FloatArray]]:
        start = 0
        for name, axis in self.axes.items():
            yield name, axis, points[..., start : start + axis.width]
            start += axis.width


def _number(value: ParamValue) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"is {value!r}, allowed are finite numbers")
    return value


def _check_inside(number: float, low: float, high: float) -> None:
    if not low <= number <= high:
        raise ValueError(f"is {number!r}, allowed are values from {low} to {high}")


def _axis(parameter: FloatParameter | IntParameter | CategoricalParameter) -> Axis:
    if isinstance(parameter, FloatParameter):
        return RealAxis(low=parameter.low, high=parameter.high, is_log=parameter.log)
    if isinstance(parameter, IntParameter):
        return _int_axis(parameter.low, parameter.high, step=parameter.step, is_log=parameter.log)
    return ChoiceAxis(choices=parameter.choices)


def _int_axis(low: int, high: int, *, step: int, is_log: bool) -> Axis:
    if is_log and low < high:
        return LogIntAxis(low=low, high=high)
    n_levels = (high - low) // step + 1
    return ChoiceAxis(choices=(low,)) if n_levels == 1 else SteppedAxis(low=low, step=step, n_levels=n_levels)


def _axis_of(distribution: BaseDistribution) -> Axis:
    if isinstance(distribution, CategoricalDistribution):
        return ChoiceAxis(choices=tuple(distribution.choices))  # type: ignore[arg-type]  # None is let through unchanged
    if isinstance(distribution, IntDistribution):
        return _int_axis(distribution.low, distribution.high, step=distribution.step, is_log=distribution.log)
    if not isinstance(distribution, FloatDistribution):
        raise UsageError(f"search space: {distribution!r} is not a float, int or categorical distribution")
    if distribution.single():
        return ChoiceAxis(choices=(distribution.low,))
    if distribution.step is None:
        return RealAxis(low=distribution.low, high=distribution.high, is_log=distribution.log)
    n_levels = round((distribution.high - distribution.low) / distribution.step) + 1
    return SteppedAxis(low=distribution.low, step=distribution.step, n_levels=n_levels)


def _distribution(axis: Axis) -> BaseDistribution:
    if isinstance(axis, RealAxis):
        return FloatDistribution(axis.low, axis.high, log=axis.is_log)
    if isinstance(axis, LogIntAxis):
        return IntDistribution(axis.low, axis.high, log=True)
    if isinstance(axis, ChoiceAxis):
        return CategoricalDistribution(axis.choices)
    if not isinstance(axis, SteppedAxis):
        raise TypeError(f"{axis!r} has no distribution")
    high = axis.level(axis.n_levels - 1)
    if isinstance(axis.low, int) and isinstance(axis.step, int) and isinstance(high, int):
        return IntDistribution(axis.low, high, step=axis.step)
    return FloatDistribution(axis.low, high, step=axis.step)


def _all_values(axis: Axis) -> Sequence[ParamValue]:
    if isinstance(axis, ChoiceAxis):
        return axis.choices
    if isinstance(axis, LogIntAxis):
        return range(axis.low, axis.high + 1)
    if isinstance(axis, SteppedAxis):
        return [axis.level(index) for index in range(axis.n_levels)]
    raise ValueError("a real number has no list of values")
