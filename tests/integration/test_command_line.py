"""The whole way from the command line: a study through queue, workers and virtual board to its report and export."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tasks.broker import BROKER_VARIABLE, EmbeddedBroker

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.xdist_group("command line")  # one after the other: each uses every core

STUDY = """\
name: small
dataset: {source: digits}
network: {family: mlp, options: {depth: 1}}
space:
  network.width: {type: int, low: 4, high: 64, log: true}
  training.learning_rate: {type: float, low: 1.0e-3, high: 1.0e-2, log: true}
board: nrf52-dk
objectives:
  error: {}
  rom: {limit: 4 KiB}
  ram: {limit: 8 KiB}
budget: {trials: 5}
sampler: {name: random, initial: 4}
training: {epochs: 2}
compression: {finetune_epochs: 0, steps: 1}
"""


def edgefront(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli", *arguments]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, object]]]:
    """A study that has run to its end: the folder of the studies, and the events it printed."""
    folder = tmp_path_factory.mktemp("studies")
    file = folder / "small.yaml"
    file.write_text(STUDY)
    done = edgefront("run", str(file), "--studies", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    return folder, [json.loads(line) for line in done.stdout.splitlines()]


def test_a_run_tells_exactly_its_budget_and_some_do_not_fit(finished: tuple[Path, list[dict[str, object]]]) -> None:
    _, events = finished
    endings = [event["ending"] for event in events if event["event"] == "trial_ended"]
    assert len(endings) == 5
    assert {"complete", "infeasible"} == set(endings)


def test_its_status_counts_the_same_trials(finished: tuple[Path, list[dict[str, object]]]) -> None:
    folder, _ = finished
    status = json.loads(edgefront("status", "small", "--studies", str(folder), "--json").stdout)
    assert status["told"] == status["budget"] == 5
    assert 0 < status["hypervolume"] < 1
    assert all(row["values"]["test_error"]["source"] == "exact" for row in status["front"])
    assert "hypervolume" in edgefront("status", "small", "--studies", str(folder)).stdout


def test_its_report_holds_the_front_and_its_links_lead_to_files(
    finished: tuple[Path, list[dict[str, object]]],
) -> None:
    folder, _ = finished
    done = edgefront("report", "small", "--studies", str(folder))
    page = Path(done.stdout.strip()).read_text(encoding="utf-8")
    data = json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    on_front = [trial for trial in data["trials"] if trial["front"]]
    assert on_front
    for trial in on_front:
        assert {label for label, _ in trial["downloads"]} >= {"C sources", "ONNX int8", "firmware"}
        assert all((folder / "small" / link).stat().st_size for _, link in trial["downloads"])
        assert sum(layer["cycles"] for layer in trial["layers"]) <= trial["values"]["cycles"]["amount"]


def test_its_best_trial_exports_as_a_project_that_passes_its_own_tests(
    finished: tuple[Path, list[dict[str, object]]], tmp_path: Path
) -> None:
    folder, _ = finished
    status = json.loads(edgefront("status", "small", "--studies", str(folder), "--json").stdout)
    trial = str(status["front"][0]["trial"])
    done = edgefront("export", "small", "--studies", str(folder), "--trial", trial, "--to", str(tmp_path / "net"))
    assert done.returncode == 0, done.stderr
    made = subprocess.run(["make", "-C", str(tmp_path / "net"), "test", "test-board"], capture_output=True, text=True)
    assert "32 of 32 test vectors bit for bit" in made.stdout, made.stderr
    assert "32 test vectors bit for bit on a virtual nrf52-dk" in made.stdout, made.stderr


def test_a_trial_that_did_not_fit_cannot_be_exported(
    finished: tuple[Path, list[dict[str, object]]], tmp_path: Path
) -> None:
    folder, events = finished
    number = next(event["trial"] for event in events if event.get("ending") == "infeasible")
    done = edgefront("export", "small", "--studies", str(folder), "--trial", str(number), "--to", str(tmp_path / "x"))
    assert done.returncode == 2
    assert f"trial {number} is infeasible" in done.stderr


def test_the_same_command_with_nothing_left_to_do_tells_nothing_new(
    finished: tuple[Path, list[dict[str, object]]],
) -> None:
    folder, _ = finished
    done = edgefront("run", str(folder / "small.yaml"), "--studies", str(folder))
    assert done.returncode == 0, done.stderr
    assert "5/5 trials told" in done.stdout
    assert "trial 5" not in done.stdout


def test_a_changed_study_file_is_refused_with_the_field(finished: tuple[Path, list[dict[str, object]]]) -> None:
    folder, _ = finished
    changed = folder / "changed.yaml"
    changed.write_text(STUDY.replace("epochs: 2", "epochs: 3"))
    done = edgefront("run", str(changed), "--studies", str(folder))
    assert done.returncode == 2
    assert "training.epochs: was 2, now 3" in done.stderr


def test_an_unreachable_broker_is_one_message(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(STUDY)
    url = "redis://:secret@127.0.0.1:1/0"
    done = edgefront("run", str(file), "--studies", str(tmp_path), EDGEFRONT_BROKER_URL=url)
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interrupted_run_serves_metrics_stops_cleanly_and_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(STUDY)
    command = [sys.executable, "-u", "-m", "cli", "run", str(file), "--studies", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:  # until the first trial has ended
            lines.append(line)
            if line.startswith("[1/5]"):
                break
        url = lines[0].split()[-1]
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert 'edgefront_trials_budget{study="small"} 5.0' in answer.read().decode()
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        rest = process.stdout.read()
        assert process.wait(60) == 130, rest
        assert time.monotonic() - started < 30
    assert "the same command goes on" in rest
    done = edgefront("run", str(file), "--studies", str(tmp_path))
    assert done.returncode == 0, done.stderr
    status = json.loads(edgefront("status", "small", "--studies", str(tmp_path), "--json").stdout)
    assert status["told"] == 5
    assert sum(status["states"].values()) == 5


def test_a_lab_of_workers_and_an_agent_serves_a_run_over_a_broker_of_its_own(tmp_path: Path) -> None:
    file, rack = tmp_path / "small.yaml", tmp_path / "rack.toml"
    file.write_text(STUDY.replace("trials: 5", "trials: 3").replace("4 KiB", "64 KiB"))
    rack.write_text('[[board]]\nid = "bench"\nkind = "nrf52-dk"\ndriver = "virtual"\ncount = 2\n')
    broker = EmbeddedBroker(tmp_path / "broker", tmp_path / "broker.log")
    broker.start()
    environment = {BROKER_VARIABLE: broker.url, "EDGEFRONT_LOCKS": str(tmp_path / "locks")}
    services = (
        ("worker", "--queues", "build", "--name", "lab-build"),
        ("worker", "--queues", "train", "--name", "lab-train"),
        ("agent", "--rack", str(rack), "--name", "lab-agent"),
    )
    processes = [
        subprocess.Popen([sys.executable, "-m", "cli", *service], cwd=ROOT, env={**os.environ, **environment})
        for service in services
    ]
    try:
        done = edgefront("run", str(file), "--studies", str(tmp_path), "--json", **environment)
    finally:
        for process in processes:
            process.terminate()
        statuses = [process.wait(30) for process in processes]
        broker.stop()
    assert done.returncode == 0, done.stderr
    assert statuses == [0, 0, 0]
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["ending"] for event in events if event["event"] == "trial_ended"] == ["complete"] * 3
    served = {event["stage"]: event["worker"] for event in events if event["event"] == "stage_started"}
    assert served["train"].startswith("lab-train")
    assert served["gate"].startswith("lab-build")
    assert served["profile"].startswith("lab-agent")
    status = json.loads(edgefront("status", "small", "--studies", str(tmp_path), "--json").stdout)
    assert "bench-" in status["front"][0]["values"]["latency"]["note"]
