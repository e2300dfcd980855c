"""Prometheus behind the event port: the one place that knows metric names.

Labels come from small closed sets (states, stages, queues, fault reasons, the study's name); a trial's number is never
one. Base units throughout.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Gauge

from orchestrator.exposition import MetricFamily, make_metric, table
from orchestrator.progress import FINAL_STAGE, amount_of
from orchestrator.records import Ending, Event

_STAGE_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200)
_PROPOSAL_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30)
_MAX_REASONS = 32  # reasons are short stable words; a bug that invents new ones must not flood the server


FAMILIES = (
    MetricFamily(
        name="edgefront_trials",
        kind="counter",
        labels=("state",),
        help="Trials that ended since this process started, by ending: complete, infeasible, stopped or fault.",
    ),
    MetricFamily(name="edgefront_trials_running", kind="gauge", labels=(), help="Trials under way."),
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
        name="edgefront_stage_duration_seconds",
        kind="histogram",
        labels=("stage",),
        help="Time a stage took on its worker.",
        buckets=_STAGE_BUCKETS,
    ),
    MetricFamily(
        name="edgefront_stage_wait_seconds",
        kind="histogram",
        labels=("stage",),
        help="Time a stage waited in its queue before a worker took it.",
        buckets=_STAGE_BUCKETS,
    ),
    MetricFamily(
        name="edgefront_proposal_duration_seconds",
        kind="histogram",
        labels=(),
        help="Time the sampler took to propose one candidate.",
        buckets=_PROPOSAL_BUCKETS,
    ),
    MetricFamily(
        name="edgefront_queue_depth", kind="gauge", labels=("queue",), help="Messages waiting in a queue of the broker."
    ),
    MetricFamily(
        name="edgefront_boards",
        kind="gauge",
        labels=("state",),
        help="Boards that serve this study, by state: busy, free, and where agents offer them stuck, quarantined.",
    ),
    MetricFamily(name="edgefront_epochs", kind="counter", labels=(), help="Training epochs finished."),
    MetricFamily(
        name="edgefront_faults",
        kind="counter",
        labels=("reason",),
        help="Faults of the lab or of the tool, by reason; each attempt counts.",
    ),
)


class PrometheusSink:
    """An :class:`~orchestrator.ports.EventSink` that keeps the metrics of one study in ``registry``."""

    def __init__(self, registry: CollectorRegistry, study: str) -> None:
        self._study = study
        self._lock = threading.Lock()
        self._running: set[int] = set()
        self._reasons: set[str] = set()
        self._board_states: set[str] = set()
        self._best_error: float | None = None
        self._metrics = {family.name: make_metric(family, registry) for family in FAMILIES}
        for ending in Ending:  # a series that exists at zero can be rated from the first scrape on
            self._metrics["edgefront_trials"].labels(state=ending.value)

    def emit(self, event: Event) -> None:
        handler = getattr(self, f"_on_{event.name}", None)
        if handler is not None:
            with self._lock:
                handler(event.fields)

    def _of_study(self, name: str) -> Gauge:
        labelled: Gauge = self._metrics[name].labels(study=self._study)
        return labelled

    def _on_study_started(self, fields: Mapping[str, Any]) -> None:
        self._of_study("edgefront_trials_budget").set(float(fields.get("budget", 0)))
        self._of_study("edgefront_trials_told").set(0)

    def _on_study_resumed(self, fields: Mapping[str, Any]) -> None:
        self._of_study("edgefront_trials_told").set(float(fields.get("told", 0)))

    def _on_stage_queued(self, fields: Mapping[str, Any]) -> None:
        if fields["stage"] != FINAL_STAGE:  # a resumed trial is not proposed again, but queued
            self._running.add(int(fields["trial"]))
            self._metrics["edgefront_trials_running"].set(len(self._running))

    def _on_trial_proposed(self, fields: Mapping[str, Any]) -> None:
        self._metrics["edgefront_proposal_duration_seconds"].observe(float(fields.get("seconds", 0.0)))

    def _on_stage_finished(self, fields: Mapping[str, Any]) -> None:
        stage = str(fields["stage"])
        self._metrics["edgefront_stage_duration_seconds"].labels(stage=stage).observe(float(fields["seconds"]))
        waited = fields.get("wait_seconds")
        if waited is not None:
            self._metrics["edgefront_stage_wait_seconds"].labels(stage=stage).observe(float(waited))

    def _on_epoch_finished(self, fields: Mapping[str, Any]) -> None:
        self._metrics["edgefront_epochs"].inc()

    def _on_trial_ended(self, fields: Mapping[str, Any]) -> None:
        ending = Ending(fields["ending"])
        self._running.discard(int(fields["trial"]))
        self._metrics["edgefront_trials_running"].set(len(self._running))
        self._metrics["edgefront_trials"].labels(state=ending.value).inc()
        if ending is not Ending.FAULT:
            self._of_study("edgefront_trials_told").inc()
        error = (fields.get("values") or {}).get("error")
        if ending is Ending.COMPLETE and error is not None:
            amount = amount_of(error)
            self._best_error = amount if self._best_error is None else min(self._best_error, amount)
            self._of_study("edgefront_best_error_ratio").set(self._best_error)

    def _on_front_changed(self, fields: Mapping[str, Any]) -> None:
        self._of_study("edgefront_hypervolume").set(float(fields["hypervolume"]))
        self._of_study("edgefront_front_size").set(float(fields["front_size"]))

    def _on_fault(self, fields: Mapping[str, Any]) -> None:
        reason = str(fields.get("reason") or "unknown")
        if reason not in self._reasons and len(self._reasons) >= _MAX_REASONS:
            reason = "other"
        self._reasons.add(reason)
        self._metrics["edgefront_faults"].labels(reason=reason).inc()

    def _on_queue_depth(self, fields: Mapping[str, Any]) -> None:
        self._metrics["edgefront_queue_depth"].labels(queue=str(fields["queue"])).set(float(fields["depth"]))

    def _on_boards(self, fields: Mapping[str, Any]) -> None:
        for state in self._board_states - set(fields):  # a state no board is in any more must not keep its old count
            self._metrics["edgefront_boards"].labels(state=state).set(0)
        self._board_states |= set(fields)
        for state, count in fields.items():
            self._metrics["edgefront_boards"].labels(state=state).set(float(count))


def describe() -> str:
    """The table of ``docs/metrics.md``, in Markdown."""
    return table(FAMILIES)
