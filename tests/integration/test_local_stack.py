"""The whole lab of compose.yaml as processes: submit a study, see its end on the live page and in Prometheus."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cli import main

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.xdist_group("command line"),
    pytest.mark.skipif(os.getuid() == 0, reason="as root the database's user cannot read the test's folder"),
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server"),
    pytest.mark.skipif("submit" not in main.commands, reason="this checkout has no edgefront submit"),
]


def test_a_study_submitted_to_the_lab_runs_to_its_end(tmp_path: Path) -> None:
    command = [str(ROOT / "deploy" / "local-stack"), "--root", str(tmp_path / "lab"), "test", "--quick"]
    done = subprocess.run(command, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "live page: 3 trials, 2 boards" in done.stdout
    assert "everything works" in done.stdout
    assert not (tmp_path / "lab" / "processes.json").exists()
