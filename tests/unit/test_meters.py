"""Meters: what a rack file may say of them, what is found plugged in, and what each notices of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mcu_agent.errors import InventoryError, MeterDrift, MeterError, MeterLost, TraceSaturated
from mcu_agent.meters.fields import METER_DRIVERS, meter_mistakes
from mcu_agent.meters.ina226 import Ina226
from mcu_agent.meters.joulescope import held
from mcu_agent.meters.ppk2 import Ppk2
from mcu_agent.meters.ppk2_encode import TYPICAL, metadata
from mcu_agent.meters.protocol import WindowBy
from mcu_agent.meters.registry import FoundMeter, found_meters, make_recorder
from mcu_agent.meters.serialport import find_port
from mcu_agent.meters.stlpm01 import LPM01A, V3PWR, StPowerMeter
from mcu_agent.rack import MeterEntry
from mcu_agent.windows import check_trace
from tests.support.meter_devices import FakeInaBus
from tests.support.meter_ptys import RUN_A, FakePowerShield, FakePpk2

ENTRIES: list[tuple[MeterEntry, type, WindowBy]] = [
    (MeterEntry(driver="ppk2", serial="C1", trigger=3, options={"spike_filter": "vendor"}), Ppk2, WindowBy.PIN),
    (MeterEntry(driver="ppk2", mode="ampere", options={"known_load_ohms": 1000.0}), Ppk2, WindowBy.PIN),
    (MeterEntry(driver="stlpm01"), StPowerMeter, WindowBy.END),
    (MeterEntry(driver="stlpm01", options={"format": "bin_hexa", "rate_hz": 50_000}), StPowerMeter, WindowBy.HOST),
    (MeterEntry(driver="stlink-v3pwr", supply_v=1.8), StPowerMeter, WindowBy.HOST),
    (MeterEntry(driver="ina226", mode="ampere", options={"shunt_ohms": 0.1}), Ina226, WindowBy.HOST),
]


@pytest.mark.parametrize(("entry", "kind", "window_by"), ENTRIES)
def test_an_entry_becomes_its_recorder(entry: MeterEntry, kind: type, window_by: WindowBy) -> None:
    recorder = make_recorder(entry)
    assert isinstance(recorder, kind)
    assert recorder is not None
    assert recorder.window_by is window_by


def test_a_joulescope_needs_no_package_until_it_is_opened() -> None:
    recorder = make_recorder(MeterEntry(driver="joulescope", mode="ampere", trigger=1, options={"rate_hz": 200_000}))
    assert recorder is not None
    assert recorder.rate_hz == 200_000


@pytest.mark.parametrize("driver", ["ppk2", "joulescope", "stlpm01", "stlink-v3pwr"])
def test_how_well_the_host_can_tell_the_time_can_be_said(driver: str) -> None:
    recorder: Any = make_recorder(MeterEntry(driver=driver, options={"timing_error_ms": 4}))
    assert recorder._timing_error_s == 0.004


def test_the_model_has_no_recorder() -> None:
    assert make_recorder(MeterEntry(driver="model")) is None


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (MeterEntry(driver="multimeter"), "allowed: ppk2, joulescope, stlpm01, stlink-v3pwr, ina226, model"),
        (
            MeterEntry(driver="ppk2", options={"colour": 1}),
            "unknown colour; allowed: known_load_ohms, spike_filter, timing",
        ),
        (MeterEntry(driver="ppk2", mode="both"), "allowed: source, ampere"),
        (MeterEntry(driver="ppk2", supply_v=5.5), "0.8 to 5.0 V"),
        (MeterEntry(driver="ppk2", trigger=8), "0 to 7"),
        (MeterEntry(driver="joulescope", trigger=2), "input 0 or 1"),
        (MeterEntry(driver="joulescope", options={"rate_hz": 7}), "allowed: 10000"),
        (MeterEntry(driver="stlpm01", supply_v=3.6), "1.8 to 3.3 V"),
        (MeterEntry(driver="stlpm01", options={"rate_hz": 100_000}), "in format ascii_dec; allowed: 1000, 2000, 5000"),
        (MeterEntry(driver="stlpm01", options={"format": "hex"}), "ascii_dec, bin_hexa"),
        (MeterEntry(driver="ina226"), "shunt_ohms is missing"),
        (MeterEntry(driver="ina226", options={"shunt_ohms": 0}), "0.0005 to 100"),
        (MeterEntry(driver="ina226", options={"shunt_ohms": 1, "address": 0x20}), "0x40 to 0x4f"),
        (MeterEntry(driver="ina226", options={"shunt_ohms": 1, "averages": 5}), "allowed: 1, 4, 16"),
    ],
)
def test_what_a_meter_cannot_do_is_refused_with_what_is_allowed(entry: MeterEntry, message: str) -> None:
    with pytest.raises(InventoryError, match=message):
        make_recorder(entry)


@pytest.mark.parametrize(
    ("table", "fields"),
    [
        ({"driver": "ppk2", "serial": "C1", "trigger": 0, "supply_v": 3, "known_load_ohms": 1000}, []),
        ({"driver": "ina226", "shunt_ohms": 0.1, "address": 0x41}, []),
        ({"driver": "model"}, []),
        ({"driver": "model", "serial": "C1"}, ["serial"]),
        ({}, ["driver"]),
        ({"driver": ["ppk2"]}, ["driver"]),
        (
            {"driver": "ppk2", "trigger": True, "mode": "off", "supply_v": "3", "volts": 3},
            ["trigger", "mode", "supply_v", "volts"],
        ),
        ({"driver": "ina226"}, ["shunt_ohms"]),
    ],
)
def test_mistakes_in_a_rack_file_are_named_by_field(table: dict[str, Any], fields: list[str]) -> None:
    found = list(meter_mistakes(table))
    assert [field for field, _ in found] == fields
    assert all("allowed" in text or "needs" in text for _, text in found)


def test_every_driver_has_its_fields() -> None:
    for driver, fields in METER_DRIVERS.items():
        assert (driver == "model") == (not fields)
        assert all(one.allowed for one in fields)


def port(device: str, vid: int, pid: int, serial: str | None, description: str = "") -> Any:
    return SimpleNamespace(
        device=device, vid=vid, pid=pid, serial_number=serial, description=description, interface=None
    )


PORTS = [
    port("/dev/ttyACM1", 0x1915, 0xC00A, "C1"),
    port("/dev/ttyACM2", 0x1915, 0xC00A, "C1"),  # newer kits have two ports
    port("/dev/ttyACM3", 0x0483, 0x3757, "V1", "STLINK-V3PWR - ST-Link VCP Data"),
    port("/dev/ttyACM4", 0x0483, 0x3757, "V1", "STLINK-V3PWR - ST-Link VCP-PWR Ctrl"),
    port("/dev/ttyACM5", 0x0483, 0x5740, None),
    port("/dev/ttyS0", 0, 0, None),
]


def test_meters_that_are_plugged_in_are_found() -> None:
    scope = SimpleNamespace(serial_number="002557", __str__=lambda: "JS220-002557")
    found = found_meters(lambda: PORTS, lambda: [scope])
    assert [(one.driver, one.serial, one.port) for one in found] == [
        ("ppk2", "C1", "/dev/ttyACM1"),
        ("stlink-v3pwr", "V1", "/dev/ttyACM4"),
        ("stlpm01", "", "/dev/ttyACM5"),
        ("joulescope", "002557", ""),
    ]


def test_looking_for_meters_never_fails() -> None:
    # Without Joulescope's own scan, which leaves threads behind for as long as the process lives.
    assert all(isinstance(one, FoundMeter) for one in found_meters(joulescopes=list))


def test_a_meter_that_is_not_there_is_lost() -> None:
    with pytest.raises(MeterLost, match="no PPK2 with serial number NONE is plugged in"):
        find_port("PPK2", ((0x1915, 0xC00A),), "NONE", "")


# The Power Profiler Kit II


@pytest.fixture
def kit() -> Iterator[FakePpk2]:
    fake = FakePpk2(is_streaming=True)  # its last owner died while it recorded
    yield fake
    fake.unplug()


def test_a_kit_that_was_left_streaming_is_taken_over(kit: FakePpk2) -> None:
    with closing(Ppk2(port=kit.path, supply_v=1.8)) as recorder:
        recorder.open()
        recorder.start()
        assert len(recorder.stop().current_a) > 0
        assert (kit.supply_v, kit.is_on) == (1.8, True)
        assert b"\x11\x02" in kit.commands  # source mode
    assert kit.has_heard(b"\x0c\x00")  # and switched off


def test_ampere_mode_supplies_nothing(kit: FakePpk2) -> None:
    with closing(Ppk2(port=kit.path, supply_v=3.0, mode="ampere")) as recorder:
        recorder.open()
        assert kit.has_heard(b"\x11\x01")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("hello END", MeterLost, "does not tell its calibration"),
        (metadata(TYPICAL).replace("R3: 0.963", "R3: -0.963"), MeterDrift, "impossible"),
    ],
)
def test_a_kit_with_a_calibration_that_cannot_be_is_refused(text: str, error: type[MeterError], message: str) -> None:
    fake = FakePpk2(metadata_text=text)
    with pytest.raises(error, match=message):
        Ppk2(port=fake.path, supply_v=3.0).open()
    fake.unplug()


def test_a_port_that_does_not_exist_is_a_lost_meter() -> None:
    with pytest.raises(MeterLost, match="check the cable"):
        Ppk2(port="/dev/ttyNONE", supply_v=3.0).open()


# ST's meters


def test_the_lpm01a_is_told_voltage_rate_and_format() -> None:
    fake = FakePowerShield()
    with closing(StPowerMeter(kind=LPM01A, port=fake.path, supply_v=3.3)) as recorder:
        recorder.open()
        assert fake.is_on
        assert fake.commands == [
            b"htc",
            b"volt 3300m",
            b"acqmode dyn",
            b"output current",
            b"funcmode optim",
            b"format ascii_dec",
            b"freq 5000",
            b"trigsrc sw",
            b"eventsrc d7 fal",
            b"acqtime inf",
            b"pwr on",
        ]
    assert fake.commands[-2:] == [b"pwr off", b"hrc"]
    assert not fake.is_on
    fake.unplug()


def test_a_firmware_without_events_is_told_from_a_dead_meter() -> None:
    fake = FakePowerShield(is_old=True)
    with pytest.raises(MeterError, match=r"refuses 'eventsrc d7 fal'.*update its firmware"):
        StPowerMeter(kind=LPM01A, port=fake.path, supply_v=3.3).open()
    with closing(StPowerMeter(kind=LPM01A, port=fake.path, supply_v=3.3, data_format="bin_hexa")) as recorder:
        recorder.open()
        assert recorder.window_by is WindowBy.HOST
    fake.unplug()


@pytest.mark.parametrize("is_v3pwr", [False, True])
def test_overcurrent_is_saturation(*, is_v3pwr: bool) -> None:
    fake = FakePowerShield(is_v3pwr=is_v3pwr)
    kind = V3PWR if is_v3pwr else LPM01A
    with closing(StPowerMeter(kind=kind, port=fake.path, supply_v=3.3)) as recorder:
        recorder.open()
        fake.overcurrent_at = 50
        recorder.start()
        with pytest.raises(TraceSaturated, match=f"more than {kind.highest_a * 1000:g} mA"):
            recorder.stop()
    fake.unplug()


def test_a_silent_meter_is_told_to_restart() -> None:
    fake = FakePowerShield()
    fake.is_mute = True
    ticks = iter(range(10_000))
    recorder = StPowerMeter(kind=LPM01A, port=fake.path, supply_v=3.3, clock=lambda: float(next(ticks)))
    with pytest.raises(MeterLost, match="told to restart"):
        recorder.open()
    assert fake.has_heard(b"psrst")
    fake.unplug()


# The INA226


def test_the_ina226_is_calibrated_for_its_shunt() -> None:
    bus = FakeInaBus(shunt_ohms=0.1)
    with closing(Ina226(shunt_ohms=0.1, smbus=bus, clock=bus.clock)) as recorder:
        recorder.open()
        assert bus._registers[0x05] == 2048  # 0.00512 / (0.8192 A / 2**15 x 0.1 ohm)
        recorder.start()
        call = bus.window(0.3, 1.0)
        trace = recorder.stop()
    check_trace(trace, 3.0)
    assert trace.current_a.max() == pytest.approx(RUN_A, rel=0.01)
    assert trace.supply_v == pytest.approx(3.0, rel=1e-3)
    assert call.length_s == 1.0


def test_a_current_beyond_the_shunt_is_saturation() -> None:
    bus = FakeInaBus(shunt_ohms=10.0)  # full scale 8.2 mA
    bus.factor = 2.0
    with closing(Ina226(shunt_ohms=10.0, smbus=bus, clock=bus.clock)) as recorder:
        recorder.open()
        recorder.start()
        bus.window(0.1, 0.5)
        assert recorder.stop().saturated.sum() > 100


def test_another_chip_on_the_bus_is_no_ina226() -> None:
    bus = FakeInaBus(shunt_ohms=0.1)
    bus._registers[0xFE] = 0x1234
    with pytest.raises(MeterLost, match="0x1234 instead of 0x5449"):
        Ina226(shunt_ohms=0.1, smbus=bus, clock=bus.clock).open()


# Joulescope


def test_dropped_readings_hold_the_one_before() -> None:
    nan = float("nan")
    found, n_lost = held(np.array([nan, 1.0, nan, nan, 2.0]))
    assert (found.tolist(), n_lost) == ([1.0, 1.0, 1.0, 1.0, 2.0], 3)
    with pytest.raises(MeterLost, match="no valid reading"):
        held(np.array([nan]))


def test_the_page_about_meters_names_every_driver_and_field() -> None:
    page = (Path(__file__).parents[2] / "docs" / "meters.md").read_text(encoding="utf-8")
    for driver, fields in METER_DRIVERS.items():
        assert f"`{driver}`" in page
        names = ["supply" if one.name == "supply_v" else one.name for one in fields]  # as the rack file calls it
        assert [name for name in names if f"`{name}`" not in page] == []
