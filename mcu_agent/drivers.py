"""From an entry of the inventory to the driver that speaks to it. Vendors' libraries are loaded here, on first use."""

from __future__ import annotations

import importlib

from mcu_agent.boards.gdb import GdbBoard
from mcu_agent.boards.protocol import Board
from mcu_agent.boards.qemu import QemuBoard
from mcu_agent.errors import InventoryError
from mcu_agent.image import without_peripherals
from mcu_agent.kinds import BoardKind, load_kind
from mcu_agent.rack import RackBoard

EMULATORS = ("unicorn", "qemu")
_METHODS = ("load", "run_until", "read", "write", "close")


def make_board(entry: RackBoard) -> Board:
    """The driver of a board, not yet powered.

    Raises:
        InventoryError: the driver is not known, lacks a field, or needs a program or library that is not installed.
    """
    kind = load_kind(entry.kind)
    if ":" in entry.driver:
        return _own(entry)
    if entry.driver == "virtual":
        return _virtual(entry, kind)
    if entry.driver == "gdb":
        return GdbBoard(entry.board_id, kind, entry.connection, server=entry.server)
    if entry.driver == "pyocd":
        return _pyocd(entry, kind)
    raise InventoryError(f"board {entry.board_id}: driver is {entry.driver!r}; allowed: virtual, gdb, pyocd")


def _own(entry: RackBoard) -> Board:
    """A driver of the user's: ``module:function`` gives the board for an entry. The rack file names it, and a rack file
    is written by who owns the host."""
    module, _, name = entry.driver.partition(":")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InventoryError(
            f"board {entry.board_id}: driver {entry.driver!r} cannot be loaded: {error}; its module must be on the "
            "Python path of the agent"
        ) from error
    try:
        board: Board = make(entry)
    except (TypeError, ValueError) as error:
        raise InventoryError(
            f"board {entry.board_id}: driver {entry.driver!r} makes no board: {error}; it is called with the entry of "
            "the rack file and gives a board"
        ) from error
    missing = [method for method in _METHODS if not callable(getattr(board, method, None))]
    if missing:
        raise InventoryError(
            f"board {entry.board_id}: driver {entry.driver!r} gives {type(board).__name__} without "
            f"{', '.join(missing)}; a board has all that mcu_agent.boards.protocol.Board names"
        )
    return board


def _virtual(entry: RackBoard, kind: BoardKind) -> Board:
    if entry.emulator == "qemu":
        return QemuBoard(entry.board_id, kind, kind.qemu_machine, prepare=without_peripherals)
    if entry.emulator != "unicorn":
        raise InventoryError(f"board {entry.board_id}: emulator is {entry.emulator!r}; allowed: {', '.join(EMULATORS)}")
    try:
        from mcu_agent.boards.virtual import VirtualBoard  # the emulator is optional where all boards are real
    except ImportError as error:
        raise InventoryError(f"virtual boards need the emulator Unicorn; pip install unicorn ({error})") from error
    return VirtualBoard(entry.board_id, kind)


def _pyocd(entry: RackBoard, kind: BoardKind) -> Board:
    try:
        from mcu_agent.boards.pyocd import PyOcdBoard
    except ImportError as error:
        raise InventoryError(
            f"board {entry.board_id}: debug probes need pyOCD; pip install 'edgefront[boards]' ({error})"
        ) from error
    return PyOcdBoard(
        entry.board_id,
        kind,
        entry.probe,
        kind.pyocd_target,
        connect=entry.connect,
        frequency_hz=entry.frequency_hz,
    )
