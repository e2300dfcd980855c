"""The files for a lab host say what the program understands."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import main
from mcu_agent.rack import load_rack

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_the_example_rack_is_a_rack() -> None:
    rack = load_rack(DEPLOY / "systemd" / "rack.example.toml")
    assert [board.board_id for board in rack.boards] == ["bench-1", "bench-2"]


@pytest.mark.parametrize("name", ["edgefront-agent", "edgefront-orchestrator", "edgefront-worker@"])
def test_a_unit_starts_a_command_that_exists_with_options_that_exist(name: str) -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(DEPLOY / "systemd" / f"{name}.service", encoding="utf-8")
    program, command, *options = unit["Service"]["ExecStart"].split()
    assert program.endswith("/edgefront")
    help_text = CliRunner().invoke(main, [command, "--help"]).output
    assert {word for word in options if word.startswith("--")} <= set(re.findall(r"--[a-z-]+", help_text))


def test_every_udev_rule_is_one_line_of_matches_and_grants_access() -> None:
    lines = (DEPLOY / "udev" / "60-edgefront.rules").read_text().splitlines()
    rules = [line for line in lines if line.startswith("SUBSYSTEM")]
    assert len(rules) >= 8
    for rule in rules:
        parts = rule.split(", ")
        assert all(re.fullmatch(r'[A-Z]+(\{\w+\})?(==|=|\+=)"[^"]+"', part) for part in parts), rule
        assert 'TAG+="uaccess"' in parts
        assert 'GROUP="plugdev"' in parts
