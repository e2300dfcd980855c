"""kill -9 at every point of the loop and of a worker: the same command goes on, and the budget is met exactly."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from orchestrator.study import Study
from tests.support.studies import FAKE_STAGES, check_whole

TRIALS = 4

ORCHESTRATOR_KILLS = [
    pytest.param("trial_asked", "2", "", id="between asking and recording"),
    pytest.param("trial_proposed", "2", "", id="between recording and queueing"),
    pytest.param("stage_queued", "2", "stage=train", id="between the attempt's record and its message"),
    pytest.param("stage_started", "2", "stage=build", id="while a stage runs"),
    pytest.param("stage_finished", "2", "stage=compress", id="between a result and the next stage"),
    pytest.param("trial_told", "2", "", id="between telling and closing the ledger's row"),
    pytest.param("trial_ended", "4", "", id="between the last trial and the test split"),
    pytest.param("stage_finished", "1", "stage=final", id="amid the test split"),
]

WORKER_KILLS = [
    pytest.param("kill:gate:0:1", id="child in gate"),
    pytest.param("kill:train:1:1", id="child in train"),
    pytest.param("killparent:compress:0:1", id="parent in compress"),
    pytest.param("kill:build:2:2", id="child in build, twice"),
    pytest.param("kill:profile:0:1,killparent:final:1:1", id="child in profile and parent in final"),
]


def run(folder: Path, *arguments: str, trouble: str = "") -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "EDGEFRONT_BROKER_URL"}
    environment |= {"EDGEFRONT_STAGES": FAKE_STAGES, "EDGEFRONT_TEST_TROUBLE": trouble}
    command = [sys.executable, "-m", "tests.support.run_and_die", str(folder), str(TRIALS), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Workers, their children and the broker of a study, by their working folder or environment."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ().get("EDGEFRONT_BROKER_URL", "")
            if str(folder) in environment or str(folder) in process.cwd():
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


@pytest.mark.parametrize(("event", "nth", "condition"), ORCHESTRATOR_KILLS)
def test_a_killed_orchestrator_goes_on_without_losing_or_doubling_a_trial(
    tmp_path: Path, event: str, nth: str, condition: str
) -> None:
    killed = run(tmp_path, event, nth, condition)
    assert killed.returncode == -9, killed.stderr
    resumed = run(tmp_path)
    assert resumed.stdout == f"budget {TRIALS}\n", resumed.stderr
    study = Study.open(tmp_path)
    check_whole(study, TRIALS)
    study.close()


def test_a_killed_orchestrator_leaves_no_process_behind(tmp_path: Path) -> None:
    assert run(tmp_path, "trial_ended", "1", "").returncode == -9
    deadline = time.monotonic() + 10
    while (left := processes_of(tmp_path)) and time.monotonic() < deadline:
        psutil.wait_procs(left, timeout=0.2)
    assert left == []


@pytest.mark.parametrize("trouble", WORKER_KILLS)
def test_a_killed_worker_costs_an_attempt_and_nothing_else(tmp_path: Path, trouble: str) -> None:
    ended = run(tmp_path, trouble=trouble)
    assert ended.stdout == f"budget {TRIALS}\n", ended.stderr
    study = Study.open(tmp_path)
    check_whole(study, TRIALS)
    assert [attempt for attempt in study.stage_attempts() if attempt.state == "lost" or attempt.fault]
    assert not [trial for trial in study.trials() if trial.state == "fault"]
    study.close()
