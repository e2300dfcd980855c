"""From an entry of the inventory to the driver that speaks to it. Vendors' libraries are loaded here, on first use."""

from __future__ import annotations

from mcu_agent.boards.protocol import Board
from mcu_agent.errors import InventoryError
from mcu_agent.kinds import load_kind
from mcu_agent.rack import RackBoard


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
