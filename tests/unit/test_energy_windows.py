"""Windows, their statistics, and the measurement of an energy on a scripted meter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcu_agent.energy import (
    WindowPlan,
    check_known_load,
    coverage,
    interval_of_median,
    measure_energy,
    outliers,
    repeats_for,
)
from mcu_agent.errors import (
    BoardLost,
    CyclesUnknown,
    MeterDrift,
    MeterError,
    MeterLost,
    TraceGap,
    TraceSaturated,
    TriggerMissing,
    WrongSupply,
)
from mcu_agent.meters.fake import FakeRecorder, Fault, Load
from mcu_agent.meters.protocol import EnergyReading, WindowBy
from mcu_agent.meters.timing import arrival_span

SUPPLY_V = 3.0
LOAD = Load(cycles=64_000, clock_hz=64e6, run_a=4e-3, idle_a=20e-6)  # 1 ms at 4 mA and 3 V: 12 µJ
ENERGY_J = 12e-6
NET_J = (4e-3 - 20e-6) * SUPPLY_V * 1e-3


def measure(recorder: FakeRecorder, plan: WindowPlan | None = None, cycles: float = LOAD.cycles) -> EnergyReading:
    recorder.open()
    return measure_energy(
        recorder,
        recorder.run_window,
        plan or WindowPlan(),
        cycles=cycles,
        clock_hz=LOAD.clock_hz,
        supply_v=SUPPLY_V,
        clock=recorder.clock,
    )


# Statistics


def test_the_interval_of_nine_goes_from_the_second_to_the_eighth() -> None:
    assert interval_of_median([5.0, 1.0, 9.0, 3.0, 7.0, 2.0, 8.0, 4.0, 6.0]) == (2.0, 8.0)


def test_the_interval_is_that_of_drawing_resamples() -> None:
    values = np.random.default_rng(1).normal(size=9)
    drawn = np.random.default_rng(2).choice(values, size=(40_000, 9))
    expected = np.quantile(np.median(drawn, axis=1), [0.025, 0.975], method="inverted_cdf")
    assert interval_of_median(values.tolist()) == pytest.approx(tuple(expected))


@pytest.mark.parametrize(("n", "expected"), [(7, 0.875), (9, 0.961), (15, 0.965)])
def test_nine_windows_cover_and_seven_do_not(n: int, expected: float) -> None:
    values = np.random.default_rng(n).normal(10.0, 1.0, size=(4000, n))
    ordered = np.sort(values, axis=1)
    hits = [low <= 10.0 <= high for low, high in (interval_of_median(row) for row in ordered.tolist())]
    assert coverage(n) == pytest.approx(expected, abs=5e-4)
    assert np.mean(hits) == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize("n", [0, 2, 8])
def test_an_even_number_has_no_interval(n: int) -> None:
    with pytest.raises(ValueError, match="must be odd"):
        interval_of_median([1.0] * n)


def test_outliers_are_what_lies_far_beyond_the_spread() -> None:
    assert outliers([1.00, 1.01, 0.99, 1.02, 0.98, 1.00, 1.01, 0.99, 1.50]) == (8,)
    assert outliers([1.00, 1.01, 0.99, 1.02, 0.98, 1.00, 1.01, 0.99, 1.05]) == ()
    assert outliers([1.0, 1.0, 1.0, 1.0, 1.00001]) == ()  # all but alike


def test_the_plan_lasts_as_long_as_its_longest_rule() -> None:
    plan = WindowPlan()
    assert plan.window_s(100_000) == pytest.approx(1 / 9)  # nine of them make a second
    assert plan.window_s(5_000) == pytest.approx(2.0)  # 10,000 readings
    assert plan.window_s(300) == pytest.approx(10.0)  # ten seconds are enough
    assert plan.window_s(100_000, WindowBy.HOST) == pytest.approx(5.0)
    assert WindowPlan(least_s=0.3).window_s(100_000) == pytest.approx(0.3)


@pytest.mark.parametrize("n", [1, 7, 8, 10, 13])
def test_a_plan_whose_interval_does_not_cover_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match="windows"):
        WindowPlan(n_windows=n)


def test_repeats_fill_the_window() -> None:
    assert repeats_for(0.1, 64_000, 64e6) == 100
    assert repeats_for(0.1, 1e9, 64e6) == 1


# Measuring


@pytest.mark.parametrize("window_by", list(WindowBy))
def test_the_energy_of_a_known_current_is_found(window_by: WindowBy) -> None:
    recorder = FakeRecorder(LOAD, window_by=window_by)
    found = measure(recorder)
    assert found.is_measured
    assert found.energy_j == pytest.approx(ENERGY_J, rel=1e-3)
    assert found.net_j == pytest.approx(NET_J, rel=1e-3)
    assert found.idle_w == pytest.approx(20e-6 * SUPPLY_V, rel=1e-6)
    assert len(found.windows_j) == 9
    assert found.outliers == ()
    assert recorder.n_traces == 10  # one to warm up
    assert "median of 9 windows" in found.basis
    assert ("less accurate" in found.basis) == (window_by is WindowBy.HOST)


@settings(derandomize=True, max_examples=40, deadline=None)
@given(
    cycles=st.floats(1e3, 1e8),
    run_a=st.floats(1e-4, 0.5),
    rate_hz=st.sampled_from([1e3, 5e3, 1e5]),
    delay_s=st.floats(0.0, 0.1),
    window_by=st.sampled_from(WindowBy),
)
def test_any_board_on_any_meter_has_its_energy(
    cycles: float, run_a: float, rate_hz: float, delay_s: float, window_by: WindowBy
) -> None:
    load = Load(cycles=cycles, clock_hz=LOAD.clock_hz, run_a=run_a, idle_a=1e-6)
    recorder = FakeRecorder(load, rate_hz=rate_hz, window_by=window_by, delay_s=delay_s)
    found = measure(recorder, WindowPlan(n_windows=5, n_warm_up=0, least_readings=2_000), cycles=cycles)
    assert found.energy_j == pytest.approx(run_a * SUPPLY_V * cycles / LOAD.clock_hz, rel=2e-3)


def test_the_same_readings_give_the_same_interval() -> None:
    load = Load(cycles=LOAD.cycles, clock_hz=LOAD.clock_hz, noise_a=1e-3)
    first, second = measure(FakeRecorder(load, seed=4)), measure(FakeRecorder(load, seed=4))
    assert first == second
    assert first.interval_j is not None
    low, high = first.interval_j
    assert low < first.energy_j < high


def test_an_unknown_length_is_found_by_trial() -> None:
    recorder = FakeRecorder(LOAD)
    found = measure(recorder, cycles=0)
    assert found.energy_j == pytest.approx(ENERGY_J, rel=1e-3)
    assert recorder.n_traces > 10


@pytest.mark.parametrize("window_by", [WindowBy.END, WindowBy.HOST])
def test_a_meter_that_does_not_see_both_edges_needs_cycles(window_by: WindowBy) -> None:
    with pytest.raises(CyclesUnknown, match="does not see the trigger pin"):
        measure(FakeRecorder(LOAD, window_by=window_by), cycles=0)


def test_an_outlier_is_kept_and_flagged() -> None:
    load = Load(cycles=LOAD.cycles, clock_hz=LOAD.clock_hz, noise_a=1e-4, extra_a={4: 2e-3})
    found = measure(FakeRecorder(load))
    assert found.outliers == (3,)  # trace 0 is the warm-up
    assert found.windows_j[3] == pytest.approx(1.5 * ENERGY_J, rel=0.01)
    assert found.energy_j == pytest.approx(ENERGY_J, rel=0.01)


FAULTS = [
    (Fault.GAP, TraceGap),
    (Fault.UNSEEN_GAP, MeterDrift),
    (Fault.SATURATED, TraceSaturated),
    (Fault.WRONG_SUPPLY, WrongSupply),
    (Fault.SLOW_CLOCK, MeterDrift),
    (Fault.NO_TRIGGER, TriggerMissing),
    (Fault.DOUBLE_TRIGGER, TriggerMissing),
    (Fault.SHORT_TRIGGER, TriggerMissing),
]


@pytest.mark.parametrize(("fault", "error"), FAULTS)
def test_a_bad_window_is_tried_twice_more_then_named(fault: Fault, error: type[MeterError]) -> None:
    forgiven = FakeRecorder(LOAD, faults={3: fault, 4: fault})
    assert measure(forgiven).energy_j == pytest.approx(ENERGY_J, rel=1e-3)
    assert forgiven.n_traces == 12
    with pytest.raises(error, match="3 attempts") as caught:
        measure(FakeRecorder(LOAD, faults={3: fault, 4: fault, 5: fault}))
    assert type(caught.value) is error
    assert caught.value.is_transient


def test_a_bad_warm_up_does_not_count() -> None:
    assert measure(FakeRecorder(LOAD, faults={0: Fault.GAP})).energy_j == pytest.approx(ENERGY_J, rel=1e-3)


def test_a_lost_meter_is_not_tried_again() -> None:
    recorder = FakeRecorder(LOAD, faults={2: Fault.LOST})
    with pytest.raises(MeterLost):
        measure(recorder)
    assert recorder.n_traces == 3


def test_what_the_board_reports_goes_through_and_the_recorder_is_stopped() -> None:
    recorder = FakeRecorder(LOAD)
    recorder.open()

    def lost(repeats: int, idle_ms: int) -> int:
        raise BoardLost("b1", "gone")

    with pytest.raises(BoardLost):
        measure_energy(
            recorder, lost, WindowPlan(), cycles=64_000, clock_hz=64e6, supply_v=SUPPLY_V, clock=recorder.clock
        )
    recorder.start()  # is not recording any more


def test_a_slow_link_leaves_no_certain_window() -> None:
    with pytest.raises(TriggerMissing, match=r"cannot be found|no idling"):
        measure(FakeRecorder(LOAD, window_by=WindowBy.HOST, delay_s=4.0), WindowPlan(n_retries=0))


def test_a_board_that_counts_more_than_passed_is_refused() -> None:
    recorder = FakeRecorder(LOAD, window_by=WindowBy.HOST)
    recorder.open()
    with pytest.raises(TriggerMissing, match="passed on the host"):
        measure_energy(
            recorder,
            lambda repeats, idle_ms: 2 * recorder.run_window(repeats, idle_ms),
            WindowPlan(n_retries=0),
            cycles=LOAD.cycles,
            clock_hz=LOAD.clock_hz,
            supply_v=SUPPLY_V,
            clock=recorder.clock,
        )


# A known load


def known_load(recorder: FakeRecorder, ohms: float, supply_v: float = SUPPLY_V) -> float:
    recorder.open()
    return check_known_load(recorder, ohms, supply_v, wait=recorder.pass_time)


def test_a_known_load_is_read_right() -> None:
    recorder = FakeRecorder(Load(waiting_a=3e-3))
    assert known_load(recorder, 1000.0) == pytest.approx(3e-3)


def test_a_meter_that_reads_a_known_load_wrongly_has_drifted() -> None:
    with pytest.raises(MeterDrift, match=r"3\.3 mA through 1000 ohm .* expected 3 mA"):
        known_load(FakeRecorder(Load(waiting_a=3.3e-3)), 1000.0)


def test_a_known_load_at_another_voltage_tells_of_the_supply() -> None:
    with pytest.raises(WrongSupply, match=r"3\.000 V, the rack file says 3\.3 V"):
        known_load(FakeRecorder(Load(waiting_a=3e-3)), 1000.0, supply_v=3.3)


# Arrival times


def test_late_pieces_do_not_count_but_a_stream_that_falls_behind_does() -> None:
    rng = np.random.default_rng(3)
    counts = np.arange(1, 301) * 100
    times = counts / 1e5 + rng.exponential(2e-4, 300)
    times[40:60] += 0.01  # the host was busy
    started, seconds = arrival_span(times.tolist(), counts.tolist(), 1e5)
    assert started == pytest.approx(0.0, abs=1e-4)
    assert seconds == pytest.approx(0.3, abs=1e-4)
    times[150:] += 64 / 1e5
    assert arrival_span(times.tolist(), counts.tolist(), 1e5)[1] == pytest.approx(0.30064, abs=1e-4)


def test_nothing_takes_no_time() -> None:
    assert arrival_span([], [], 1e5) == (0.0, 0.0)
