"""What the service exports beside the metrics of its studies."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry

from orchestrator.exposition import MetricFamily, make_metric, table
from orchestrator.registry import STATES

FAMILIES = (
    MetricFamily(
        name="edgefront_studies",
        kind="gauge",
        labels=("state",),
        help="Studies on the lab's list, by state: submitted, running, paused, finished, stopped, failed.",
    ),
    MetricFamily(
        name="edgefront_slots", kind="gauge", labels=(), help="Trials that may be under way at once, over all studies."
    ),
    MetricFamily(
        name="edgefront_study_slots",
        kind="gauge",
        labels=("study",),
        help="The study's share of them; studies that run here only.",
    ),
    MetricFamily(
        name="edgefront_study_restarts",
        kind="counter",
        labels=("study",),
        help="Times that the process of a study was started again after it had died.",
    ),
    MetricFamily(
        name="edgefront_notifications_failed",
        kind="counter",
        labels=(),
        help="Notifications that were given up, after several attempts, or dropped.",
    ),
    MetricFamily(
        name="edgefront_last_round_timestamp_seconds",
        kind="gauge",
        labels=(),
        help="When the orchestrator last went through the list of studies, in seconds since the epoch.",
    ),
)


class ServiceMetrics:
    """The service's own metrics, in ``registry``."""

    def __init__(self, registry: CollectorRegistry, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._metrics = {family.name: make_metric(family, registry) for family in FAMILIES}
        self._failed_posts = 0

    def show(self, counts: Mapping[str, int], slots: int, failed_posts: int) -> None:
        """A round through the list is over. ``counts``: the studies by state; ``failed_posts``: since the start."""
        for state in STATES:
            self._metrics["edgefront_studies"].labels(state=state).set(counts.get(state, 0))
        self._metrics["edgefront_slots"].set(slots)
        self._metrics["edgefront_notifications_failed"].inc(failed_posts - self._failed_posts)
        self._failed_posts = failed_posts
        self._metrics["edgefront_last_round_timestamp_seconds"].set(self._now())

    def share(self, study: str, slots: int) -> None:
        self._metrics["edgefront_study_slots"].labels(study=study).set(slots)
        self._metrics["edgefront_study_restarts"].labels(study=study)

    def restarted(self, study: str) -> None:
        self._metrics["edgefront_study_restarts"].labels(study=study).inc()

    def idle(self, study: str) -> None:
        """The study does not run here now, so it has no share."""
        self._metrics["edgefront_study_slots"].remove_by_labels({"study": study})

    def forget(self, study: str) -> None:
        """Take all series of a study away."""
        self.idle(study)
        self._metrics["edgefront_study_restarts"].remove_by_labels({"study": study})


def describe() -> str:
    """Its table of ``docs/metrics.md``, in Markdown."""
    return table(FAMILIES)
