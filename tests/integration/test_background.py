"""Searches in the background, with real processes: submitted, run, steered, killed, taken over."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.registry import Entry, Registry
from orchestrator.study import Study
from tests.support.studies import FAKE_STAGES, check_whole
from tests.support.webhooks import webhooks

ROOT = Path(__file__).parents[2]
STUDY = """\
name: {name}
dataset: {{source: digits}}
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

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cli", *arguments]
        return subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=100, check=False
        )

    def submit(self, name: str, trials: int = 4, more: str = "", *options: str) -> None:
        file = self.folder / f"{name}.yaml"
        file.write_text(STUDY.format(name=name, trials=trials, more=more), encoding="utf-8")
        done = self.call("submit", str(file), *options)
        assert done.returncode == 0, done.stderr

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
                is_ours = process.environ().get("EDGEFRONT_STUDIES") == str(self.studies)
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
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    for started in made.orchestrators:
        if started.poll() is None:
            started.kill()
        started.wait()
    wait_for(lambda: not made.processes(), 20)


def test_two_submitted_studies_run_at_once_to_their_ends_and_say_so(lab: Lab) -> None:
    with webhooks() as server:
        lab.submit("one", 4, f"notify: {{webhook: '{server.url}', on: [end], secret: abc}}\n")
        lab.submit("two", 4, "", "--priority", "1")
        again = lab.call("submit", "one.yaml")
        assert "was submitted before, unchanged since, and is submitted" in again.stdout
        started = lab.start()
        url = wait_for(lambda: re.search(r"http://\S+/metrics", lab.said()))[0]
        lab.wait_for_state("one", "finished")
        lab.wait_for_state("two", "finished")
        received = server.next()
        assert (received.content["event"], received.content["study"]) == ("end", "one")
        assert "X-Edgefront-Signature" in received.headers
        time_of_shown = 'edgefront_studies{state="finished"} 2.0'
        page = wait_for(lambda: (text := read(url)) if time_of_shown in (text := read(url)) else "")
        assert 'edgefront_trials_told{study="two"} 4.0' in page
        started.send_signal(signal.SIGTERM)
        assert started.wait(20) == 0
    for name in ("one", "two"):
        lab.check_whole(name, 4)
        assert (lab.studies / name / "report.html").exists()
    listed = json.loads(lab.call("status", "--json").stdout)
    assert [(item["name"], item["told"], item["state"]) for item in listed] == [
        ("one", 4, "finished"),
        ("two", 4, "finished"),
    ]
    assert "no orchestrator is at work" in lab.call("status").stdout


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        text: str = answer.read().decode()
    return text


def test_a_study_is_edited_paused_resumed_and_stopped_while_it_runs(lab: Lab) -> None:
    lab.submit("one", 1000)
    lab.start()
    lab.wait_for_trials("one", 3)
    edited = lab.call("edit", "one", "--limit", "rom=40 KiB", "--trials", "1001")
    assert re.match(
        r"one: 1001 trials instead of 1000, rom at most 40,960 bytes, \d+ trials are infeasible now", edited.stdout
    )
    refused = lab.call("edit", "one", "--limit", "rom=50 KiB")
    assert (refused.returncode, "may only be tightened" in refused.stderr) == (2, True)
    lab.call("pause", "one")
    paused = lab.wait_for_state("one", "paused")
    assert lab.process_of("one") is None
    study = Study.open(lab.studies / "one")
    assert not [attempt for attempt in study.stage_attempts() if attempt.is_open]
    assert study.objectives.limits[1] == 40960
    study.close()
    lab.call("resume", "one")
    lab.wait_for_trials("one", paused.reached.told + 2)
    assert lab.call("stop", "one", "--yes").returncode == 0
    lab.wait_for_state("one", "stopped")
    assert (lab.studies / "one" / "report.html").exists()
    study = Study.open(lab.studies / "one")
    assert not [trial for trial in study.trials() if trial.state in ("running", "proposed")]
    study.close()
    shown = lab.call("logs", "one").stdout
    assert "edited: 1001 trials instead of 1000" in shown
    assert "the run ends (paused)" in shown
    assert "stopped for good" in shown
    assert lab.call("resume", "one").returncode == 2


def test_a_killed_orchestrator_leaves_nothing_running_and_the_next_goes_on(lab: Lab) -> None:
    lab.submit("one", 40)
    first = lab.start()
    lab.wait_for_trials("one", 3)
    first.kill()
    first.wait()
    wait_for(lambda: not lab.processes(), 10)
    assert lab.entry("one").state == "running"  # nobody could say otherwise
    lab.start()
    lab.wait_for_state("one", "finished")
    lab.check_whole("one", 40)
    assert lab.entry("one").token == 2


def test_a_killed_process_of_a_study_is_started_again_and_costs_no_trial(lab: Lab) -> None:
    lab.submit("one", 40)
    lab.start()
    lab.wait_for_trials("one", 3)
    found = wait_for(lambda: lab.process_of("one"))
    found.kill()
    lab.wait_for_state("one", "finished")
    lab.check_whole("one", 40)
    assert "its process was ended by SIGKILL; tried again after 1 s" in lab.said()


def test_two_orchestrators_share_the_studies_and_the_second_takes_over_a_frozen_firsts(lab: Lab) -> None:
    lab.submit("one", 60)
    first = lab.start()
    lab.wait_for_trials("one", 3)
    lab.start()
    wait_for(lambda: "at work" in lab.said(1))
    first.send_signal(signal.SIGSTOP)
    frozen = time.monotonic()
    entry = wait_for(lambda: (found := lab.entry("one")) if (found := lab.entry("one")).token == 2 else None)
    assert 20 < time.monotonic() - frozen < 60
    assert entry.owner != ""
    first.send_signal(signal.SIGCONT)
    lab.wait_for_state("one", "finished")
    lab.check_whole("one", 60)


def test_a_defect_marks_the_study_as_failed_and_tells_the_webhook(lab: Lab) -> None:
    with webhooks() as server:
        lab.submit("one", 4)
        started = lab.start(EDGEFRONT_TEST_TROUBLE="defect:build:1", EDGEFRONT_WEBHOOK=server.url)
        entry = lab.wait_for_state("one", "failed")
        assert "bit_mismatch: build: layer 2 differs" in entry.reason
        while (content := server.next().content)["event"] != "end":
            assert content["event"] == "record"
        assert content["how"] == "failed"
        started.terminate()
        assert started.wait(20) == 0
    lab.start()
    lab.call("resume", "one")
    lab.wait_for_state("one", "finished")
    lab.check_whole("one", 4)
