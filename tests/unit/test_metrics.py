"""Events in, Prometheus text out."""

from __future__ import annotations

import shutil
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from orchestrator.errors import UsageError
from orchestrator.exposition import MetricsServer
from orchestrator.fittime import counting_fits
from orchestrator.metrics import FAMILIES, PrometheusSink, SearchMetrics, describe
from orchestrator.records import Ending, Event
from orchestrator.standing import Standing
from orchestrator.surrogate import fit

DIGITS = {"study": "digits"}
DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


def exported(*events: Event) -> CollectorRegistry:
    registry = CollectorRegistry()
    sink = PrometheusSink(registry, "digits")
    for one in events:
        sink.emit(one)
    return registry


def event(name: str, /, **fields: object) -> Event:
    return Event(name=name, fields=dict(fields))


def test_trials_are_counted_by_how_they_ended() -> None:
    registry = exported(
        event("study_started", name="digits", budget=40),
        event("trial_proposed", trial=0, params={}, seconds=0.2),
        event("trial_proposed", trial=1, params={}, seconds=0.3),
        event("stage_queued", trial=0, stage="gate", attempt=1),
        event("stage_queued", trial=1, stage="gate", attempt=1),
        event("stage_queued", trial=9, stage="final", attempt=1),
        event("trial_ended", trial=0, ending="complete", values={"error": 0.25}, reason=""),
        event("trial_ended", trial=2, ending="fault", values={}, reason="x"),
    )
    assert registry.get_sample_value("edgefront_trials_total", {"study": "digits", "state": "complete"}) == 1
    assert registry.get_sample_value("edgefront_trials_total", {"study": "digits", "state": "fault"}) == 1
    assert registry.get_sample_value("edgefront_trials_total", {"study": "digits", "state": "infeasible"}) == 0
    assert registry.get_sample_value("edgefront_trials_running", DIGITS) == 1
    assert registry.get_sample_value("edgefront_trials_told", {"study": "digits"}) == 1
    assert registry.get_sample_value("edgefront_trials_budget", {"study": "digits"}) == 40
    assert registry.get_sample_value("edgefront_best_error_ratio", {"study": "digits"}) == 0.25
    assert registry.get_sample_value("edgefront_proposal_duration_seconds_sum", DIGITS) == 0.5


def test_the_front_stages_queues_and_epochs_are_exported() -> None:
    registry = exported(
        event("front_changed", hypervolume=0.5, front_size=7),
        event("stage_finished", trial=0, stage="train", ending="complete", seconds=4.0, wait_seconds=0.5),
        event("epoch_finished", trial=0, stage="train", epoch=1, epochs=2, loss=0.1, accuracy=0.9),
        event("queue_depth", queue="edgefront.train", depth=3),
    )
    assert registry.get_sample_value("edgefront_hypervolume", {"study": "digits"}) == 0.5
    assert registry.get_sample_value("edgefront_front_size", {"study": "digits"}) == 7
    assert (
        registry.get_sample_value("edgefront_stage_duration_seconds_sum", {"study": "digits", "stage": "train"}) == 4.0
    )
    assert registry.get_sample_value("edgefront_stage_wait_seconds_count", {"study": "digits", "stage": "train"}) == 1
    assert registry.get_sample_value("edgefront_epochs_total", DIGITS) == 1
    assert registry.get_sample_value("edgefront_queue_depth", {"queue": "edgefront.train"}) == 3


def test_a_board_state_that_empties_falls_back_to_zero() -> None:
    registry = exported(event("boards", free=1, leased=1), event("boards", free=2))
    assert registry.get_sample_value("edgefront_boards", {"study": "digits", "state": "free"}) == 2
    assert registry.get_sample_value("edgefront_boards", {"study": "digits", "state": "leased"}) == 0


def test_a_flood_of_fault_reasons_ends_in_one_series() -> None:
    registry = exported(*[event("fault", trial=0, stage="gate", reason=f"r{i}", attempt=1) for i in range(50)])
    series = [s for family in registry.collect() for s in family.samples if s.name == "edgefront_faults_total"]
    assert len(series) == 33
    assert registry.get_sample_value("edgefront_faults_total", {"study": "digits", "reason": "other"}) == 24


def test_a_study_is_served_over_http_until_the_server_is_closed() -> None:
    registry = exported(event("front_changed", hypervolume=0.25, front_size=2))
    with MetricsServer(registry) as server, urllib.request.urlopen(server.url, timeout=5) as answer:
        text = answer.read().decode()
    assert 'edgefront_hypervolume{study="digits"} 0.25' in text
    assert text == generate_latest(registry).decode()


def test_a_port_that_is_taken_is_a_usage_error_that_says_what_to_choose() -> None:
    with MetricsServer(CollectorRegistry()) as server, pytest.raises(UsageError, match="another --metrics-port"):
        MetricsServer(CollectorRegistry(), port=server.port)


def test_no_metric_is_labelled_by_trial_and_names_follow_the_conventions() -> None:
    for family in FAMILIES:
        assert set(family.labels) <= {"state", "stage", "queue", "reason", "study", "objective"}
        assert family.name.startswith("edgefront_")
        assert family.kind != "histogram" or family.name.endswith("_seconds")


