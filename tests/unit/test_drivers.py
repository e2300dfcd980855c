"""Which driver a board of the rack gets, and what it lacks for it."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from mcu_agent.boards.gdb import GdbBoard
from mcu_agent.boards.virtual import VirtualBoard
from mcu_agent.drivers import make_board
from mcu_agent.errors import InventoryError
from mcu_agent.rack import RackBoard

VIRTUAL = RackBoard(board_id="b1", kind="nrf52-dk", driver="virtual")
GDB = replace(VIRTUAL, driver="gdb", connection="lab7:3333", server="openocd")
PROBE = replace(VIRTUAL, driver="pyocd", probe="683000001")


def test_each_driver_is_chosen_by_its_name() -> None:
    assert isinstance(make_board(VIRTUAL), VirtualBoard)
    found = make_board(GDB)
    assert isinstance(found, GdbBoard)
    assert (found.board_id, found.kind.name, found.is_emulated) == ("b1", "nrf52-dk", False)


def test_a_gdb_server_that_is_an_emulator_makes_an_emulated_board() -> None:
    found = make_board(replace(GDB, server="qemu"))
    assert (found.is_emulated, found.emulator) == (True, "QEMU")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (replace(VIRTUAL, driver="jtag"), "driver is 'jtag'; allowed: virtual, gdb, pyocd"),
        (replace(VIRTUAL, emulator="bochs"), "emulator is 'bochs'; allowed: unicorn, qemu"),
        (replace(GDB, connection=""), "allowed: host:port"),
        (replace(VIRTUAL, driver="os:system"), "driver 'os:system' makes no board: .*called with the entry"),
        (replace(VIRTUAL, driver="builtins:id"), "driver 'builtins:id' gives int without load, run_until, read"),
    ],
)
def test_entries_no_driver_can_use_are_refused(entry: RackBoard, message: str) -> None:
    with pytest.raises(InventoryError, match=message):
        make_board(entry)


@pytest.mark.parametrize(
    ("entry", "module", "library", "message"),
    [
        (VIRTUAL, "mcu_agent.boards.virtual", "unicorn", "pip install unicorn"),
        (PROBE, "mcu_agent.boards.pyocd", "pyocd.core", r"pip install 'edgefront\[boards\]'"),
    ],
)
def test_a_missing_library_is_named_with_how_to_install_it(
    entry: RackBoard, module: str, library: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InventoryError, match=message):
        make_board(entry)
