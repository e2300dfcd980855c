"""Prometheus behind the event port: the one place that knows metric names.

Labels come from small closed sets (states, stages, queues, fault reasons, objectives, the studies of this process); a
trial's number is never one. Base units throughout.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from orchestrator.exposition import BoundedLabel, MetricFamily, make_metric, table
from orchestrator.progress import FINAL_STAGE, amount_of
from orchestrator.records import Ending, Event
from orchestrator.standing import Standing

_STAGE_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200)
_PROPOSAL_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30)
# Series that exists at zero can be rated from the first scrape on. These are the faults every lab meets one day.
USUAL_REASONS = ("worker_lost", "time_limit", "os_error", "artifact_missing", "no_board_free", "board_lost")
# What says that a study is getting on: nothing of it comes while it hangs.
_SIGNS_OF_LIFE = ("study_started", "stage_started", "stage_finished", "epoch_finished", "trial_ended")

FAMILIES = (
    MetricFamily(
        name="edgefront_study_running",
        kind="gauge",
        labels=("study",),
        help="1 while this process runs the study, 0 once its run has ended.",
    ),
    MetricFamily(
        name="edgefront_last_progress_timestamp_seconds",
        kind="gauge",
        labels=("study",),
        help="When a stage or an epoch of the study last began or ended, in seconds since the epoch.",
    ),
    MetricFamily(
        name="edgefront_trials",
        kind="counter",
        labels=("study", "state"),
        help="Trials that ended since this process started, by ending: complete, infeasible, stopped or fault.",
    ),
    MetricFamily(name="edgefront_trials_running", kind="gauge", labels=("study",), help="Trials under way."),
    MetricFamily(
        name="edgefront_trials_told",
        kind="gauge",
        labels=("study",),
        help="Complete, infeasible and early stopped trials of the study, those of earlier runs included.",
    ),
    MetricFamily(
        name="edgefront_trials_budget", kind="gauge", labels=("study",), help="Trials the study may tell in all."
    ),
    MetricFamily(
        name="edgefront_feasible_ratio",
        kind="gauge",
        labels=("study",),
        help="Complete trials among the complete and infeasible ones, 0 to 1, those of earlier runs included.",
    ),
    MetricFamily(
        name="edgefront_hypervolume",
        kind="gauge",
        labels=("study",),
        help="Share of the box under the limits that the front dominates, 0 to 1.",
    ),
    MetricFamily(
        name="edgefront_front_size", kind="gauge", labels=("study",), help="Trials on the Pareto front of the study."
    ),
    MetricFamily(
        name="edgefront_best_error_ratio",
        kind="gauge",
        labels=("study",),
        help="Lowest validation error of a complete trial, 0 to 1.",
    ),
    MetricFamily(
        name="edgefront_best_error_under_limit_ratio",
        kind="gauge",
        labels=("study", "objective"),
        help="Lowest validation error of any trial within this objective's limit, whatever else it breaks, 0 to 1.",
    ),
    MetricFamily(
        name="edgefront_stage_duration_seconds",
        kind="histogram",
        labels=("study", "stage"),
        help="Time a stage took on its worker.",
        buckets=_STAGE_BUCKETS,
    ),
    MetricFamily(
        name="edgefront_stage_wait_seconds",
        kind="histogram",
        labels=("study", "stage"),
        help="Time a stage waited in its queue before a worker took it.",
        buckets=_STAGE_BUCKETS,
    ),
    MetricFamily(
        name="edgefront_proposal_duration_seconds",
        kind="histogram",
        labels=("study",),
        help="Time the sampler took to propose one candidate, fitting included.",
        buckets=_PROPOSAL_BUCKETS,
    ),
    MetricFamily(
        name="edgefront_surrogate_fit_duration_seconds",
        kind="histogram",
        labels=("study",),
        help="Time spent on fitting surrogates for one proposal; proposals without a fit are left out.",
        buckets=_PROPOSAL_BUCKETS,
    ),
    MetricFamily(
        name="edgefront_queue_depth", kind="gauge", labels=("queue",), help="Messages waiting in a queue of the broker."
    ),
    MetricFamily(
        name="edgefront_boards",
        kind="gauge",
        labels=("study", "state"),
        help="Boards that serve the study, by state: busy, free, and where agents offer them stuck, quarantined.",
    ),
    MetricFamily(name="edgefront_epochs", kind="counter", labels=("study",), help="Training epochs finished."),
    MetricFamily(
        name="edgefront_epochs_saved",
        kind="counter",
        labels=("study",),
        help="Training epochs that early stopping left out.",
    ),
    MetricFamily(
        name="edgefront_retries",
        kind="counter",
        labels=("study", "reason"),
        help="Stages queued again after a fault, by its reason.",
    ),
    MetricFamily(
        name="edgefront_faults",
        kind="counter",
        labels=("study", "reason"),
        help="Faults of the lab or of the tool, by reason; each attempt counts.",
    ),
    MetricFamily(
        name="edgefront_studies_free_bytes",
        kind="gauge",
        labels=(),
        help="Bytes free on the volume that holds the studies.",
    ),
    MetricFamily(
        name="edgefront_studies_size_bytes",
        kind="gauge",
        labels=(),
        help="Bytes of the volume that holds the studies, free or not.",
    ),
)


class SearchMetrics:
    """The metrics of all studies of one process, in ``registry``; ``studies`` is the folder with them, or None."""

    def __init__(
        self, registry: CollectorRegistry, studies: Path | None = None, now: Callable[[], float] = time.time
    ) -> None:
        self.now = now
        self.lock = threading.RLock()
        self._labels = {family.name: family.labels for family in FAMILIES}
        self._metrics = {family.name: make_metric(family, registry) for family in FAMILIES}
        self.bounded = BoundedLabel(USUAL_REASONS)
        if studies is not None:
            self.get("edgefront_studies_free_bytes").set_function(lambda: shutil.disk_usage(studies).free)
            self.get("edgefront_studies_size_bytes").set_function(lambda: shutil.disk_usage(studies).total)

    def get(self, name: str, **labels: str) -> Any:
        """The series of a metric with these labels."""
        return self._metrics[name].labels(**labels) if labels else self._metrics[name]

    def forget(self, study: str) -> None:
        """Take the series of a study away."""
        for name, labels in self._labels.items():
            if "study" in labels:
                self._metrics[name].remove_by_labels({"study": study})


class PrometheusSink:
    """An :class:`~orchestrator.ports.EventSink` that keeps the metrics of one study.

    A registry serves one study; where several run in a process, they share a :class:`SearchMetrics`.
    """

    def __init__(self, metrics: CollectorRegistry | SearchMetrics, study: str) -> None:
        self._metrics = SearchMetrics(metrics) if isinstance(metrics, CollectorRegistry) else metrics
        self._study = study
        self._running: set[int] = set()
        self._board_states: set[str] = set()
        self._standing = Standing()
        for ending in Ending:  # a series that exists at zero can be rated from the first scrape on
            self._of_study("edgefront_trials", state=ending.value)
        for reason in USUAL_REASONS:
            self._of_study("edgefront_faults", reason=reason)
            self._of_study("edgefront_retries", reason=reason)
        for name in ("edgefront_epochs", "edgefront_epochs_saved", "edgefront_trials_running", "edgefront_front_size"):
            self._of_study(name)
        for name in ("edgefront_hypervolume", "edgefront_surrogate_fit_duration_seconds", "edgefront_study_running"):
            self._of_study(name)

    def emit(self, event: Event) -> None:
        handler = getattr(self, f"_on_{event.name}", None)
        with self._metrics.lock:
            if event.name in _SIGNS_OF_LIFE:
                self._of_study("edgefront_last_progress_timestamp_seconds").set(self._metrics.now())
            if handler is not None:
                handler(event.fields)

    def end(self) -> None:
        """The study's run is over, however it ended; its numbers stay."""
        with self._metrics.lock:
            self._running.clear()
            self._of_study("edgefront_trials_running").set(0)
            self._of_study("edgefront_study_running").set(0)

    def _of_study(self, name: str, **labels: str) -> Any:
        return self._metrics.get(name, study=self._study, **labels)

    def _on_study_started(self, fields: Mapping[str, Any]) -> None:
        self._of_study("edgefront_study_running").set(1)
        self._of_study("edgefront_trials_budget").set(float(fields.get("budget", 0)))
        self._of_study("edgefront_trials_told").set(0)
        if "standing" in fields:
            self._standing = Standing.from_json(fields["standing"])
            self._show_standing()

    def _on_study_resumed(self, fields: Mapping[str, Any]) -> None:
        self._of_study("edgefront_trials_told").set(float(fields.get("told", 0)))

    def _on_study_finished(self, fields: Mapping[str, Any]) -> None:
        self.end()

    def _on_stage_queued(self, fields: Mapping[str, Any]) -> None:
        if fields["stage"] != FINAL_STAGE:  # a resumed trial is not proposed again, but queued
            self._running.add(int(fields["trial"]))
            self._of_study("edgefront_trials_running").set(len(self._running))

    def _on_stage_retried(self, fields: Mapping[str, Any]) -> None:
        self._of_study("edgefront_retries", reason=self._metrics.bounded(fields.get("reason"))).inc()

    def _on_trial_proposed(self, fields: Mapping[str, Any]) -> None:
        self._of_study("edgefront_proposal_duration_seconds").observe(float(fields.get("seconds", 0.0)))
        if fields.get("n_fits"):
            self._of_study("edgefront_surrogate_fit_duration_seconds").observe(float(fields["fit_seconds"]))

    def _on_stage_finished(self, fields: Mapping[str, Any]) -> None:
        stage = str(fields["stage"])
        self._of_study("edgefront_stage_duration_seconds", stage=stage).observe(float(fields["seconds"]))
        waited = fields.get("wait_seconds")
        if waited is not None:
            self._of_study("edgefront_stage_wait_seconds", stage=stage).observe(float(waited))
        self._of_study("edgefront_epochs_saved").inc(float(fields.get("epochs_saved", 0)))

    def _on_epoch_finished(self, fields: Mapping[str, Any]) -> None:
        self._of_study("edgefront_epochs").inc()

    def _on_trial_ended(self, fields: Mapping[str, Any]) -> None:
        ending = Ending(fields["ending"])
        self._running.discard(int(fields["trial"]))
        self._of_study("edgefront_trials_running").set(len(self._running))
        self._of_study("edgefront_trials", state=ending.value).inc()
        if ending is not Ending.FAULT:
            self._of_study("edgefront_trials_told").inc()
        values = fields.get("values") or {}
        self._standing.take(ending, {name: amount_of(value) for name, value in values.items()})
        self._show_standing()

    def _show_standing(self) -> None:
        standing = self._standing
        if standing.feasible_share is not None:
            self._of_study("edgefront_feasible_ratio").set(standing.feasible_share)
        if standing.best_error is not None:
            self._of_study("edgefront_best_error_ratio").set(standing.best_error)
        for name, error in standing.best_under.items():
            self._of_study("edgefront_best_error_under_limit_ratio", objective=name).set(error)

    def _on_front_changed(self, fields: Mapping[str, Any]) -> None:
        self._of_study("edgefront_hypervolume").set(float(fields["hypervolume"]))
        self._of_study("edgefront_front_size").set(float(fields["front_size"]))

    def _on_fault(self, fields: Mapping[str, Any]) -> None:
        self._of_study("edgefront_faults", reason=self._metrics.bounded(fields.get("reason"))).inc()

    def _on_queue_depth(self, fields: Mapping[str, Any]) -> None:
        self._metrics.get("edgefront_queue_depth", queue=str(fields["queue"])).set(float(fields["depth"]))

    def _on_boards(self, fields: Mapping[str, Any]) -> None:
        for state in self._board_states - set(fields):  # a state no board is in any more must not keep its old count
            self._of_study("edgefront_boards", state=state).set(0)
        self._board_states |= set(fields)
        for state, count in fields.items():
            self._of_study("edgefront_boards", state=state).set(float(count))


def describe() -> str:
    """The table of ``docs/metrics.md``, in Markdown."""
    return table(FAMILIES)