def test_the_documented_metrics_are_the_exported_ones() -> None:
    assert describe() in DOCS.read_text(encoding="utf-8"), "run `make docs`"


def test_the_feasible_share_and_the_best_error_under_each_limit_count_earlier_runs_too() -> None:
    before = Standing(limits={"rom": 1000.0, "ram": 100.0})
    before.take(Ending.COMPLETE, {"error": 0.3, "rom": 900.0, "ram": 90.0})
    before.take(Ending.INFEASIBLE, {"rom": 2000.0})
    before.take(Ending.INFEASIBLE, {"error": 0.1, "rom": 1200.0, "ram": 90.0})
    registry = exported(
        event("study_started", name="digits", budget=40, standing=before.to_json()),
        event("trial_ended", trial=5, ending="complete", values={"error": 0.25, "rom": 800.0, "ram": 80.0}),
    )
    assert registry.get_sample_value("edgefront_feasible_ratio", DIGITS) == 0.5
    assert registry.get_sample_value("edgefront_best_error_ratio", DIGITS) == 0.25
    under = "edgefront_best_error_under_limit_ratio"
    assert registry.get_sample_value(under, {**DIGITS, "objective": "rom"}) == 0.25
    assert registry.get_sample_value(under, {**DIGITS, "objective": "ram"}) == 0.1
    # Trials of earlier runs are not counted again as endings of this process.
    assert registry.get_sample_value("edgefront_trials_total", {**DIGITS, "state": "complete"}) == 1


def test_retries_fits_and_epochs_saved_are_exported() -> None:
    registry = exported(
        event("trial_proposed", trial=8, seconds=0.4, fit_seconds=0.25, n_fits=2),
        event("trial_proposed", trial=0, seconds=0.1, fit_seconds=0.0, n_fits=0),
        event("stage_retried", trial=1, stage="train", reason="worker_lost"),
        event("stage_finished", trial=1, stage="train", ending="stopped", seconds=4.0, epochs_saved=7),
    )
    assert registry.get_sample_value("edgefront_surrogate_fit_duration_seconds_sum", DIGITS) == 0.25
    assert registry.get_sample_value("edgefront_surrogate_fit_duration_seconds_count", DIGITS) == 1
    assert registry.get_sample_value("edgefront_retries_total", {**DIGITS, "reason": "worker_lost"}) == 1
    assert registry.get_sample_value("edgefront_epochs_saved_total", DIGITS) == 7


def test_faults_are_at_zero_before_the_first_one() -> None:
    assert exported().get_sample_value("edgefront_faults_total", {**DIGITS, "reason": "worker_lost"}) == 0


def test_a_study_runs_until_it_says_that_it_has_ended_and_its_last_progress_is_stamped() -> None:
    registry = CollectorRegistry()
    times = iter([10.0, 20.0])
    sink = PrometheusSink(SearchMetrics(registry, now=lambda: next(times)), "digits")
    sink.emit(event("study_started", name="digits", budget=4))
    assert registry.get_sample_value("edgefront_study_running", DIGITS) == 1
    sink.emit(event("stage_started", trial=0, stage="gate"))
    sink.emit(event("queue_depth", queue="build", depth=1))
    assert registry.get_sample_value("edgefront_last_progress_timestamp_seconds", DIGITS) == 20.0
    sink.emit(event("stage_queued", trial=0, stage="train", attempt=1))
    sink.emit(event("study_finished", reason="interrupted"))
    assert registry.get_sample_value("edgefront_study_running", DIGITS) == 0
    assert registry.get_sample_value("edgefront_trials_running", DIGITS) == 0


def test_studies_of_one_process_share_their_metrics_and_one_can_be_forgotten() -> None:
    registry = CollectorRegistry()
    metrics = SearchMetrics(registry)
    for name, size in (("digits", 3), ("har", 5)):
        PrometheusSink(metrics, name).emit(event("front_changed", hypervolume=0.5, front_size=size))
    assert registry.get_sample_value("edgefront_front_size", {"study": "har"}) == 5
    metrics.forget("har")
    assert [s for f in registry.collect() for s in f.samples if s.labels.get("study") == "har"] == []
    assert registry.get_sample_value("edgefront_front_size", DIGITS) == 3


def test_the_free_space_is_that_of_the_studies_volume(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    SearchMetrics(registry, tmp_path)
    free = registry.get_sample_value("edgefront_studies_free_bytes")
    size = registry.get_sample_value("edgefront_studies_size_bytes")
    assert free is not None and size == shutil.disk_usage(tmp_path).total and 0 < free < size


def test_fits_are_timed_on_the_thread_that_proposes_only() -> None:
    with counting_fits() as outer:
        fit(np.zeros((1, 1)), np.zeros((1, 1)))
        with counting_fits() as inner:
            fit(np.zeros((1, 1)), np.zeros((1, 1)))
    fit(np.zeros((1, 1)), np.zeros((1, 1)))
    assert (outer.n_fits, inner.n_fits) == (1, 1)
    assert outer.seconds > 0
