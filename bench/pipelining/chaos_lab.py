"""A whole lab on this machine whose processes are killed by chance and started again, as a service manager would.

Broker, database, orchestrator, workers and agents are those of a real lab, started by the commands that a user types.
A unit is a command with all that it starts: like a control group, it ends as a whole when its first process ends, and
is then started again. Whatever of it is killed below that, it has to mend itself.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil

from tasks.broker import BROKER_VARIABLE, EmbeddedBroker

ROOT = Path(__file__).resolve().parents[2]
UNIT_VARIABLE = "EDGEFRONT_BENCH_UNIT"
BROKER = "broker"
_GONE = (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess)


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """``words`` of ``edgefront``; ``environment`` beside the lab's."""

    name: str
    words: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class ChaosLab:
    """``units`` run from ``start`` to ``close``, beside a broker of their own. ``environment`` is that of all.

    A unit that ended is started again ``pause_s`` later, by ``look_after``; so is the broker.
    """

    folder: Path
    units: Sequence[Unit]
    environment: dict[str, str]
    pause_s: float = 1.0
    kills: list[str] = field(default_factory=list)
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _again_at: dict[str, float] = field(default_factory=dict)

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.broker = EmbeddedBroker(self.folder / BROKER, self.folder / "broker.log")
        self.broker.start()
        for unit in self.units:
            self._start(unit)

    def close(self) -> None:
        """End everything at once."""
        for unit in self.units:
            self._end(unit.name)
        self.broker.stop()

    def look_after(self) -> None:
        """Start again what has ended, once its pause is over."""
        now = time.monotonic()
        for name in [unit.name for unit in self.units if self._running[unit.name].poll() is not None]:
            if name not in self._again_at:
                self._end(name)  # what is left of it
                self._again_at[name] = now + self.pause_s
        for name in [name for name, at in self._again_at.items() if at <= now]:
            del self._again_at[name]
            self._log(f"starting {name}")
            if name == BROKER:
                self.broker.restart()
            else:
                self._start(next(unit for unit in self.units if unit.name == name))

    def kill_one(self, chance: random.Random) -> str:
        """``kill -9`` of one process: of the broker, or any of a unit, each unit as likely; says which."""
        name = chance.choice([BROKER, *(unit.name for unit in self.units)])
        if name == BROKER:
            self.kill_broker(self.pause_s)
            return self._noted(BROKER)
        victims = self._processes(name)
        if not victims:
            return ""  # it is down already
        victim = chance.choice(victims)
        is_first = victim.pid == self._running[name].pid
        try:
            victim.send_signal(signal.SIGKILL)
        except _GONE:
            return ""
        return self._noted(name if is_first else f"{name}, child")

    def kill_broker(self, away_s: float) -> None:
        """``kill -9`` of the broker, which comes back after ``away_s`` from what it had written."""
        self.broker.stop_process()
        self._log(f"broker away for {away_s:g} s")
        self._again_at.setdefault(BROKER, time.monotonic() + away_s)

    def _noted(self, what: str) -> str:
        self.kills.append(what)
        self._log(f"killed {what}")
        return what

    def _log(self, text: str) -> None:
        with (self.folder / "chaos.log").open("a", encoding="utf-8") as log:
            log.write(f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {text}\n")

    def _start(self, unit: Unit) -> None:
        environment = {
            **os.environ,
            BROKER_VARIABLE: self.broker.url,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            **self.environment,
            **unit.environment,
            UNIT_VARIABLE: self._mark(unit.name),
        }
        with (self.folder / f"{unit.name}.log").open("ab") as log:
            self._running[unit.name] = subprocess.Popen(
                [sys.executable, "-m", "cli", *unit.words],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _end(self, name: str) -> None:
        """All of a unit, whatever sessions its processes have made."""
        if name in self._running and self._running[name].poll() is None:
            self._running[name].kill()
        while left := self._processes(name):
            for process in left:
                try:
                    process.kill()
                except _GONE:
                    continue
            psutil.wait_procs(left, timeout=1)
        if name in self._running:
            self._running[name].wait()

    def _mark(self, name: str) -> str:
        return f"{self.folder}:{name}"

    def _processes(self, name: str) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(UNIT_VARIABLE) == self._mark(name):
                    found.append(process)
            except _GONE:
                continue
        return sorted(found, key=lambda process: process.pid)
