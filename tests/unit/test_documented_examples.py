"""What the documentation shows works as shown."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import cli

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture(autouse=True)
def own_import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFRONT_IMPORT_PATH", "")  # the command line adds to it


def check(file: Path) -> str:
    result = CliRunner().invoke(cli.main, ["study", "check", str(file)])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_study_file_of_the_reference_is_a_right_one(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(next(block for block in blocks("study-file.md", "yaml") if block.startswith("name:")))
    assert "number from 0 to 0.7" in check(file)


def test_the_parts_of_the_first_own_study_make_a_right_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    images, labels = rng.random((200, 1, 6, 6)).astype(np.float32), np.arange(200) % 4
    (save,) = [block for block in blocks("first-study.md", "python") if "np.savez" in block]
    exec(save, {"images": images, "labels": labels})
    (network,) = [block for block in blocks("first-study.md", "python") if "# mynet.py" in block]
    (tmp_path / "mynet.py").write_text(network)
    data, _, family, limits = blocks("first-study.md", "yaml")
    file = tmp_path / "mine.yaml"
    file.write_text("\n".join(["name: mine", data, family, limits, "budget: {trials: 3}"]))
    assert "4 classes" in check(file)


def test_the_rack_file_of_the_first_board_is_a_right_one(tmp_path: Path) -> None:
    rack = tmp_path / "rack.toml"
    rack.write_text(blocks("first-board.md", "toml")[0])
    result = CliRunner().invoke(cli.main, ["boards", "--rack", str(rack)])
    assert "bench-2" in result.output, result.output
