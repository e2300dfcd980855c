"""The agent: offers the boards of a rack to the studies of a broker, for as long as it is left running.

One process looks after the boards – their states, self-tests, metrics, the report to studies – and keeps one worker a
board kind running, with one child a board. A worker whose boards are all out of use is held back, so that the tasks of
its kind wait in their queue for a board to heal, or go to another agent.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import redis
from prometheus_client import CollectorRegistry

from mcu_agent.leases import State
from mcu_agent.pool import BoardStatus, Pool, lock_folder
from mcu_agent.rack import Rack, load_rack
from orchestrator.exposition import MetricsServer
from orchestrator.records import Event
from orchestrator.signals import set_soon
from tasks import messages
from tasks.address import exposure, without_password
from tasks.agent_metrics import AgentMetrics
from tasks.agent_tests import SelfTests
from tasks.broker import check_queues, check_reachable, connect
from tasks.channel import AGENT_CHANNEL, Channel
from tasks.guardian import Guardian
from tasks.onboard import RACK_VARIABLE
from tasks.workers import Supervisor, WorkerSpec, worker_broker

LOOK_EVERY_S = 1.0
DRAIN_S = 170.0  # below the unit's TimeoutStopSec, above the longest deadline of a usual measurement
REPORT_KEPT_S = 30
_LONGEST_DETAIL = 200
_USABLE = (State.IDLE, State.LEASED, State.SUSPECT)  # a suspect is being looked into by whoever has a task for it

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentOptions:
    """How an agent is run. What is empty or None is as the rack file has it; metrics port 0 takes any free one."""

    rack: Path
    name: str = ""
    metrics_port: int | None = None
    metrics_address: str | None = None


def run_agent(options: AgentOptions, announce: Callable[[str], None] = lambda line: None) -> int:
    """Serve until SIGTERM or SIGINT, then finish the measurements under way; a second signal gives them up.

    Returns:
        The exit status.

    Raises:
        InventoryError: the rack file is wrong.
        BrokerAddressError, BrokerError: there is no broker to serve.
        UsageError: the metrics' port is taken.
    """
    rack = load_rack(options.rack)
    url = worker_broker("an agent")
    check_reachable(url, is_needed=True)
    check_queues(url, [f"{messages.BOARD_QUEUE}.{kind}" for kind in rack.board_kinds()])
    if danger := exposure(url):
        announce(danger)
    name = options.name or rack.agent.name or socket.gethostname()
    port = rack.agent.metrics_port if options.metrics_port is None else options.metrics_port
    address = options.metrics_address or rack.agent.metrics_address
    os.environ[RACK_VARIABLE] = str(options.rack.absolute())
    with ExitStack() as stack:
        agent = Agent(rack, name, url)
        stack.callback(agent.close)
        server = stack.enter_context(MetricsServer(agent.registry, port=port, address=address))
        queues = ", ".join(spec.queue for spec in agent.specs)
        announce(f"{len(rack.boards)} boards serve {queues} of {without_password(url)}; metrics at {server.url}")
        announce("Ctrl-C or SIGTERM finishes the measurements under way and stops; twice: at once")
        return agent.serve()


class Agent:
    """What :func:`run_agent` runs; ``registry`` holds its metrics."""

    def __init__(self, rack: Rack, name: str, url: str, *, pool: Pool | None = None) -> None:
        self.rack = rack
        self.name = name
        self.registry = CollectorRegistry()
        self.pool = pool or Pool(rack, lock_folder())
        self.specs = _specs(rack, name)
        self._client = connect(url, retries=0)
        self._tests = SelfTests(self.pool, rack.agent.self_test_every_s, self._take)
        self._metrics = AgentMetrics(self.registry, rack.board_kinds(), [state.value for state in State])
        self._channel = Channel(self._metrics.take)
        self._guardian = Guardian()
        self._supervisor = Supervisor(None, {**os.environ, AGENT_CHANNEL: self._channel.address}, self._guardian)
        self._stop, self._hurry = threading.Event(), threading.Event()
        self._signals = 0
        self._failure = ""

    def serve(self) -> int:
        """Look after workers and boards until told to stop."""
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._supervisor.start(self.specs)
            while not self._stop.is_set():
                self.look()
                self._stop.wait(LOOK_EVERY_S)
            self._drain()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return 0

    def look(self) -> list[BoardStatus]:
        """One look at all boards: metrics, the report, and which workers may run."""
        statuses = self.pool.statuses()
        self._metrics.set_boards(Counter((status.board.kind, status.state.value) for status in statuses))
        for spec in self.specs:
            self._hold_or_let_go(spec, statuses)
        self._report(statuses)
        self._tests.start_due()
        self._say_failure()
        return statuses

    def close(self) -> None:
        """End everything that still runs; harmless after :meth:`serve`."""
        self._supervisor.stop(0.0)
        self._tests.close(0.0)
        self._guardian.stop()
        self._channel.close()
        self._client.close()

    def _take(self, name: str, fields: Mapping[str, Any]) -> None:
        self._metrics.take(Event(name=name, fields=dict(fields)))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        set_soon(self._stop if self._signals == 1 else self._hurry)

    def _drain(self) -> None:
        """Let the measurements under way finish, for as long as nobody asks twice."""
        self._forget()
        draining = threading.Thread(target=self._finish, name="drain", daemon=True)
        draining.start()
        while draining.is_alive() and not self._hurry.wait(0.05):
            pass

    def _finish(self) -> None:
        until = time.monotonic() + DRAIN_S
        self._tests.close(0.0)  # begin no more
        self._supervisor.stop(DRAIN_S)
        self._tests.close(max(0.0, until - time.monotonic()))

    def _hold_or_let_go(self, spec: WorkerSpec, statuses: Sequence[BoardStatus]) -> None:
        kind = spec.queue.partition(".")[2]
        if any(status.state in _USABLE for status in statuses if status.board.kind == kind):
            self._supervisor.let_go(spec.name)
        else:
            self._supervisor.hold(spec.name)

    def _report(self, statuses: Sequence[BoardStatus]) -> None:
        """Tell studies which boards there are. A broker that is away is no reason to stop: workers wait for it too."""
        try:
            self._client.set(messages.agent_key(self._address), json.dumps(report_of(statuses)), ex=REPORT_KEPT_S)
        except (redis.RedisError, OSError) as error:
            _log.warning("cannot report the boards: %s", error)

    def _forget(self) -> None:
        try:
            self._client.delete(messages.agent_key(self._address))
        except (redis.RedisError, OSError) as error:
            _log.warning("cannot sign off: %s", error)

    @property
    def _address(self) -> str:
        return f"{self.name}@{socket.gethostname()}-{os.getpid()}"  # two agents may be called alike

    def _say_failure(self) -> None:
        """A worker that keeps dying is started again for ever, ever more slowly: the cause may be the broker's."""
        if self._supervisor.failure and self._supervisor.failure != self._failure:
            _log.error("%s", self._supervisor.failure)
        self._failure = self._supervisor.failure


def _specs(rack: Rack, name: str) -> tuple[WorkerSpec, ...]:
    """One worker a kind, so that tasks of a busy kind do not take the places of those of an idle one."""
    kinds = rack.board_kinds()
    return tuple(
        WorkerSpec(
            name=name if len(kinds) == 1 else f"{name}.{kind}",
            queue=f"{messages.BOARD_QUEUE}.{kind}",
            concurrency=len(rack.of_kind(kind)),
            artifact_stores=rack.artifact_stores,
        )
        for kind in kinds
    )


def report_of(statuses: Sequence[BoardStatus]) -> dict[str, Any]:
    """What studies are told of an agent's boards."""
    return {
        "version": 1,
        "at": time.time(),
        "boards": [
            {
                "board": status.board.board_id,
                "kind": status.board.kind,
                "state": status.state.value,
                "detail": status.detail[:_LONGEST_DETAIL],
            }
            for status in statuses
        ],
    }
