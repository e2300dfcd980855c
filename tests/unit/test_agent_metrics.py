"""What happens on an agent's boards, as Prometheus sees it."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from mcu_agent.leases import State
from orchestrator.records import Event
from tasks import channel as channels
from tasks.agent_metrics import AgentMetrics, describe
from tasks.channel import AGENT_CHANNEL, Channel, tell_agent

KIND = "nrf52-dk"


def exported(*events: Event) -> CollectorRegistry:
    registry = CollectorRegistry()
    metrics = AgentMetrics(registry, [KIND], [state.value for state in State], now=lambda: 1000.0)
    for one in events:
        metrics.take(one)
    return registry


def event(name: str, /, **fields: Any) -> Event:
    return Event(name=name, fields={"kind": KIND, **fields})


def test_a_complete_measurement_counts_with_its_phases_and_values() -> None:
    found = exported(
        event(
            "measurement_ended", outcome="complete", flash_s=0.2, run_s=0.1, measure_s=0.0, total_s=0.5,
            energy_j=2e-4, energy_source="measured", latency_s=4e-3, latency_source="measured",
        )
    )  # fmt: skip
    kind = {"board_kind": KIND}
    assert found.get_sample_value("edgefront_measurements_total", {**kind, "outcome": "complete"}) == 1
    assert found.get_sample_value("edgefront_measurement_duration_seconds_sum", {**kind, "phase": "total"}) == 0.5
    measured = {**kind, "source": "measured"}
    assert found.get_sample_value("edgefront_inference_energy_joules_sum", measured) == 2e-4
    assert found.get_sample_value("edgefront_inference_energy_joules_bucket", {**measured, "le": "0.001"}) == 1
    assert found.get_sample_value("edgefront_inference_latency_seconds_sum", measured) == 4e-3


def test_outcomes_exist_at_zero_and_unknown_kinds_and_outcomes_are_passed_over() -> None:
    found = exported(
        Event(name="measurement_ended", fields={"board_kind": "other", "outcome": "complete"}),
        event("measurement_ended", outcome="strange"),
        event("never_heard_of"),
    )
    kinds = {sample.labels["board_kind"] for family in found.collect() for sample in family.samples if sample.labels}
    assert kinds == {KIND}
    for outcome in ("complete", "image_fault", "rig_fault", "no_board_free"):
        labels = {"board_kind": KIND, "outcome": outcome}
        assert found.get_sample_value("edgefront_measurements_total", labels) == 0


def test_faults_quarantines_power_cycles_and_self_tests_are_counted() -> None:
    found = exported(
        event("board_fault", board="b", reason="board_lost"),
        event("board_power_cycled", board="b"),
        event("board_quarantined", board="b", reason="board_lost: the probe does not answer"),
        event("board_tested", board="b", ok=False, reason="image: it hangs", seconds=0.1),
    )
    assert found.get_sample_value("edgefront_rig_faults_total", {"board_kind": KIND, "reason": "board_lost"}) == 1
    assert found.get_sample_value("edgefront_power_cycles_total", {"board_kind": KIND}) == 1
    assert found.get_sample_value("edgefront_quarantines_total", {"board_kind": KIND, "reason": "board_lost"}) == 1
    assert found.get_sample_value("edgefront_last_self_test_passed", {"board": "b"}) == 0
    assert found.get_sample_value("edgefront_last_self_test_timestamp_seconds", {"board": "b"}) == 1000.0


def test_invented_reasons_do_not_flood_the_server() -> None:
    found = exported(*[event("board_fault", board="b", reason=f"reason_{i}") for i in range(50)])
    faults = [s for f in found.collect() for s in f.samples if s.name == "edgefront_rig_faults_total"]
    assert len(faults) <= 33
    assert sum(sample.value for sample in faults) == 50


def test_boards_are_set_for_all_kinds_and_states() -> None:
    registry = CollectorRegistry()
    metrics = AgentMetrics(registry, [KIND], [state.value for state in State])
    metrics.set_boards({(KIND, "idle"): 2})
    metrics.set_boards({(KIND, "leased"): 1})
    states = {state.value: registry.get_sample_value(
        "edgefront_rack_boards", {"board_kind": KIND, "state": state.value}) for state in State}  # fmt: skip
    assert states == {"idle": 0, "leased": 1, "stuck": 0, "suspect": 0, "quarantined": 0}


def test_the_documented_table_names_every_family() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert describe() in page


def test_what_a_process_tells_reaches_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Event] = []
    came = threading.Event()
    channel = Channel(lambda one: (heard.append(one), came.set())[0])
    monkeypatch.setenv(AGENT_CHANNEL, channel.address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"no JSON", channel.address)
        stranger.sendto(b'{"name": 1}', channel.address)
    tell_agent(event("board_fault", board="b", reason="x"))
    assert came.wait(10)
    channel.close()
    assert heard == [event("board_fault", board="b", reason="x")]
    tell_agent(event("board_fault"))  # nobody listens any more: nothing happens


def test_without_an_agent_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(AGENT_CHANNEL, raising=False)
    monkeypatch.setattr(channels.socket, "socket", None)  # would fail if it were used
    tell_agent(event("board_fault"))
