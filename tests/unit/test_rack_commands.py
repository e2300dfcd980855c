"""The commands that look after a rack."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import cli
from mcu_agent import discover as discover_module
from mcu_agent.discover import Found, FoundProbe
from mcu_agent.pool import Pool, lock_folder
from mcu_agent.rack import load_rack
from tests.unit.test_documented_examples import blocks

ROOT = Path(__file__).parents[2]
TEXT = '[[board]]\nid = "bench"\nkind = "nrf52-dk"\ndriver = "virtual"\ncount = 2\n'


@pytest.fixture
def rack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEFRONT_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setenv("EDGEFRONT_IMPORT_PATH", "")
    file = tmp_path / "rack.toml"
    file.write_text(TEXT)
    return file


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def listed(rack: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(call("boards", "--rack", rack, "--json").output)
    return found


def test_a_check_prints_a_row_a_board_and_is_remembered(rack: Path) -> None:
    result = call("rack", "check", "--rack", rack)
    assert result.exit_code == 0, result.output
    head, *rows = [line.split() for line in result.output.splitlines()]
    assert head == ["board", "kind", "driver", "image", "answer", "cycles", "meter", "seconds", "result"]
    assert [(row[0], row[-1]) for row in rows] == [("bench-1", "ok"), ("bench-2", "ok")]
    assert all(board["self_test"]["ok"] for board in listed(rack))
    assert "passed 0 s ago" in call("boards", "--rack", rack).output


def test_a_board_in_use_cannot_be_checked_and_that_is_no_success(rack: Path) -> None:
    with Pool(load_rack(rack), lock_folder()).lease("nrf52-dk", "study 7", duration_s=60.0, board_id="bench-2"):
        result = call("rack", "check", "--rack", rack, "--wait", "0", "--json", "bench-2")
        assert [(board["state"], board["detail"]) for board in listed(rack)] == [("idle", ""), ("leased", "study 7")]
    (row,) = json.loads(result.output)
    assert (result.exit_code, row["reason"]) == (1, "no_board_free")
    assert "study 7" in row["fault"]


def test_a_board_that_cannot_be_made_keeps_no_other_from_its_test(rack: Path) -> None:
    rack.write_text(TEXT + '[[board]]\nid = "own"\nkind = "nrf52-dk"\ndriver = "no_such_module:board"\n')
    result = call("rack", "check", "--rack", rack, "--json")
    assert result.exit_code == 1
    *rest, own = json.loads(result.output)
    assert [row["ok"] for row in rest] == [True, True]
    assert (own["ok"], own["reason"]) == (False, "inventory")
    assert "no_such_module" in own["fault"]


def test_an_unknown_board_is_told_with_those_there_are(rack: Path) -> None:
    for arguments in (("rack", "check", "desk"), ("boards", "release", "desk")):
        result = call(*arguments, "--rack", rack)
        assert result.exit_code == 2
        assert "no board is called 'desk'; there are bench-1, bench-2" in result.stderr


def test_a_person_takes_a_board_out_of_use_and_puts_it_back(rack: Path) -> None:
    assert call("boards", "quarantine", "bench-1", "--rack", rack, "--reason", "new wires").exit_code == 0
    first = listed(rack)[0]
    assert (first["state"], first["detail"]) == ("quarantined", "new wires")
    assert first["since"] > 0
    assert "ok, but out of use: new wires" in call("rack", "check", "--rack", rack).output
    assert listed(rack)[0]["state"] == "quarantined"
    assert call("boards", "release", "bench-1", "--rack", rack).exit_code == 0
    assert listed(rack)[0]["state"] == "idle"
    assert call("boards", "quarantine", "bench-1", "--rack", rack).exit_code == 2  # a reason is needed


def test_a_board_is_not_taken_out_of_use_without_a_reason(rack: Path) -> None:
    result = call("boards", "quarantine", "bench-1", "--rack", rack, "--reason", " ")
    assert result.exit_code == 2
    assert "the reason to take it out of use is empty" in result.stderr
    assert [board["state"] for board in listed(rack)] == ["idle", "idle"]


def test_the_boards_are_shown_live_until_interrupted(rack: Path) -> None:
    command = [sys.executable, "-c", "import cli; cli.main()", "boards", "--rack", str(rack), "--watch"]
    terminal, end = os.openpty()
    environment = {**os.environ, "COLUMNS": "100", "TERM": "xterm"}
    with subprocess.Popen(command, cwd=ROOT, stdin=end, stdout=end, stderr=end, env=environment) as process:
        os.close(end)
        seen = ""
        while "waiting for a board" not in seen:
            seen += os.read(terminal, 4096).decode(errors="replace")
        assert "bench-2" in seen
        process.send_signal(signal.SIGINT)
        assert process.wait(10.0) == 0
    os.close(terminal)


def test_tags_and_serial_ports_of_the_file_are_in_the_list(rack: Path) -> None:
    assert "tags" not in call("boards", "--rack", rack).output
    rack.write_text(
        TEXT + '[[board]]\nid = "desk"\nkind = "nrf52-dk"\ndriver = "gdb"\nconnection = "localhost:3333"\n'
        'uart = "/dev/ttyACM7"\ntags = ["fast", "lab-2"]\n'
    )
    assert [(board["tags"], board["uart"]) for board in listed(rack)][1:] == [
        ([], None),
        (["fast", "lab-2"], "/dev/ttyACM7"),
    ]
    head, *rows = call("boards", "--rack", rack).output.splitlines()
    assert head.endswith("  tags")
    assert rows[-1].endswith("  fast lab-2")


def test_watching_is_for_people_and_for_racks(rack: Path) -> None:
    for arguments in (("--watch",), ("--rack", rack, "--watch", "--json")):
        result = call("boards", *arguments)
        assert result.exit_code == 2
        assert "--watch shows the boards of --rack FILE" in result.stderr


def test_discovery_says_what_there_is_and_writes_a_file_that_works(
    rack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discover_module, "discover", Found)
    assert "Nothing is plugged in that is known" in call("rack", "discover").output
    written = tmp_path / "found.toml"
    assert call("rack", "discover", "--to", written).exit_code == 0
    assert call("rack", "check", "--rack", written).exit_code == 0
    result = call("rack", "discover", "--to", written)
    assert (result.exit_code, "exists already" in result.stderr) == (2, True)
    probe = FoundProbe(serial="066AFF", description="STM32 STLink", board="NUCLEO-L4R5ZI")
    monkeypatch.setattr(discover_module, "discover", lambda: Found(probes=[probe]))
    assert "066AFF" in call("rack", "discover", "--to", written, "--force").output
    assert listed(written)[0]["board"] == "nucleo-l4r5zi"
    assert json.loads(call("rack", "discover", "--json").output)[0]["which"] == "066AFF"


def test_a_rack_file_that_cannot_be_written_is_a_mistake_of_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discover_module, "discover", Found)
    result = call("rack", "discover", "--to", tmp_path / "gone" / "r.toml")
    assert (result.exit_code, "r.toml cannot be written: No such file" in result.stderr) == (2, True)


@pytest.mark.parametrize("below", ["", "locks"])
def test_a_lock_folder_that_is_none_is_named_with_its_variable(
    rack: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    monkeypatch.setenv("EDGEFRONT_LOCKS", str(rack / below))
    for arguments in (("boards",), ("rack", "check")):
        result = call(*arguments, "--rack", rack)
        assert result.exit_code == 2
        assert f"EDGEFRONT_LOCKS is {rack / below}: {rack} is no folder; name a folder" in result.stderr


@pytest.mark.parametrize("page", ["rack.md", "first-board.md"])
def test_the_rack_files_of_the_documentation_are_right_ones(page: str, rack: Path) -> None:
    for block in blocks(page, "toml"):
        if "[[board]]" in block:
            rack.write_text(block)
            assert "bench-2" in [board["board"] for board in listed(rack)]


def test_the_example_of_the_service_is_a_right_one() -> None:
    assert load_rack(ROOT / "deploy" / "systemd" / "rack.example.toml").boards
