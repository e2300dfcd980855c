"""A lab's worker as its own process: limits, leaving, dying and standing still, and what it says of itself."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import psutil
import pytest

from orchestrator.records import Ending, FaultKind, StageRequest, StageResult
from tasks import messages
from tasks.broker import EmbeddedBroker, connect
from tasks.evaluator import CeleryEvaluator
from tests.support import quick_worker
from tests.support.studies import FAKE_STAGES, request

ROOT = Path(__file__).parents[2]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    one = EmbeddedBroker(tmp_path / "broker", tmp_path / "broker.log")
    one.start()
    yield one
    one.stop()


@pytest.fixture
def evaluator(broker: EmbeddedBroker, tmp_path: Path) -> Iterator[CeleryEvaluator]:
    one = CeleryEvaluator(url=broker.url, study_id="study", artifacts=tmp_path / "artifacts")
    yield one
    one.close()


@contextmanager
def running(
    module: str, arguments: Sequence[str], url: str, log: Path, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A program of ours as its own process group; whatever is left of it is killed."""
    settings = {**os.environ, "EDGEFRONT_BROKER_URL": url, "EDGEFRONT_STAGES": FAKE_STAGES, **environment}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=settings,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            family = [process, *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
            for one in family:
                one.kill()
            process.wait(10)


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> float:
    """Returns how long it took."""
    started = monotonic()
    while not condition():
        assert monotonic() - started < seconds, "waited in vain"
    return monotonic() - started


def collected(one: CeleryEvaluator, of: StageRequest) -> StageResult:
    found: list[StageResult] = []

    def is_there() -> bool:
        found.extend(result for result in one.collect(0.1) if result.trial == of.trial and result.attempt == of.attempt)
        return bool(found)

    wait_for(is_there, 60.0)
    return found[0]


def has_started(url: str, task: StageRequest) -> bool:
    client = connect(url)
    try:
        return bool(client.hexists(messages.started_key(task.study_id), task.task_id))
    finally:
        client.close()


def scraped(log: Path) -> dict[str, float]:
    url = next(line.split()[-1] for line in log.read_text().splitlines() if line.startswith("metrics at "))
    text = urllib.request.urlopen(url, timeout=5).read().decode()
    samples = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def test_a_worker_ends_what_takes_too_much_hands_over_when_it_leaves_and_counts_both(
    tmp_path: Path, broker: EmbeddedBroker, evaluator: CeleryEvaluator
) -> None:
    log = tmp_path / "worker.log"
    arguments = ["worker", "--queues", "train", "--name", "w", "--memory-limit", "350MiB", "--metrics-port", "0"]
    arguments += ["--drain", "handover", "--gpus", "all"]
    trouble = "hog:train:1,train:train:2"
    with running("cli", arguments, broker.url, log, EDGEFRONT_TEST_TROUBLE=trouble, PATH="/usr/bin:/bin") as process:
        hog, long = request("train", trial=1), request("train", trial=2, seed=2)
        evaluator.submit(hog)
        fault = collected(evaluator, hog).fault
        assert fault is not None
        assert (fault.kind, fault.reason) == (FaultKind.TRANSIENT, "memory_limit")
        assert "this worker allows 350 MiB (--memory-limit)" in fault.detail
        evaluator.submit(long)
        wait_for(lambda: has_started(broker.url, long))
        wait_for(lambda: scraped(log)['edgefront_worker_tasks_running{stage="train"}'] == 1)
        samples = scraped(log)
        process.terminate()
        left = collected(evaluator, long).fault
        assert left is not None
        assert left.reason == "handed_over"
        assert process.wait(20) == 0
    assert list(evaluator.collect(0.1)) == []  # the messages were acknowledged or are dropped
    assert "no GPU found here" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert samples['edgefront_worker_tasks_total{outcome="fault",stage="train"}'] == 1
    assert samples['edgefront_worker_faults_total{reason="memory_limit"}'] == 1
    assert samples['edgefront_worker_child_exits_total{reason="memory_limit"}'] == 1
    assert samples['edgefront_worker_task_memory_peak_bytes{stage="train"}'] > 350 * 1024**2
    assert samples["edgefront_worker_memory_limit_bytes"] == 350 * 1024**2


def test_a_limit_below_what_a_waiting_process_takes_is_refused_at_the_start(
    tmp_path: Path, broker: EmbeddedBroker
) -> None:
    log = tmp_path / "worker.log"
    arguments = ["worker", "--queues", "build", "--memory-limit", "10 MiB"]
    with running("cli", arguments, broker.url, log) as process:
        assert process.wait(30) == 2
    client = connect(broker.url)
    assert list(client.scan_iter(messages.WORKER_KEYS)) == [], "studies would wait for it"
    client.close()
    assert re.search(
        r"found 10 MiB; a process that waits for tasks of build takes [0-9.]+ MiB already", log.read_text()
    )


def test_a_worker_says_when_its_broker_is_back(tmp_path: Path, broker: EmbeddedBroker) -> None:
    log = tmp_path / "worker.log"
    with running("cli", ["worker", "--queues", "build"], broker.url, log):
        client = connect(broker.url)
        wait_for(lambda: list(client.scan_iter(messages.WORKER_KEYS)))
        broker.stop_process()
        wait_for(lambda: "Trying again" in log.read_text())
        broker.restart()
        wait_for(lambda: "connected to the broker again, serving build" in log.read_text())
        client.close()


def test_a_worker_lets_what_is_under_way_finish_before_it_leaves(
    tmp_path: Path, broker: EmbeddedBroker, evaluator: CeleryEvaluator
) -> None:
    task = request(trial=1)
    with running(
        "cli", ["worker", "--queues", "build"], broker.url, tmp_path / "log", EDGEFRONT_TEST_TROUBLE="pause:gate:1"
    ) as process:
        evaluator.submit(task)
        wait_for(lambda: has_started(broker.url, task))
        process.terminate()
        assert collected(evaluator, task).ending is Ending.COMPLETE
        assert process.wait(20) == 0


def test_what_neither_finishes_nor_hands_over_is_answered_for_and_ended(
    tmp_path: Path, broker: EmbeddedBroker, evaluator: CeleryEvaluator
) -> None:
    task = request(trial=1)
    arguments = ["worker", "--queues", "build", "--time-limit", "2h", "--drain-limit", "1 s"]
    with running("cli", arguments, broker.url, tmp_path / "log", EDGEFRONT_TEST_TROUBLE="hang:gate:1") as process:
        evaluator.submit(task)
        wait_for(lambda: has_started(broker.url, task))
        found: list[StageResult] = []

        def is_answered() -> bool:
            process.terminate()  # asked for the third time, it waits for nothing
            found.extend(evaluator.collect(0.2))
            return bool(found)

        wait_for(is_answered)
        fault = found[0].fault
        assert fault is not None
        assert (fault.reason, fault.detail) == ("handed_over", "the worker left before stage gate was finished")
        assert process.wait(20) == 0


def test_a_workers_own_time_limit_holds_where_the_message_allows_more(
    tmp_path: Path, broker: EmbeddedBroker, evaluator: CeleryEvaluator
) -> None:
    task = request(trial=1)
    arguments = ["worker", "--queues", "build", "--time-limit", "1 s"]
    with running("cli", arguments, broker.url, tmp_path / "log", EDGEFRONT_TEST_TROUBLE="hang:gate:1"):
        evaluator.submit(task)
        fault = collected(evaluator, task).fault
    assert fault is not None
    assert fault.reason == "time_limit"


@pytest.fixture
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "BEAT_TTL_S", quick_worker.BEAT_TTL_S)


