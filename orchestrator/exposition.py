"""What every exporter needs: metrics described as data, made for a registry, listed for people, served over HTTP."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from orchestrator.errors import UsageError

_MOST_VALUES = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricFamily:
    """One exported metric: ``kind`` is counter, gauge or histogram; counters get ``_total`` appended on the wire."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()

    @property
    def exported_name(self) -> str:
        return self.name + ("_total" if self.kind == "counter" else "")


def make_metric(family: MetricFamily, registry: CollectorRegistry) -> Any:
    """The metric itself, registered."""
    if family.kind == "histogram":
        return Histogram(family.name, family.help, family.labels, registry=registry, buckets=family.buckets)
    make = Counter if family.kind == "counter" else Gauge
    return make(family.name, family.help, family.labels, registry=registry)


class BoundedLabel:
    """The values of a label, short stable words, ``usual`` ones among them; ``other`` once there are too many: a bug
    that invents new ones must not flood the server."""

    def __init__(self, usual: Iterable[str]) -> None:
        self._known = set(usual)

    def __call__(self, value: object) -> str:
        text = str(value or "unknown")
        if text not in self._known and len(self._known) >= _MOST_VALUES:
            return "other"
        self._known.add(text)
        return text


class MetricsServer:
    """Serves ``/metrics`` of a registry until closed; use as a context manager. ``port`` is the one it listens on.

    Raises:
        UsageError: the port is taken, or the address is not one of this machine.
    """

    def __init__(self, registry: CollectorRegistry, *, port: int = 0, address: str = "127.0.0.1") -> None:
        try:
            self._server, self._thread = start_http_server(port, addr=address, registry=registry)
        except OSError as error:
            raise UsageError(
                f"cannot serve metrics at {address}:{port}: {error.strerror}; choose another --metrics-port "
                "(0: any free one) or --metrics-address"
            ) from error
        self.port: int = self._server.server_port
        self.url = f"http://{address}:{self.port}/metrics"

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def table(families: Iterable[MetricFamily]) -> str:
    """The families as a table in Markdown."""
    rows = [
        f"| `{family.exported_name}` | {family.kind} | {_label_text(family)} | {family.help} |" for family in families
    ]
    return "\n".join(["| name | kind | labels | what it says |", "|---|---|---|---|", *rows])


def _label_text(family: MetricFamily) -> str:
    return ", ".join(f"`{label}`" for label in family.labels) or "–"
