"""What a study of 10,000 trials costs whoever looks at it, and whoever goes on with it.

    python -m bench.pipelining.looking [--json] [--trials 10000]

``status_s`` and ``report_s``: the commands as a user calls them, from the start of the process to its end, the best of
three. ``orchestrator_mb``: the most memory that a process takes which opens the study and goes on with it for a few
trials whose stages do nothing; ``begin_s``: until it proposes; ``trial_s``: what a trial costs it then.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from optuna.samplers import RandomSampler

from bench.pipelining.large import STAGES, made_up_result, made_up_values, write_large_study
from orchestrator.loop import run_study
from orchestrator.records import Event, Json, StageRequest, StageResult
from orchestrator.study import Study

ROOT = Path(__file__).resolve().parents[2]
NAME = "large"
_REPEATS = 3
_MORE_TRIALS = 12


class Instant:
    """An evaluator whose stages have answered before they are asked."""

    stages = STAGES

    def __init__(self) -> None:
        self._rng = np.random.default_rng(1)
        self._ready: list[StageResult] = []

    def submit(self, request: StageRequest) -> None:
        values = made_up_values(0.5, self._rng)
        self._ready.append(made_up_result(request.study_id, request.trial, request.stage, values, self._rng))

    def collect(self, timeout_s: float) -> Sequence[StageResult]:
        ready, self._ready = self._ready, []
        return ready

    def lost(self, task_ids: Sequence[str]) -> Sequence[str]:
        return ()

    def close(self) -> None:
        """Nothing is open."""


class _Watch:
    """Stops the run after a few trials, and knows when it began and how long they took."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.begun = 0.0
        self.ended: list[float] = []

    def emit(self, event: Event) -> None:
        if event.name == "trial_asked" and not self.begun:
            self.begun = time.monotonic()
        if event.name == "trial_ended":
            self.ended.append(time.monotonic())
            if len(self.ended) >= _MORE_TRIALS:
                self.stop.set()


def go_on(folder: Path) -> Json:
    """Open the study and go on with it, in this process; its seconds and memory."""
    started, watch = time.monotonic(), _Watch()
    study = Study.open(folder)
    run_study(study, Instant(), RandomSampler(seed=0), sink=watch, stop=watch.stop)
    study.close()
    return {
        "begin_s": watch.begun - started,
        "trial_s": (watch.ended[-1] - watch.begun) / _MORE_TRIALS,
        "orchestrator_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def command_s(*words: str) -> float:
    """Seconds of an edgefront command as a process, the best of a few."""
    return min(_seconds(words) for _ in range(_REPEATS))


def _seconds(words: Sequence[str]) -> float:
    started = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-m", "cli", *words], cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL
    )
    return time.monotonic() - started


def measure(n_trials: int) -> Json:
    """All figures of a study of ``n_trials``."""
    with tempfile.TemporaryDirectory() as studies:
        folder = Path(studies) / NAME
        write_large_study(folder, n_trials).close()
        figures = {
            "trials": n_trials,
            "database_mb": (folder / "study.db").stat().st_size / 1e6,
            "status_s": command_s("status", NAME, "--studies", studies),
            "report_s": command_s("report", NAME, "--studies", studies),
        }
        # In a process of its own: this one's memory has held the study as it was made.
        words = [sys.executable, "-m", "bench.pipelining.looking", "--go-on", str(folder)]
        done = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True)
        return {**figures, **json.loads(done.stdout)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--go-on", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    figures = go_on(options.go_on) if options.go_on else measure(options.trials)
    if options.json or options.go_on:
        print(json.dumps(figures))
        return
    for name, figure in figures.items():
        print(f"{name:<16} {figure:,.2f}")


if __name__ == "__main__":
    main()
