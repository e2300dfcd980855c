"""Whole learning curves of a real study, for replaying rules that would have cut them short.

A recording is a small JSON file: the study's objectives with their limits, the command that made it, and for each trial
in the order of telling its parameters, the validation error after each epoch of training, the epochs that pruning took
after them, and what the trial ended with.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cli
from mcu_agent.kinds import load_kind
from orchestrator.loop import run_study
from orchestrator.objectives import Objectives
from orchestrator.records import Event, Json
from orchestrator.sampler import make_sampler
from orchestrator.study import Study, TrialRecord
from orchestrator.studycheck import load_study
from orchestrator.studyfile import IntParameter, StudyFile
from tasks.evaluator import InlineEvaluator

# Without the board: RAM then counts the reserved stack of all alike.
STAGES = ("gate", "train", "compress", "build")
EPOCHS = IntParameter(type="int", low=8, high=20)
FINETUNE_EPOCHS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedTrial:
    """``errors`` (E,) are validation errors by epoch of training; ``later_epochs`` came after them. ``known`` holds the
    objectives that the gate gave, ``values`` all of them; a trial that is not ``complete`` lacks some."""

    trial: int
    state: str
    errors: tuple[float, ...]
    later_epochs: int
    known: Mapping[str, float]
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """A study's trials, in the order they were told."""

    name: str
    command: str
    initial: int
    objectives: Objectives
    trials: tuple[RecordedTrial, ...]


class _Lines:
    """Says how far the recording is."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def emit(self, event: Event) -> None:
        if event.name == "trial_ended":
            seconds = time.monotonic() - self._started
            print(f"trial {event.fields['trial']} {event.fields['ending']} after {seconds:.0f} s", file=sys.stderr)


def record(path: Path, *, study: Path, trials: int, seed: int, command: str) -> None:
    """Run a shortened form of the study file to its end, in this process, and write its curves to ``path``."""
    file = shortened(load_study(study, cli.vocabulary()), trials, seed)
    kind = load_kind(file.kinds[0])
    with tempfile.TemporaryDirectory() as folder:
        opened = Study.create(Path(folder), file, Objectives.from_study(file, kind.flash_bytes, kind.ram_bytes))
        evaluator = InlineEvaluator(opened.artifacts)
        evaluator.stages = STAGES
        run_study(opened, evaluator, make_sampler(file, opened.objectives), sink=_Lines())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_text(recording_of(opened, command)), encoding="utf-8")
        opened.close()


def shortened(file: StudyFile, trials: int, seed: int) -> StudyFile:
    """The study with fewer epochs, one trial at a time, never stopping any of them."""
    data = file.to_json()
    data |= {"seed": seed, "budget": {"trials": trials}, "parallelism": {"in_flight": 1}}
    data |= {"early_stopping": {"mode": "off"}} if "early_stopping" in data else {}
    data["space"] = {**data["space"], "training.epochs": EPOCHS.model_dump()}
    data["compression"] = {**data["compression"], "finetune_epochs": FINETUNE_EPOCHS}
    return StudyFile.from_json(data)


def recording_of(study: Study, command: str) -> Json:
    """The JSON form of a finished study's recording."""
    objectives = study.objectives
    told = sorted((trial for trial in study.trials() if trial.told is not None), key=lambda trial: trial.told or 0)
    return {
        "name": f"{study.file.name}, {len(told)} trials, seed {study.file.seed}",
        "command": command,
        "initial": study.file.sampler.initial,
        "objectives": {
            "names": list(objectives.names),
            "units": list(objectives.units),
            "limits": list(objectives.limits),
        },
        "trials": [_trial(trial, study) for trial in told],
    }


def _trial(trial: TrialRecord, study: Study) -> Json:
    results = {result.stage: result for result in study.results_of(trial.number)}
    names = study.objectives.names
    values = trial.outcome.values if trial.outcome else {}
    known = results["gate"].values if "gate" in results else {}
    curve = trial.notes.get("train", {}).get("curve", [])
    return {
        "trial": trial.number,
        "state": trial.state,
        "params": dict(trial.params),
        "errors": [round(1.0 - accuracy, 5) for _, accuracy in curve],
        "later_epochs": len(trial.notes.get("compress", {}).get("curve", [])),
        "known": {name: known[name].amount for name in names if name in known},
        "values": {name: round(values[name].amount, 6) for name in names if name in values},
    }


def load(path: Path) -> Recording:
    """A recording from its file."""
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    objectives = data["objectives"]
    return Recording(
        name=data["name"],
        command=data["command"],
        initial=data["initial"],
        objectives=Objectives(**{key: tuple(value) for key, value in objectives.items()}),
        trials=tuple(
            RecordedTrial(
                trial=item["trial"],
                state=item["state"],
                errors=tuple(item["errors"]),
                later_epochs=item["later_epochs"],
                known=item["known"],
                values=item["values"],
            )
            for item in data["trials"]
        ),
    )


def _text(data: Json) -> str:
    """JSON with one line a trial, so that a difference can be read."""
    head = {key: value for key, value in data.items() if key != "trials"}
    trials = ",\n".join("  " + json.dumps(trial) for trial in data["trials"])
    return json.dumps(head, indent=1)[:-2] + ',\n "trials": [\n' + trials + "\n ]\n}\n"
