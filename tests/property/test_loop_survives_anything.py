"""Whatever the workers do and whenever the run is killed, the study ends with exactly its budget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import EvaluationDefect
from orchestrator.loop import run_study
from orchestrator.records import FaultKind, StageRequest, StageResult
from tests.support.scripted import (
    TWO_BOARD_STAGES,
    TWO_BOARDS,
    ScriptedEvaluator,
    complete,
    fault,
    infeasible,
)
from tests.support.studies import Recorder, make_sampler, make_study

TRIALS = 3


class Killed(BaseException):
    """Stands for kill -9."""


def killed(request: StageRequest) -> StageResult:
    raise Killed


def missing(request: StageRequest) -> StageResult:
    lost = next(iter(request.inputs.values()), "0" * 64)
    return fault(request, FaultKind.TRANSIENT, "artifact_missing", f"artifact {lost} is missing")


BEHAVIOURS: dict[str, Callable[[StageRequest], StageResult | None]] = {
    "complete": complete,
    "infeasible": infeasible,
    "transient": lambda request: fault(request, FaultKind.TRANSIENT),
    "defect": lambda request: fault(request, FaultKind.DEFECT),
    "missing": missing,
    "lost": lambda request: None,
    "killed": killed,
}


TWO: dict[str, Any] = {
    "board": None,
    "boards": list(TWO_BOARDS),
    "objectives": {"error": {}, "latency": {"limit": "100 s"}},
}
scripts = st.lists(st.sampled_from(sorted(BEHAVIOURS)), max_size=25)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(script=scripts)
def test_the_budget_is_met_exactly_whatever_happens(
    tmp_path_factory: pytest.TempPathFactory, script: list[str]
) -> None:
    meets_its_budget(tmp_path_factory.mktemp("study"), script, ("gate", "train", "build"))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(script=scripts)
def test_the_budget_is_met_exactly_over_two_boards_side_by_side(
    tmp_path_factory: pytest.TempPathFactory, script: list[str]
) -> None:
    meets_its_budget(tmp_path_factory.mktemp("study"), script, TWO_BOARD_STAGES, **TWO)


def meets_its_budget(folder: Path, script: list[str], stages: tuple[str, ...], **changes: Any) -> None:
    left = list(script)

    def answer(request: StageRequest) -> StageResult | None:
        return BEHAVIOURS[left.pop(0)](request) if left else complete(request)

    end = None
    for _ in range(len(script) + 2):
        study = make_study(folder, budget={"trials": TRIALS}, **changes)
        evaluator = ScriptedEvaluator(answer, stages)
        try:
            end = run_study(study, evaluator, make_sampler(), sink=Recorder(), retry_delays_s=(0.0,))
            break
        except (Killed, EvaluationDefect):
            study.close()
    assert end is not None
    assert end.told == TRIALS
    trials = study.trials()
    assert sorted(trial.told for trial in trials if trial.told is not None) == list(range(1, TRIALS + 1))
    assert not [trial for trial in study.optuna.get_trials(deepcopy=False) if not trial.state.is_finished()]
    assert not [attempt for attempt in study.stage_attempts() if attempt.is_open]
    counted = [(result.trial, result.stage) for result in study.ledger.results()]
    assert len(counted) == len(set(counted))
    study.close()
