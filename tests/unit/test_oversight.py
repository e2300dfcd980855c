"""What a worker's parent knows of its children, and which GPUs it gives them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic

import psutil
import pytest
from prometheus_client import CollectorRegistry

from orchestrator.errors import UsageError
from orchestrator.records import Event, FaultKind
from tasks import leaving
from tasks.channel import WORKER_CHANNEL, Channel, tell_worker
from tasks.crew import CrewOptions, specs_of
from tasks.gpus import Gpu, chosen_gpus, installed_gpus, parsed, pinned_to
from tasks.oversight import (
    OomCounter,
    RunningTask,
    TaskTable,
    kill_family,
    memory_fault,
    out_of_memory_fault,
    over_limit,
    resident_bytes,
)
from tasks.worker_metrics import FAMILIES, WorkerMetrics, describe
from tests.support.studies import request

SMI = """0, GPU-aaaa, NVIDIA H100 80GB HBM3, 35, 1024, 81559
1, GPU-bbbb, NVIDIA H100 80GB HBM3, [N/A], 0, 81559
No devices were found
"""
TWO = parsed(SMI)
MIB = 1024**2
TASK = RunningTask(pid=7, study_id="s", trial=3, stage="train", attempt=2)
DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


def started(pid: int, stage: str = "train") -> Event:
    fields = {"pid": pid, "study_id": "s", "trial": 3, "stage": stage, "attempt": 2}
    return Event(name="task_started", fields=fields)


def test_gpus_are_read_from_what_the_driver_says() -> None:
    assert [(gpu.index, gpu.utilisation, gpu.used_bytes) for gpu in TWO] == [(0, 0.35, 1024 * MIB), (1, None, 0.0)]
    assert TWO[0].total_bytes == 81559 * MIB


def test_gpus_are_chosen_by_index_by_uuid_or_all_together() -> None:
    assert chosen_gpus("1", TWO, {}) == (TWO[1],)
    assert chosen_gpus("GPU-bbbb, 0", TWO, {}) == (TWO[1], TWO[0])
    assert chosen_gpus("all", TWO, {}) == TWO
    assert chosen_gpus("all", TWO, {"CUDA_VISIBLE_DEVICES": "1"}) == (TWO[1],)
    assert chosen_gpus("0", (), {}) == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2", "found '2'; this machine offers 0 (NVIDIA H100 80GB HBM3), 1 (NVIDIA H100 80GB HBM3), or all"),
        ("0,x", "found 'x'; allowed are indices or uuids of nvidia-smi with commas, or all"),
        ("0,GPU-aaaa", "'0' is named twice"),
        (" , ", "none given"),
    ],
)
def test_gpus_that_are_not_there_are_refused_with_those_that_are(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        chosen_gpus(text, TWO, {})
    assert said in str(caught.value)


def test_what_names_no_gpu_is_refused_where_there_is_none_too() -> None:
    with pytest.raises(UsageError, match="found 'x'; allowed are indices"):
        chosen_gpus("x", (), {})


def test_each_gpu_has_a_worker_process_that_sees_no_other() -> None:
    specs = specs_of(CrewOptions(queues=("train",), name="lab"), TWO)
    assert [(spec.name, spec.queue, spec.concurrency) for spec in specs] == [
        ("lab-gpu0", "train", 1),
        ("lab-gpu1", "train", 1),
    ]
    assert [dict(spec.environment) for spec in specs] == [
        {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": uuid} for uuid in ("GPU-aaaa", "GPU-bbbb")
    ]
    (alone,) = specs_of(CrewOptions(queues=("train", "build"), name="lab", concurrency=3), ())
    assert (alone.name, alone.queue, alone.concurrency, dict(alone.environment)) == ("lab", "train,build", 3, {})


def test_a_machine_without_the_drivers_program_has_no_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert installed_gpus() == ()
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '%s' '{SMI}'\n")
    program.chmod(0o755)
    assert installed_gpus() == TWO
    program.write_text("#!/bin/sh\nexit 9\n")
    assert installed_gpus() == ()


def test_a_pinned_process_is_told_before_it_starts() -> None:
    code = "import os, sys; print(os.environ['CUDA_VISIBLE_DEVICES'], 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env={**os.environ, **pinned_to(TWO[0])}, capture_output=True, text=True
    )
    assert done.stdout == "GPU-aaaa False\n"


def test_tasks_are_known_by_process_until_they_end() -> None:
    table = TaskTable()
    table.take(started(7))
    table.take(started(8, "profile@nrf52-dk"))
    assert table.of(7) == TASK
    assert table.counts() == {"train": 1, "profile": 1}
    table.take(Event(name="task_ended", fields={"pid": 8}))
    assert table.all() == [TASK]
    assert table.drop(7) == TASK
    assert table.drop(7) is None


def test_a_task_is_answered_under_its_own_name() -> None:
    asked = request("train", study_id="s", trial=3, attempt=2)
    assert TASK.request.task_id == asked.task_id


def wait_until_gone(process: psutil.Process) -> None:
    """A process that was killed may take a moment to end."""
    deadline = monotonic() + 10.0
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert monotonic() < deadline


def test_memory_is_that_of_a_child_and_of_all_below_it() -> None:
    below = "import subprocess, sys; x = b'x' * 40_000_000; subprocess.run([sys.executable, '-S', '-c', sys.argv[1]])"
    sleeping = "x = b'x' * 60_000_000; print('up', flush=True); import time; time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-S", "-c", below, sleeping], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    grandchild = psutil.Process(child.pid).children()[0]
    used = resident_bytes([os.getpid()])
    assert used[child.pid] > 100_000_000
    assert grandchild.pid not in used
    assert child.pid in over_limit(used, 100_000_000)
    assert over_limit(used, 0) == []
    kill_family(child.pid)
    child.wait(5)
    child.stdout.close()
    wait_until_gone(grandchild)
    assert resident_bytes([2**22 - 3]) == {}


def test_faults_of_memory_are_transient_and_hold_their_figures() -> None:
    fault = memory_fault(TASK, 9.1 * 1024**3, 8 * 1024**3)
    assert (fault.kind, fault.reason) == (FaultKind.TRANSIENT, "memory_limit")
    assert "stage train took 9318.40 MiB of memory; this worker allows 8192 MiB (--memory-limit)" in fault.detail
    close = memory_fault(TASK, 420 * 1024**2 + 4096, 420 * 1024**2)
    assert "took 440,406,016 bytes of memory; this worker allows 440,401,920 bytes" in close.detail
    killed = out_of_memory_fault(TASK, 2.5 * 1024**3)
    assert (killed.kind, killed.reason) == (FaultKind.TRANSIENT, "out_of_memory")
    assert "last seen with 2.50 GiB" in killed.detail


@pytest.mark.parametrize(
    ("groups", "file"),
    [
        ("0::/lab\n", "sys/fs/cgroup/lab/memory.events"),
        ("5:cpu:/x\n4:memory:/lab\n", "sys/fs/cgroup/memory/lab/memory.oom_control"),
        ("4:memory:/docker/abc\n", "sys/fs/cgroup/memory/memory.oom_control"),
    ],
)
def test_the_kernels_count_of_processes_killed_for_memory_is_read(tmp_path: Path, groups: str, file: str) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    events = tmp_path / file
    events.parent.mkdir(parents=True)
    events.write_text("max 3\noom_kill 1\n")
    counter = OomCounter.of_this_process(tmp_path)
    assert not counter.has_risen()
    events.write_text("max 4\noom_kill 2\n")
    assert counter.has_risen()
    assert not counter.has_risen()


def test_without_control_groups_nobody_was_killed_for_memory(tmp_path: Path) -> None:
    assert not OomCounter.of_this_process(tmp_path).has_risen()


def test_a_process_takes_note_that_its_worker_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "_told", set())
    before = signal.getsignal(leaving.LEAVE_SIGNAL)
    leaving.listen()
    assert not leaving.is_leaving()
    os.kill(os.getpid(), leaving.LEAVE_SIGNAL)
    assert leaving.is_leaving()
    signal.signal(leaving.LEAVE_SIGNAL, before)


def test_children_tell_their_worker_over_its_channel_and_nobody_without(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Event] = []
    channel = Channel(heard.append, "worker")
    tell_worker(Event(name="unheard", fields={}))
    monkeypatch.setenv(WORKER_CHANNEL, channel.address)
    told = [Event(name="checkpoint_saved", fields={"bytes": index}) for index in range(50)]
    for event in told:  # more than the system queues
        tell_worker(event)
    channel.close()
    assert heard == told
    tell_worker(told[0])  # nobody is there any more


def sample(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def test_tasks_faults_checkpoints_memory_and_gpus_are_exported() -> None:
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry, ("train", "compress"), 100.0)
    ended = {"pid": 7, "stage": "train", "seconds": 4.0, "reason": ""}
    metrics.take(Event(name="task_ended", fields={**ended, "ending": "complete"}))
    metrics.take(Event(name="task_ended", fields={**ended, "ending": "fault", "reason": "handed_over"}))
    metrics.take(Event(name="task_ended", fields={**ended, "ending": "fault", "reason": "time_limit"}))
    metrics.take(Event(name="task_ended", fields={**ended, "stage": "unknown", "ending": "complete"}))
    metrics.take(Event(name="checkpoint_saved", fields={"seconds": 0.02, "bytes": 5000}))
    metrics.take(Event(name="something_else", fields={}))
    metrics.set_running({"train": 2})
    metrics.set_memory(700.0, {"train": 500.0})
    metrics.set_memory(100.0, {"train": 90.0})
    metrics.count_exit("lost")
    metrics.count_restart()
    metrics.set_gpus(TWO)
    tasks = "edgefront_worker_tasks_total"
    outcomes = ("complete", "handed_over", "fault", "stopped")
    assert [sample(registry, tasks, stage="train", outcome=name) for name in outcomes] == [1, 1, 1, 0]
    assert sample(registry, "edgefront_worker_faults_total", reason="time_limit") == 1
    assert sample(registry, "edgefront_worker_faults_total", reason="handed_over") is None
    assert sample(registry, "edgefront_worker_task_duration_seconds_sum", stage="train") == 12.0
    assert sample(registry, "edgefront_worker_tasks_running", stage="train") == 2
    assert sample(registry, "edgefront_worker_tasks_running", stage="compress") == 0
    assert sample(registry, "edgefront_worker_memory_bytes") == 100.0
    assert sample(registry, "edgefront_worker_task_memory_peak_bytes", stage="train") == 500.0
    assert sample(registry, "edgefront_worker_memory_limit_bytes") == 100.0
    assert sample(registry, "edgefront_worker_child_exits_total", reason="lost") == 1
    assert sample(registry, "edgefront_worker_restarts_total") == 1
    assert sample(registry, "edgefront_worker_checkpoints_total", action="saved") == 1
    assert sample(registry, "edgefront_worker_checkpoint_size_bytes") == 5000
    assert sample(registry, "edgefront_worker_gpu_utilisation_ratio", gpu="0") == 0.35
    assert sample(registry, "edgefront_worker_gpu_utilisation_ratio", gpu="1") is None
    assert sample(registry, "edgefront_worker_gpu_memory_total_bytes", gpu="1") == 81559 * MIB


def test_reasons_stay_a_small_set() -> None:
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry, ("train",))
    for index in range(100):
        fields = {"stage": "train", "ending": "fault", "reason": f"reason_{index}"}
        metrics.take(Event(name="task_ended", fields=fields))
    names = [series for family in registry.collect() for series in family.samples if "faults_total" in series.name]
    assert len(names) == 33
    assert sample(registry, "edgefront_worker_faults_total", reason="other") == 74


def test_every_metric_of_a_worker_is_named_by_the_conventions_and_documented() -> None:
    units = ("_seconds", "_bytes", "_ratio")
    for family in FAMILIES:
        assert family.name.startswith("edgefront_worker_")
        assert not family.name.endswith("_total")
        if family.kind == "histogram":
            assert family.name.endswith(units)
    assert describe() in DOCS.read_text(encoding="utf-8")


def test_a_gpu_is_whatever_the_record_says() -> None:
    gpu = Gpu(index=3, uuid="", name="x", utilisation=None, used_bytes=None, total_bytes=None)
    assert pinned_to(gpu)["CUDA_VISIBLE_DEVICES"] == "3"
