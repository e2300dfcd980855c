"""The whole lab of compose.yaml as processes: submit a study, see its end on the live page and in Prometheus."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "deploy"))

from localstack.images import Builder  # noqa: E402

pytestmark = [
    pytest.mark.xdist_group("command line"),
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server"),
]


@pytest.fixture
def root() -> Iterator[Path]:
    """Where the lab lives: unlike pytest's own folders, below one that the database's account may enter."""
    with tempfile.TemporaryDirectory(prefix="edgefront-lab-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "lab"


@pytest.mark.slow
@pytest.mark.skipif("EDGEFRONT_LONG_TESTS" not in os.environ, reason="fetches packages; EDGEFRONT_LONG_TESTS=1 runs it")
def test_the_steps_of_the_agents_image_make_a_program_in_a_bare_folder(root: Path) -> None:
    builder = Builder(dockerfile=ROOT / "deploy" / "Dockerfile", context=ROOT, is_quick=False)
    image = builder.build("agent", root, {"EXTRAS": "boards,virtual"})
    program = image.root / "venv" / "bin" / "edgefront"
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(root)}
    command = [program, "boards", "--rack", image.inside("/app/rack.toml")]
    done = subprocess.run(command, env=bare, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "virtual" in done.stdout
    assert not list((image.root / "venv").glob("lib/python*/site-packages/torch")), (
        "a host with boards needs no PyTorch"
    )


def test_a_study_submitted_to_the_lab_runs_to_its_end(root: Path) -> None:
    command = [str(ROOT / "deploy" / "local-stack"), "--root", str(root), "test", "--quick"]
    done = subprocess.run(command, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "live page: 3 trials, 2 boards" in done.stdout
    assert "everything works" in done.stdout
    assert not (root / "processes.json").exists()
