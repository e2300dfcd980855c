"""What a rack file may say of a meter: fields, allowed values and what they mean, by driver; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mcu_agent.meters import ina226, joulescope, ppk2, stlpm01
from mcu_agent.meters.ppk2_stream import SpikeFilter


@dataclass(frozen=True, kw_only=True, slots=True)
class MeterField:
    """A field of a meter: whether a value is allowed, what is in words, and whether the driver needs it.

    ``is_option``: the field belongs into ``MeterEntry.options``; the others are fields of the entry itself.
    """

    name: str
    is_allowed: Callable[[Any], bool]
    allowed: str
    is_required: bool = False
    is_option: bool = False


def _text(name: str, allowed: str) -> MeterField:
    return MeterField(name=name, is_allowed=lambda value: isinstance(value, str) and value != "", allowed=allowed)


def _number(
    name: str, low: float, high: float, unit: str, *, required: bool = False, option: bool = True
) -> MeterField:
    return MeterField(
        name=name,
        is_allowed=lambda value: type(value) in (int, float) and low <= value <= high,
        allowed=f"{low:g} to {high:g} {unit}".strip(),
        is_required=required,
        is_option=option,
    )


def _choice(name: str, values: tuple[Any, ...], *, option: bool = True) -> MeterField:
    return MeterField(
        name=name,
        is_allowed=lambda value: type(value) is not bool and value in values,
        allowed=", ".join(map(str, values)),
        is_option=option,
    )


_SERIAL = _text("serial", "the meter's serial number, as `edgefront rack discover` shows it")
_PORT = _text("port", "a serial port such as /dev/ttyACM0")
_TIMING = _number("timing_error_ms", 0.1, 100, "ms")
_KNOWN_LOAD = _number("known_load_ohms", 0.1, 10_000_000, "ohm")


def _supply(low: float, high: float, *, required: bool = False) -> MeterField:
    return _number("supply_v", low, high, "V", required=required, option=False)


def _st(kind: stlpm01.StMeter) -> tuple[MeterField, ...]:
    return (
        _SERIAL,
        _PORT,
        _choice("mode", ("source",), option=False),
        _supply(kind.lowest_v, kind.highest_v),
        _choice("format", stlpm01.FORMATS),
        _choice("rate_hz", stlpm01.RATES_HZ),
        _TIMING,
        _KNOWN_LOAD,
    )


METER_DRIVERS: Mapping[str, tuple[MeterField, ...]] = {
    "ppk2": (
        _SERIAL,
        _PORT,
        _choice("mode", ppk2.MODES, option=False),
        _choice("trigger", tuple(range(8)), option=False),
        _supply(ppk2.LOWEST_V, ppk2.HIGHEST_V),
        _choice("spike_filter", tuple(one.value for one in SpikeFilter)),
        _TIMING,
        _KNOWN_LOAD,
    ),
    "joulescope": (
        _SERIAL,
        _choice("mode", ("ampere",), option=False),
        _choice("trigger", (0, 1), option=False),
        _supply(0.8, 15.0),
        _choice("rate_hz", joulescope.RATES_HZ),
        _TIMING,
        _KNOWN_LOAD,
    ),
    "stlpm01": _st(stlpm01.LPM01A),
    "stlink-v3pwr": _st(stlpm01.V3PWR),
    "ina226": (
        _choice("mode", ("ampere",), option=False),
        _supply(0.8, 36.0),
        _number("shunt_ohms", 0.0005, 100, "ohm", required=True),
        _choice("bus", tuple(range(32))),
        _choice("address", tuple(range(0x40, 0x50))),
        _choice("conversion_us", ina226.CONVERSION_US),
        _choice("averages", ina226.AVERAGES),
        _KNOWN_LOAD,
    ),
    "model": (),
}


def meter_mistakes(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(field, what is wrong with it and what is allowed) of a meter's table in a rack file, ``driver`` included."""
    driver = table.get("driver")
    if not isinstance(driver, str) or driver not in METER_DRIVERS:
        yield "driver", f"driver: found {driver!r}; allowed: {', '.join(METER_DRIVERS)}"
        return
    fields = {one.name: one for one in METER_DRIVERS[driver]}
    for name, value in table.items():
        if name == "driver":
            continue
        if name not in fields:
            allowed = ", ".join(["driver", *fields])
            yield name, f"{name}: unknown field of meter {driver}; allowed: {allowed}"
        elif not fields[name].is_allowed(value):
            yield name, f"{name}: found {value!r}; allowed for meter {driver}: {fields[name].allowed}"
    for one in fields.values():
        if one.is_required and one.name not in table:
            yield one.name, f"{one.name}: missing; meter {driver} needs it: {one.allowed}"
