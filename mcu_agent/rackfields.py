"""The fields of a rack file: every one of them once, with what it takes and what it is for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mcu_agent.kinds import kinds

DRIVERS = ("virtual", "gdb", "pyocd")
EMULATORS = ("unicorn", "qemu")
SERVERS = ("pyocd", "openocd", "jlink", "qemu")
CONNECT_MODES = ("under-reset", "normal", "attach")
MAX_COUNT = 1000
MIN_SELF_TEST_S = 60.0

_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
_OWN_DRIVER = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")
_HUB_LOCATION = re.compile(r"^\d+(-\d+(\.\d+)*)?$")
_CONNECTION = re.compile(r"^(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+):(\d{1,5})$")
_QUANTITY = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*$")
_TIMES = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_VOLTS = {"V": 1.0, "mV": 1e-3}
_HERTZ = {"Hz": 1.0, "kHz": 1e3, "MHz": 1e6}
_LEASE_SCHEMES = ("redis://", "rediss://", "unix://", "redis+socket://")


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One field: whether a value is allowed, and what is, in words; ``meaning`` and ``default`` are for the
    documentation. ``drivers``, where there are any, are those of boards or meters the field belongs to; ``needed_by``
    those that must have it. ``choices`` are the values for which the nearest one is proposed."""

    is_allowed: Callable[[Any], bool]
    allowed: str
    meaning: str
    default: str = ""
    drivers: tuple[str, ...] = ()
    needed_by: tuple[str, ...] = ()
    choices: Callable[[], Sequence[str]] | None = None
    is_secret: bool = False


def seconds(value: Any) -> float | None:
    """A time span, from a number of seconds or a text like ``"6h"``; None where it is neither."""
    return _amount(value, _TIMES)


def volts(value: Any) -> float | None:
    """A voltage, from a number of volts or a text like ``"1800 mV"``; None where it is neither."""
    return _amount(value, _VOLTS)


def hertz(value: Any) -> float | None:
    """A frequency, from a number of hertz or a text like ``"4 MHz"``; None where it is neither."""
    return _amount(value, _HERTZ)


def _amount(value: Any, units: Mapping[str, float]) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    match = _QUANTITY.match(value) if isinstance(value, str) else None
    return float(match[1]) * units[match[2]] if match and match[2] in units else None


