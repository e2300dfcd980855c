"""Reading a rack file: what is wrong with it, all at once, each mistake with line, what was found and what is allowed.

Gives plain tables; :mod:`mcu_agent.rack` makes records of them.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mcu_agent.errors import InventoryError
from mcu_agent.kinds import kinds
from mcu_agent.meters.fields import METER_DRIVERS, meter_mistakes
from mcu_agent.rackfields import BOARD, DRIVERS, LISTS, POWER, TABLES, Field, volts

REMEDY = "edgefront rack discover --to FILE writes one to start from"
_Found = tuple[tuple[str, ...], str]  # path of fields, and what is wrong there


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistake:
    """One mistake: in which entry of which table, at which path of fields, and what it is."""

    table: str
    index: int
    path: tuple[str, ...]
    text: str


def read_tables(text: str, file: str) -> dict[str, Any]:
    """The tables of a rack file, every value of them allowed where it stands; ``file`` is its name in messages.

    Raises:
        InventoryError: it is no TOML, or it has mistakes; the text lists all of them with their lines.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InventoryError(f"{file}: not valid TOML: {error}; {REMEDY}") from error
    except RecursionError as error:
        raise InventoryError(f"{file}: lists or tables inside each other too deeply; {REMEDY}") from error
    _check_shape(data, text, file)
    report(list(_all_mistakes(data)), text, file)
    return data


def report(mistakes: Iterable[Mistake], text: str, file: str) -> None:
    """Pass where there are no mistakes.

    Raises:
        InventoryError: there are; one line each, in the order of the file.
    """
    lines = _Lines(text)
    found = sorted(((lines.of(one.table, one.index, one.path), one) for one in mistakes), key=lambda pair: pair[0])
    if found:
        raise InventoryError("\n".join(f"{file}:{number}: {_place(one)}: {one.text}" for number, one in found))


def _place(mistake: Mistake) -> str:
    table = f"{mistake.table} {mistake.index + 1}" if mistake.table in LISTS else f"[{mistake.table}]"
    return ": ".join([table, ".".join(mistake.path)] if mistake.path else [table])


def _check_shape(data: Mapping[str, Any], text: str, file: str) -> None:
    wrong = []
    for name, tables in data.items():
        is_list = isinstance(tables, list) and all(isinstance(table, dict) for table in tables)
        if name not in TABLES:
            allowed = ", ".join(f"[[{table}]]" if table in LISTS else f"[{table}]" for table in TABLES)
            wrong.append((name, f"unknown entry {name}{_meant(name, TABLES)}; allowed: {allowed}"))
        elif name in LISTS and not is_list:
            wrong.append((name, f"{name} is no list of tables; write [[{name}]] above each"))
        elif name not in LISTS and not isinstance(tables, dict):
            wrong.append((name, f"{name} is no table; write [{name}] above it"))
    if wrong:
        lines = _Lines(text)
        raise InventoryError("\n".join(f"{file}:{lines.of_entry(name)}: {what}" for name, what in wrong))
    if not data.get("board"):
        needed = ", ".join(name for name, field in BOARD.items() if set(field.needed_by) == set(DRIVERS))
        raise InventoryError(f"{file}: no boards; add a table [[board]] with {needed}")


def _all_mistakes(data: Mapping[str, Any]) -> Iterator[Mistake]:
    for table, content in data.items():
        for index, entry in enumerate(content if table in LISTS else [content]):
            driver = entry.get("driver", "") if table == "board" else ""
            for path, text in _mistakes(entry, TABLES[table], driver, table):
                yield Mistake(table=table, index=index, path=path, text=text)
            if table == "board":
                for path, text in _inner_mistakes(entry):
                    yield Mistake(table=table, index=index, path=path, text=text)


def _inner_mistakes(entry: Mapping[str, Any]) -> Iterator[_Found]:
    power, meter = entry.get("power"), entry.get("meter")
    if isinstance(power, dict):
        yield from ((("power", *path), text) for path, text in _mistakes(power, POWER, "", "power"))
        is_hub, is_command = "hub" in power or "port" in power, "command" in power
        if is_hub == is_command or (is_hub and not {"hub", "port"} <= set(power)):
            yield ("power",), f"found {', '.join(power) or 'nothing'}; allowed: hub and port, or command"
    if isinstance(meter, dict):
        if entry.get("server") == "qemu":
            yield ("meter",), "an emulated board draws no current: take the meter away, or correct server"
        yield from _meter_mistakes(meter)


