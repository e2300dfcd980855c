"""A look at a candidate before it is proposed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator.loop import run_study, trial_seed
from orchestrator.records import Ending, Source, StageRequest, Value
from orchestrator.sampler import make_sampler
from orchestrator.studyfile import StudyFile
from tasks import look, registry
from tasks.artifacts import ArtifactStore
from tasks.errors import TransientFault
from tasks.evaluator import InlineEvaluator
from tasks.look import looks
from tasks.stage import StageContext, StageOutput
from tests.support import fake_stages
from tests.support.studies import Recorder, make_study

PARAMS = {"network.width": 4}
NETS = """
def leaves(input_shape, n_classes, width):
    raise SystemExit(3)
"""


def study(family: str = "mlp", **rom: Any) -> StudyFile:
    return StudyFile.model_validate(
        {
            "name": "seen",
            "dataset": {"source": "digits"},
            "network": {"family": family},
            "space": {"network.width": {"type": "int", "low": 2, "high": 8}},
            "board": "nrf52-dk",
            "objectives": {"error": {}, "rom": rom},
            "budget": {"trials": 3},
        }
    )


def seed_of(trial: int) -> int:
    return 100 + trial


def test_a_look_counts_what_the_gate_will_count(tmp_path: Path) -> None:
    store, file = ArtifactStore(str(tmp_path)), study()
    seen = looks("id", file, {}, store, seed_of)(PARAMS, 5)
    assert seen is not None
    assert set(seen) == {"rom", "flops", "macs"}
    request = StageRequest(
        study_id="id", trial=5, stage="gate", attempt=1, params=PARAMS, seed=105, inputs={}, study=file.to_json()
    )
    # The stage of the proposed trial is answered from what the look has left.
    recalled = registry.recall(request, store)
    assert recalled is not None and recalled.ending is Ending.COMPLETE
    assert recalled.values["rom"].amount == seen["rom"]


def test_a_look_at_what_does_not_fit_says_so(tmp_path: Path) -> None:
    assert looks("id", study(limit=1000), {}, ArtifactStore(str(tmp_path)), seed_of)(PARAMS, 0) is None


def test_a_look_that_fails_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netsthatleave.py").write_text(NETS)
    monkeypatch.setenv("EDGEFRONT_IMPORT_PATH", str(tmp_path))
    for family in ("netsthatleave:leaves", "netsthatleave:missing"):
        assert looks("id", study(family), {}, ArtifactStore(str(tmp_path / "artifacts")), seed_of)(PARAMS, 0) == {}


@pytest.mark.parametrize(("n_faults", "sees"), [(2, {"rom": 5.0}), (3, {})])
def test_a_look_is_taken_again_after_a_passing_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_faults: int, sees: dict[str, float]
) -> None:
    left = [n_faults]

    def gate(request: StageRequest, context: StageContext) -> StageOutput:
        left[0] -= 1
        if left[0] >= 0:
            raise TransientFault("compiler_interrupted", "the compiler was ended by signal 9")
        return StageOutput(values={"rom": Value(amount=5.0, unit="byte", source=Source.EXACT)})

    monkeypatch.setattr(registry, "stage_function", lambda stage: gate)
    assert looks("id", study(), {}, ArtifactStore(str(tmp_path)), seed_of)(PARAMS, 0) == sees


def test_a_look_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netsthatloop.py").write_text(
        "def loops(input_shape, n_classes, width):\n    while True:\n        pass\n"
    )
    monkeypatch.setenv("EDGEFRONT_IMPORT_PATH", str(tmp_path))
    monkeypatch.setattr(look, "LIMIT_S", 0.5)
    file = study("netsthatloop:loops")
    assert looks("id", file, {}, ArtifactStore(str(tmp_path / "artifacts")), seed_of)(PARAMS, 0) == {}


def test_the_gate_of_a_proposed_trial_is_answered_from_its_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates: list[int] = []
    original = fake_stages.STAGES["gate"]

    def gate(request: StageRequest, context: StageContext) -> StageOutput:
        gates.append(request.trial)
        return original(request, context)

    monkeypatch.setenv(registry.OVERRIDE_VARIABLE, "tests.support.fake_stages:STAGES")
    monkeypatch.setitem(fake_stages.STAGES, "gate", gate)
    made = make_study(
        tmp_path, budget={"trials": 6}, sampler={"name": "ars", "initial": 3, "options": {"shortlist": 1}}
    )
    store = ArtifactStore(made.artifacts)
    look = looks(made.study_id, made.file, made.sources, store, partial(trial_seed, made.file.seed))
    sampler = make_sampler(made.file, made.objectives, look)
    run_study(made, InlineEvaluator(made.artifacts, Recorder()), sampler, sink=Recorder())
    trials = made.optuna.get_trials(deepcopy=False)
    assert len(trials) == 6
    # One for each trial of the design, one look for each of the others, and none beside.
    assert sorted(gates) == [0, 1, 2, 3, 4, 5]
