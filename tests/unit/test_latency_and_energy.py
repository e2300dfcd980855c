"""Statistics of runs and the energy model, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcu_agent.energy import estimate_energy_j
from mcu_agent.kinds import load_kind
from mcu_agent.latency import median_index, summarise
from mcu_agent.meters.model import ModelMeter


def test_the_median_is_one_of_the_readings() -> None:
    found = summarise([4, 1, 3, 10])
    assert (found.n, found.median, found.minimum, found.maximum) == (4, 3, 1, 10)
    assert found.spread == pytest.approx(3.0)
    assert median_index([4, 1, 3, 10]) == 2


def test_one_reading_has_no_spread() -> None:
    assert summarise([5]).spread == 0.0
    assert summarise([0, 0]).spread == 0.0


def test_no_readings_are_an_error() -> None:
    with pytest.raises(ValueError, match="no readings"):
        summarise([])


@given(st.lists(st.integers(0, 10**12), min_size=1))
def test_the_median_lies_between_the_extremes(readings: list[int]) -> None:
    found = summarise(readings)
    assert found.minimum <= found.median <= found.maximum
    assert readings[median_index(readings)] == found.median


def test_energy_is_cycles_times_the_energy_of_one() -> None:
    kind = load_kind("nucleo-l4r5zi")
    # 5.16 million cycles (43 ms at 120 MHz) x 0.351 nJ = 1811 µJ; published for this network: 1820 µJ
    assert estimate_energy_j(5.16e6, kind) == pytest.approx(1811e-6, rel=1e-3)
    with pytest.raises(ValueError, match="negative"):
        estimate_energy_j(-1, kind)


def test_the_model_says_that_it_is_one() -> None:
    reading = ModelMeter(load_kind("nrf52840-dk")).read(1000)
    assert not reading.is_measured
    assert reading.energy_j == pytest.approx(1000 * 0.155e-9)
    assert reading.basis.startswith("1,000 cycles x 0.155 nJ at 3.0 V; estimate: 3.3 mA")
