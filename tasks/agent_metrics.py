"""What an agent exports: its boards by state, what became of measurements, how long their phases took.

Labels come from closed sets: board kinds of the rack, states, outcomes, phases, reasons of faults; ``board`` is one of
the rack's boards.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry

from orchestrator.exposition import BoundedLabel, MetricFamily, make_metric, table
from orchestrator.records import Event

OUTCOMES = ("complete", "image_fault", "rig_fault", "no_board_free")
PHASES = ("flash", "run", "measure", "total")
# At zero from the start, so that the first of them is seen as one more; others appear when they happen.
USUAL_REASONS = ("board_lost", "lease_lost", "programming_failed", "verify_failed", "firmware_hang", "meter_gap")
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_JOULES = tuple(10.0**exponent for exponent in range(-7, 1))
_LATENCY = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

FAMILIES = (
    MetricFamily(
        name="edgefront_rack_boards",
        kind="gauge",
        labels=("board_kind", "state"),
        help="Boards of this agent, by state: idle, leased, stuck, suspect, quarantined.",
    ),
    MetricFamily(
        name="edgefront_measurements",
        kind="counter",
        labels=("board_kind", "outcome"),
        help="Measurements that ended: complete, image_fault, rig_fault (another agent may succeed), no_board_free.",
    ),
    MetricFamily(
        name="edgefront_measurement_duration_seconds",
        kind="histogram",
        labels=("board_kind", "phase"),
        help="Time of a complete measurement: flash, run (known answers and latency), measure (energy), total.",
        buckets=_SECONDS,
    ),
    MetricFamily(
        name="edgefront_inference_energy_joules",
        kind="histogram",
        labels=("board_kind", "source"),
        help="Energy of one inference, by source: measured or estimated.",
        buckets=_JOULES,
    ),
    MetricFamily(
        name="edgefront_inference_latency_seconds",
        kind="histogram",
        labels=("board_kind", "source"),
        help="Time of one inference, by source: measured or emulated.",
        buckets=_LATENCY,
    ),
    MetricFamily(
        name="edgefront_rig_faults",
        kind="counter",
        labels=("board_kind", "reason"),
        help="Faults of boards, probes and meters, by reason; each attempt counts.",
    ),
    MetricFamily(
        name="edgefront_power_cycles", kind="counter", labels=("board_kind",), help="Boards switched off and on again."
    ),
    MetricFamily(
        name="edgefront_quarantines",
        kind="counter",
        labels=("board_kind", "reason"),
        help="Boards taken out of use, by the reason of the last fault.",
    ),
    MetricFamily(
        name="edgefront_last_self_test_timestamp_seconds",
        kind="gauge",
        labels=("board",),
        help="When the board's last self-test ended, in seconds since the epoch.",
    ),
    MetricFamily(
        name="edgefront_last_self_test_passed", kind="gauge", labels=("board",), help="1: it passed; 0: it did not."
    ),
)


class AgentMetrics:
    """Keeps the metrics of one agent in ``registry``; may be called from several threads."""

    def __init__(
        self,
        registry: CollectorRegistry,
        board_kinds: Iterable[str],
        states: Iterable[str],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._metrics = {family.name: make_metric(family, registry) for family in FAMILIES}
        self._label = BoundedLabel(USUAL_REASONS)
        self._kinds, self._states = tuple(board_kinds), tuple(states)
        for kind in self._kinds:  # a series that exists at zero can be rated from the first scrape on
            for outcome in OUTCOMES:
                self._metrics["edgefront_measurements"].labels(board_kind=kind, outcome=outcome)
            self._metrics["edgefront_power_cycles"].labels(board_kind=kind)
            for reason in USUAL_REASONS:
                self._metrics["edgefront_rig_faults"].labels(board_kind=kind, reason=reason)
                self._metrics["edgefront_quarantines"].labels(board_kind=kind, reason=reason)

    def set_boards(self, counts: Mapping[tuple[str, str], int]) -> None:
        """How many boards of each (kind, state) there are now; those not named are none."""
        for kind in self._kinds:
            for state in self._states:
                gauge = self._metrics["edgefront_rack_boards"].labels(board_kind=kind, state=state)
                gauge.set(counts.get((kind, state), 0))

    def take(self, event: Event) -> None:
        """Count what happened; an event of another name, or of a kind this agent has no boards of, is passed over."""
        handler = getattr(self, f"_on_{event.name}", None)
        fields = {"board_kind": event.fields.get("kind"), **event.fields}
        if handler is None or fields["board_kind"] not in self._kinds:
            return
        with self._lock:
            handler(fields)

    def _on_measurement_ended(self, fields: Mapping[str, Any]) -> None:
        kind, outcome = fields["board_kind"], fields.get("outcome")
        if outcome not in OUTCOMES:
            return
        self._metrics["edgefront_measurements"].labels(board_kind=kind, outcome=outcome).inc()
        for phase in PHASES:
            self._observe("edgefront_measurement_duration_seconds", fields.get(f"{phase}_s"), kind, phase=phase)
        energy, latency = "edgefront_inference_energy_joules", "edgefront_inference_latency_seconds"
        self._observe(energy, fields.get("energy_j"), kind, source=str(fields.get("energy_source")))
        self._observe(latency, fields.get("latency_s"), kind, source=str(fields.get("latency_source")))

    def _observe(self, name: str, value: Any, kind: str, **labels: str) -> None:
        if isinstance(value, int | float) and math.isfinite(value):
            self._metrics[name].labels(board_kind=kind, **labels).observe(value)

    def _on_board_fault(self, fields: Mapping[str, Any]) -> None:
        reason = self._bounded(fields.get("reason"))
        self._metrics["edgefront_rig_faults"].labels(board_kind=fields["board_kind"], reason=reason).inc()

    def _on_board_power_cycled(self, fields: Mapping[str, Any]) -> None:
        self._metrics["edgefront_power_cycles"].labels(board_kind=fields["board_kind"]).inc()

    def _on_board_quarantined(self, fields: Mapping[str, Any]) -> None:
        reason = self._bounded(fields.get("reason"))
        self._metrics["edgefront_quarantines"].labels(board_kind=fields["board_kind"], reason=reason).inc()

    def _on_board_tested(self, fields: Mapping[str, Any]) -> None:
        board = str(fields["board"])
        self._metrics["edgefront_last_self_test_timestamp_seconds"].labels(board=board).set(self._now())
        self._metrics["edgefront_last_self_test_passed"].labels(board=board).set(1 if fields["ok"] else 0)

    def _bounded(self, reason: object) -> str:
        return self._label(str(reason or "").partition(":")[0])  # a word, behind which a sentence may stand


def describe() -> str:
    """The agent's part of ``docs/metrics.md``, in Markdown."""
    return table(FAMILIES)
