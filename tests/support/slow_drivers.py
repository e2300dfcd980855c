"""A driver of one's own for tests: a virtual board that takes a minute to be programmed with anything but the known
image."""

from __future__ import annotations

from time import sleep

from mcu_agent.boards.virtual import VirtualBoard
from mcu_agent.image import Image
from mcu_agent.kinds import load_kind
from mcu_agent.rack import RackBoard
from mcu_agent.selftest import known_image


class SlowToProgram(VirtualBoard):
    def load(self, image: Image) -> None:
        if image.image_id.hex() != known_image(self.kind.name).image_id:
            sleep(60)
        super().load(image)


def slow(entry: RackBoard) -> SlowToProgram:
    return SlowToProgram(entry.board_id, load_kind(entry.kind))


class NeverProgrammed(VirtualBoard):
    def load(self, image: Image) -> None:
        sleep(60)
        super().load(image)


def stuck(entry: RackBoard) -> NeverProgrammed:
    """A board that takes a minute even for its self-test."""
    return NeverProgrammed(entry.board_id, load_kind(entry.kind))
