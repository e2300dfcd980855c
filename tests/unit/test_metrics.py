"""Events in, Prometheus text out."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from orchestrator.errors import UsageError
from orchestrator.exposition import MetricsServer
from orchestrator.metrics import FAMILIES, PrometheusSink, describe
from orchestrator.records import Event

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
    assert registry.get_sample_value("edgefront_trials_total", {"state": "complete"}) == 1
    assert registry.get_sample_value("edgefront_trials_total", {"state": "fault"}) == 1
    assert registry.get_sample_value("edgefront_trials_total", {"state": "infeasible"}) == 0
    assert registry.get_sample_value("edgefront_trials_running") == 1
    assert registry.get_sample_value("edgefront_trials_told", {"study": "digits"}) == 1
    assert registry.get_sample_value("edgefront_trials_budget", {"study": "digits"}) == 40
    assert registry.get_sample_value("edgefront_best_error_ratio", {"study": "digits"}) == 0.25
    assert registry.get_sample_value("edgefront_proposal_duration_seconds_sum") == 0.5


def test_the_front_stages_queues_and_epochs_are_exported() -> None:
    registry = exported(
        event("front_changed", hypervolume=0.5, front_size=7),
        event("stage_finished", trial=0, stage="train", ending="complete", seconds=4.0, wait_seconds=0.5),
        event("epoch_finished", trial=0, stage="train", epoch=1, epochs=2, loss=0.1, accuracy=0.9),
        event("queue_depth", queue="edgefront.train", depth=3),
    )
    assert registry.get_sample_value("edgefront_hypervolume", {"study": "digits"}) == 0.5
    assert registry.get_sample_value("edgefront_front_size", {"study": "digits"}) == 7
    assert registry.get_sample_value("edgefront_stage_duration_seconds_sum", {"stage": "train"}) == 4.0
    assert registry.get_sample_value("edgefront_stage_wait_seconds_count", {"stage": "train"}) == 1
    assert registry.get_sample_value("edgefront_epochs_total") == 1
    assert registry.get_sample_value("edgefront_queue_depth", {"queue": "edgefront.train"}) == 3


def test_a_board_state_that_empties_falls_back_to_zero() -> None:
    registry = exported(event("boards", free=1, leased=1), event("boards", free=2))
    assert registry.get_sample_value("edgefront_boards", {"state": "free"}) == 2
    assert registry.get_sample_value("edgefront_boards", {"state": "leased"}) == 0


def test_a_flood_of_fault_reasons_ends_in_one_series() -> None:
    registry = exported(*[event("fault", trial=0, stage="gate", reason=f"r{i}", attempt=1) for i in range(50)])
    series = [s for family in registry.collect() for s in family.samples if s.name == "edgefront_faults_total"]
    assert len(series) == 33
    assert registry.get_sample_value("edgefront_faults_total", {"reason": "other"}) == 18


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
        assert set(family.labels) <= {"state", "stage", "queue", "reason", "study"}
        assert family.name.startswith("edgefront_")
        assert family.kind != "histogram" or family.name.endswith("_seconds")


def test_the_documented_metrics_are_the_exported_ones() -> None:
    assert describe() in DOCS.read_text(encoding="utf-8"), "run `make docs`"
