"""What the dashboards ask is asked of a real Prometheus that scrapes a real lab: an orchestrator with a submitted
study, its workers and boards."""

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
from time import monotonic, sleep, time
from typing import NamedTuple

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
training: {epochs: 2, checkpoint_every: 0.000001}
compression: {finetune_epochs: 0, steps: 1}
parallelism: {train_workers: 1, build_workers: 1, boards: 2}
"""
# What a worker on a machine with a GPU is told by the driver's program.
NVIDIA_SMI = """\
#!/bin/sh
echo "0, GPU-00000000-0000-0000-0000-000000000000, NVIDIA H100, 35, 2048, 81559"
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
        **{name: value for name, value in os.environ.items() if not name.startswith("EDGEFRONT_")},
        BROKER_VARIABLE: url,
        "EDGEFRONT_STUDIES": str(folder / "studies"),
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
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
    (folder / "bin").mkdir()
    (folder / "bin" / "nvidia-smi").write_text(NVIDIA_SMI)
    (folder / "bin" / "nvidia-smi").chmod(0o755)
    ports = {job: free_port() for job in ("edgefront-orchestrator", "edgefront-worker", "edgefront-agent")}
    broker = EmbeddedBroker(folder / "broker", folder / "broker.log")
    broker.start()

    started: list[subprocess.Popen[str]] = []

    def starts(stack: ExitStack, *arguments: str) -> None:
        started.append(stack.enter_context(process(arguments, broker.url, folder)))

    with ExitStack() as stack:
        stack.callback(broker.stop)
        targets = {job: f"127.0.0.1:{port}" for job, port in ports.items()}
        server = stack.enter_context(prometheus(folder, targets, DEPLOY / "prometheus" / "rules.yml"))
        begin = time()
        agent_port, worker_port, own_port = (
            str(ports[f"edgefront-{job}"]) for job in ("agent", "worker", "orchestrator")
        )
        starts(stack, "agent", "--rack", str(folder / "rack.toml"), "--metrics-port", agent_port)
        starts(stack, "worker", "--queues", "train", "--name", "train", "--gpus", "all", "--metrics-port", worker_port)
        starts(stack, "worker", "--queues", "build", "--name", "build")
        submitting = stack.enter_context(process(["submit", str(folder / "study.yaml")], broker.url, folder))
        assert submitting.wait(60) == 0
        starts(stack, "orchestrator", "--most", "2", "--metrics-port", own_port)
        wait_until_finished(f"http://{targets['edgefront-orchestrator']}/metrics")
        scraped = {job: scrape(f"http://{target}/metrics") for job, target in targets.items()}
        yield Watched(server, begin, time(), scraped)
        for one in started:  # together: each takes a moment to leave in peace
            one.terminate()


def wait_until_finished(url: str) -> None:
    deadline = monotonic() + 120
    while 'edgefront_studies{state="finished"} 1.0' not in scrape(url):
        assert monotonic() < deadline, "the study does not come to its end"
        sleep(0.2)


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


def test_every_panel_of_every_dashboard_has_data(watched: Watched) -> None:
    assert len(queries()) > 70
    without = []
    for title, expr in queries():
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
    told = {
        "edgefront-orchestrator": 'edgefront_trials_told{study="watched"} 4.0',
        "edgefront-worker": 'edgefront_worker_gpu_utilisation_ratio{gpu="0"} 0.35',
        "edgefront-agent": 'edgefront_measurements_total{board_kind="nrf52-dk",outcome="complete"}',
    }
    for job, line in told.items():
        text = watched.scraped[job]
        done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
        assert (done.returncode, done.stdout + done.stderr) == (0, ""), job
        assert line in text


def test_a_healthy_study_raises_no_alarm_but_that_something_is_not_there(watched: Watched) -> None:
    alerts = watched.server.get("alerts")["alerts"]
    assert {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"} == set()
    health = [rule["health"] for group in watched.server.get("rules")["groups"] for rule in group["rules"]]
    assert health == ["ok"] * len(health) and len(health) == 15
