"""What every recorder must do, with the vendor's library unmodified where there is one."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import numpy as np
import pytest

from mcu_agent.energy import WindowPlan, measure_energy
from mcu_agent.errors import MeterDrift, MeterError, MeterLost, TraceGap
from mcu_agent.meters.protocol import Trace, WindowBy
from mcu_agent.windows import Call, check_trace, cut
from tests.support.meter_ptys import IDLE_A, RUN_A
from tests.support.meter_rigs import RIGS, SUPPLY_V, Rig

ALL = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name == "joulescope" and importlib.util.find_spec("joulescope") is None,
            reason="the package joulescope is not installed (extra: joulescope)",
        ),
    )
    for name in RIGS
]

LONG = ("lpm01a", "v3pwr")  # windows of seconds, over a terminal: too long for a test


@pytest.fixture(params=ALL)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with RIGS[request.param]() as made:
        yield made


def record(rig: Rig) -> tuple[Trace, Call]:
    rig.recorder.start()
    call = rig.window(rig.idle_s, rig.length_s)
    return rig.recorder.stop(), call


def test_a_window_has_the_energy_it_has(rig: Rig) -> None:
    rig.recorder.open()
    for _ in range(2):  # and again, without opening anew
        trace, call = record(rig)
        check_trace(trace, SUPPLY_V)
        window = cut(trace, call, rig.recorder.window_by)
        assert window.energy_j == pytest.approx(SUPPLY_V * RUN_A * rig.length_s, rel=0.01)
        assert window.seconds == pytest.approx(rig.length_s, rel=0.005)
        assert window.idle_w == pytest.approx(SUPPLY_V * IDLE_A, rel=0.05)


def test_the_trigger_pin_is_seen_as_the_recorder_says(rig: Rig) -> None:
    rig.recorder.open()
    trace, _ = record(rig)
    n_high = int(trace.trigger.sum())
    expected = {WindowBy.PIN: rig.length_s * trace.rate_hz, WindowBy.END: 1, WindowBy.HOST: 0}
    assert n_high == pytest.approx(expected[rig.recorder.window_by], abs=1)
    assert len(trace.current_a) == len(trace.trigger) == len(trace.saturated)
    assert np.isfinite(trace.current_a).all()


def test_a_dropped_block_is_noticed(rig: Rig) -> None:
    rig.recorder.open()
    rig.drop()
    trace, _ = record(rig)
    with pytest.raises((TraceGap, MeterDrift)):
        check_trace(trace, SUPPLY_V)


def test_closing_is_always_allowed_and_opening_after_it(rig: Rig) -> None:
    rig.recorder.close()
    rig.recorder.open()
    rig.recorder.open()
    rig.recorder.start()
    rig.recorder.close()
    rig.recorder.close()
    rig.recorder.open()
    trace, _ = record(rig)
    assert trace.seconds > rig.length_s


def test_recording_in_the_wrong_order_is_refused(rig: Rig) -> None:
    for call in (rig.recorder.start, rig.recorder.stop):
        with pytest.raises(MeterLost):
            call()
    rig.recorder.open()
    with pytest.raises(MeterLost):
        rig.recorder.stop()
    rig.recorder.start()
    with pytest.raises(MeterLost):
        rig.recorder.start()


def test_a_meter_that_goes_away_is_lost(rig: Rig) -> None:
    rig.recorder.open()
    rig.recorder.start()
    rig.unplug()
    with pytest.raises(MeterLost) as caught:
        rig.recorder.stop()
    assert caught.value.is_transient
    rig.recorder.close()


def test_a_meter_that_somebody_else_uses_is_lost_with_a_remedy(rig: Rig) -> None:
    with rig.busy(), pytest.raises(MeterLost, match=r"close it|other program|check wiring"):
        rig.recorder.open()
    rig.recorder.open()


@pytest.mark.parametrize("rig", [one for one in ALL if one.values[0] not in LONG], indirect=True)
def test_an_energy_is_measured_through_the_whole_path(rig: Rig) -> None:
    clock_hz, cycles = 64e6, 64_000.0

    def run_window(repeats: int, idle_ms: int) -> int:
        return round(rig.window(idle_ms / 1000, repeats * cycles / clock_hz).length_s * clock_hz)

    rig.recorder.open()
    found = measure_energy(
        rig.recorder,
        run_window,
        WindowPlan(n_windows=5, n_warm_up=0, idle_ms=20, total_s=0.5),
        cycles=cycles,
        clock_hz=clock_hz,
        supply_v=SUPPLY_V,
        clock=rig.clock,
    )
    assert found.energy_j == pytest.approx(SUPPLY_V * RUN_A * cycles / clock_hz, rel=0.01)
    assert found.net_j == pytest.approx(SUPPLY_V * (RUN_A - IDLE_A) * cycles / clock_hz, rel=0.01)
    assert rig.recorder.name in found.basis


def test_a_recorder_says_what_it_is(rig: Rig) -> None:
    assert rig.recorder.name
    assert rig.recorder.accuracy
    assert rig.recorder.rate_hz > 0
    assert issubclass(MeterLost, MeterError)
