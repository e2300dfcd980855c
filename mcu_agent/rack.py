"""The inventory: which boards there are, from ``rack.toml``.

.. code-block:: toml

    [[board]]
    id = "bench"            # with count = 2 the boards are bench-1 and bench-2
    kind = "nrf52840-dk"    # an entry of the catalogue
    driver = "virtual"      # an emulated board
    count = 2
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcu_agent.errors import InventoryError
from mcu_agent.kinds import kinds, load_kind

DRIVERS = ("virtual",)
MAX_COUNT = 1000
_FIELDS = ("id", "kind", "driver", "count")
_REQUIRED = ("id", "kind", "driver")
_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerSwitch:
    """How a board's USB port is switched off and on: by ``uhubctl`` (``hub``, as in ``1-1.4``, and ``port``), or by a
    command of the user's own (its arguments, run without a shell)."""

    hub: str = ""
    port: int = 0
    command: tuple[str, ...] = ()
    off_s: float = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class MeterEntry:
    """The power meter of a board. ``serial`` or ``port`` says which one it is, ``trigger`` the logic input that the
    board's trigger pin is wired to, ``mode`` whether it supplies the board (``source``) or only measures (``ampere``).
    """

    driver: str
    serial: str = ""
    port: str = ""
    mode: str = "source"
    trigger: int = 0
    supply_v: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class RackBoard:
    """One board of the inventory. ``emulator`` belongs to virtual boards, ``connection`` (``host:port``) and ``server``
    to those behind a GDB server, ``probe`` (its serial number) to those behind a debug probe."""

    board_id: str
    kind: str
    driver: str
    emulator: str = "unicorn"
    probe: str = ""
    connection: str = ""
    server: str = ""
    connect: str = "under-reset"
    frequency_hz: int = 4_000_000
    uart: str = ""
    power: PowerSwitch | None = None
    meter: MeterEntry | None = None
    tags: tuple[str, ...] = ()

    @property
    def rig(self) -> str:
        """What is locked: two boards behind one probe or one server cannot be used at once."""
        return self.probe or self.connection or self.board_id


@dataclass(frozen=True, kw_only=True, slots=True)
class Rack:
    """All boards of a host."""

    boards: tuple[RackBoard, ...]

    def of_kind(self, kind: str) -> tuple[RackBoard, ...]:
        """The boards of one kind, in the order of the file."""
        return tuple(board for board in self.boards if board.kind == kind)

    def entry(self, board_id: str) -> RackBoard:
        """The board called ``board_id``.

        Raises:
            InventoryError: there is none.
        """
        for board in self.boards:
            if board.board_id == board_id:
                return board
        known = ", ".join(f"{board.board_id} ({board.kind})" for board in self.boards)
        raise InventoryError(f"no board is called {board_id!r}; the rack has {known}")

    def board_kinds(self) -> tuple[str, ...]:
        """The kinds there are boards of, in alphabetical order."""
        return tuple(sorted({board.kind for board in self.boards}))


def virtual_rack(kind: str, count: int) -> Rack:
    """A rack of ``count`` virtual boards of one kind, for hosts without a rack file.

    Raises:
        UnknownKind: the catalogue has no such kind.
        InventoryError: ``count`` is out of range.
    """
    load_kind(kind)
    if not 1 <= count <= MAX_COUNT:
        raise InventoryError(f"{count} virtual boards: allowed are 1 to {MAX_COUNT}")
    return Rack(boards=tuple(_expand(f"virtual-{kind}", kind, "virtual", count)))


def load_rack(path: Path) -> Rack:
    """The rack described by a TOML file.

    Raises:
        InventoryError: the file is missing or wrong; the text lists every mistake with its line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InventoryError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return parse_rack(text, str(path))


def parse_rack(text: str, file: str) -> Rack:
    """The rack described by ``text``; ``file`` is its name in messages.

    Raises:
        InventoryError: as :func:`load_rack`.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InventoryError(f"{file}: not valid TOML: {error}") from error
    tables = data.get("board", [])
    unknown = sorted(set(data) - {"board"})
    if unknown:
        raise InventoryError(f"{file}: unknown entry {', '.join(unknown)}; allowed: [[board]] tables")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise InventoryError(f"{file}: no boards; add a table [[board]] with {', '.join(_REQUIRED)}")
    lines = _Lines(text)
    mistakes = [
        f"{file}:{lines.of(index, field)}: board {index + 1}: {message}"
        for index, table in enumerate(tables)
        for field, message in _mistakes(table)
    ]
    if mistakes:
        raise InventoryError("\n".join(mistakes))
    boards = [b for t in tables for b in _expand(t["id"], t["kind"], t["driver"], t.get("count", 1))]
    _check_unique(boards, file)
    return Rack(boards=tuple(boards))


def _expand(board_id: str, kind: str, driver: str, count: int) -> Iterator[RackBoard]:
    for number in range(1, count + 1):
        name = board_id if count == 1 else f"{board_id}-{number}"
        yield RackBoard(board_id=name, kind=kind, driver=driver)


def _mistakes(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(field, what is wrong with it), in the order of the allowed fields."""
    for name in table:
        if name not in _FIELDS:
            yield name, f"{name}: unknown field; allowed: {', '.join(_FIELDS)}"
    for name in _REQUIRED:
        if name not in table:
            yield "", f"{name}: missing; every board needs {', '.join(_REQUIRED)}"
    for name, (is_allowed, allowed) in _checks().items():
        if name in table and not is_allowed(table[name]):
            yield name, f"{name}: found {table[name]!r}; allowed: {allowed}"


def _checks() -> dict[str, tuple[Callable[[Any], bool], str]]:
    """For every field: whether a value is allowed, and what is, in words."""
    return {
        "id": (
            lambda value: isinstance(value, str) and _ID.match(value) is not None,
            "letters, digits, '.', '_', '-', at most 63 of them",
        ),
        "kind": (lambda value: isinstance(value, str) and value in kinds(), ", ".join(kinds())),
        "driver": (lambda value: value in DRIVERS, ", ".join(DRIVERS)),
        "count": (
            lambda value: type(value) is int and 1 <= value <= MAX_COUNT,
            f"a whole number from 1 to {MAX_COUNT}",
        ),
    }


def _check_unique(boards: list[RackBoard], file: str) -> None:
    names = [board.board_id for board in boards]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise InventoryError(f"{file}: two boards are called {', '.join(doubled)}; give every board its own id")


class _Lines:
    """Line numbers of fields, which the TOML reader does not keep: found by the n-th ``[[board]]`` header."""

    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()
        self._headers = [i for i, line in enumerate(self._lines) if re.match(r"^\s*\[\[\s*board\s*\]\]", line)]

    def of(self, index: int, field: str) -> int:
        """The line of ``field`` in the ``index``-th table, or that of its header; 1 where neither is found."""
        if index >= len(self._headers):
            return 1
        start = self._headers[index]
        end = self._headers[index + 1] if index + 1 < len(self._headers) else len(self._lines)
        key = re.compile(rf"^\s*[\"']?{re.escape(field)}[\"']?\s*=") if field else None
        for number in range(start + 1, end):
            if key and key.match(self._lines[number]):
                return number + 1
        return start + 1
