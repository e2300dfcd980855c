"""A lab on this machine: a broker, and agents with racks of virtual boards, each a process of its own."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tasks import messages
from tasks.broker import BROKER_VARIABLE, EmbeddedBroker, connect

ROOT = Path(__file__).resolve().parents[2]
_READY_S = 600.0


@dataclass(kw_only=True)
class Lab:
    """``agents`` processes with ``boards`` boards each, by the driver ``driver``. A context manager."""

    folder: Path
    kind: str
    driver: str
    agents: int
    boards: int
    environment: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    kills: int = 0
    restarts: int = 0

    def __enter__(self) -> Lab:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.broker = EmbeddedBroker(self.folder / "broker", self.folder / "broker.log")
        self.broker.start()
        self.processes = [self._start(number) for number in range(self.agents)]
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.broker.stop()

    @property
    def url(self) -> str:
        """The broker's address."""
        return self.broker.url

    @property
    def locks(self) -> Path:
        """Where the boards' lock files lie."""
        return self.folder / "locks"

    def racks(self) -> list[Path]:
        """The rack files, one an agent."""
        return [self.folder / f"rack-{number}.toml" for number in range(self.agents)]

    def wait_until_ready(self) -> None:
        """Return when every agent's worker serves its queue.

        Raises:
            TimeoutError: that takes longer than minutes.
        """
        client = connect(self.url)
        deadline = time.monotonic() + _READY_S
        while len(list(client.scan_iter(messages.WORKER_KEYS))) < self.agents:
            self.look_after()
            if time.monotonic() > deadline:
                raise TimeoutError(f"the agents do not serve their queues after {_READY_S:g} s; see {self.folder}")
            time.sleep(0.2)
        client.close()

    def look_after(self) -> None:
        """Start agents again that have died of a fault on one of their boards, as a service manager would."""
        for number, process in enumerate(self.processes):
            if process.poll() is not None:
                self.processes[number] = self._start(number)
                self.kills += 1

    def kill_an_agent(self, chance: random.Random) -> None:
        """``kill -9`` of one agent, which is then started again as a service manager would."""
        process = self.processes[chance.randrange(self.agents)]
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.look_after()

    def restart_broker(self) -> None:
        """``kill -9`` of the broker, and its start from what it had written."""
        self.broker.stop_process()
        self.broker.restart()
        self.restarts += 1

    def leftovers(self, patience_s: float = 30.0) -> list[str]:
        """Processes of this lab that still run after it has ended."""
        return _after(patience_s, self._running)

    def _running(self) -> list[str]:
        mark = str(self.folder)
        found = []
        for process in psutil.process_iter(["pid", "cmdline", "environ"]):
            environment = process.info["environ"] or {}
            if environment.get("EDGEFRONT_LOCKS", "").startswith(mark):
                found.append(f"{process.info['pid']} {' '.join(process.info['cmdline'] or [])[:80]}")
        return found

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        rack = self.racks()[number]
        rack.write_text(
            f'[[board]]\nid = "a{number}"\nkind = "{self.kind}"\ndriver = "{self.driver}"\ncount = {self.boards}\n'
            if self.boards > 1
            else f'[[board]]\nid = "a{number}"\nkind = "{self.kind}"\ndriver = "{self.driver}"\n',
            encoding="utf-8",
        )
        environment = {
            **os.environ,
            BROKER_VARIABLE: self.url,
            "EDGEFRONT_LOCKS": str(self.locks),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            **self.environment,
        }
        command = [sys.executable, "-m", "cli", "agent", "--rack", str(rack), "--name", f"agent-{number}"]
        with (self.folder / f"agent-{number}.log").open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def _after(patience_s: float, look: Callable[[], Sequence[str]]) -> list[str]:
    """What ``look`` finds once it finds nothing, or when patience has ended."""
    deadline = time.monotonic() + patience_s
    while (found := list(look())) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found
