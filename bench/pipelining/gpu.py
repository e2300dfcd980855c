"""A lab's worker on the GPUs of this machine: what it announces and exports, how fast it trains, what it survives.

    python -m bench.pipelining.gpu [--json] [--widths 16,64,128] [--repeats 3] [--device cuda] [--long 25]

Needs a CUDA GPU with ``nvidia-smi``. Starts a broker and ``edgefront worker --queues train --gpus all`` as a process of
its own, and has it train networks of ``examples/digits.yaml`` with the training settings from there:

- one training of ``--long`` seconds as it is; the same again, with the process that trains killed half way; the same
  once more, with the worker told to hand over half way. The weights must be the same three times.
- for each width ``--repeats`` trainings on the processor and on the GPU in turn, by the same process, on one thread,
  with the seconds that the stage itself took.
- SIGTERM amid a training.

``--device cpu`` tries the script where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402
import yaml  # noqa: E402

from orchestrator.errors import OrchestratorError  # noqa: E402
from orchestrator.records import Ending, Event, StageRequest, StageResult  # noqa: E402
from orchestrator.studyfile import StudyFile  # noqa: E402
from tasks import messages  # noqa: E402
from tasks.broker import BROKER_VARIABLE, EmbeddedBroker, connect, tail  # noqa: E402
from tasks.evaluator import CeleryEvaluator  # noqa: E402
from tasks.gpus import VISIBLE_VARIABLE, installed_gpus  # noqa: E402
from tasks.messages import Holder  # noqa: E402

_PATIENCE_S = 300.0
_LONG_WIDTH = 64
# By the width, so that the processor's time of all of them is alike.
_EPOCHS = {16: 20, 64: 5, 128: 2}


@dataclass
class Worker:
    """``edgefront worker`` as a process group of its own."""

    url: str
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Returns the seconds until it announced itself at the broker."""
        command = [sys.executable, "-m", "cli", "worker", "--queues", "train", "--name", "lab", "--gpus", "all"]
        environment = {**os.environ, BROKER_VARIABLE: self.url, "PYTHONUNBUFFERED": "1"}
        began = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--metrics-port", "0"],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(self.names, self.check)
        return time.monotonic() - began

    def names(self) -> list[str]:
        """The worker processes that have announced themselves, and live."""
        client = connect(self.url)
        pids = {str(child.pid) for child in psutil.Process(self._running.pid).children()}
        found = [key.decode() for key in client.scan_iter(messages.WORKER_KEYS)]
        client.close()
        return [name for name in found if name.partition("@")[0].rpartition("-")[2] in pids]

    def scraped(self) -> dict[str, float]:
        lines = [line for line in self.log.read_text(encoding="utf-8").splitlines() if line.startswith("metrics at ")]
        text = urllib.request.urlopen(lines[-1].split()[-1], timeout=5).read().decode()
        samples = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def check(self) -> None:
        """
        Raises:
            OrchestratorError: it has ended.
        """
        if self._running.poll() is not None:
            raise OrchestratorError(f"the worker ended; {self.log} ends with:\n{tail(self.log)}")

    def terminate(self) -> None:
        self._running.terminate()

    def wait(self) -> int:
        return self._running.wait(_PATIENCE_S)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            family = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            for one in family:
                one.kill()
            self.process.wait()

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            raise OrchestratorError("the worker was not started")
        return self.process


