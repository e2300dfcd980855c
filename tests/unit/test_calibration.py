"""From the cycles of layers to a factor with its error, kept in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcu_agent.calibration import Calibration, fit, load_calibration, save_calibration
from mcu_agent.errors import CalibrationError, InventoryError

CYCLES = st.lists(st.floats(1e2, 1e7), min_size=3, max_size=12)


def record(**changes: Any) -> Calibration:
    fields: dict[str, Any] = {
        "kind": "nrf52-dk",
        "board_id": "bench",
        "at": "2026-11-26T10:00:00+00:00",
        "image_id": "ab" * 32,
        "clock_hz": 64_000_000,
        "supply_v": 3.0,
        "n_layers": 6,
        "cycle_factor": 1.25,
        "residual": 0.03,
        "worst": 0.07,
    }
    return Calibration(**{**fields, **changes})


@given(emulated=CYCLES, factor=st.floats(0.6, 10))
def test_layers_that_share_one_factor_are_fitted_without_an_error(emulated: list[float], factor: float) -> None:
    found, residual, worst = fit(emulated, [factor * cycles for cycles in emulated])
    assert found == pytest.approx(factor)
    assert (residual, worst) == (pytest.approx(0, abs=1e-9), pytest.approx(0, abs=1e-9))


def test_the_residual_is_that_of_layers_predicted_from_the_others() -> None:
    # Two equal layers at factor 1 and one at 2: without the odd one the factor is 1, so it is 100 % off; without one of
    # the others it is sqrt(2), so they are 1 - 1/sqrt(2) = 29.3 % off.
    factor, residual, worst = fit([100, 100, 100], [100, 100, 200])
    assert factor == pytest.approx(2 ** (1 / 3))
    assert worst == pytest.approx(1.0)
    assert residual == pytest.approx(((1 + 2 * (1 - 2**-0.5) ** 2) / 3) ** 0.5)


def test_large_layers_count_for_more() -> None:
    factor, _, _ = fit([1000, 10, 10], [1200, 30, 30])
    assert 1.2 < factor < 1.25


@pytest.mark.parametrize(
    ("emulated", "measured"), [([1, 2], [1, 2]), ([1, 2, 3], [1, 2]), ([1, 2, 0], [1, 2, 3]), ([1, 2, 3], [1, -2, 3])]
)
def test_what_cannot_be_fitted_is_refused(emulated: list[float], measured: list[float]) -> None:
    with pytest.raises(CalibrationError):
        fit(emulated, measured)


def test_estimates_follow_the_factor_and_tell_their_error() -> None:
    found = record(nj_per_cycle=0.2)
    assert found.latency_s(6_400_000) == pytest.approx(0.125)
    assert found.energy_j(1e6) == pytest.approx(1e6 * 1.25 * 0.2e-9)
    assert "x 1.250, calibrated on bench on 2026-11-26 (6 layers, ±3.0 % a layer, at worst 7.0 %)" in found.basis
    assert record().energy_j(1e6) is None


def test_a_calibration_comes_back_from_its_file(tmp_path: Path) -> None:
    kept = record(nj_per_cycle=0.2, nj_interval=(0.19, 0.21), meter="ppk2")
    save_calibration(kept, tmp_path / "new" / "bench.json")
    assert load_calibration(tmp_path / "new" / "bench.json") == kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2; this program reads 1"),
        ({"cycle_factor": 0.01}, "cycle_factor is 0.01; allowed: 0.5 to 20"),
        ({"residual": -1}, "residual is -1; allowed"),
        ({"clock_hz": 0}, "both must be above 0"),
        ({"nj_per_cycle": 0}, "nj_per_cycle is 0"),
        ({"colour": "red"}, "unknown fields colour"),
        ({"kind": None, "drop": "kind"}, "without kind; a calibration has kind, board_id"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_what_is_wrong(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    data = {**record().to_json(), **{name: value for name, value in change.items() if name != "drop"}}
    data.pop(str(change.get("drop")), None)
    (tmp_path / "c.json").write_text(json.dumps(data))
    with pytest.raises(InventoryError, match=message) as caught:
        load_calibration(tmp_path / "c.json")
    assert "c.json" in str(caught.value)


def test_a_missing_file_and_one_that_is_no_json_are_named(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match="cannot be read"):
        load_calibration(tmp_path / "none.json")
    (tmp_path / "c.json").write_text("[1]")
    with pytest.raises(InventoryError, match=r"c\.json: found a list; a calibration is a JSON object"):
        load_calibration(tmp_path / "c.json")
