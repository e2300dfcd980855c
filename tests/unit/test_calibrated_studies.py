"""A study file names calibrations; the study holds what was in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import cli
from mcu_agent.calibration import save_calibration
from mcu_agent.errors import InventoryError
from orchestrator.errors import UsageError
from orchestrator.studycheck import explain
from orchestrator.studyfile import StudyFile
from tests.unit.test_calibration import record

STUDY = """
name: small
dataset: {source: digits}
network: {family: mlp}
space: {network.width: {type: int, low: 4, high: 8}, network.depth: 1}
board: nrf52-dk
objectives: {error: {}, rom: {}}
budget: {trials: 2}
"""


def loaded(folder: Path, calibration: str, **files: Any) -> StudyFile:
    for name, one in files.items():
        save_calibration(one, folder / f"{name}.json")
    file = folder / "small.yaml"
    file.write_text(STUDY + f"profiling: {{calibration: {calibration}}}\n")
    return cli.load_file(file)


def test_the_file_is_found_beside_the_study_and_its_content_kept(tmp_path: Path) -> None:
    found = loaded(tmp_path, "bench.json", bench=record())
    assert found.profiling.calibration == (record().to_json(),)
    assert StudyFile.from_json(found.to_json()) == found
    assert "cycles x 1.250, calibrated on bench on 2026-11-26" in explain(found, cli.vocabulary())


def test_a_study_without_calibration_is_the_json_it_always_was(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(STUDY)
    assert "calibration" not in cli.load_file(file).to_json()["profiling"]


def test_a_missing_file_is_named_with_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match=r"gone\.json: cannot be read.*edgefront rack calibrate writes one"):
        loaded(tmp_path, "gone.json")


def test_a_calibration_of_another_kind_and_two_of_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found one for nucleo-f446re; allowed is one for each of nrf52-dk"):
        loaded(tmp_path, "other.json", other=record(kind="nucleo-f446re"))
    with pytest.raises(UsageError, match="one for each"):
        loaded(tmp_path, "[a.json, b.json]", a=record(), b=record(board_id="two"))
