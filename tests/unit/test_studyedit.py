"""Edits of a study that has begun: what may change, and what a tighter limit does to what was told."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from orchestrator.errors import UsageError
from orchestrator.loop import SystemClock, run_study
from orchestrator.objectives import Objectives
from orchestrator.sampler import make_sampler, read_history
from orchestrator.space import SearchSpace
from orchestrator.stageflow import StageFlow
from orchestrator.study import Study
from orchestrator.studyedit import StudyEdit, apply_edit, edited, parse_limit
from orchestrator.studyfile import StudyFile
from orchestrator.telling import FIRST_LIMITS_ATTR
from tests.support.scripted import ScriptedEvaluator
from tests.support.studies import FLASH_BYTES, RAM_BYTES, Recorder, make_study, study_file
from tests.support.studies import make_sampler as random_sampler

AT = "2030-01-01T00:00:00+00:00"
BUDGET = {"trials": 6, "wall_clock": "1 h"}


def objectives_of(file: StudyFile) -> Objectives:
    return Objectives.from_study(file, FLASH_BYTES, RAM_BYTES)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With six trials told: rom is 2000 bytes for each of 1 + width, at most 40,000 allowed."""
    folder = tmp_path_factory.mktemp("study")
    made = make_study(folder, budget=BUDGET, objectives={"error": {}, "rom": {"limit": 40_000}})
    run_study(made, ScriptedEvaluator(), random_sampler(), sink=Recorder())
    made.close()
    return folder


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Iterator[Study]:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    opened = Study.open(tmp_path)
    yield opened
    opened.close()


def roms(study: Study) -> dict[int, float]:
    return {
        trial.number: trial.outcome.values["rom"].amount
        for trial in study.trials()
        if trial.outcome is not None and trial.told is not None
    }


def test_a_tighter_limit_judges_the_told_trials_anew_by_their_recorded_values(study: Study) -> None:
    limit = float(sorted(roms(study).values())[2])  # the third smallest
    before = {trial.number: trial.state for trial in study.trials()}
    text = apply_edit(study, StudyEdit(limits={"rom": limit}), objectives_of, AT)
    now = {trial.number: trial.state for trial in Study.open(study.folder).trials()}
    beyond = {number for number, amount in roms(study).items() if amount > limit}
    assert {number for number, state in now.items() if state == "infeasible"} == beyond
    changed = [number for number in now if now[number] != before[number]]
    assert changed
    assert f"{len(changed)} trials are infeasible now" in text
    assert sorted(trial.told or 0 for trial in study.trials()) == [1, 2, 3, 4, 5, 6]
    (event,) = [event for _, event in study.events() if event.name == "study_edited"]
    assert event.fields["infeasible_now"] == changed


def test_front_and_hypervolume_follow_the_new_limit(study: Study) -> None:
    before = study.hypervolume_history()[-1][1]
    limit = float(sorted(roms(study).values())[2])
    apply_edit(study, StudyEdit(limits={"rom": limit}), objectives_of, AT)
    assert all(roms(study)[trial.number] <= limit for trial in study.front())
    assert study.hypervolume_history()[-1][1] != before
    assert study.objectives.limits == (1.0, limit)


def test_the_samplers_history_is_the_one_it_would_have_had_under_the_new_limit(study: Study, tmp_path: Path) -> None:
    limit = 20_000.0
    apply_edit(study, StudyEdit(limits={"rom": limit}), objectives_of, AT)
    tight = make_study(tmp_path / "tight", budget=BUDGET, objectives={"error": {}, "rom": {"limit": limit}})
    run_study(tight, ScriptedEvaluator(), random_sampler(), sink=Recorder())
    space = SearchSpace.from_parameters(study.file.space)
    histories = [
        read_history(
            one.optuna.trials,
            space,
            one.objectives,
            one.optuna.directions,
            one.optuna.user_attrs.get(FIRST_LIMITS_ATTR),
        )
        for one in (study, tight)
    ]
    assert histories[0].feasible.tolist() == histories[1].feasible.tolist()
    assert not all(histories[0].feasible)
    np.testing.assert_allclose(histories[0].outcomes[:, 1], histories[1].outcomes[:, 1])
    tight.close()


