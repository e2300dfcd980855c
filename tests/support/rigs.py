"""Fake rigs: boards whose faults, probes and power supplies live on between two openings, as real ones' do."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mcu_agent.boards.fake import FakeBoard, FakeNetwork, Script
from mcu_agent.boards.protocol import Board
from mcu_agent.errors import BoardLost
from mcu_agent.image import Image
from mcu_agent.kinds import load_kind
from mcu_agent.pool import Pool
from mcu_agent.rack import Hub, PowerSwitch, Rack, RackBoard
from mcu_agent.selftest import known_image
from tests.support import boards
from tests.support.holders import FAST

KIND = "nrf52-dk"
_END = 64  # bytes at the end of the RAM that a rig remembers


@dataclass
class Rig:
    """How a rig is: ``script`` for any image but the known one, ``test_script`` for that; ``faults_left``, where there
    are any, is after how many openings the scripts no longer apply; ``loses_ram`` a file whose presence says that the
    power was cut."""

    script: Script = field(default_factory=Script)
    test_script: Script = field(default_factory=Script)
    faults_left: int | None = None
    is_away: bool = False
    loses_ram: Path | None = None
    end_of_ram: bytes = b""
    openings: int = 0


def known_network() -> FakeNetwork:
    """What the known image computes, looked up."""
    known = known_image(KIND)
    answers = {one.tobytes(): out.tobytes() for one, out in zip(known.inputs, known.expected, strict=True)}
    last = known.layers[-1]
    return FakeNetwork(
        run=lambda data: [answers[data]],
        layers=[(last.symbol, last.output_offset)],
        input_bytes=known.inputs.shape[1],
        output_bytes=known.expected.shape[1],
        cycles=round(1.3 * (known.cycles or 0)),
    )


class RigBoard:
    """A board of a rig; see :class:`mcu_agent.boards.protocol.Board`."""

    is_emulated = False
    emulator = ""
    counter = None

    def __init__(self, board_id: str, rig: Rig) -> None:
        self.board_id = board_id
        self.kind = load_kind(KIND)
        self._rig = rig
        self._board: FakeBoard | None = None
        rig.openings += 1
        if rig.faults_left is not None and rig.faults_left < rig.openings:
            rig.script, rig.test_script, rig.is_away = Script(), Script(), False

    def load(self, image: Image) -> None:
        if self._rig.is_away:
            raise BoardLost(self.board_id, "no probe of that serial number is plugged in")
        is_known = image.image_id.hex() == known_image(KIND).image_id
        network = known_network() if is_known else boards.fake_network()
        script = self._rig.test_script if is_known else self._rig.script
        self._board = FakeBoard(self.board_id, self.kind, network, script)
        self._board.load(image)
        marker = self._rig.loses_ram
        if self._rig.end_of_ram and (marker is None or not marker.exists()):
            self._board.write(self.kind.ram_end - _END, self._rig.end_of_ram)

    def run_until(self, addresses: Collection[int], timeout_s: float, quiet_s: float = 0.0) -> int:
        return self._powered().run_until(addresses, timeout_s)

    def read(self, address: int, size: int) -> bytes:
        return self._powered().read(address, size)

    def write(self, address: int, data: bytes) -> None:
        self._powered().write(address, data)

    def close(self) -> None:
        if self._board is not None and not self._rig.is_away:
            self._rig.end_of_ram = self._board.read(self.kind.ram_end - _END, _END)
        self._board = None

    def _powered(self) -> FakeBoard:
        if self._board is None or self._rig.is_away:
            raise BoardLost(self.board_id, "it has no power; load an image first")
        return self._board


def make_pool(
    folder: Path, *rigs: Rig, power: PowerSwitch | None = None, hub: Hub | None = None, usb: Path | None = None
) -> Pool:
    """A pool of boards b0, b1 … with these rigs."""
    entries = tuple(
        RackBoard(board_id=f"b{n}", kind=KIND, driver="pyocd", probe=f"probe-{n}", power=power)
        for n in range(len(rigs))
    )

    def make(entry: RackBoard) -> Board:
        return RigBoard(entry.board_id, rigs[int(entry.board_id[1:])])

    rack = Rack(boards=entries, hubs=(hub,) if hub else ())
    return Pool(rack, folder, make=make, timing=FAST, usb=usb or folder / "no usb here")


def outputs(n: int = 4) -> np.ndarray:
    """What the test firmware gives for its inputs."""
    return boards.layer_outputs(boards.inputs(n))[1]
