"""From an entry of the rack file to its recorder, and what meters are plugged in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mcu_agent.errors import InventoryError
from mcu_agent.meters.fields import METER_DRIVERS, MeterField, meter_mistakes
from mcu_agent.meters.ina226 import Ina226
from mcu_agent.meters.joulescope import Joulescope
from mcu_agent.meters.ppk2 import USB_IDS as PPK2_IDS
from mcu_agent.meters.ppk2 import Ppk2
from mcu_agent.meters.ppk2_stream import SpikeFilter
from mcu_agent.meters.protocol import Recorder
from mcu_agent.meters.stlpm01 import LPM01A, V3PWR, StMeter, StPowerMeter
from mcu_agent.rack import MeterEntry

__all__ = ["METER_DRIVERS", "FoundMeter", "MeterField", "found_meters", "make_recorder", "meter_mistakes"]

_DEFAULT_SUPPLY_V = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundMeter:
    """A meter that is plugged in. ``port`` is empty where it has none."""

    driver: str
    serial: str
    port: str
    description: str


def make_recorder(entry: MeterEntry, supply_v: float = _DEFAULT_SUPPLY_V) -> Recorder | None:
    """The recorder of a meter, not yet connected; None for the driver ``model``, which measures nothing.

    ``supply_v`` is the board's voltage where the entry names none.

    Raises:
        InventoryError: the entry asks for what the meter cannot do.
    """
    if entry.driver not in METER_DRIVERS:
        raise InventoryError(f"meter {entry.driver!r}; allowed: {', '.join(METER_DRIVERS)}")
    if entry.driver == "model":
        return None
    options = {name: value for name, value in entry.options.items() if name != "known_load_ohms"}
    allowed = {one.name for one in METER_DRIVERS[entry.driver] if one.is_option}
    if unknown := sorted(set(options) - allowed):
        raise InventoryError(
            f"meter {entry.driver}: unknown {', '.join(unknown)}; allowed: {', '.join(sorted(allowed))}"
        )
    volts = supply_v if entry.supply_v is None else entry.supply_v
    return _MAKERS[entry.driver](entry, volts, options)


def _timing(options: Mapping[str, Any]) -> dict[str, Any]:
    """The timing error as the drivers take it, where the rack file has one."""
    return {"timing_error_s": options["timing_error_ms"] / 1000} if "timing_error_ms" in options else {}


def _ppk2(entry: MeterEntry, supply_v: float, options: Mapping[str, Any]) -> Recorder:
    return Ppk2(
        supply_v=supply_v,
        serial=entry.serial,
        port=entry.port,
        mode=entry.mode,
        trigger=entry.trigger,
        spike_filter=SpikeFilter(options.get("spike_filter", SpikeFilter.SETTLED)),
        **_timing(options),
    )


def _joulescope(entry: MeterEntry, supply_v: float, options: Mapping[str, Any]) -> Recorder:
    rate = {name: options[name] for name in ("rate_hz",) if name in options}
    return Joulescope(serial=entry.serial, trigger=entry.trigger, io_v=supply_v, **rate, **_timing(options))


def _st(kind: StMeter) -> Callable[[MeterEntry, float, Mapping[str, Any]], Recorder]:
    def make(entry: MeterEntry, supply_v: float, options: Mapping[str, Any]) -> Recorder:
        return StPowerMeter(
            kind=kind,
            supply_v=supply_v,
            serial=entry.serial,
            port=entry.port,
            data_format=options.get("format", ""),
            rate_hz=options.get("rate_hz", 0),
            **_timing(options),
        )

    return make


def _ina226(entry: MeterEntry, supply_v: float, options: Mapping[str, Any]) -> Recorder:
    del entry  # it is on a bus
    if "shunt_ohms" not in options:
        raise InventoryError("meter ina226: shunt_ohms is missing; it is printed on the shunt resistor (R100 is 0.1)")
    return Ina226(supply_v=supply_v, **options)


_MAKERS: Mapping[str, Callable[[MeterEntry, float, Mapping[str, Any]], Recorder]] = {
    "ppk2": _ppk2,
    "joulescope": _joulescope,
    "stlpm01": _st(LPM01A),
    "stlink-v3pwr": _st(V3PWR),
    "ina226": _ina226,
}

_BY_USB_ID = {
    **dict.fromkeys(PPK2_IDS, ("ppk2", "Power Profiler Kit II", "")),
    **dict.fromkeys(LPM01A.usb_ids, ("stlpm01", LPM01A.title, LPM01A.interface)),
    **dict.fromkeys(V3PWR.usb_ids, ("stlink-v3pwr", V3PWR.title, V3PWR.interface)),
}


def found_meters(
    ports: Callable[[], list[Any]] | None = None, joulescopes: Callable[[], list[Any]] | None = None
) -> list[FoundMeter]:
    """The meters plugged in, by USB identity; an INA226 cannot be found so. Missing libraries find nothing.

    ``ports`` and ``joulescopes`` list what there is, as pyserial and joulescope do; given in tests.
    """
    found: dict[tuple[str, str], FoundMeter] = {}
    for port in sorted((ports or _serial_ports)(), key=lambda one: str(one.device)):
        known = _BY_USB_ID.get((port.vid, port.pid))
        if known is None:
            continue
        driver, title, interface = known
        serial = port.serial_number or ""
        is_right = bool(interface) and interface.lower() in f"{port.description} {port.interface}".lower()
        if (driver, serial) not in found or is_right:
            found[driver, serial] = FoundMeter(driver=driver, serial=serial, port=str(port.device), description=title)
    scopes = [
        FoundMeter(driver="joulescope", serial=str(one.serial_number), port="", description=str(one))
        for one in (joulescopes or _scan_joulescopes)()
    ]
    return [*found.values(), *scopes]


def _serial_ports() -> list[Any]:
    try:
        from serial.tools import list_ports  # optional where no meter has a serial port
    except ImportError:
        return []
    return list(list_ports.comports())


def _scan_joulescopes() -> list[Any]:
    try:
        import joulescope  # an extra of its own
    except (ImportError, OSError):
        return []
    try:
        return list(joulescope.scan())
    except (OSError, RuntimeError):  # no USB on this host, or no right to use it
        return []
