"""Calibrating on a device whose factor is known."""

from __future__ import annotations

import random

import pytest

from mcu_agent.boards.virtual import VirtualBoard
from mcu_agent.calibrate import calibrate
from mcu_agent.calibration import estimates
from mcu_agent.errors import CalibrationError, InventoryError
from mcu_agent.kinds import load_kind
from mcu_agent.profiling import profile
from mcu_agent.selftest import known_image
from tests.support.slow_board import SlowBoard
from tests.unit.test_calibration import record
from tests.unit.test_profiling import WiredBoard, recorder

KIND = load_kind("nrf52-dk")
AT = "2026-11-26T10:00:00+00:00"


@pytest.mark.parametrize("factor", [1.0, 1.31, 2.5])
def test_the_factor_of_a_device_is_found(factor: float) -> None:
    known = known_image("nrf52-dk")
    found = calibrate(SlowBoard("slow", KIND, factor), known, AT)
    assert found.cycle_factor == pytest.approx(factor, rel=0.01)
    assert found.residual < 0.02
    assert (found.kind, found.board_id, found.at, found.n_layers) == ("nrf52-dk", "slow", AT, len(known.layer_cycles))
    assert found.image_id == known.image_id
    assert found.nj_per_cycle is None


def test_what_one_factor_cannot_explain_shows_in_the_residual() -> None:
    draw = random.Random(1)
    even = calibrate(SlowBoard("slow", KIND, 1.3), known_image("nrf52-dk"), AT)
    uneven = calibrate(SlowBoard("slow", KIND, 1.3, lambda: draw.uniform(0, 6000)), known_image("nrf52-dk"), AT)
    assert uneven.residual > 3 * even.residual
    assert uneven.cycle_factor == pytest.approx(1.3, rel=0.1)


def test_an_estimate_by_it_comes_close_to_the_device() -> None:
    known = known_image("nrf52-dk")
    fitted = calibrate(SlowBoard("slow", KIND, 1.31), known, AT)
    emulated = profile(known.job(), VirtualBoard("v", KIND))
    measured = profile(known.job(), SlowBoard("other", KIND, 1.31))
    estimate = estimates(fitted, "nrf52-dk", emulated.cycles.median, is_emulated=True)
    assert estimate["latency_s"] == pytest.approx(measured.latency_s, rel=0.01)


def test_the_energy_of_a_cycle_is_measured_where_there_is_a_meter() -> None:
    meter = recorder()
    found = calibrate(WiredBoard(meter), known_image("nrf52-dk"), AT, meter)
    assert found.nj_per_cycle == pytest.approx(4e-3 * 3.0 / 64e6 * 1e9, rel=0.02)
    assert found.nj_interval is not None
    assert found.meter == "fake"
    assert "nJ (" in found.energy_text


def test_a_virtual_board_cannot_be_calibrated_on() -> None:
    with pytest.raises(CalibrationError, match="board v is a virtual one"):
        calibrate(VirtualBoard("v", KIND), known_image("nrf52-dk"), AT)


def test_estimates_are_for_emulated_cycles_of_the_same_kind() -> None:
    with pytest.raises(InventoryError, match="the calibration is of nrf52-dk, the board is a nucleo-f446re"):
        estimates(record(), "nucleo-f446re", 1.0, is_emulated=True)
    with pytest.raises(InventoryError, match="measured on a device"):
        estimates(record(), "nrf52-dk", 1.0, is_emulated=False)
