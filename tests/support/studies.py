"""Small studies and what is needed around them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler

from orchestrator.objectives import Objectives
from orchestrator.records import Event, StageRequest
from orchestrator.study import Study
from orchestrator.studyfile import StudyFile

BOARD = "nrf52-dk"
FAKE_STAGES = "tests.support.fake_stages:STAGES"
FLASH_BYTES, RAM_BYTES = 512 * 1024, 64 * 1024


def study_file(**changes: Any) -> StudyFile:
    """A study over the width alone, with four trials, two at a time."""
    data: dict[str, Any] = {
        "name": "small",
        "seed": 1,
        "dataset": {"source": "digits"},
        "network": {"family": "mlp"},
        "space": {"network.width": {"type": "int", "low": 0, "high": 40}, "network.depth": 2},
        "board": BOARD,
        "objectives": {"error": {}, "rom": {}},
        "budget": {"trials": 4},
        "sampler": {"name": "random", "initial": 2},
    }
    return StudyFile.from_json({**data, **changes})


def make_study(folder: Path, **changes: Any) -> Study:
    """Open the study in ``folder``, or begin it."""
    file = study_file(**changes)
    return Study.open_or_create(folder, file, Objectives.from_study(file, FLASH_BYTES, RAM_BYTES))


def make_sampler(seed: int = 1) -> BaseSampler:
    return RandomSampler(seed=seed)


def request(stage: str = "gate", **changes: Any) -> StageRequest:
    fields: dict[str, Any] = {
        "study_id": "study",
        "trial": 0,
        "stage": stage,
        "attempt": 1,
        "params": {"network.width": 3},
        "seed": 7,
        "inputs": {},
        "study": study_file().to_json(),
    }
    return StageRequest(**{**fields, **changes})


class Recorder:
    """An event sink that keeps what it is given, and calls ``on_event`` with it."""

    def __init__(self, on_event: Callable[[Event], None] = lambda event: None) -> None:
        self.events: list[Event] = []
        self._on_event = on_event

    def emit(self, event: Event) -> None:
        self.events.append(event)
        self._on_event(event)

    def named(self, name: str) -> list[dict[str, Any]]:
        return [event.fields for event in self.events if event.name == name]


def check_whole(study: Study, budget: int) -> None:
    """Nothing lost, nothing doubled, nothing left running: what every ended study must satisfy."""
    told = [trial for trial in study.trials() if trial.told is not None]
    assert sorted(trial.told or 0 for trial in told) == list(range(1, budget + 1))
    states = optuna.trial.TrialState
    in_optuna = study.optuna.get_trials(deepcopy=False)
    assert not [trial.number for trial in in_optuna if not trial.state.is_finished()]
    finished = {trial.number for trial in in_optuna if trial.state in (states.COMPLETE, states.PRUNED)}
    assert finished == {trial.number for trial in told}
    for trial in told:
        if trial.state == "complete":
            assert tuple(study.vector(trial)) == tuple(in_optuna[trial.number].values)
            assert [result.stage for result in study.results_of(trial.number)][:5] == [
                "gate",
                "train",
                "compress",
                "build",
                "profile",
            ]
    assert not [attempt for attempt in study.stage_attempts() if attempt.is_open]
    assert set(study.test_results()) == {trial.number for trial in study.front()}
