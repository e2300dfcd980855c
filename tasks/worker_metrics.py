"""What a worker exports: its tasks by stage and outcome, its processes and their memory, checkpoints, GPUs.

Labels come from closed sets: stages, outcomes, reasons of faults and of exits, the worker's own GPUs.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry

from orchestrator.boards import base
from orchestrator.exposition import BoundedLabel, MetricFamily, make_metric, table
from orchestrator.records import Event
from tasks.gpus import Gpu

OUTCOMES = ("complete", "infeasible", "stopped", "fault", "handed_over")
# How a child process can end: over the worker's own limit, by the system for want of memory, amid a task, between two.
EXITS = ("memory_limit", "out_of_memory", "lost", "idle")
ACTIONS = ("saved", "loaded")
# At zero from the start, so that the first of them is seen as one more; others appear when they happen.
USUAL_FAULTS = ("time_limit", "memory_limit", "out_of_memory", "worker_lost", "artifact_missing", "os_error")
_STAGE_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 10_800, 21_600)
_CHECKPOINT_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30)

FAMILIES = (
    MetricFamily(
        name="edgefront_worker_tasks",
        kind="counter",
        labels=("stage", "outcome"),
        help="Tasks that ended: complete, infeasible, stopped, fault, handed_over (another worker goes on).",
    ),
    MetricFamily(
        name="edgefront_worker_task_duration_seconds",
        kind="histogram",
        labels=("stage",),
        help="Time of the tasks that ended, whatever their outcome.",
        buckets=_STAGE_SECONDS,
    ),
    MetricFamily(
        name="edgefront_worker_tasks_running", kind="gauge", labels=("stage",), help="Tasks under way on this worker."
    ),
    MetricFamily(
        name="edgefront_worker_faults",
        kind="counter",
        labels=("reason",),
        help="Tasks that ended in a fault, by reason; each attempt counts.",
    ),
    MetricFamily(
        name="edgefront_worker_child_exits",
        kind="counter",
        labels=("reason",),
        help="Child processes that ended and were replaced: memory_limit, out_of_memory, lost (amid a task), idle.",
    ),
    MetricFamily(
        name="edgefront_worker_restarts",
        kind="counter",
        labels=(),
        help="Worker processes that died as a whole and were started again.",
    ),
    MetricFamily(
        name="edgefront_worker_memory_bytes",
        kind="gauge",
        labels=(),
        help="Resident memory of all child processes, with what they have started.",
    ),
    MetricFamily(
        name="edgefront_worker_task_memory_peak_bytes",
        kind="gauge",
        labels=("stage",),
        help="Most resident memory seen of one child process during a task of the stage, since the worker started.",
    ),
    MetricFamily(
        name="edgefront_worker_memory_limit_bytes",
        kind="gauge",
        labels=(),
        help="Resident memory a child process may take (--memory-limit); 0: no limit.",
    ),
    MetricFamily(
        name="edgefront_worker_checkpoints",
        kind="counter",
        labels=("action",),
        help="Checkpoints of long stages: saved, or loaded to go on from.",
    ),
    MetricFamily(
        name="edgefront_worker_checkpoint_duration_seconds",
        kind="histogram",
        labels=("action",),
        help="Time to save or load a checkpoint.",
        buckets=_CHECKPOINT_SECONDS,
    ),
    MetricFamily(
        name="edgefront_worker_checkpoint_size_bytes", kind="gauge", labels=(), help="Size of the last checkpoint."
    ),
    MetricFamily(
        name="edgefront_worker_gpu_utilisation_ratio",
        kind="gauge",
        labels=("gpu",),
        help="Share of the last moment in which the GPU was busy, 0 to 1.",
    ),
    MetricFamily(
        name="edgefront_worker_gpu_memory_used_bytes", kind="gauge", labels=("gpu",), help="Memory in use on the GPU."
    ),
    MetricFamily(
        name="edgefront_worker_gpu_memory_total_bytes", kind="gauge", labels=("gpu",), help="Memory of the GPU."
    ),
)


class WorkerMetrics:
    """Keeps the metrics of one worker in ``registry``; may be called from several threads."""

    def __init__(self, registry: CollectorRegistry, stages: Iterable[str], memory_limit_bytes: float = 0.0) -> None:
        self._lock = threading.Lock()
        self._metrics = {family.name: make_metric(family, registry) for family in FAMILIES}
        self._stages = tuple(stages)
        self._bounded = BoundedLabel(USUAL_FAULTS)
        self._peaks: dict[str, float] = {}
        self._metrics["edgefront_worker_memory_limit_bytes"].set(memory_limit_bytes)
        for stage in self._stages:  # a series that exists at zero can be rated from the first scrape on
            self._metrics["edgefront_worker_tasks_running"].labels(stage=stage)
            for outcome in OUTCOMES:
                self._metrics["edgefront_worker_tasks"].labels(stage=stage, outcome=outcome)
        for reason in USUAL_FAULTS:
            self._metrics["edgefront_worker_faults"].labels(reason=reason)
        for reason in EXITS:
            self._metrics["edgefront_worker_child_exits"].labels(reason=reason)
        for action in ACTIONS:
            self._metrics["edgefront_worker_checkpoints"].labels(action=action)

    def take(self, event: Event) -> None:
        """Count what a child process says happened; an event of another name is passed over."""
        handler = getattr(self, f"_on_{event.name}", None)
        if handler is not None:
            with self._lock:
                handler(event.fields)

    def set_running(self, counts: Mapping[str, int]) -> None:
        """How many tasks of each stage are under way; of those not named none is."""
        for stage in self._stages:
            self._metrics["edgefront_worker_tasks_running"].labels(stage=stage).set(counts.get(stage, 0))

    def count_exit(self, reason: str) -> None:
        self._metrics["edgefront_worker_child_exits"].labels(reason=reason).inc()

    def count_restart(self) -> None:
        self._metrics["edgefront_worker_restarts"].inc()

    def set_memory(self, total_bytes: float, by_stage: Mapping[str, float]) -> None:
        """Resident memory of all children, and of the largest child at work on each stage."""
        self._metrics["edgefront_worker_memory_bytes"].set(total_bytes)
        for stage, used in by_stage.items():
            name = base(stage)
            if name in self._stages and used > self._peaks.get(name, 0.0):
                self._peaks[name] = used
                self._metrics["edgefront_worker_task_memory_peak_bytes"].labels(stage=name).set(used)

    def set_gpus(self, gpus: Iterable[Gpu]) -> None:
        for gpu in gpus:
            for name, value in (
                ("edgefront_worker_gpu_utilisation_ratio", gpu.utilisation),
                ("edgefront_worker_gpu_memory_used_bytes", gpu.used_bytes),
                ("edgefront_worker_gpu_memory_total_bytes", gpu.total_bytes),
            ):
                if value is not None:
                    self._metrics[name].labels(gpu=str(gpu.index)).set(value)

    def _on_task_ended(self, fields: Mapping[str, Any]) -> None:
        stage, outcome = base(str(fields.get("stage"))), fields.get("ending")
        if stage not in self._stages or outcome not in OUTCOMES:
            return
        reason = str(fields.get("reason") or "")
        outcome = reason if reason in OUTCOMES else outcome
        self._metrics["edgefront_worker_tasks"].labels(stage=stage, outcome=outcome).inc()
        if outcome == "fault":
            self._metrics["edgefront_worker_faults"].labels(reason=self._bounded(reason)).inc()
        seconds = fields.get("seconds")
        if isinstance(seconds, int | float) and math.isfinite(seconds):
            self._metrics["edgefront_worker_task_duration_seconds"].labels(stage=stage).observe(seconds)

    def _on_checkpoint_saved(self, fields: Mapping[str, Any]) -> None:
        self._count_checkpoint("saved", fields)

    def _on_checkpoint_loaded(self, fields: Mapping[str, Any]) -> None:
        self._count_checkpoint("loaded", fields)

    def _count_checkpoint(self, action: str, fields: Mapping[str, Any]) -> None:
        self._metrics["edgefront_worker_checkpoints"].labels(action=action).inc()
        duration = self._metrics["edgefront_worker_checkpoint_duration_seconds"].labels(action=action)
        duration.observe(float(fields["seconds"]))
        self._metrics["edgefront_worker_checkpoint_size_bytes"].set(float(fields["bytes"]))


def describe() -> str:
    """The workers' part of ``docs/metrics.md``, in Markdown."""
    return table(FAMILIES)
