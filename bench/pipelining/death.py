"""How long a trial waits when the host that trained it dies without a word.

    python -m bench.pipelining.death [--json]

A whole study of one trial over a broker of its own. Amid the training the process group of its worker is killed, whose
host has another name than the orchestrator's, so that only the beat can tell; the time runs until the next attempt has
begun on another host, which was there all along and waits for work.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from optuna.samplers import RandomSampler  # noqa: E402

from bench.pipelining.stubs import WAIT_VARIABLE  # noqa: E402
from bench.pipelining.throughput import BOARD, FLASH_BYTES, RAM_BYTES, study_file  # noqa: E402
from orchestrator.errors import OrchestratorError  # noqa: E402
from orchestrator.loop import SystemClock, run_study  # noqa: E402
from orchestrator.objectives import Objectives  # noqa: E402
from orchestrator.records import Event  # noqa: E402
from orchestrator.study import Study  # noqa: E402
from tasks.broker import BROKER_VARIABLE, EmbeddedBroker, tail  # noqa: E402
from tasks.evaluator import CeleryEvaluator  # noqa: E402
from tasks.hosts import HOST_VARIABLE  # noqa: E402

_TRAINING_S = 60.0


@dataclass
class Lab:
    """Workers as if each were of a host of its own."""

    url: str
    log: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, host: str, queues: str, training_s: float = 0.0) -> None:
        environment = {
            **os.environ,
            BROKER_VARIABLE: self.url,
            HOST_VARIABLE: host,
            WAIT_VARIABLE: str(training_s),
            "EDGEFRONT_STAGES": "bench.pipelining.stubs:STAGES",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }
        with self.log.open("ab") as log:
            self.processes[host] = subprocess.Popen(
                [sys.executable, "-m", "tasks.workers", "--queues", queues, "--name", host],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self, host: str) -> None:
        os.killpg(self.processes.pop(host).pid, signal.SIGKILL)

    def check(self) -> None:
        """
        Raises:
            OrchestratorError: a worker ended that nobody killed.
        """
        dead = [host for host, process in self.processes.items() if process.poll() is not None]
        if dead:
            raise OrchestratorError(f"worker {dead[0]} ended; {self.log} ends with:\n{tail(self.log)}")

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


@dataclass
class Executioner:
    """An event sink that kills the host which trains, once, and notes when the training goes on elsewhere."""

    lab: Lab
    killed_s: float = 0.0
    again_s: float = 0.0

    def emit(self, event: Event) -> None:
        if event.name != "stage_started" or event.fields["stage"] != "train":
            return
        if event.fields["attempt"] == 1:
            self.lab.start("second", "train")
            time.sleep(3.0)  # the other host's worker is up and waits
            self.lab.kill("first")
            self.killed_s = time.monotonic()
        elif not self.again_s:
            self.again_s = time.monotonic()


def detect_and_rerun_s() -> float:
    """From the death of the worker's host to the start of the next attempt, in seconds."""
    file = study_file(1, in_flight=1, train_workers=1)
    with tempfile.TemporaryDirectory(prefix="edgefront-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        broker = EmbeddedBroker(folder / "broker", folder / "broker.log")
        stack.callback(broker.stop)
        broker.start()
        lab = Lab(broker.url, folder / "workers.log")
        stack.callback(lab.close)
        lab.start("rest", f"build,board.{BOARD}")
        lab.start("first", "train", _TRAINING_S)
        study = Study.create(folder / "study", file, Objectives.from_study(file, FLASH_BYTES, RAM_BYTES))
        stack.callback(study.close)
        watch = Executioner(lab)
        sink = study.recording(watch, SystemClock().now_iso)
        evaluator = CeleryEvaluator(
            url=broker.url, study_id=study.study_id, artifacts=study.artifacts, sink=sink, check=lab.check
        )
        stack.callback(evaluator.close)
        run_study(study, evaluator, RandomSampler(seed=1), sink=sink)
    return watch.again_s - watch.killed_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    found = {"detect_and_rerun_s": round(detect_and_rerun_s(), 1)}
    print(json.dumps(found) if given.json else f"noticed and running again after {found['detect_and_rerun_s']} s")


if __name__ == "__main__":
    main()
