"""What a trial costs beside training and emulation.

    python bench/overhead.py [--json] [--trials 11] [--study examples/digits.yaml]

Runs a real study with the real queue, workers, compiler and virtual board, one trial at a time, with its training cut
to one epoch. A trial's overhead is the time from the end of the last trial to its own end, less what its stages report.
The first trial warms the workers up and is not counted. Proposals are timed apart, on made-up histories of 30 and 150
trials of the same study.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import cli  # noqa: E402
from mcu_agent.kinds import load_kind  # noqa: E402
from orchestrator.loop import SystemClock, run_study  # noqa: E402
from orchestrator.objectives import Objectives  # noqa: E402
from orchestrator.records import Ending, Event, Outcome, Source, Value  # noqa: E402
from orchestrator.sampler import make_sampler, tell_outcome  # noqa: E402
from orchestrator.space import SearchSpace  # noqa: E402
from orchestrator.study import Study  # noqa: E402
from orchestrator.studyfile import OBJECTIVE_UNITS, FixedParameter, StudyFile  # noqa: E402
from tasks.evaluator import CeleryEvaluator  # noqa: E402
from tasks.workers import EmbeddedLab  # noqa: E402

PROPOSALS_AT = (30, 150)
PROPOSALS_TIMED = 3


@dataclass
class Stopwatch:
    """An event sink that notes when trials end and how long their stages took."""

    ended_s: list[float] = field(default_factory=list)
    in_stages_s: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=dict)
    _open_s: float = 0.0

    def emit(self, event: Event) -> None:
        if event.name == "stage_finished" and event.fields["stage"] != "final":
            seconds = float(event.fields["seconds"])
            self._open_s += seconds
            self.stages.setdefault(event.fields["stage"], []).append(seconds)
        elif event.name == "trial_ended":
            self.ended_s.append(time.monotonic())
            self.in_stages_s.append(self._open_s)
            self._open_s = 0.0

    def overhead_s(self) -> list[float]:
        """Of every trial but the first."""
        pairs = zip(self.ended_s, self.ended_s[1:], strict=False)
        return [after - before - inside for (before, after), inside in zip(pairs, self.in_stages_s[1:], strict=True)]


def shortened(file: StudyFile, trials: int) -> StudyFile:
    """The study with one epoch of training and of fine-tuning, one trial at a time."""
    short = FixedParameter(type="fixed", value=1)
    space = {name: short if name.endswith("epochs") else entry for name, entry in file.space.items()}
    return file.model_copy(
        update={
            "space": space,
            "budget": file.budget.model_copy(update={"trials": trials, "wall_clock": None}),
            "training": file.training.model_copy(update={"epochs": 1}),
            "compression": file.compression.model_copy(update={"finetune_epochs": 1, "steps": 1}),
            "parallelism": file.parallelism.model_copy(update={"in_flight": 1}),
        }
    )


def objectives_of(file: StudyFile) -> Objectives:
    kind = load_kind(file.kinds[0])
    return Objectives.from_study(file, kind.flash_bytes, kind.ram_bytes)


def run_trials(file: StudyFile, folder: Path) -> Stopwatch:
    """The study through queue and workers."""
    watch = Stopwatch()
    study = Study.create(folder / file.name, file, objectives_of(file))
    with ExitStack() as stack:
        stack.callback(study.close)
        lab = stack.enter_context(EmbeddedLab(study.folder, board_kinds=file.kinds))
        sink = study.recording(watch, SystemClock().now_iso)
        evaluator = CeleryEvaluator(
            url=lab.url, study_id=study.study_id, artifacts=study.artifacts, sink=sink, check=lab.check
        )
        stack.callback(evaluator.close)
        run_study(study, evaluator, make_sampler(file, study.objectives), sink=sink)
    return watch


def proposal_s(file: StudyFile, n_trials: int) -> float:
    """Seconds of one proposal after ``n_trials`` told trials; the median of a few."""
    objectives, space = objectives_of(file), SearchSpace.from_parameters(file.space)
    searched = {name: item for name, item in space.distributions().items() if name not in space.fixed}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    told = optuna.create_study(
        directions=["minimize"] * len(objectives.names), sampler=optuna.samplers.RandomSampler(seed=file.seed)
    )
    for _ in range(n_trials):
        trial = told.ask(fixed_distributions=searched)
        point = space.encode({**trial.params, **space.fixed})
        tell_outcome(told, trial.number, made_up_outcome(point.tolist(), objectives), objectives)
    told.sampler = make_sampler(file, objectives)
    seconds = []
    for _ in range(PROPOSALS_TIMED):
        started = time.monotonic()
        trial = told.ask(fixed_distributions=searched)
        seconds.append(time.monotonic() - started)
        told.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return statistics.median(seconds)


def made_up_outcome(point: list[float], objectives: Objectives) -> Outcome:
    """A smooth trade-off between the objectives, within their limits; a proposal's time hardly depends on it."""
    size = sum(point) / len(point)
    values = {}
    for index, (name, limit) in enumerate(zip(objectives.names, objectives.limits, strict=True)):
        wave = 0.05 * math.sin(7 * point[index % len(point)] + index)
        share = 0.1 + 0.8 * (1 - size if name == "error" else size) + wave
        values[name] = Value(amount=share * limit, unit=OBJECTIVE_UNITS[name], source=Source.ESTIMATED)
    return Outcome(ending=Ending.COMPLETE, values=values)


def measure(study_path: Path, trials: int) -> dict[str, Any]:
    file = cli._load_file(study_path)
    with tempfile.TemporaryDirectory(prefix="edgefront-bench-") as folder:
        watch = run_trials(shortened(file, trials), Path(folder))
    return {
        "trials": len(watch.overhead_s()),
        "overhead_s_per_trial": round(statistics.mean(watch.overhead_s()), 3),
        "gate_s": round(statistics.median(watch.stages["gate"][1:]), 3),
        "build_s": round(statistics.median(watch.stages["build"][1:]), 3),
        "proposal_s": {str(n): round(proposal_s(file, n), 3) for n in PROPOSALS_AT},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--trials", type=int, default=11, help="trials to run, the first a warm-up (default 11)")
    parser.add_argument("--study", type=Path, default=ROOT / "examples" / "digits.yaml")
    given = parser.parse_args()
    found = measure(given.study, given.trials)
    if given.json:
        print(json.dumps(found))
        return
    print(f"overhead per trial   {found['overhead_s_per_trial']:.3f} s   (mean of {found['trials']}; goal 0.5 s)")
    print(f"gate                 {found['gate_s']:.3f} s   (median; goal 3 s)")
    print(f"build                {found['build_s']:.3f} s   (median)")
    for n, seconds in found["proposal_s"].items():
        print(f"proposal at {n:<4}     {seconds:.3f} s")


if __name__ == "__main__":
    main()
