"""Switching boards off and on: the programs that do it, and the proof that the power was cut."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mcu_agent import power
from mcu_agent.boards.fake import Script
from mcu_agent.errors import BoardLost, PowerFault, PowerNotCut
from mcu_agent.image import Image, read_image
from mcu_agent.kinds import load_kind
from mcu_agent.power import power_cycle, switch_command
from mcu_agent.rack import PowerSwitch
from mcu_agent.selftest import known_image
from tests.support.rigs import KIND, Rig, RigBoard

PORT = PowerSwitch(hub="1-1.4", port=2, off_s=2.0)


@pytest.fixture
def image() -> Image:
    return read_image(known_image(KIND).elf, load_kind(KIND))


def write_program(path: Path, text: str) -> Path:
    path.write_text(f"#!{sys.executable}\nimport sys, pathlib\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A uhubctl on the PATH; the file ``cut`` beside it is there once a port was off, unless there is ``broken``."""
    write_program(
        tmp_path / "uhubctl",
        f"""
folder = pathlib.Path({str(tmp_path)!r})
with (folder / "log").open("a") as log:
    print(*sys.argv[1:], file=log)
if "off" in sys.argv and not (folder / "broken").exists():
    (folder / "cut").touch()
state = "0000 off" if "off" in sys.argv else "0100 power"
print("Current status for hub 1-1.4\\n  Port 2: " + state)
""",
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_a_port_is_switched_off_and_on_and_the_cut_is_proved(hub: Path, image: Image) -> None:
    slept: list[float] = []
    board = RigBoard("b", Rig(loses_ram=hub / "cut"))
    done = power_cycle(PORT, board, image, sleep=slept.append)
    assert done.is_proved is True
    assert slept == [2.0]
    assert (hub / "log").read_text().splitlines() == ["-l 1-1.4 -p 2 -a off", "-l 1-1.4 -p 2 -a on"]


def test_a_hub_that_says_off_and_keeps_the_power_on_is_found_out(hub: Path, image: Image) -> None:
    (hub / "broken").touch()
    with pytest.raises(
        PowerNotCut, match=r"b was switched off by uhubctl -l 1-1.4 -p 2 -a off for 2 s and kept its RAM"
    ):
        power_cycle(PORT, RigBoard("b", Rig(loses_ram=hub / "cut")), image, sleep=lambda _: None)


def test_a_board_that_cannot_be_talked_to_is_switched_without_proof(hub: Path, image: Image) -> None:
    assert power_cycle(PORT, RigBoard("b", Rig(is_away=True)), image, sleep=lambda _: None).is_proved is None
    assert power_cycle(PORT, sleep=lambda _: None).is_proved is None
    assert len((hub / "log").read_text().splitlines()) == 4


def test_the_host_needs_time_to_find_a_board_again(hub: Path, image: Image) -> None:
    rig = Rig(loses_ram=hub / "cut")
    slept: list[float] = []

    class Slow(RigBoard):
        def load(self, image: Image) -> None:
            if slept and len(slept) < 4:
                raise BoardLost("b", "not there yet")
            super().load(image)

    assert power_cycle(PORT, Slow("b", rig), image, sleep=slept.append).is_proved is True
    assert slept == [2.0, 0.5, 0.5, 0.5]
    slept.clear()

    class Gone(RigBoard):
        def load(self, image: Image) -> None:
            if slept:
                raise BoardLost("b", "gone for good")
            super().load(image)

    with pytest.raises(BoardLost, match="gone for good"):
        power_cycle(PORT, Gone("b", rig), image, sleep=slept.append)
    assert sum(slept) == pytest.approx(2.0 + power.BACK_S, abs=0.6)


def test_a_command_of_the_users_gets_the_state_as_an_argument() -> None:
    assert switch_command(PowerSwitch(command=("relay", "7")), "off") == ["relay", "7", "off"]
    assert switch_command(PowerSwitch(command=("relay", "--to={state}", "7")), "on") == ["relay", "--to=on", "7"]


def test_a_command_is_run_without_a_shell(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = write_program(tmp_path / "relay", f"pathlib.Path({str(log)!r}).open('a').write(repr(sys.argv[1:]))")
    power_cycle(PowerSwitch(command=(str(program), "$(touch x); 7"), off_s=0.1), sleep=lambda _: None)
    assert log.read_text() == "['$(touch x); 7', 'off']['$(touch x); 7', 'on']"


def test_a_switch_that_does_not_work_says_why_and_the_board_is_switched_on_whatever_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    text = f"pathlib.Path({str(log)!r}).open('a').write(sys.argv[1] + ' ')\nsys.exit('no such relay' if {{}} else 0)"
    fails_off = write_program(tmp_path / "one", text.format("sys.argv[1] == 'off'"))
    with pytest.raises(PowerFault, match=r"power off: .*one off ended with 1: no such relay"):
        power_cycle(PowerSwitch(command=(str(fails_off),)), sleep=lambda _: None)
    assert log.read_text() == "off on "
    fails_on = write_program(tmp_path / "two", text.format("sys.argv[1] == 'on'"))
    with pytest.raises(PowerFault, match=r"power on: .*two on ended with 1: no such relay"):
        power_cycle(PowerSwitch(command=(str(fails_on),)), sleep=lambda _: None)
    assert log.read_text() == "off on off on on on "
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(PowerFault, match="there is no program uhubctl; install it, or name a command of your own"):
        power_cycle(PORT, sleep=lambda _: None)
    with pytest.raises(PowerFault, match=r"there is no program relay; check power\.command"):
        power_cycle(PowerSwitch(command=("relay",)), sleep=lambda _: None)
    (tmp_path / "plain").write_text("no program")
    with pytest.raises(PowerFault, match="could not be run: Permission denied"):
        power_cycle(PowerSwitch(command=(str(tmp_path / "plain"),)), sleep=lambda _: None)


def test_a_switch_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = write_program(tmp_path / "slow", "import threading; threading.Event().wait()")
    monkeypatch.setattr(power, "COMMAND_S", 0.2)
    with pytest.raises(PowerFault, match=r"slow on did not end within 0\.2 s"):
        power_cycle(PowerSwitch(command=(str(program),)), sleep=lambda _: None)


def test_a_board_whose_transfers_are_corrupt_proves_nothing(hub: Path, image: Image) -> None:
    board = RigBoard("b", Rig(test_script=Script(corrupt_transfer=True), loses_ram=hub / "cut"))
    assert power_cycle(replace(PORT, off_s=0.1), board, image, sleep=lambda _: None).is_proved is None