def _one_of(choices: tuple[str, ...]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in choices


def is_own_driver(value: Any) -> bool:
    """Whether a driver is named as ``module:function``."""
    return isinstance(value, str) and _OWN_DRIVER.match(value) is not None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and _ID.match(value) is not None


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _between(low: float, high: float, read: Callable[[Any], float | None]) -> Callable[[Any], bool]:
    def is_allowed(value: Any) -> bool:
        found = read(value)
        return found is not None and low <= found <= high

    return is_allowed


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _is_connection(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    match = _CONNECTION.match(value)
    return 1 <= int(match[2]) <= 65535 if match else re.match(r"^unix:/\S+$", value) is not None


_ID_WORDS = "letters, digits, '.', '_', '-', at most 63 of them"
_REAL, _PROBED = ("gdb", "pyocd"), ("pyocd",)

BOARD: Mapping[str, Field] = {
    "id": Field(is_allowed=_is_id, allowed=_ID_WORDS, meaning="name of the board", needed_by=DRIVERS),
    "kind": Field(
        is_allowed=lambda value: isinstance(value, str) and value in kinds(), allowed="{kinds}", needed_by=DRIVERS,
        meaning="an entry of the catalogue; `edgefront boards` lists them", choices=lambda: list(kinds()),
    ),
    "driver": Field(
        is_allowed=lambda value: _one_of(DRIVERS)(value) or is_own_driver(value), choices=lambda: DRIVERS,
        allowed=f"{', '.join(DRIVERS)}, or module:function of your own", needed_by=DRIVERS,
        meaning="`virtual`: emulated; `gdb`: behind a GDB server; `pyocd`: behind a debug probe; `module:function`: "
        "what your function makes of the entry",
    ),
    "count": Field(
        is_allowed=_whole(1, MAX_COUNT), allowed=f"a whole number from 1 to {MAX_COUNT}", default="1",
        drivers=("virtual",), meaning="so many boards of this entry, called `id-1`, `id-2` …",
    ),
    "emulator": Field(
        is_allowed=_one_of(EMULATORS), allowed=", ".join(EMULATORS), default="unicorn", drivers=("virtual",),
        meaning="what executes the firmware", choices=lambda: EMULATORS,
    ),
    "probe": Field(
        is_allowed=_is_text, allowed="the serial number of a debug probe, as text", drivers=_REAL, needed_by=_PROBED,
        meaning="which probe, by its serial number; resolved anew whenever the board is opened",
    ),
    "connection": Field(
        is_allowed=_is_connection, allowed="host:port, or unix: and the path of a socket", drivers=("gdb",),
        needed_by=("gdb",), meaning="where the GDB server listens",
    ),
    "server": Field(
        is_allowed=_one_of(SERVERS), allowed=", ".join(SERVERS), default="found out", drivers=("gdb",),
        meaning="which GDB server that is", choices=lambda: SERVERS,
    ),
    "connect": Field(
        is_allowed=_one_of(CONNECT_MODES), allowed=", ".join(CONNECT_MODES), default="under-reset", drivers=_PROBED,
        meaning="how the probe takes hold of the core", choices=lambda: CONNECT_MODES,
    ),
    "frequency": Field(
        is_allowed=_between(1e3, 1e8, hertz), allowed="1 kHz to 100 MHz: a number of hertz or a text like '4 MHz'",
        default="4 MHz", drivers=_PROBED, meaning="clock of the probe's wire",
    ),
    "uart": Field(
        is_allowed=_is_text, allowed="a serial port, as text", drivers=_REAL,
        meaning="the board's serial port, for tools of your own (`edgefront boards --json` gives it): nothing here "
        "opens it; best a path below `/dev/serial/by-id`",
    ),
    "power": Field(
        is_allowed=lambda value: isinstance(value, dict), allowed="a table {hub, port, off} or {command, off}",
        drivers=_REAL, meaning="how its USB port is switched; see below",
    ),
    "meter": Field(
        is_allowed=lambda value: isinstance(value, dict), allowed="a table with the meter's driver", drivers=_REAL,
        meaning="the power meter in its supply; see below",
    ),
    "tags": Field(
        is_allowed=lambda value: isinstance(value, list) and all(map(_is_id, value)), allowed=f"a list of {_ID_WORDS}",
        default="[]", meaning="words of your own, shown by `edgefront boards --rack`",
    ),
}  # fmt: skip

POWER: Mapping[str, Field] = {
    "hub": Field(
        is_allowed=lambda value: _is_id(value) or (isinstance(value, str) and _HUB_LOCATION.match(value) is not None),
        allowed="a hub's location as uhubctl shows it, like '1-1.4', or the id of a [[hub]]", meaning="the hub",
    ),
    "port": Field(is_allowed=_whole(1, 64), allowed="a whole number from 1 to 64", meaning="the port of the hub"),
    "command": Field(
        is_allowed=_are_texts, allowed="a list of texts: a program and its arguments",
        meaning="a program of your own, run without a shell; `off`, then `on` is its last argument, or stands in the "
        "place of `{state}`",
    ),
    "off": Field(
        is_allowed=_between(0.1, 60.0, seconds), allowed="0.1 s to 60 s: a number of seconds or a text like '2 s'",
        default="2 s", meaning="how long the power stays off",
    ),
}  # fmt: skip

HUB: Mapping[str, Field] = {
    "id": Field(is_allowed=_is_id, allowed=_ID_WORDS, meaning="name of the hub", needed_by=("",)),
    "location": Field(
        is_allowed=lambda value: isinstance(value, str) and _HUB_LOCATION.match(value) is not None, needed_by=("",),
        allowed="as uhubctl shows it, like '1-1.4'", meaning="where it is plugged in",
    ),
}  # fmt: skip

AGENT: Mapping[str, Field] = {
    "name": Field(
        is_allowed=_is_id, allowed=_ID_WORDS, meaning="name of this host in logs and reports", default="the host's",
    ),
    "metrics_port": Field(
        is_allowed=_whole(1, 65535), allowed="a whole number from 1 to 65535", default="any free one",
        meaning="port of `/metrics`",
    ),
    "metrics_address": Field(
        is_allowed=_is_text, allowed="an address of this host, as text", default="127.0.0.1",
        meaning="address that `/metrics` listens on",
    ),
    "self_test_every": Field(
        is_allowed=_between(MIN_SELF_TEST_S, 1e7, seconds), allowed="1 min or more: a text like '6h', or seconds",
        default="6h", meaning="how often an idle board is tested",
    ),
}  # fmt: skip

LEASES: Mapping[str, Field] = {
    "url": Field(
        is_allowed=lambda value: _is_text(value) and value.startswith(_LEASE_SCHEMES), is_secret=True,
        allowed=f"an address that starts with {', '.join(_LEASE_SCHEMES)}", needed_by=("",),
        meaning="the Redis through which hosts that share probes exclude each other",
    ),
}  # fmt: skip

TRUST: Mapping[str, Field] = {
    "artifacts": Field(
        is_allowed=_are_texts, allowed="a list of folders or addresses, at least one", default="any",
        meaning="stores that images may be fetched from",
    ),
}  # fmt: skip

TABLES: Mapping[str, Mapping[str, Field]] = {
    "board": BOARD, "hub": HUB, "agent": AGENT, "leases": LEASES, "trust": TRUST,
}  # fmt: skip
LISTS = ("board", "hub")
