"""Searched parameters, one axis each: from values to columns of an encoded point, and back.

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
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from orchestrator.arrays import FloatArray, ParamArray
from orchestrator.errors import UsageError
from orchestrator.records import ParamValue
from orchestrator.studyfile import CategoricalParameter, FloatParameter, IntParameter

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


def _number(value: ParamValue) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"is {value!r}, allowed are finite numbers")
    return value


def _check_inside(number: float, low: float, high: float) -> None:
    if not low <= number <= high:
        raise ValueError(f"is {number!r}, allowed are values from {low} to {high}")


def axis_of_parameter(parameter: FloatParameter | IntParameter | CategoricalParameter) -> Axis:
    """The axis of a parameter of a study file."""
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


def axis_of_distribution(distribution: BaseDistribution) -> Axis:
    """The axis of an Optuna distribution.

    Raises:
        UsageError: it is of a kind without an axis.
    """
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


def distribution_of(axis: Axis) -> BaseDistribution:
    """The axis in Optuna's words."""
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


def all_values(axis: Axis) -> Sequence[ParamValue]:
    """Every value of an axis that has finitely many.

    Raises:
        ValueError: it is a real number.
    """
    if isinstance(axis, ChoiceAxis):
        return axis.choices
    if isinstance(axis, LogIntAxis):
        return range(axis.low, axis.high + 1)
    if isinstance(axis, SteppedAxis):
        return [axis.level(index) for index in range(axis.n_levels)]
    raise ValueError("a real number has no list of values")
