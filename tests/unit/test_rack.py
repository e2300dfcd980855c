"""The rack file: what it describes, and what it says about mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcu_agent.boards.virtual import VirtualBoard
from mcu_agent.drivers import make_board
from mcu_agent.errors import InventoryError, UnknownKind
from mcu_agent.rack import RackBoard, load_rack, parse_rack, virtual_rack

GOOD = """
# two boards of one kind, one of another
[[board]]
id = "bench"
kind = "nrf52840-dk"
driver = "virtual"
count = 2

[[board]]
id = "fast"
kind = "nucleo-h743zi"
driver = "virtual"
"""


def test_a_rack_file_lists_every_board(tmp_path: Path) -> None:
    path = tmp_path / "rack.toml"
    path.write_text(GOOD)
    rack = load_rack(path)
    assert [board.board_id for board in rack.boards] == ["bench-1", "bench-2", "fast"]
    assert [board.board_id for board in rack.of_kind("nrf52840-dk")] == ["bench-1", "bench-2"]
    assert rack.board_kinds() == ("nrf52840-dk", "nucleo-h743zi")


def test_a_board_is_made_with_its_driver() -> None:
    board = make_board(RackBoard(board_id="b", kind="nrf52-dk", driver="virtual"))
    assert isinstance(board, VirtualBoard)
    assert (board.board_id, board.kind.name) == ("b", "nrf52-dk")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"nucleo-h743zi"', '"nucleo-x"', r"rack.toml:11: board 2: kind: found 'nucleo-x'; allowed: nrf52-dk, "),
        ("count = 2", "count = 0", r"rack.toml:7: board 1: count: found 0; allowed: a whole number from 1 to 1000"),
        ("count = 2", "count = true", r"rack.toml:7: board 1: count: found True"),
        ("count = 2", "amount = 2", r"rack.toml:7: board 1: amount: unknown field; allowed: id, kind, driver, count"),
        ('driver = "virtual"\n', 'driver = "usb"\n', r"rack.toml:6: board 1: driver: found 'usb'; allowed: virtual"),
        ('id = "fast"', 'id = "a b"', r"rack.toml:10: board 2: id: found 'a b'; allowed: letters"),
        ('id = "fast"\n', "", r"rack.toml:9: board 2: id: missing; every board needs id, kind, driver"),
        ('id = "fast"', 'id = "bench-1"', r"rack.toml: two boards are called bench-1"),
        ("[[board]]", "[[boards]]", r"rack.toml: unknown entry boards; allowed: \[\[board\]\]"),
        ("count = 2", "count = = 2", r"rack.toml: not valid TOML"),
    ],
)
def test_a_mistake_is_told_with_line_field_and_allowed_values(old: str, new: str, message: str) -> None:
    with pytest.raises(InventoryError, match=message):
        parse_rack(GOOD.replace(old, new), "rack.toml")


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(InventoryError) as caught:
        parse_rack(GOOD.replace("virtual", "usb"), "rack.toml")
    assert len(str(caught.value).splitlines()) == 2


def test_an_empty_or_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match=r"no boards; add a table \[\[board\]\]"):
        parse_rack("", "rack.toml")
    with pytest.raises(InventoryError, match="cannot be read"):
        load_rack(tmp_path / "none.toml")


def test_a_host_without_a_rack_file_has_virtual_boards() -> None:
    assert [b.board_id for b in virtual_rack("nrf52-dk", 2).boards] == ["virtual-nrf52-dk-1", "virtual-nrf52-dk-2"]
    assert [b.board_id for b in virtual_rack("nrf52-dk", 1).boards] == ["virtual-nrf52-dk"]
    with pytest.raises(UnknownKind):
        virtual_rack("nrf99", 1)
    with pytest.raises(InventoryError, match="allowed are 1 to 1000"):
        virtual_rack("nrf52-dk", 0)
