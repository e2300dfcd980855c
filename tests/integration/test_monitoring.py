"""What the dashboards ask is asked of a real Prometheus that scrapes a real study with its workers and boards."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import time
from typing import IO, NamedTuple

import pytest

from tasks.broker import BROKER_VARIABLE, EmbeddedBroker
from tests.support.prometheus import Prometheus, free_port, needs_prometheus, prometheus

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"

pytestmark = [pytest.mark.xdist_group("command line"), needs_prometheus]

STUDY = """\
name: watched
dataset: {source: digits}
network: {family: mlp, options: {depth: 1}}
space:
  network.width: {type: int, low: 4, high: 64, log: true}
  training.learning_rate: {type: float, low: 1.0e-3, high: 1.0e-2, log: true}
board: nrf52-dk
objectives: {error: {}, rom: {limit: 8 KiB}, latency: {limit: 20 ms}}
budget: {trials: 4}
sampler: {name: ars, initial: 2}
training: {epochs: 1}
compression: {finetune_epochs: 0, steps: 1}
parallelism: {train_workers: 1, build_workers: 1, boards: 2}
"""
RACK = '[[board]]\nid = "b"\nkind = "nrf52-dk"\ndriver = "virtual"\ncount = 2\n'


class Watched(NamedTuple):
    """A study that has run under Prometheus, between two seconds since the epoch."""

    server: Prometheus
    begin: float
    end: float
    scraped: dict[str, str]


@contextmanager
def process(arguments: Sequence[str], url: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """``edgefront`` with these arguments, until the block ends."""
    settings = {
        **os.environ,
        BROKER_VARIABLE: url,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "EDGEFRONT_LOCKS": str(folder / "locks"),
    }
    command = [sys.executable, "-m", "cli", *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=settings, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            yield running
        finally:
            running.terminate()
            running.wait(60)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    (folder / "study.yaml").write_text(STUDY)
    (folder / "rack.toml").write_text(RACK)
    ports = {job: free_port() for job in ("edgefront-orchestrator", "edgefront-worker", "edgefront-agent")}
    broker = EmbeddedBroker(folder / "broker", folder / "broker.log")
    broker.start()

    started: list[subprocess.Popen[str]] = []

    def starts(stack: ExitStack, *arguments: str) -> IO[str]:
        started.append(stack.enter_context(process(arguments, broker.url, folder)))
        assert started[-1].stdout is not None
        return started[-1].stdout

    with ExitStack() as stack:
        stack.callback(broker.stop)
        targets = {job: f"127.0.0.1:{port}" for job, port in ports.items()}
        server = stack.enter_context(prometheus(folder, targets, DEPLOY / "prometheus" / "rules.yml"))
        begin = time()
        agent_port, run_port = str(ports["edgefront-agent"]), str(ports["edgefront-orchestrator"])
        starts(stack, "agent", "--rack", str(folder / "rack.toml"), "--metrics-port", agent_port)
        exported = ["--metrics-port", str(ports["edgefront-worker"])]
        starts(stack, "worker", "--queues", "train", "--name", "train", *exported)
        starts(stack, "worker", "--queues", "build", "--name", "build")
        file = str(folder / "study.yaml")
        scraped: dict[str, str] = {}
        for line in starts(stack, "run", file, "--studies", str(folder), "--metrics-port", run_port, "--json"):
            if json.loads(line).get("ending") is not None:  # while the processes are still there to be asked
                scraped = {job: scrape(f"http://{target}/metrics") for job, target in targets.items()}
        yield Watched(server, begin, time(), scraped)
        for one in started:  # together: each takes a moment to leave in peace
            one.terminate()


def scrape(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def queries() -> list[tuple[str, str]]:
    """Of every panel: dashboard and title, and what it asks."""
    found = []
    for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            found += [(f"{path.stem}: {panel['title']}", target["expr"]) for target in panel.get("targets", ())]
    return found


# What cannot be there in a small study on a machine without a GPU, whose trainings are too short for checkpoints.
WITHOUT_DATA = frozenset({"workers: GPU use", "workers: GPU memory", "workers: Checkpoints in an hour"})


def test_every_panel_of_every_dashboard_has_data(watched: Watched) -> None:
    assert {title for title, _ in queries()} >= WITHOUT_DATA
    asked = [(title, expr) for title, expr in queries() if title not in WITHOUT_DATA]
    assert len(asked) > 60
    without = []
    for title, expr in asked:
        filled = expr.replace("$study", "watched").replace("$board_kind", ".*").replace("$__rate_interval", "30s")
        assert "$" not in filled, expr
        if not watched.server.amounts(filled, watched.begin, watched.end):
            without.append(f"{title}: {filled}")
    assert without == []


def test_the_choices_of_every_dashboard_have_values(watched: Watched) -> None:
    for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json")):
        for choice in json.loads(path.read_text())["templating"]["list"]:
            found = re.fullmatch(r"label_values\((\w+), (\w+)\)", choice["query"]["query"])
            assert found is not None
            values = watched.server.get(f"label/{found[2]}/values", **{"match[]": found[1]})
            assert values in (["watched"], ["nrf52-dk"])


def test_what_is_exported_passes_prometheus_own_lint(watched: Watched) -> None:
    assert set(watched.scraped) >= {"edgefront-orchestrator", "edgefront-agent"}
    for job, text in watched.scraped.items():
        if text:
            done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
            assert (done.returncode, done.stdout + done.stderr) == (0, ""), job
    assert 'edgefront_trials_told{study="watched"}' in watched.scraped["edgefront-orchestrator"]


def test_a_healthy_study_raises_no_alarm_but_that_something_is_not_there(watched: Watched) -> None:
    alerts = watched.server.get("alerts")["alerts"]
    assert {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"} == set()
    health = [rule["health"] for group in watched.server.get("rules")["groups"] for rule in group["rules"]]
    assert health == ["ok"] * len(health) and len(health) == 12
