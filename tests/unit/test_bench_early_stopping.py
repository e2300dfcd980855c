"""The replay of early stopping on recorded curves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import early_stopping
from bench.early_stopping import replay, summary
from bench.recording import RecordedTrial, Recording, load, recording_of, shortened
from orchestrator.loop import run_study
from orchestrator.objectives import Objectives
from orchestrator.records import StageRequest
from orchestrator.stopping import LEAST_CURVES
from orchestrator.studyfile import EarlyStopping
from tests.support.scripted import ScriptedEvaluator, complete
from tests.support.studies import Recorder, make_sampler, make_study, study_file

SETTINGS = EarlyStopping(chance=0.05, gain=0.0)
OBJECTIVES = Objectives(names=("error", "rom"), units=("1", "byte"), limits=(1.0, 100.0))


def trial(number: int, final: float, rom: float = 50.0) -> RecordedTrial:
    """Ten epochs that fall to twice the final error; deployment halves it."""
    return RecordedTrial(
        trial=number,
        state="complete",
        errors=tuple(2 * final * (1 + (10 - epoch) / 10) for epoch in range(1, 11)),
        later_epochs=5,
        known={"rom": rom},
        values={"error": final, "rom": rom},
    )


def recording(*finals: float) -> Recording:
    trials = tuple(trial(number, final) for number, final in enumerate(finals))
    return Recording(name="made up", command="none", initial=LEAST_CURVES, objectives=OBJECTIVES, trials=trials)


GOOD = [0.1] * LEAST_CURVES


def test_a_hopeless_trial_is_stopped_and_its_remaining_epochs_are_saved() -> None:
    result = replay(recording(*GOOD, 0.4), range(LEAST_CURVES + 1), SETTINGS)
    assert (result.stopped, result.lost, result.hypervolume_loss) == (1, 0, 0.0)
    assert result.epochs == 15 * (LEAST_CURVES + 1)
    assert 5 < result.saved <= 14


def test_a_trial_that_makes_the_front_is_not_stopped() -> None:
    assert replay(recording(*GOOD, 0.09), range(LEAST_CURVES + 1), SETTINGS).stopped == 0


def test_the_initial_trials_of_an_order_are_never_stopped() -> None:
    result = replay(recording(*GOOD, 0.4), [LEAST_CURVES, *range(LEAST_CURVES)], SETTINGS)
    assert result.stopped == 0


def test_a_wrong_stop_shows_as_a_lost_front_trial_and_lost_hypervolume() -> None:
    made = recording(*GOOD, 0.05)
    late = RecordedTrial(
        trial=99,
        state="complete",
        errors=(0.9,) * 10,
        later_epochs=5,
        known={"rom": 50.0},
        values={"error": 0.05, "rom": 50.0},
    )
    broken = Recording(
        name="", command="", initial=LEAST_CURVES, objectives=OBJECTIVES, trials=(*made.trials[:-1], late)
    )
    result = replay(broken, range(LEAST_CURVES + 1), SETTINGS)
    assert (result.stopped, result.lost) == (1, 1)
    assert result.hypervolume_loss == pytest.approx(1 - 0.9 / 0.95)


def test_shuffled_orders_are_the_same_every_time() -> None:
    made = recording(*GOOD, 0.4, 0.3, 0.2)
    assert summary(made, 5, SETTINGS) == summary(made, 5, SETTINGS)


def test_a_finished_study_is_recorded_and_read_back(tmp_path: Path) -> None:
    def curved(asked: StageRequest) -> object:
        result = complete(asked)
        if asked.stage == "train":
            result.notes["curve"] = [[1.0, 0.25], [0.5, 0.75]]
        return result

    study = make_study(tmp_path / "study")
    run_study(study, ScriptedEvaluator(curved), make_sampler(), sink=Recorder())  # type: ignore[arg-type]
    path = tmp_path / "made.json"
    path.write_text(json.dumps(recording_of(study, "by hand")), encoding="utf-8")
    read = load(path)
    assert (read.command, read.objectives) == ("by hand", study.objectives)
    assert [item.trial for item in read.trials] == [0, 1, 2, 3]
    assert read.trials[0].errors == (0.75, 0.25)
    assert set(read.trials[0].known) == {"rom"}
    assert set(read.trials[0].values) == {"error", "rom"}


def test_what_is_recorded_is_never_stopped_itself() -> None:
    short = shortened(study_file(), 12, 3)
    assert (short.early_stopping.mode, short.budget.trials, short.seed) == ("off", 12, 3)


def test_the_command_prints_figures_of_every_kept_recording(capsys: pytest.CaptureFixture[str]) -> None:
    early_stopping.main(["--json", "--orders", "2"])
    figures = json.loads(capsys.readouterr().out)["early_stopping"]
    assert len(figures) == len(list(early_stopping.DATA.glob("*.json"))) > 0
    assert all("bench/early_stopping.py --record" in item["command"] for item in figures)
    early_stopping.main(["--orders", "2"])
    assert "epochs saved" in capsys.readouterr().out