def test_trials_told_after_an_edit_keep_the_limits_they_were_told_under(study: Study) -> None:
    apply_edit(study, StudyEdit(trials=9, limits={"rom": 30_000.0}), objectives_of, AT)
    run_study(study, ScriptedEvaluator(), random_sampler(2), sink=Recorder())
    apply_edit(study, StudyEdit(limits={"rom": 10_000.0}), objectives_of, AT)
    space = SearchSpace.from_parameters(study.file.space)
    first = study.optuna.user_attrs[FIRST_LIMITS_ATTR]
    history = read_history(study.optuna.trials, space, study.objectives, study.optuna.directions, first)
    np.testing.assert_allclose(history.outcomes[:, 1], [amount / 10_000 for amount in roms(study).values()])
    assert history.feasible.tolist() == [amount <= 10_000 for amount in roms(study).values()]


def test_an_edited_study_goes_on_and_proposes_by_the_new_limit(study: Study) -> None:
    apply_edit(study, StudyEdit(trials=8, limits={"rom": 12_000.0}), objectives_of, AT)
    end = run_study(study, ScriptedEvaluator(), make_sampler(study.file, study.objectives), sink=Recorder())
    assert (end.told, end.reason) == (8, "budget")
    assert end.infeasible == sum(amount > 12_000 for amount in roms(study).values())