def wait_for(condition: Callable[[], object], check: Callable[[], None], every_s: float = 0.05) -> None:
    """
    Raises:
        OrchestratorError: ``check`` says so, or it takes too long.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        check()
        if time.monotonic() > deadline:
            raise OrchestratorError(f"waited {_PATIENCE_S:g} s in vain")
        time.sleep(every_s)


@dataclass
class Trainings:
    """Trainings of one study, submitted as an orchestrator does, with artifacts of its own."""

    worker: Worker
    name: str
    folder: Path
    device: str
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._evaluator = CeleryEvaluator(
            url=self.worker.url,
            study_id=self.name,
            artifacts=self.folder / self.name,
            sink=self,
            check=lambda: None,
        )

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def submit(self, *, width: int, epochs: int, trial: int = 0, attempt: int = 1, device: str = "") -> StageRequest:
        data = yaml.safe_load((ROOT / "examples/digits.yaml").read_text(encoding="utf-8"))
        data["training"] |= {"device": device or self.device, "checkpoint_every": "1 s"}
        params = {
            "network.width": width,
            "network.depth": 2,
            "network.kernel_size": 3,
            "training.learning_rate": 5e-3,
            "training.epochs": epochs,
        }
        request = StageRequest(
            study_id=self.name,
            trial=trial,
            stage="train",
            attempt=attempt,
            params=params,
            seed=trial,
            inputs={},
            study=StudyFile.from_json(data).to_json(),
        )
        self._evaluator.submit(request)
        return request

    def ended(self, request: StageRequest, look: Callable[[], None] = lambda: None) -> StageResult | None:
        """The result; None where the attempt was lost with its process.

        Raises:
            OrchestratorError: there is none in time.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            for result in self._evaluator.collect(0.25):
                if messages.task_id_of(result) == request.task_id:
                    return result
            if self._evaluator.lost([request.task_id]):
                return None
            look()
        raise OrchestratorError(f"no result in {_PATIENCE_S:g} s; {self.worker.log} ends:\n{tail(self.worker.log)}")

    def completed(self, request: StageRequest, look: Callable[[], None] = lambda: None) -> StageResult:
        """
        Raises:
            OrchestratorError: the training did not end well.
        """
        result = self.ended(request, look)
        if result is None or result.ending is not Ending.COMPLETE:
            raise OrchestratorError(f"the training ended as {reason_of(result)}")
        return result

    def trained(self, **what: Any) -> StageResult:
        return self.completed(self.submit(**what))

    def wait_for_epoch(self, epoch: int) -> None:
        def has_come() -> bool:
            self._evaluator.collect(0.05)
            return any(event.name == "epoch_finished" and event.fields["epoch"] >= epoch for event in self.events)

        wait_for(has_come, self.worker.check)

    def child_of(self, request: StageRequest) -> int:
        """The process that trains; 0 where none has taken it yet."""
        client = connect(self.worker.url)
        text: Any = client.hget(messages.started_key(self.name), request.task_id)
        client.close()
        return Holder.from_text(text).pid if text else 0

    def resumed_at(self) -> list[int]:
        return [event.fields["epoch"] for event in self.events if event.name == "stage_resumed"]

    def close(self) -> None:
        self._evaluator.close()


def reason_of(result: StageResult | None) -> str:
    """In a word, how an attempt ended."""
    if result is None:
        return "lost"
    return result.fault.reason if result.fault else result.ending.value


@dataclass
class Witness:
    """Looks at a training under way: the child's environment, the driver's list of processes, the worker's metrics."""

    worker: Worker
    trainings: Trainings
    request: StageRequest | None = None
    seen: dict[str, Any] = field(default_factory=dict)

    def look(self) -> None:
        child = self.trainings.child_of(self.request) if self.request is not None else 0
        if not child:
            return
        self.seen["visible_to_the_child"] = psutil.Process(child).environ().get(VISIBLE_VARIABLE)
        on_gpu = compute_processes()
        if on_gpu:
            self.seen["on_the_gpu"] = {"child": child, "nvidia-smi": on_gpu}
        for name, value in self.worker.scraped().items():
            if "_gpu_" in name:
                self.seen[name] = max(value, self.seen.get(name, 0.0))


def compute_processes() -> list[str]:
    """What the driver says: ``pid, memory``."""
    command = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


Tell = Callable[[str, Any], None]