def _meter_mistakes(meter: Mapping[str, Any]) -> Iterator[_Found]:
    """As :func:`mcu_agent.meters.fields.meter_mistakes`, for a supply voltage that may have a unit."""
    table = {name: value for name, value in meter.items() if name not in ("supply", "supply_v")}
    if "supply" in meter:
        found = volts(meter["supply"])
        table["supply_v"] = meter["supply"] if found is None else found
    fields = [one.name for one in METER_DRIVERS.get(str(meter.get("driver")), ())]
    if "supply_v" in meter:
        yield ("meter", "supply_v"), "unknown field (did you mean 'supply'?); it takes volts, or a text like '1800 mV'"
    for field, message in meter_mistakes(table):
        text = message.replace("supply_v", "supply")
        name = "supply" if field == "supply_v" else field
        if name not in meter:
            yield ("meter",), text
        elif name not in ("driver", "supply", *fields):
            yield ("meter", name), text.removeprefix(f"{name}: ") + _meant(name, fields)
        else:
            near = _meant(str(meter[name]), METER_DRIVERS) if name == "driver" else ""
            yield ("meter", name), text.removeprefix(f"{name}: ") + near


def _mistakes(entry: Mapping[str, Any], fields: Mapping[str, Field], driver: Any, what: str) -> Iterator[_Found]:
    drivers = {name for field in fields.values() for name in (*field.drivers, *field.needed_by)}
    known = driver if isinstance(driver, str) and driver in drivers else None
    belonging = [name for name, field in fields.items() if known is None or not field.drivers or known in field.drivers]
    for name, value in entry.items():
        if name not in fields:
            yield (name,), f"unknown field{_meant(name, belonging)}; allowed: {', '.join(belonging)}"
        elif name not in belonging:
            yield (name,), f"does not belong to a {what} with driver {known}; allowed: {', '.join(belonging)}"
        elif not fields[name].is_allowed(value):
            yield (name,), _refusal(fields[name], value)
    needed = [name for name, field in fields.items() if _is_needed(field, known, drivers)]
    for name in needed:
        if name not in entry:
            kind = f"a {what} with driver {known}" if known else f"every {what}"
            yield (), f"{name}: missing; {kind} needs {', '.join(needed)}"


def _is_needed(field: Field, driver: str | None, drivers: set[str]) -> bool:
    """Where the driver itself is missing or wrong, only what every driver needs."""
    return bool(field.needed_by) and (drivers <= set(field.needed_by) if driver is None else driver in field.needed_by)


def _refusal(field: Field, value: Any) -> str:
    if field.is_secret:
        return f"not allowed as it is; allowed: {field.allowed}"
    meant = _meant(value, field.choices()) if field.choices and isinstance(value, str) else ""
    return f"found {value!r}{meant}; allowed: {field.allowed.replace('{kinds}', ', '.join(kinds()))}"


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


class _Lines:
    """Line numbers of fields, which the TOML reader does not keep: found by the headers of the tables."""

    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()

    def of(self, table: str, index: int, path: Sequence[str]) -> int:
        """The line of the field at ``path`` in the ``index``-th table of that name; else that of what is around it."""
        starts = [i for i, line in enumerate(self._lines) if re.match(rf"^\s*\[\[?\s*{table}\s*\]\]?", line)]
        if index >= len(starts):
            return 1
        inside = rf"^\s*\[\[?\s*(?!{table}\s*\.)"  # a header of another table ends this one, [board.power] does not
        start = starts[index]
        end = next((i for i in range(start + 1, len(self._lines)) if re.match(inside, self._lines[i])), None)
        return self._within(table, path, start, end or len(self._lines)) + 1

    def of_entry(self, name: str) -> int:
        """The first line that begins with an entry of the top level; 1 where none is found."""
        key = re.compile(rf"^\s*(\[\[?\s*)?[\"']?{re.escape(name)}[\"']?\s*[\].=]")
        return next((number for number, line in enumerate(self._lines, 1) if key.match(line)), 1)

    def _within(self, table: str, path: Sequence[str], start: int, end: int) -> int:
        found = start
        for depth in range(1, len(path) + 1):
            name, dotted = re.escape(path[depth - 1]), r"\s*\.\s*".join(map(re.escape, path[:depth]))
            key = re.compile(rf"^\s*([\"']?{name}[\"']?|{dotted})\s*[=.]|^\s*\[\s*{table}\s*\.\s*{dotted}\s*\]")
            matches = [i for i in range(found if depth > 1 else start + 1, end) if key.match(self._lines[i])]
            if not matches:
                return found
            found = matches[0]
        return found
