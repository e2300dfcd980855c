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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcu_agent.boards.protocol import Board
from mcu_agent.errors import InventoryError
from mcu_agent.kinds import kinds, load_kind

DRIVERS = ("virtual",)
MAX_COUNT = 1000
_FIELDS = ("id", "kind", "driver", "count")
_REQUIRED = ("id", "kind", "driver")
_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")


@dataclass(frozen=True, kw_only=True, slots=True)
class RackBoard:
    """One board of the inventory."""

    board_id: str
    kind: str
    driver: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Rack:
    """All boards of a host."""

    boards: tuple[RackBoard, ...]

    def of_kind(self, kind: str) -> tuple[RackBoard, ...]:
        """The boards of one kind, in the order of the file."""
        return tuple(board for board in self.boards if board.kind == kind)

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


def make_board(entry: RackBoard) -> Board:
    """The driver of a board, not yet powered.

    Raises:
        InventoryError: the emulator that virtual boards need is not installed.
    """
    try:
        from mcu_agent.boards.virtual import VirtualBoard  # the emulator is optional where all boards are real
    except ImportError as error:
        raise InventoryError(f"virtual boards need the emulator Unicorn; pip install unicorn ({error})") from error
    return VirtualBoard(entry.board_id, load_kind(entry.kind))


def _expand(board_id: str, kind: str, driver: str, count: int) -> Iterator[RackBoard]:
    for number in range(1, count + 1):
        name = board_id if count == 1 else f"{board_id}-{number}"
        yield RackBoard(board_id=name, kind=kind, driver=driver)


def _mistakes(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(field, what is wrong with it), in the order of the allowed fields."""
    for field in table:
        if field not in _FIELDS:
            yield field, f"{field}: unknown field; allowed: {', '.join(_FIELDS)}"
    for field in _REQUIRED:
        if field not in table:
            yield "", f"{field}: missing; every board needs {', '.join(_REQUIRED)}"
    for field, (is_allowed, allowed) in _checks().items():
        if field in table and not is_allowed(table[field]):
            yield field, f"{field}: found {table[field]!r}; allowed: {allowed}"


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