@dataclass
class Bench:
    """The steps, in their order; each tells what it found."""

    folder: Path
    worker: Worker
    device: str
    tell: Tell

    @contextmanager
    def trainings(self, name: str) -> Iterator[Trainings]:
        one = Trainings(self.worker, name, self.folder, self.device)
        try:
            yield one
        finally:
            one.close()

    def start(self) -> None:
        seconds = self.worker.start()
        gpus = installed_gpus()
        self.tell("gpus", [f"{gpu.index} {gpu.name} {gpu.uuid}" for gpu in gpus])
        self.tell("worker_ready_s", round(seconds, 1))
        wait_for(lambda: len(self.worker.names()) >= max(1, len(gpus)), self.worker.check)
        self.tell("worker_processes", self.worker.names())

    def first(self, long_s: float) -> int:
        """The first training of a process, then the epochs that take ``long_s``."""
        with self.trainings("first") as trainings:
            result = trainings.trained(width=16, epochs=2)
            self.tell("first_training_s", round(result.seconds, 2))
            self.tell("worker_and_device", [result.worker, result.notes.get("device")])
            trainings.trained(width=_LONG_WIDTH, epochs=2, trial=1)
            epochs = 10
            seconds = trainings.trained(width=_LONG_WIDTH, epochs=epochs, trial=2).seconds
        n_long = max(10, math.ceil(long_s * epochs / seconds))
        self.tell("long_training_epochs", n_long)
        return n_long

    def whole(self, epochs: int) -> str:
        """The long training, looked at; the hash of its weights."""
        with self.trainings("whole") as trainings:
            witness = Witness(self.worker, trainings)
            witness.request = trainings.submit(width=_LONG_WIDTH, epochs=epochs)
            result = trainings.completed(witness.request, witness.look)
        for name, value in witness.seen.items():
            self.tell(name, value)
        self.tell("whole_s", round(result.seconds, 1))
        return result.artifacts["weights"]

    def killed(self, epochs: int, weights: str) -> None:
        with self.trainings("killed") as trainings:
            request = trainings.submit(width=_LONG_WIDTH, epochs=epochs)
            trainings.wait_for_epoch(epochs // 2)
            child, killed_s = trainings.child_of(request), time.monotonic()
            os.kill(child, signal.SIGKILL)
            reason = reason_of(trainings.ended(request))
            self.tell("killed", {"told_as": reason, "noticed_after_s": round(time.monotonic() - killed_s, 1)})
            again = trainings.trained(width=_LONG_WIDTH, epochs=epochs, attempt=2)
            self._tell_again("killed", again, trainings, weights)

    def _tell_again(self, what: str, again: StageResult, trainings: Trainings, weights: str) -> None:
        found = {"from_epoch": trainings.resumed_at(), "s": round(again.seconds, 1)}
        self.tell(f"{what}_second_attempt", {**found, "same_weights": again.artifacts["weights"] == weights})

    def speed(self, widths: Sequence[int], repeats: int) -> None:
        """Processor and GPU in turn, each training with a seed of its own, so that none is answered from memory."""
        with self.trainings("speed") as trainings:
            for width in widths:
                epochs = _EPOCHS.get(width, 2)
                trainings.trained(width=width, epochs=1, trial=1000 * width)
                rows = [
                    [
                        trainings.trained(
                            width=width, epochs=epochs, trial=1000 * width + 1 + repeat, device=device
                        ).seconds
                        for device in ("cpu", self.device)
                    ]
                    for repeat in range(repeats)
                ]
                self.tell(f"width_{width}", figures(rows, epochs))

    def drained(self, epochs: int) -> None:
        """SIGTERM amid a training of a third of the long one: it is finished, then the worker ends."""
        with self.trainings("finished") as trainings:
            request = trainings.submit(width=_LONG_WIDTH, epochs=max(10, epochs // 3))
            trainings.wait_for_epoch(2)
            self.worker.terminate()
            result, told_s = trainings.ended(request), time.monotonic()
            status = self.worker.wait()
        found = {"ending": reason_of(result), "status": status, "ended_after_s": round(time.monotonic() - told_s, 1)}
        self.tell("sigterm", found)

    def handed_over(self, epochs: int, weights: str) -> None:
        """SIGTERM twice: the training is kept, and another worker goes on."""
        self.worker.start()
        with self.trainings("handed") as trainings:
            request = trainings.submit(width=_LONG_WIDTH, epochs=epochs)
            trainings.wait_for_epoch(epochs // 2)
            self.worker.terminate()
            time.sleep(0.5)
            self.worker.terminate()
            reason = reason_of(trainings.ended(request))
            self.tell("sigterm_twice", {"told_as": reason, "status": self.worker.wait()})
            self.worker.start()
            again = trainings.trained(width=_LONG_WIDTH, epochs=epochs, attempt=2)
            self._tell_again("handed_over", again, trainings, weights)


def figures(rows: Sequence[Sequence[float]], epochs: int) -> dict[str, Any]:
    """Seconds on the processor and the GPU by repeat, and the ratio: its median, least and most."""
    ratios = [cpu / gpu for cpu, gpu in rows]
    return {
        "epochs": epochs,
        "cpu_s": [round(cpu, 2) for cpu, _ in rows],
        "gpu_s": [round(gpu, 2) for _, gpu in rows],
        "ratio": [round(value, 2) for value in (statistics.median(ratios), min(ratios), max(ratios))],
    }


def run(folder: Path, device: str, widths: Sequence[int], repeats: int, long_s: float, tell: Tell) -> None:
    broker = EmbeddedBroker(folder / "broker", folder / "broker.log")
    broker.start()
    worker = Worker(broker.url, folder / "worker.log")
    bench = Bench(folder, worker, device, tell)
    try:
        bench.start()
        epochs = bench.first(long_s)
        weights = bench.whole(epochs)
        bench.killed(epochs, weights)
        bench.speed(widths, repeats)
        tell(
            "exits", {name: value for name, value in worker.scraped().items() if "child_exits_total" in name and value}
        )
        bench.drained(epochs)
        bench.handed_over(epochs, weights)
    finally:
        worker.close()
        broker.stop()
        lines = (folder / "worker.log").read_text(encoding="utf-8").splitlines()
        tell("worker_log", [line for line in lines if line.strip()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end, instead of lines")
    parser.add_argument("--widths", default="16,64,128", help="of the networks whose trainings are timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda", help="what the study names as training.device")
    parser.add_argument("--long", type=float, default=25.0, help="seconds of the training that is killed")
    given = parser.parse_args()
    found: dict[str, Any] = {}

    def tell(name: str, value: Any) -> None:
        found[name] = value
        if not given.json:
            print(f"{name:<46} {json.dumps(value)}", flush=True)

    widths = [int(width) for width in given.widths.split(",")]
    with tempfile.TemporaryDirectory(prefix="edgefront-bench-") as name:
        run(Path(name), given.device, widths, given.repeats, given.long, tell)
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
