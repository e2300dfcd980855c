"""The agent as a process: a real broker, real workers, virtual boards."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import psutil
import pytest

from mcu_agent.leases import State
from mcu_agent.pool import Pool
from mcu_agent.rack import load_rack
from orchestrator.records import Ending, StageRequest, StageResult
from tasks import messages
from tasks.artifacts import ArtifactStore
from tasks.broker import BROKER_VARIABLE, EmbeddedBroker, connect
from tasks.evaluator import CeleryEvaluator
from tests.support import boards
from tests.support.studies import Recorder, study_file

ROOT = Path(__file__).resolve().parents[2]
KIND = "nrf52-dk"


def wait_for(condition: Callable[[], Any], seconds: float = 40.0) -> Any:
    deadline = monotonic() + seconds
    while not (found := condition()):
        assert monotonic() < deadline, "waited in vain"
    return found


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    one = EmbeddedBroker(tmp_path / "broker", tmp_path / "broker.log")
    one.start()
    yield one
    one.stop()


@pytest.fixture
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEFRONT_LOCKS", str(tmp_path / "locks"))
    return tmp_path / "locks" / "boards"


class Running:
    """An agent process of its own, and the first lines it says."""

    def __init__(self, folder: Path, url: str, driver: str = "virtual", count: int = 2) -> None:
        self.rack = folder / "rack.toml"
        many = f"count = {count}\n" if count > 1 else ""
        self.rack.write_text(f'[[board]]\nid = "b"\nkind = "{KIND}"\ndriver = "{driver}"\n{many}')
        environment = {**os.environ, BROKER_VARIABLE: url, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "cli", "agent", "--rack", str(self.rack), "--name", "test"]
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.greeting = self.process.stdout.readline()

    def metrics(self) -> dict[str, float]:
        found = re.search(r"metrics at (\S+)", self.greeting)
        assert found is not None, self.greeting
        with urllib.request.urlopen(found[1], timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(60)


@contextmanager
def agent(folder: Path, url: str, **options: Any) -> Iterator[Running]:
    one = Running(folder, url, **options)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        assert one.process.stdout is not None
        one.process.stdout.close()


@contextmanager
def queue(url: str, folder: Path, recorder: Recorder | None = None) -> Iterator[CeleryEvaluator]:
    one = CeleryEvaluator(url=url, study_id="study", artifacts=folder / "artifacts", sink=recorder)
    yield one
    one.close()


def requests(folder: Path, n: int) -> list[StageRequest]:
    """Profiles of the hand-written firmware, each by a name of its own."""
    store = ArtifactStore(folder / "artifacts")
    job = boards.make_job(n=32)
    file = io.BytesIO()
    np.savez(file, inputs=job.inputs, outputs=job.expected)
    inputs = {
        "elf": store.put_bytes(job.elf),
        "vectors": store.put_bytes(file.getvalue()),
        "layers": store.put_bytes(json.dumps(boards.LAYERS).encode()),
    }
    study = study_file(objectives={"error": {}, "latency": {"limit": "1 s"}}).to_json()
    return [
        StageRequest(
            study_id="study", trial=i, stage="profile", attempt=1, params={"network.width": i}, seed=i,
            inputs=inputs, study=study,
        )
        for i in range(n)
    ]  # fmt: skip


def collect(one: CeleryEvaluator, n: int, seconds: float = 40.0) -> list[StageResult]:
    found: list[StageResult] = []
    wait_for(lambda: found.extend(one.collect(0.2)) or len(found) >= n, seconds)
    return found


def test_an_agent_measures_reports_its_boards_and_exports_what_happened(
    tmp_path: Path, broker: EmbeddedBroker, locks: Path
) -> None:
    heard = Recorder()
    client = connect(broker.url)
    with agent(tmp_path, broker.url) as running, queue(broker.url, tmp_path, heard) as one:
        for request in requests(tmp_path, 4):
            one.submit(request)
        results = collect(one, 4)
        assert [result.ending for result in results] == [Ending.COMPLETE] * 4, results
        wait_for(lambda: one.collect(0.2) or any("free" in fields for fields in heard.named("boards")))
        metrics = wait_for(
            lambda: (found := running.metrics())['edgefront_last_self_test_passed{board="b-2"}'] == 1 and found
        )
        assert metrics['edgefront_measurements_total{board_kind="nrf52-dk",outcome="complete"}'] == 4
        assert metrics['edgefront_measurement_duration_seconds_count{board_kind="nrf52-dk",phase="flash"}'] == 4
        assert metrics['edgefront_inference_energy_joules_count{board_kind="nrf52-dk",source="estimated"}'] == 4
        assert metrics['edgefront_inference_latency_seconds_count{board_kind="nrf52-dk",source="emulated"}'] == 4
        assert sum(metrics[f'edgefront_rack_boards{{board_kind="nrf52-dk",state="{s.value}"}}'] for s in State) == 2
        (key,) = client.keys(messages.AGENT_KEYS)
        report = json.loads(client.get(key) or b"")
        assert [board["board"] for board in report["boards"]] == ["b-1", "b-2"]
        assert running.stop() == 0
        assert client.keys(messages.AGENT_KEYS) == []
    client.close()


def test_tasks_wait_in_their_queue_while_every_board_is_out_of_use(
    tmp_path: Path, broker: EmbeddedBroker, locks: Path
) -> None:
    client = connect(broker.url)
    with agent(tmp_path, broker.url) as running, queue(broker.url, tmp_path) as one:
        pool = Pool(load_rack(running.rack), locks)
        wait_for(lambda: client.keys(messages.WORKER_KEYS))
        for name in ("b-1", "b-2"):
            pool.quarantine(name, "new wires", by="somebody")
        wait_for(lambda: not _workers(running))
        one.submit(requests(tmp_path, 1)[0])
        assert list(one.collect(3.0)) == []
        assert client.llen(f"board.{KIND}") == 1
        pool.put_back("b-2")
        (result,) = collect(one, 1)
        assert result.ending is Ending.COMPLETE
        assert result.notes["board_id"] == "b-2"
    client.close()


def _workers(running: Running) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(running.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile; a zombie has, too
            if "tasks.workers" in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_a_killed_agent_frees_its_boards_and_another_goes_on(
    tmp_path: Path, broker: EmbeddedBroker, locks: Path
) -> None:
    driver = "tests.support.slow_drivers:slow"
    with queue(broker.url, tmp_path) as one:
        with agent(tmp_path, broker.url, driver=driver, count=1) as running:
            pool = Pool(load_rack(running.rack), locks)
            request = requests(tmp_path, 1)[0]
            one.submit(request)
            wait_for(lambda: one.collect(0.1) or pool.statuses()[0].detail.startswith("small/0/1"))
            running.process.send_signal(signal.SIGKILL)
            running.process.wait()
            killed = monotonic()
            wait_for(lambda: pool.statuses()[0].state is State.IDLE, 30.0)
        wait_for(lambda: one.lost([request.task_id]), 30.0)
        assert monotonic() - killed < 30
        with agent(tmp_path, broker.url, count=1):
            one.submit(StageRequest(**{**_fields(request), "attempt": 2}))
            (result,) = collect(one, 1)
            assert (result.ending, result.attempt) == (Ending.COMPLETE, 2)


def _fields(request: StageRequest) -> dict[str, Any]:
    return {name: getattr(request, name) for name in StageRequest.__dataclass_fields__}


def test_a_second_signal_ends_an_agent_whatever_its_boards_are_doing(
    tmp_path: Path, broker: EmbeddedBroker, locks: Path
) -> None:
    client = connect(broker.url)
    with agent(tmp_path, broker.url, driver="tests.support.slow_drivers:stuck", count=1) as running:
        pool = Pool(load_rack(running.rack), locks)
        wait_for(lambda: pool.statuses()[0].detail == "self-test")
        (key,) = wait_for(lambda: client.keys(messages.AGENT_KEYS))
        assert key.decode().endswith(f"-{running.process.pid}")  # another of its name has another
        running.process.terminate()
        wait_for(lambda: not client.keys(messages.AGENT_KEYS))
        assert running.process.poll() is None
        running.process.terminate()
        assert running.process.wait(10) == 0
        assert pool.statuses()[0].state is State.IDLE
    client.close()


def test_an_agent_without_a_broker_says_so(tmp_path: Path) -> None:
    rack = tmp_path / "rack.toml"
    rack.write_text(f'[[board]]\nid = "b"\nkind = "{KIND}"\ndriver = "virtual"\n')
    environment = {name: value for name, value in os.environ.items() if name != BROKER_VARIABLE}
    command = [sys.executable, "-m", "cli", "agent", "--rack", str(rack)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("edgefront: EDGEFRONT_BROKER_URL is not set")
