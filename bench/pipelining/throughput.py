"""What the pipeline costs when the stages cost nothing, and what a second worker brings when they wait.

    python -m bench.pipelining.throughput [--json] [--trials 200] [--waiting 40] [--wait 0.25] [--profile FILE]

Whole studies through the real queue, workers and database, with a random sampler: trials a second, the median time a
stage takes from its queueing to its recorded result, and the speed-up by a second training worker where each training
waits.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402
from optuna.samplers import RandomSampler  # noqa: E402

from bench.pipelining.stubs import WAIT_VARIABLE  # noqa: E402
from orchestrator.loop import SystemClock, run_study  # noqa: E402
from orchestrator.objectives import Objectives  # noqa: E402
from orchestrator.records import Event  # noqa: E402
from orchestrator.study import Study  # noqa: E402
from orchestrator.studyfile import StudyFile  # noqa: E402
from tasks.evaluator import CeleryEvaluator  # noqa: E402
from tasks.workers import EmbeddedLab  # noqa: E402

BOARD = "nrf52-dk"
FLASH_BYTES, RAM_BYTES = 512 * 1024, 64 * 1024
WARM_UP_TRIALS = 5


@dataclass
class Stopwatch:
    """An event sink that notes when trials end, and how long each stage took beside its own seconds."""

    trials: int
    lab: EmbeddedLab | None = None
    cpu_s: list[dict[str, float]] = field(default_factory=list)
    ended_s: list[float] = field(default_factory=list)
    latency_s: list[float] = field(default_factory=list)
    _queued_s: dict[tuple[int, str], float] = field(default_factory=dict)

    def emit(self, event: Event) -> None:
        now = time.monotonic()
        if event.name == "stage_queued":
            self._queued_s[event.fields["trial"], event.fields["stage"]] = now
        elif event.name == "stage_finished":
            key = (event.fields["trial"], event.fields["stage"])
            self.latency_s.append(now - self._queued_s.pop(key) - float(event.fields["seconds"]))
        elif event.name == "trial_ended":
            self.ended_s.append(now)
            if self.lab is not None and len(self.ended_s) in (WARM_UP_TRIALS + 1, self.trials):
                self.cpu_s.append(processor_s(self.lab))

    @property
    def cpu_ms_per_trial(self) -> dict[str, float]:
        """Processor time a trial, by who took it."""
        before, after = self.cpu_s
        n_trials = len(self.ended_s) - WARM_UP_TRIALS - 1
        return {name: round(1000 * (after[name] - before[name]) / n_trials, 1) for name in after}

    @property
    def trials_per_s(self) -> float:
        after = self.ended_s[WARM_UP_TRIALS:]
        return (len(after) - 1) / (after[-1] - after[0])


def processor_s(lab: EmbeddedLab) -> dict[str, float]:
    """Processor time so far of the orchestrator, the workers with their children, and the broker."""
    taken = {"orchestrator": time.process_time(), "parents": 0.0, "children": 0.0, "broker": 0.0}
    for pid in lab.worker_pids().values():
        parent = psutil.Process(pid)
        taken["parents"] += sum(parent.cpu_times()[:2])
        taken["children"] += sum(sum(child.cpu_times()[:2]) for child in parent.children())
    if lab._broker is not None and lab._broker.process is not None:
        taken["broker"] = sum(psutil.Process(lab._broker.process.pid).cpu_times()[:2])
    return taken


def study_file(trials: int, *, in_flight: int, train_workers: int) -> StudyFile:
    return StudyFile.from_json(
        {
            "name": "empty",
            "seed": 1,
            "dataset": {"source": "digits"},
            "network": {"family": "mlp"},
            "space": {"network.width": {"type": "int", "low": 0, "high": 40}, "network.depth": 2},
            "board": BOARD,
            "objectives": {"error": {}, "rom": {}},
            "budget": {"trials": trials},
            "sampler": {"name": "random", "initial": 2},
            "parallelism": {"in_flight": in_flight, "train_workers": train_workers},
        }
    )


def run_once(file: StudyFile, *, wait_s: float = 0.0, profile: Path | None = None) -> Stopwatch:
    """One study from beginning to end."""
    os.environ["EDGEFRONT_STAGES"] = "bench.pipelining.stubs:STAGES"
    os.environ[WAIT_VARIABLE] = str(wait_s)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    watch = Stopwatch(file.budget.trials)
    with tempfile.TemporaryDirectory(prefix="edgefront-bench-") as folder:
        study = Study.create(Path(folder) / "study", file, Objectives.from_study(file, FLASH_BYTES, RAM_BYTES))
        with EmbeddedLab(study.folder, board_kinds=file.kinds, train_workers=file.parallelism.train_workers) as lab:
            watch.lab = lab
            sink = study.recording(watch, SystemClock().now_iso)
            evaluator = CeleryEvaluator(
                url=lab.url, study_id=study.study_id, artifacts=study.artifacts, sink=sink, check=lab.check
            )
            profiler = cProfile.Profile() if profile else None
            if profiler:
                profiler.enable()
            run_study(study, evaluator, RandomSampler(seed=1), sink=sink)
            if profiler and profile:
                profiler.disable()
                profiler.dump_stats(profile)
            evaluator.close()
        study.close()
    return watch


def stage_latency_s(trials: int) -> float:
    """Median over all stages of a study with one trial at a time: nothing waits for anything else."""
    return statistics.median(run_once(study_file(trials, in_flight=1, train_workers=1)).latency_s)


def worker_speedup(trials: int, wait_s: float) -> float:
    """Throughput of two training workers over that of one, with trials enough under way for both."""
    one, two = (run_once(study_file(trials, in_flight=8, train_workers=n), wait_s=wait_s).trials_per_s for n in (1, 2))
    return two / one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--waiting", type=int, default=40, help="trials of the studies that wait; 0: leave them out")
    parser.add_argument("--wait", type=float, default=0.25, help="seconds a training waits")
    parser.add_argument("--profile", type=Path, help="write the orchestrator's profile of the empty study here")
    given = parser.parse_args()
    file = study_file(given.trials, in_flight=8, train_workers=1)
    empty = run_once(file, profile=given.profile)
    found: dict[str, Any] = {
        "trials_per_s": round(empty.trials_per_s, 1),
        "cpu_ms_per_trial": empty.cpu_ms_per_trial,
        "stage_latency_ms_p50": round(1000 * stage_latency_s(max(20, given.trials // 5)), 1),
    }
    if given.waiting:
        found["worker_speedup_2"] = round(worker_speedup(given.waiting, given.wait), 2)
    print(json.dumps(found) if given.json else "\n".join(f"{name:<22} {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