@contextmanager
def quick(queue: str, url: str, log: Path, host: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    arguments = ["--queues", queue, "--name", host]
    with running("tests.support.quick_worker", arguments, url, log, EDGEFRONT_HOST=host, **environment) as process:
        yield process


def retried(evaluator: CeleryEvaluator, task: StageRequest) -> StageRequest:
    """The next attempt, submitted as soon as the loop would know that this one is lost."""
    wait_for(lambda: list(evaluator.lost([task.task_id])) == [task.task_id])
    again = request(task.stage, trial=task.trial, seed=task.seed, attempt=task.attempt + 1)
    evaluator.submit(again)
    return again


def test_the_death_of_another_host_is_noticed_by_its_beat_and_its_task_runs_again(
    tmp_path: Path, broker: EmbeddedBroker, evaluator: CeleryEvaluator, quick_beats: None
) -> None:
    task = request(trial=1)
    with quick("build", broker.url, tmp_path / "a.log", "a", EDGEFRONT_TEST_TROUBLE="hang:gate:1:1") as dying:
        evaluator.submit(task)
        wait_for(lambda: has_started(broker.url, task))
        assert list(evaluator.lost([task.task_id])) == []
        os.killpg(dying.pid, signal.SIGKILL)
        dying.wait(10)
        with quick("build", broker.url, tmp_path / "b.log", "b"):
            assert collected(evaluator, retried(evaluator, task)).worker.startswith("b")


def test_a_worker_that_stood_still_is_given_up_and_what_it_does_afterwards_is_not_awaited(
    tmp_path: Path, broker: EmbeddedBroker, evaluator: CeleryEvaluator, quick_beats: None
) -> None:
    task, client = request("train", trial=1), connect(broker.url)
    with quick("train", broker.url, tmp_path / "a.log", "a", EDGEFRONT_TEST_TROUBLE="train:train:1:1") as standing:
        evaluator.submit(task)
        wait_for(lambda: list((tmp_path / "artifacts").glob("checkpoint/*/*")))  # it is amid the stage
        family = [psutil.Process(standing.pid), *psutil.Process(standing.pid).children(recursive=True)]
        for one in family:
            one.suspend()
        with quick("train", broker.url, tmp_path / "b.log", "b") as other:
            again = retried(evaluator, task)
            assert collected(evaluator, again).ending is Ending.COMPLETE
            other.kill()
        for one in family:
            one.resume()
        late = collected(evaluator, task)  # it notices, and leaves the task to the other
        assert late.fault is not None
        assert late.fault.reason == "handed_over"
        assert client.get(messages.beat_key(task.task_id)) in messages.TOMBSTONES
        assert "was given up while this process stood still" in (tmp_path / "a.log").read_text()
    client.close()


def outage(broker: EmbeddedBroker, evaluator: CeleryEvaluator, task: StageRequest, seconds: float) -> StageResult:
    """The broker is away for so long amid a task; its first attempt must answer."""
    evaluator.submit(task)
    wait_for(lambda: has_started(broker.url, task))
    broker.stop_process()
    away = monotonic()
    wait_for(lambda: monotonic() - away > seconds, 2 * seconds)
    broker.restart()
    assert list(evaluator.lost([task.task_id])) == []
    return collected(evaluator, task)


def test_an_outage_of_the_broker_costs_no_attempt(
    tmp_path: Path, broker: EmbeddedBroker, evaluator: CeleryEvaluator, quick_beats: None
) -> None:
    # 3.5 s: longer than a beat lasts there, and than the task takes
    with quick("build", broker.url, tmp_path / "a.log", "a", EDGEFRONT_TEST_TROUBLE="pause:gate:1"):
        assert outage(broker, evaluator, request(trial=1), 3.5).ending is Ending.COMPLETE


@pytest.mark.slow
@pytest.mark.skipif("EDGEFRONT_LONG_TESTS" not in os.environ, reason="takes 90 s; EDGEFRONT_LONG_TESTS=1 runs it")
def test_a_minute_without_the_broker_costs_no_attempt(
    tmp_path: Path, broker: EmbeddedBroker, evaluator: CeleryEvaluator
) -> None:
    arguments = ["worker", "--queues", "build"]
    with running("cli", arguments, broker.url, tmp_path / "log", EDGEFRONT_TEST_TROUBLE="pause:gate:1"):
        assert outage(broker, evaluator, request(trial=1), 60.0).ending is Ending.COMPLETE
        later = request(trial=2, seed=2)
        evaluator.submit(later)
        assert collected(evaluator, later).ending is Ending.COMPLETE
