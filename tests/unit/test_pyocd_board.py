"""Debug probes, driven by pyOCD itself; the probe is a fake, wired to an emulated part that can misbehave."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyocd")

from mcu_agent.boards.pyocd import PyOcdBoard
from mcu_agent.errors import (
    AgentError,
    BoardLost,
    FirmwareHang,
    InventoryError,
    MemoryRefused,
    VerifyFailed,
    WrongBoard,
)
from mcu_agent.health import Fault, fault_of
from mcu_agent.image import Image, read_image
from mcu_agent.kinds import load_kind
from tests.support import boards
from tests.support.emulated_part import EmulatedPart, MemoryFault, Misbehaviour
from tests.support.fake_probe import FakeProbe

KIND = load_kind("nrf52-dk")


@pytest.fixture
def image() -> Image:
    return read_image(boards.firmware(), KIND)


@pytest.fixture(autouse=True)
def own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFRONT_LOCKS", str(tmp_path))


def _board(*probes: FakeProbe, serial: str = "FAKE01", target: str = "nrf52832", **options: Any) -> PyOcdBoard:
    return PyOcdBoard("b1", KIND, serial, target, probes=lambda: probes, **options)


def _probe(misbehaviour: Misbehaviour | None = None, **options: Any) -> FakeProbe:
    return FakeProbe(EmulatedPart(KIND, misbehaviour), **options)


def test_flash_is_programmed_by_the_parts_own_algorithm_and_then_left_alone(image: Image) -> None:
    probe = _probe()
    board = _board(probe)
    board.load(image)
    assert (board.loads_skipped, probe.part.erased_pages) == (0, 1)
    board.load(image)
    assert (board.loads_skipped, probe.part.erased_pages) == (1, 1)
    board.close()


@pytest.mark.parametrize("connect", ["normal", "under-reset", "attach"])
def test_every_way_to_connect_ends_at_the_reset_handler(image: Image, connect: str) -> None:
    probe = _probe()
    board = _board(probe, connect=connect, frequency_hz=1_000_000)
    board.load(image)
    assert board.run_until([image.address("Reset_Handler")], 1.0) == image.address("Reset_Handler")
    assert probe.frequency == 1_000_000
    board.close()
    assert not probe.is_open
    assert not probe.is_reset


def test_the_probe_is_chosen_by_its_whole_serial_number(image: Image) -> None:
    other, ours = _probe(serial="FAKE011"), _probe(serial="FAKE01")
    board = _board(other, ours, serial="fake01")
    board.load(image)
    assert (other.transfers, ours.is_open) == (0, True)
    board.close()


def test_a_missing_probe_is_named_with_those_that_are_there(image: Image) -> None:
    board = _board(_probe(serial="A1"), _probe(serial="B2"), serial="C3")
    with pytest.raises(BoardLost, match=r"no probe with the serial number C3.*A1 \(fake probe\), B2 \(fake probe\)"):
        board.load(image)


def test_two_probes_with_one_serial_number_are_refused(image: Image) -> None:
    with pytest.raises(InventoryError, match="2 probes have the serial number FAKE01"):
        _board(_probe(), _probe()).load(image)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: _board(serial=""), "probe is missing"),
        (lambda: _board(target=""), "has no pyocd_target"),
        (lambda: _board(connect="slowly"), "allowed: normal, under-reset, attach"),
        (lambda: _board(_probe(), target="no_such_part"), "pyOCD knows no target 'no_such_part'"),
    ],
    ids=["probe", "target", "connect", "unknown-part"],
)
def test_a_rack_that_is_wrong_is_the_users_to_mend(image: Image, make: Callable[[], PyOcdBoard], message: str) -> None:
    with pytest.raises(InventoryError, match=message):
        make().load(image)


def test_another_core_than_the_kinds_is_the_wrong_board(image: Image) -> None:
    probe = _probe(Misbehaviour(cpuid=0x411FC271))
    with pytest.raises(WrongBoard, match="has a cortex-m7; nrf52-dk has a cortex-m4") as caught:
        _board(probe).load(image)
    assert caught.value.is_transient
    assert probe.part.erased_pages == 0
    assert not probe.is_open


def test_flash_that_does_not_hold_what_was_written_fails_its_verify(image: Image) -> None:
    probe = _probe(Misbehaviour(stuck_at=0x100))
    with pytest.raises(VerifyFailed, match=r"1 of .* the first at 0x00000100") as caught:
        _board(probe).load(image)
    assert caught.value.is_transient
    assert not probe.is_open


def _transfers_of_a_load(image: Image) -> Sequence[int]:
    """Some numbers of transfers between the first and the last of a load."""
    probe = _probe()
    board = _board(probe)
    board.load(image)
    whole = probe.transfers
    board.close()
    return [0, 1, 5, whole // 8, whole // 2, whole - 3]


def test_a_probe_unplugged_at_any_time_is_a_lost_board(image: Image) -> None:
    for n_transfers in _transfers_of_a_load(image):
        probe = _probe(lost_after=n_transfers)
        board = _board(probe)
        with pytest.raises(AgentError) as caught:
            board.load(image)
        assert caught.value.is_transient, n_transfers
        assert not probe.is_open
        with pytest.raises(BoardLost, match="load an image first"):
            board.read(KIND.ram_origin, 4)


def test_a_probe_unplugged_while_the_core_runs_is_a_lost_board(image: Image) -> None:
    probe = _probe()
    board = _board(probe)
    board.load(image)
    probe.lost_after = probe.transfers + 20
    with pytest.raises(BoardLost, match="probe FAKE01 or its part does not answer"):
        board.run_until([image.address("edgefront_after_run")], 2.0)
    board.close()
    assert not probe.is_open


def test_the_probe_is_left_alone_while_it_must_be_quiet(image: Image) -> None:
    probe = _probe()
    board = _board(probe)
    board.load(image)
    used = []
    for quiet_s in (0.0, 0.5, 0.0):  # the first sets the breakpoints, which the others find in place
        before = probe.transfers
        with pytest.raises(FirmwareHang):
            board.run_until([image.address("edgefront_after_run")], 0.5, quiet_s)
        used.append(probe.transfers - before)
    assert used[1] < used[2]  # what is left: letting go, one look at the end, halting, and asking where
    assert used[1] < 60
    board.close()


def test_memory_that_the_probe_cannot_reach_is_the_rigs_fault(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = _probe()
    board = _board(probe)
    board.load(image)

    def refuse(*_: object) -> None:
        raise MemoryFault

    monkeypatch.setattr(probe.part, "read", refuse)
    with pytest.raises(MemoryRefused, match=r"4 bytes at 0x20000000 cannot be read.*check the wires") as caught:
        board.read(KIND.ram_origin, 4)
    assert fault_of(caught.value) is Fault.RIG
    monkeypatch.undo()
    monkeypatch.setattr(probe.part, "write", refuse)
    with pytest.raises(MemoryRefused, match=r"4 bytes at 0x20000000 cannot be written.*check the wires"):
        board.write(KIND.ram_origin, b"1234")
    monkeypatch.undo()
    board.close()


def test_nothing_of_pyocd_reaches_the_terminal(image: Image, capfd: pytest.CaptureFixture[str]) -> None:
    board = _board(_probe())
    board.load(image)
    board.close()
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("pyocd").handlers


def test_a_script_in_the_working_folder_is_not_run(
    image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pyocd_user.py").write_text("raise SystemExit('run')\n")
    Path("pyocd.yaml").write_text("frequency: 1\n")
    probe = _probe()
    board = _board(probe)
    board.load(image)
    assert probe.frequency == 4_000_000
    board.close()