def test_the_same_edit_twice_changes_nothing_the_second_time(study: Study) -> None:
    change = StudyEdit(trials=9, limits={"rom": 20_000.0})
    assert apply_edit(study, change, objectives_of, AT).startswith("9 trials instead of 6, rom at most 20,000 bytes")
    assert apply_edit(study, StudyEdit.from_json(change.to_json()), objectives_of, AT) == "nothing to change"
    assert len([event for _, event in study.events() if event.name == "study_edited"]) == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (StudyEdit(trials=5), "budget.trials: is 6, asked for is 5; it may only be raised"),
        (
            StudyEdit(wall_clock_s=60),
            "is 1 h 00 min, asked for is 1 min 00 s; it may only be raised",
        ),
        (StudyEdit(limits={"rom": 50_000.0}), "is 40,000 bytes, asked for is 50,000 bytes; it may only be tightened"),
        (StudyEdit(limits={"latency": 0.02}), "latency: is no objective of the study (error, rom)"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason_and_changes_nothing(
    study: Study, change: StudyEdit, why: str
) -> None:
    before = study.file, study.trials(), study.events()
    with pytest.raises(UsageError) as refused:
        apply_edit(study, change, objectives_of, AT)
    assert why in str(refused.value)
    assert (study.file, study.trials(), study.events()) == before


def test_a_time_limit_cannot_be_set_where_there_was_none() -> None:
    file = study_file()
    with pytest.raises(UsageError, match=r"budget\.wall_clock: is without bound"):
        edited(file, objectives_of(file), StudyEdit(wall_clock_s=3600))


def test_limits_are_read_with_their_units() -> None:
    assert parse_limit("latency=20 ms") == ("latency", 0.02)
    assert parse_limit(" rom = 48 KiB") == ("rom", 49152.0)


@pytest.mark.parametrize("text", ["latency", "speed=3", "latency=fast", "latency=3 KiB", "rom=0", "rom=-1"])
def test_other_limits_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--limit"):
        parse_limit(text)


class EditOnce:
    """A control that edits the study once three trials are told."""

    def __init__(self, study: Study, change: StudyEdit) -> None:
        self.study, self.change = study, change
        self.is_done = False

    def in_flight(self, could_use: int) -> int:
        return 1

    def is_pausing(self) -> bool:
        return False

    def take_edits(self) -> bool:
        if self.is_done or sum(trial.told is not None for trial in self.study.trials()) < 3:
            return False
        self.is_done = True
        apply_edit(self.study, self.change, objectives_of, AT)
        return True


def test_a_running_study_takes_an_edit_between_two_trials(tmp_path: Path) -> None:
    running = make_study(tmp_path, objectives={"error": {}, "rom": {"limit": 80_000}})
    recorder = Recorder()
    control = EditOnce(running, StudyEdit(trials=7, limits={"rom": 20_000.0}))
    end = run_study(running, ScriptedEvaluator(), random_sampler(), sink=recorder, control=control)
    assert (end.told, end.reason) == (7, "budget")
    assert [event["budget"] for event in recorder.named("study_started")] == [4, 7]
    assert end.hypervolume == pytest.approx(running.hypervolume_history()[-1][1])
    assert end.infeasible == sum(amount > 20_000 for amount in roms(running).values())
    assert end.infeasible + end.complete == 7
    running.close()


def test_early_stopping_looks_at_the_trials_that_are_complete_after_an_edit(study: Study) -> None:
    def flow() -> StageFlow:
        made = StageFlow(
            study=study, evaluator=ScriptedEvaluator(), sink=Recorder(), clock=SystemClock(), retry_delays_s=()
        )
        made.load(study.ledger.candidates())
        return made

    running = flow()
    before = set(running._finished)
    limit = float(sorted(roms(study).values())[2])
    apply_edit(study, StudyEdit(limits={"rom": limit}), objectives_of, AT)
    running.judge_anew(study.ledger.candidates())
    assert set() != set(running._finished) < before
    assert running._finished == flow()._finished, "a run that begins now sees others"


class Pausing:
    """A control that pauses after so many submissions."""

    def __init__(self, evaluator: ScriptedEvaluator, after: int, limit: int = 2) -> None:
        self.evaluator, self.after, self.limit = evaluator, after, limit
        self.could_use: list[int] = []

    def in_flight(self, could_use: int) -> int:
        self.could_use.append(could_use)
        return self.limit

    def is_pausing(self) -> bool:
        return len(self.evaluator.submitted) >= self.after

    def take_edits(self) -> bool:
        return False


def test_a_paused_run_finishes_what_is_under_way_and_begins_nothing(tmp_path: Path) -> None:
    paused = make_study(tmp_path)
    evaluator = ScriptedEvaluator()
    end = run_study(paused, evaluator, random_sampler(), sink=Recorder(), control=Pausing(evaluator, after=1))
    assert (end.reason, end.told) == ("paused", 1)
    assert not [attempt for attempt in paused.stage_attempts() if attempt.is_open]
    assert paused.test_results() == {}
    end = run_study(paused, ScriptedEvaluator(), random_sampler(), sink=Recorder())
    assert (end.reason, end.told) == ("budget", 4)
    paused.close()


def test_a_run_says_how_many_trials_it_could_have_under_way(tmp_path: Path) -> None:
    asked = make_study(tmp_path)
    evaluator = ScriptedEvaluator()
    control = Pausing(evaluator, after=10_000, limit=1)
    run_study(asked, evaluator, random_sampler(), sink=Recorder(), control=control)
    assert control.could_use[0] == 4
    assert control.could_use[-1] == 0
    assert sorted(set(control.could_use), reverse=True) == [4, 3, 2, 1, 0]
    asked.close()


def test_no_more_trials_are_under_way_than_the_control_allows(tmp_path: Path) -> None:
    one = make_study(tmp_path, parallelism={"in_flight": 4})
    evaluator = ScriptedEvaluator()
    run_study(one, evaluator, random_sampler(), sink=Recorder(), control=Pausing(evaluator, after=10_000, limit=1))
    searched = [request.trial for request in evaluator.submitted if request.stage != "final"]
    assert searched == sorted(searched)
    one.close()
