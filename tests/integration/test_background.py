"""Searches in the background, with real processes: submitted, run, steered, killed, taken over."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from click.testing import CliRunner, Result

import cli
from orchestrator.registry import Entry, Registry
from orchestrator.service import LEASE_S
from orchestrator.study import Study
from tests.support.studies import FAKE_STAGES, check_whole
from tests.support.webhooks import webhooks

ROOT = Path(__file__).parents[2]
STUDY = """\
name: {name}
dataset: {{source: {source}}}
network: {{family: mlp}}
space:
  network.width: {{type: int, low: 4, high: 40}}
board: nrf52-dk
objectives: {{error: {{}}, rom: {{limit: 64 KiB}}}}
budget: {{trials: {trials}}}
sampler: {{name: random, initial: 2}}
parallelism: {{in_flight: 1}}
{more}"""


def wait_for(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not come to pass")


class Lab:
    """A folder of studies, its commands, and the orchestrators started on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.studies = folder / "studies"
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("EDGEFRONT_")}
        self.environment |= {
            "EDGEFRONT_STUDIES": str(self.studies),
            "EDGEFRONT_STAGES": FAKE_STAGES,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        self.orchestrators: list[subprocess.Popen[str]] = []

    def call(self, *arguments: str) -> Result:
        return CliRunner().invoke(cli.main, list(arguments))

    def submit(self, name: str, trials: int, more: str = "", *options: str, source: str = "digits") -> None:
        file = self.folder / f"{name}.yaml"
        file.write_text(STUDY.format(name=name, trials=trials, source=source, more=more), encoding="utf-8")
        done = self.call("submit", file.name, *options)
        assert done.exit_code == 0, done.output

    def make_data(self, path: Path, seed: int) -> None:
        x = np.random.default_rng(seed).random((60, 1, 4, 4), np.float32)
        np.savez(path, x=x, y=np.arange(60) % 3)

    def start(self, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "cli", "orchestrator", "--metrics-port", "0", "--most", "4"]
        log = (self.folder / f"orchestrator-{len(self.orchestrators)}.log").open("w")
        with log:
            started = subprocess.Popen(
                command,
                env={**self.environment, **environment},
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.orchestrators.append(started)
        return started

    def said(self, number: int = 0) -> str:
        return (self.folder / f"orchestrator-{number}.log").read_text()

    def entry(self, name: str) -> Entry:
        registry = Registry(f"sqlite:///{self.studies / 'lab.db'}")
        try:
            return registry.entry(name)
        finally:
            registry.close()

    def wait_for_state(self, name: str, state: str) -> Entry:
        def reached() -> Entry | None:
            entry = self.entry(name)
            return entry if entry.state == state else None

        found: Entry = wait_for(reached)
        return found

    def wait_for_trials(self, name: str, trials: int) -> None:
        wait_for(lambda: self.entry(name).reached.told >= trials)

    def processes(self) -> list[psutil.Process]:
        """Of studies: their own, their workers and brokers."""
        found = []
        for process in psutil.process_iter():
            try:
                is_ours = process.environ().get("EDGEFRONT_LAB_REGISTRY", "").endswith(f"{self.studies}/lab.db")
            except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            if is_ours and process.pid not in [started.pid for started in self.orchestrators]:
                found.append(process)
        return found

    def process_of(self, name: str) -> psutil.Process | None:
        for process in self.processes():
            try:
                line = process.cmdline()
            except psutil.NoSuchProcess:
                continue
            if "cli_background" in line and name in line:
                return process
        return None

    def check_whole(self, name: str, trials: int) -> None:
        study = Study.open(self.studies / name)
        check_whole(study, trials)
        study.close()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    made = Lab(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("EDGEFRONT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("EDGEFRONT_IMPORT_PATH", "")  # the command line adds to it
    monkeypatch.setenv("EDGEFRONT_STUDIES", str(made.studies))
    monkeypatch.setenv("EDGEFRONT_STAGES", FAKE_STAGES)
    yield made
    for started in made.orchestrators:
        if started.poll() is None:
            started.kill()
        started.wait()
    wait_for(lambda: not made.processes(), 20)


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        text: str = answer.read().decode()
    return text


def test_studies_run_at_once_to_their_ends_and_one_whose_data_were_changed_waits_to_be_resumed(lab: Lab) -> None:
    data = lab.folder / "mine.npz"
    lab.make_data(data, seed=0)
    with webhooks() as server:
        lab.submit("one", 3, f"notify: {{webhook: '{server.url}', on: [end], secret: abc}}\n")
        lab.submit("two", 3, "", "--priority", "1", source="mine.npz")
        assert (
            "was submitted before, its file is unchanged since, and it waits for its turn"
            in lab.call("submit", "one.yaml").stdout
        )
        lab.make_data(data, seed=1)
        lab.start()
        url = wait_for(lambda: re.search(r"http://\S+/metrics", lab.said()))[0]
        assert "the content of 'mine.npz' has changed" in lab.wait_for_state("two", "failed").reason
        lab.make_data(data, seed=0)
        lab.call("resume", "two")
        lab.wait_for_state("one", "finished")
        received = server.next()
        lab.wait_for_state("two", "finished")
        wait_for(lambda: 'edgefront_studies{state="finished"} 2.0' in read(url))
        assert 'edgefront_trials_told{study="two"} 3.0' in read(url)
    assert (received.content["event"], received.content["study"]) == ("end", "one")
    assert "X-Edgefront-Signature" in received.headers
    for name in ("one", "two"):
        lab.check_whole(name, 3)
        assert (lab.studies / name / "report.html").exists()
    listed = json.loads(lab.call("status", "--json").stdout)
    assert [(item["name"], item["told"], item["state"]) for item in listed] == [
        ("one", 3, "finished"),
        ("two", 3, "finished"),
    ]


def test_a_study_is_edited_paused_resumed_drained_and_stopped(lab: Lab) -> None:
    lab.submit("one", 1000)
    started = lab.start()
    lab.wait_for_trials("one", 3)
    edited = lab.call("edit", "one", "--limit", "rom=40 KiB", "--trials", "1001")
    changed = r"one: 1001 trials instead of 1000, rom at most 40,960 bytes, (1 trial is|\d+ trials are) infeasible now"
    assert re.match(changed, edited.stdout)
    refused = lab.call("edit", "one", "--limit", "rom=50 KiB")
    assert (refused.exit_code, "may only be tightened" in refused.stderr) == (2, True)
    lab.call("pause", "one")
    paused = lab.wait_for_state("one", "paused")
    assert lab.process_of("one") is None
    study = Study.open(lab.studies / "one")
    assert not [attempt for attempt in study.stage_attempts() if attempt.is_open]
    assert study.objectives.limits[1] == 40960
    study.close()
    lab.call("resume", "one")
    lab.wait_for_trials("one", paused.reached.told + 1)
    started.terminate()
    assert started.wait(40) == 0
    entry = lab.entry("one")
    assert (entry.state, entry.owner, lab.processes()) == ("submitted", "", [])
    stopped = lab.call("stop", "one", "--yes").stdout
    assert re.match(r"one: stopped for good after \d+ trials", stopped)
    assert (lab.studies / "one" / "report.html").exists()
    shown = lab.call("logs", "one").stdout
    assert "edited: 1001 trials instead of 1000" in shown
    assert "the run ends (paused)" in shown
    assert "the run ends (interrupted)" in shown
    assert "stopped for good" in shown
    assert lab.call("resume", "one").exit_code == 2
    assert "one is stopped" in lab.call("watch", "one").stdout


def test_kills_of_a_study_and_of_its_orchestrator_cost_no_trial(lab: Lab) -> None:
    lab.submit("one", 18)
    first = lab.start(EDGEFRONT_TEST_TROUBLE="slow:train:*")  # so that it still runs whenever something is killed
    lab.wait_for_trials("one", 1)
    wait_for(lambda: lab.process_of("one")).kill()
    wait_for(lambda: lab.entry("one").token == 2)
    assert "its process was ended by SIGKILL; tried again after 1 s" in lab.said()
    lab.start()
    wait_for(lambda: "at work" in lab.said(1))
    lab.wait_for_trials("one", lab.entry("one").reached.told + 1)
    assert "study one" not in lab.said(1)
    first.kill()
    first.wait()
    wait_for(lambda: lab.entry("one").token == 3)
    lab.wait_for_state("one", "finished")
    lab.check_whole("one", 18)


@pytest.mark.slow
@pytest.mark.skipif("EDGEFRONT_LONG_TESTS" not in os.environ, reason="takes 60 s; EDGEFRONT_LONG_TESTS=1 runs it")
def test_the_studies_of_an_orchestrator_whose_host_is_gone_are_taken_over_within_a_minute(lab: Lab) -> None:
    lab.submit("one", 40)
    first = lab.start(EDGEFRONT_HOST="a", EDGEFRONT_TEST_TROUBLE="slow:train:*")
    lab.wait_for_trials("one", 1)
    lab.start(EDGEFRONT_HOST="b", EDGEFRONT_TEST_TROUBLE="slow:train:*")
    wait_for(lambda: "at work" in lab.said(1))
    first.kill()
    began = time.monotonic()
    first.wait()
    wait_for(lambda: lab.entry("one").token == 2)
    assert LEASE_S - 1 < time.monotonic() - began < 60, "of another host nobody can know at once that it is gone"
    assert lab.entry("one").owner.startswith("b:")
    lab.wait_for_state("one", "finished")
    lab.check_whole("one", 40)


def test_a_killed_orchestrator_leaves_no_process_behind(lab: Lab) -> None:
    lab.submit("one", 100)
    started = lab.start()
    wait_for(lambda: lab.entry("one").state == "running")
    lab.call("stop", "one", "--yes")
    lab.wait_for_state("one", "stopped")
    lab.submit("two", 100)
    wait_for(lambda: len(lab.processes()) >= 4)  # its own, its guardian, its broker, a worker
    started.kill()
    started.wait()
    wait_for(lambda: not lab.processes(), 10)
    assert lab.entry("two").state == "running"  # nobody could say otherwise
    assert "no orchestrator is at work" in lab.call("status").stdout
