"""What an orchestrator says of itself, and which studies it still speaks of."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from cli_launch import Series
from orchestrator.metrics import SearchMetrics
from orchestrator.records import Event
from orchestrator.service import ELSEWHERE
from orchestrator.service_metrics import ServiceMetrics

KEPT = 20


def names(registry: CollectorRegistry) -> set[str]:
    samples = [sample for family in registry.collect() for sample in family.samples]
    return {sample.labels["study"] for sample in samples if "study" in sample.labels}


def test_a_round_shows_all_states_the_slots_and_when_it_was() -> None:
    registry = CollectorRegistry()
    metrics = ServiceMetrics(registry, now=lambda: 1000.0)
    metrics.show({"running": 2}, slots=5, failed_posts=0)
    metrics.share("digits", 3)
    assert registry.get_sample_value("edgefront_studies", {"state": "running"}) == 2
    assert registry.get_sample_value("edgefront_studies", {"state": "failed"}) == 0
    assert registry.get_sample_value("edgefront_slots") == 5
    assert registry.get_sample_value("edgefront_study_slots", {"study": "digits"}) == 3
    assert registry.get_sample_value("edgefront_study_restarts_total", {"study": "digits"}) == 0
    assert registry.get_sample_value("edgefront_last_round_timestamp_seconds") == 1000.0


def test_notifications_that_were_given_up_are_counted_from_round_to_round() -> None:
    registry = CollectorRegistry()
    metrics = ServiceMetrics(registry)
    for failed_so_far in (0, 2, 2, 3):
        metrics.show({}, slots=1, failed_posts=failed_so_far)
    assert registry.get_sample_value("edgefront_notifications_failed_total") == 3


def test_of_studies_that_ended_the_last_twenty_are_spoken_of_and_of_others_nothing_is_left() -> None:
    registry = CollectorRegistry()
    service = ServiceMetrics(registry)
    series = Series(SearchMetrics(registry), service)
    for number in range(KEPT + 3):
        name = f"s{number}"
        series.sink(name).emit(Event(name="front_changed", fields={"hypervolume": 0.5, "front_size": 1}))
        service.share(name, 1)
        service.restarted(name)
        series.ended(name, "finished")
    assert names(registry) == {f"s{number}" for number in range(3, KEPT + 3)}


def test_of_a_study_that_another_orchestrator_has_taken_over_nothing_is_left() -> None:
    registry = CollectorRegistry()
    service = ServiceMetrics(registry)
    series = Series(SearchMetrics(registry), service)
    for name in ("kept", "taken"):
        series.sink(name).emit(Event(name="front_changed", fields={"hypervolume": 0.5, "front_size": 1}))
        service.share(name, 1)
    series.ended("taken", ELSEWHERE)
    assert names(registry) == {"kept"}
    series.sink("taken").emit(Event(name="front_changed", fields={"hypervolume": 0.5, "front_size": 1}))
    assert names(registry) == {"kept", "taken"}  # it came back


def test_a_study_that_is_tried_again_keeps_its_numbers_and_loses_its_share() -> None:
    registry = CollectorRegistry()
    service = ServiceMetrics(registry)
    series = Series(SearchMetrics(registry), service)
    sink = series.sink("digits")
    sink.emit(Event(name="study_started", fields={"budget": 9}))
    service.share("digits", 2)
    series.ended("digits", "submitted")
    assert registry.get_sample_value("edgefront_study_running", {"study": "digits"}) == 0
    assert registry.get_sample_value("edgefront_trials_budget", {"study": "digits"}) == 9
    assert registry.get_sample_value("edgefront_study_slots", {"study": "digits"}) is None
