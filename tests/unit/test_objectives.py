"""Objectives, limits and violations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from orchestrator.errors import UsageError
from orchestrator.objectives import LARGEST_EXCESS, Objectives, relative_excess
from orchestrator.records import Source, Value, Violation
from orchestrator.studyfile import StudyFile

FLASH, RAM = 1_048_576.0, 262_144.0


def study(objectives: dict[str, Any]) -> StudyFile:
    return StudyFile.model_validate(
        {
            "name": "s",
            "dataset": {"source": "digits"},
            "network": {"family": "cnn"},
            "space": {"network.width": {"type": "int", "low": 1, "high": 4}},
            "board": "nrf52840-dk",
            "objectives": objectives,
            "budget": {"trials": 4},
        }
    )


def from_study(objectives: dict[str, Any]) -> Objectives:
    return Objectives.from_study(study(objectives), FLASH, RAM)


def value(amount: float, unit: str = "1") -> Value:
    return Value(amount=amount, unit=unit, source=Source.EXACT)


def test_limits_left_out_come_from_the_board_and_from_the_method() -> None:
    objectives = from_study({"error": {}, "rom": {}, "ram": {}, "flops": {}})
    assert objectives.names == ("error", "rom", "ram", "flops")
    assert objectives.units == ("1", "byte", "byte", "1")
    assert objectives.limits == (1.0, FLASH, RAM, 1e9)


def test_a_limit_above_the_boards_memory_is_lowered_to_it_and_one_below_is_kept() -> None:
    objectives = from_study({"rom": {"limit": "2 MiB"}, "ram": {"limit": "64 KiB"}})
    assert objectives.limits == (FLASH, 65536.0)


@pytest.mark.parametrize("name", ["latency", "energy"])
def test_latency_and_energy_need_a_limit(name: str) -> None:
    with pytest.raises(UsageError, match=rf"objectives\.{name}: no limit given.*limit: "):
        from_study({"error": {}, name: {}})
    assert from_study({name: {"limit": 0.02}}).limits == (0.02,)


def test_the_vector_is_in_the_studys_order_and_passes_other_values_over() -> None:
    objectives = from_study({"rom": {}, "error": {}})
    values = {"error": value(0.25), "flops": value(7), "rom": value(2048, "byte")}
    assert objectives.vector(values).tolist() == [2048.0, 0.25]


def test_normalised_vectors_are_shares_of_the_limits() -> None:
    objectives = from_study({"error": {"limit": 0.5}, "rom": {}})
    assert objectives.normalised(np.array([0.25, FLASH / 4])).tolist() == [0.5, 0.25]
    assert objectives.normalised(np.array([[0.5, FLASH]])).tolist() == [objectives.reference.tolist()]


def test_an_infinite_limit_bounds_nothing_and_scales_by_one() -> None:
    objectives = Objectives(names=("a",), units=("1",), limits=(math.inf,))
    assert objectives.normalised(np.array([3.0])).tolist() == [3.0]
    assert objectives.margins({"a": 3.0}) == {}
    assert objectives.violations({"a": 1e300}) == ()


@pytest.mark.parametrize(
    ("values", "message"), [({"error": 0.1}, "no value for rom"), ({"error": math.nan, "rom": 1.0}, "error is nan")]
)
def test_a_missing_or_nan_objective_is_refused_by_name(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_study({"error": {}, "rom": {}}).vector(values)


def test_a_value_at_its_limit_keeps_it_and_one_beyond_is_a_violation_with_its_size() -> None:
    objectives = from_study({"error": {}, "rom": {"limit": 1000}, "ram": {"limit": 500}})
    violations = objectives.violations({"rom": value(1001, "byte"), "ram": value(500, "byte")})
    assert [(item.quantity, item.excess, item.unit) for item in violations] == [("rom", 1.0, "byte")]
    assert violations[0].message == "rom is 1,001 bytes, 1 byte over the limit of 1,000 bytes"


def test_an_error_over_its_limit_is_told_in_points() -> None:
    violations = from_study({"error": {"limit": 0.25}}).violations({"error": 0.36491})
    assert violations[0].message == "error is 36.49 %, 11.49 points over the limit of 25 %"


def test_margins_tell_how_far_each_known_objective_is_beyond_its_limit() -> None:
    objectives = from_study({"error": {}, "rom": {"limit": 1000}, "ram": {"limit": 500}})
    assert objectives.margins({"rom": 1250.0, "ram": 400.0}) == pytest.approx({"rom": 0.25, "ram": -0.2})


@pytest.mark.parametrize(
    ("amount", "limit", "expected"),
    [(150.0, 100.0, 0.5), (3.0, 0.0, 3.0), (math.inf, 10.0, LARGEST_EXCESS), (5.0, 5.0, 1e-9)],
)
def test_the_relative_excess_is_finite_and_above_zero(amount: float, limit: float, expected: float) -> None:
    violation = Violation(quantity="rom", amount=amount, limit=limit, unit="byte", message="")
    assert relative_excess(violation) == pytest.approx(expected)


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_a_limit_must_be_above_zero(limit: float) -> None:
    with pytest.raises(UsageError, match=r"objectives\.a\.limit"):
        Objectives(names=("a",), units=("1",), limits=(limit,))
