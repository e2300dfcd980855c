"""The loop with a scripted evaluator: budgets, endings, retries, stops, and going on from any point."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from orchestrator.errors import EvaluationDefect, StudyError
from orchestrator.loop import StudyEnd, run_study, trial_seed
from orchestrator.records import Event, Fault, FaultKind, StageRequest, StageResult
from orchestrator.sampler import make_sampler as sampler_of
from orchestrator.study import Study
from tests.support.scripted import Answer, ScriptedEvaluator, complete, fault, infeasible
from tests.support.studies import Recorder, make_sampler, make_study


class FastClock:
    """Each look at it takes a second."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        self.now_s += 1.0
        return self.now_s

    def now_iso(self) -> str:
        return f"2026-01-01T00:00:{self.now_s:09.3f}"


class Killed(BaseException):
    """Stands for kill -9: nothing in the loop may catch it."""


def run(
    study: Study, evaluator: ScriptedEvaluator, sink: Recorder | None = None, stop: threading.Event | None = None
) -> StudyEnd:
    return run_study(study, evaluator, make_sampler(), sink=sink or Recorder(), clock=FastClock(), stop=stop)


def answering(special: Callable[[StageRequest], bool], answer: Answer, times: int = 99) -> Answer:
    """``answer`` where ``special``, at most ``times``; complete otherwise."""
    left = [times]

    def respond(request: StageRequest) -> StageResult | None:
        if special(request) and left[0] > 0:
            left[0] -= 1
            return answer(request)
        return complete(request)

    return respond


def states(study: Study) -> list[str]:
    return [trial.state for trial in study.trials()]


def test_exactly_the_budget_is_told_and_the_front_is_tested_once(tmp_path: Path) -> None:
    study, evaluator, sink = make_study(tmp_path), ScriptedEvaluator(), Recorder()
    end = run(study, evaluator, sink)
    assert (end.reason, end.told, end.complete, end.faults) == ("budget", 4, 4, 0)
    assert states(study) == ["complete"] * 4
    assert set(study.test_results()) == {trial.number for trial in study.front()}
    assert [one for one in evaluator.submitted if one.stage == "final"] != []
    again = ScriptedEvaluator()
    assert run(study, again).told == 4
    assert again.submitted == []


def test_a_stage_gets_the_artifacts_of_all_stages_before_it(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget={"trials": 1})
    run(study, ScriptedEvaluator())
    notes = study.trials()[0].notes
    assert set(notes["gate"]["inputs"]) == set()
    assert set(notes["build"]["inputs"]) == {"train"}
    assert set(notes["final"]["inputs"]) == {"train", "build"}


def test_no_more_trials_are_under_way_than_asked_for(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget={"trials": 7}, parallelism={"in_flight": 3})
    under_way, most = set(), 0

    def watch(event: Event) -> None:
        nonlocal most
        if event.name == "trial_proposed":
            under_way.add(event.fields["trial"])
        if event.name == "trial_ended":
            under_way.discard(event.fields["trial"])
        most = max(most, len(under_way))

    run(study, ScriptedEvaluator(), Recorder(watch))
    assert most == 3


def test_a_candidate_is_in_the_database_before_anything_is_submitted_for_it(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    known: list[bool] = []

    def look(request: StageRequest) -> StageResult:
        numbers = {trial.number for trial in study.trials()}
        attempts = {attempt.task_id for attempt in study.stage_attempts()}
        known.append(request.trial in numbers and request.task_id in attempts)
        return complete(request)

    run(study, ScriptedEvaluator(look))
    assert known
    assert all(known)


def test_an_infeasible_candidate_ends_at_once_counts_and_teaches(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    evaluator = ScriptedEvaluator(answering(lambda one: one.trial == 1 and one.stage == "gate", infeasible))
    end = run(study, evaluator)
    assert (end.told, end.complete, end.infeasible) == (4, 3, 1)
    assert [one.stage for one in evaluator.submitted if one.trial == 1] == ["gate"]
    told = study.optuna.trials[1]
    assert told.state == optuna.trial.TrialState.PRUNED
    assert told.user_attrs["edgefront:violations"] == [0.5]


def test_a_complete_trial_beyond_a_limit_is_infeasible_with_its_values(tmp_path: Path) -> None:
    study = make_study(tmp_path, objectives={"error": {}, "rom": {"limit": 20_000}})
    end = run(study, ScriptedEvaluator())
    assert end.infeasible > 0
    for trial in study.trials():
        assert trial.outcome is not None
        assert (trial.state == "infeasible") == (trial.outcome.values["rom"].amount > 20_000)


def test_when_nothing_is_feasible_the_end_says_what_was_missed_by_how_much(tmp_path: Path) -> None:
    end = run(make_study(tmp_path), ScriptedEvaluator(infeasible))
    assert (end.reason, end.told, end.front_size, end.hypervolume) == ("budget", 4, 0, 0.0)
    assert "none of the 4 candidates is feasible" in end.text
    assert "rom: 4 of 4, closest trial 0 (rom: 100 bytes over)" in end.text


def test_a_transient_fault_is_tried_three_times(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    special = answering(
        lambda one: one.stage == "build" and one.trial == 0, lambda one: fault(one, FaultKind.TRANSIENT), 2
    )
    sink = Recorder()
    assert run(study, ScriptedEvaluator(special), sink).faults == 0
    assert [one["attempt"] for one in sink.named("fault")] == [1, 2]
    assert study.trials()[0].attempt == 3


def test_waiting_for_a_board_costs_no_attempt(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    busy = answering(
        lambda one: one.stage == "build" and one.trial == 0,
        lambda one: fault(one, FaultKind.TRANSIENT, "no_board_free", "all boards are out of use"),
        7,
    )
    end = run(study, ScriptedEvaluator(busy), sink := Recorder())
    assert (end.faults, end.told) == (0, 4)
    assert len(sink.named("fault")) == 7
    assert study.trials()[0].attempt == 8


@pytest.mark.parametrize("comes_first", [1, 2])
def test_an_attempt_that_was_given_up_and_answers_after_all_counts_no_second_time(
    tmp_path: Path, comes_first: int
) -> None:
    study = make_study(tmp_path)

    class Woken(ScriptedEvaluator):
        """The first attempt's worker stood still; its answer comes beside that of the second."""

        def collect(self, timeout_s: float) -> Sequence[StageResult]:
            ready = list(super().collect(timeout_s))
            woken = [result for result in ready if (result.trial, result.stage, result.attempt) == (0, "train", 2)]
            late = [replace(result, attempt=1, worker="woken") for result in woken]
            return [*late, *ready] if comes_first == 1 else [*ready, *late]

    standing_still = answering(lambda one: (one.trial, one.stage) == (0, "train"), lambda one: None, 1)
    end = run(study, Woken(standing_still))
    assert (end.told, end.complete, end.faults) == (4, 4, 0)
    (train,) = [result for result in study.results_of(0) if result.stage == "train"]
    assert train.attempt == comes_first
    assert [trial.told for trial in study.trials()].count(None) == 0
    assert not [attempt for attempt in study.stage_attempts() if attempt.is_open]


def test_a_training_is_handed_over_as_often_as_workers_leave(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    leaving = answering(
        lambda one: one.stage == "train" and one.trial == 0,
        lambda one: fault(one, FaultKind.TRANSIENT, "handed_over", "epoch 3 is kept"),
        5,
    )
    end = run(study, ScriptedEvaluator(leaving))
    assert (end.faults, end.told) == (0, 4)


@pytest.mark.parametrize("reason", ["memory_limit", "out_of_memory"])
def test_what_does_not_fit_into_a_workers_memory_is_tried_once_more_and_no_oftener(tmp_path: Path, reason: str) -> None:
    study = make_study(tmp_path)
    hungry = answering(lambda one: one.trial == 0, lambda one: fault(one, FaultKind.TRANSIENT, reason, "9 GiB"))
    scripted = ScriptedEvaluator(hungry)
    end = run(study, scripted)
    assert (end.faults, end.told) == (1, 4)
    assert [one.attempt for one in scripted.submitted if one.trial == 0] == [1, 2]
    assert study.optuna.trials[0].state == optuna.trial.TrialState.FAIL


def test_after_three_faults_the_trial_is_given_up_unseen_by_the_sampler_and_another_takes_its_place(
    tmp_path: Path,
) -> None:
    study = make_study(tmp_path)
    special = answering(lambda one: one.trial == 0, lambda one: fault(one, FaultKind.TRANSIENT))
    end = run(study, ScriptedEvaluator(special))
    assert (end.told, end.faults) == (4, 1)
    assert states(study) == ["fault", *["complete"] * 4]
    assert study.optuna.trials[0].state == optuna.trial.TrialState.FAIL


def test_more_faults_than_the_budget_stop_the_study(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget={"trials": 2})
    broken = ScriptedEvaluator(lambda one: fault(one, FaultKind.TRANSIENT))
    with pytest.raises(EvaluationDefect, match=r"3 trials have ended in faults.*board_lost: no answer"):
        run(study, broken)
    assert states(study).count("fault") == 3


def test_a_lost_worker_costs_an_attempt(tmp_path: Path) -> None:
    study, sink = make_study(tmp_path), Recorder()
    special = answering(lambda one: one.trial == 2 and one.stage == "train", lambda one: None, 1)
    assert run(study, ScriptedEvaluator(special), sink).complete == 4
    assert [(one["trial"], one["reason"]) for one in sink.named("fault")] == [(2, "worker_lost")]
    assert [one.state for one in study.stage_attempts() if one.trial == 2 and one.stage == "train"] == ["lost", "ended"]


def test_a_defect_stops_the_study_with_its_detail_and_the_trial_is_evaluated_by_the_next_run(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    defect = answering(lambda one: one.trial == 1 and one.stage == "build", lambda one: fault(one, FaultKind.DEFECT))
    with pytest.raises(EvaluationDefect, match="trial 1, stage build: board_lost: no answer"):
        run(study, ScriptedEvaluator(defect))
    assert study.trials()[1].state == "running"
    mended = ScriptedEvaluator()
    assert run(study, mended).complete == 4
    again = next(one for one in mended.submitted if one.trial == 1)
    assert (again.stage, again.attempt) == ("build", 2)


def test_a_traceback_goes_to_a_file_and_its_last_line_to_the_user(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    detail = "KeyError: 'x' (net.py, line 3)\nTraceback (most recent call last):\n  …"

    def crashed(one: StageRequest) -> StageResult:
        unforeseen = Fault(kind=FaultKind.DEFECT, reason="unexpected_error", detail=detail)
        return replace(fault(one, FaultKind.DEFECT), fault=unforeseen)

    with pytest.raises(
        EvaluationDefect, match=r"unexpected_error: KeyError: 'x' \(net.py, line 3\); the whole"
    ) as caught:
        run(study, ScriptedEvaluator(answering(lambda one: one.trial == 1 and one.stage == "build", crashed)))
    assert "Traceback" not in str(caught.value)
    assert (study.folder / "logs" / "trial-1-build.txt").read_text(encoding="utf-8") == detail


def test_defects_do_not_use_up_the_attempts(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget={"trials": 1})
    for _ in range(4):
        with pytest.raises(EvaluationDefect):
            run(study, ScriptedEvaluator(lambda one: fault(one, FaultKind.DEFECT)))
    assert run(study, ScriptedEvaluator()).complete == 1


def test_a_missing_artifact_makes_its_writer_run_again(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget={"trials": 1})

    def missing(request: StageRequest) -> StageResult:
        return fault(request, FaultKind.TRANSIENT, "artifact_missing", f"artifact {request.inputs['train']} is missing")

    evaluator = ScriptedEvaluator(answering(lambda one: one.stage == "build", missing, 1))
    assert run(study, evaluator).complete == 1
    stages = [(one.stage, one.attempt) for one in evaluator.submitted]
    assert stages == [("gate", 1), ("train", 1), ("build", 1), ("train", 2), ("build", 2), ("final", 1)]


def test_an_artifact_that_goes_missing_for_ever_is_a_fault_in_the_end(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget={"trials": 1})

    def missing(request: StageRequest) -> StageResult:
        return fault(request, FaultKind.TRANSIENT, "artifact_missing", f"artifact {request.inputs['train']} is missing")

    run(study, ScriptedEvaluator(answering(lambda one: one.stage == "build" and one.trial == 0, missing)))
    assert states(study) == ["fault", "complete"]


def test_a_doubled_result_counts_once(tmp_path: Path) -> None:
    class Doubling(ScriptedEvaluator):
        def collect(self, timeout_s: float) -> list[StageResult]:
            return [copy for result in super().collect(timeout_s) for copy in (result, result)]

    study = make_study(tmp_path)
    assert run(study, Doubling()).told == 4
    assert len(study.ledger.results(0)) == len([one for one in study.stage_attempts() if one.trial == 0])


def test_a_missing_objective_is_a_defect_that_names_it(tmp_path: Path) -> None:
    study = make_study(tmp_path, objectives={"error": {}, "energy": {"limit": "1 mJ"}})
    with pytest.raises(EvaluationDefect, match="no stage gave a value for energy"):
        run(study, ScriptedEvaluator())


def test_on_request_the_loop_stops_and_the_next_run_goes_on(tmp_path: Path) -> None:
    study, stop = make_study(tmp_path), threading.Event()

    def stop_at_second(event: Event) -> None:
        if event.name == "trial_ended" and event.fields["trial"] == 1:
            stop.set()

    end = run(study, ScriptedEvaluator(), Recorder(stop_at_second), stop)
    assert end.reason == "interrupted"
    assert end.told < 4
    assert "running" in states(study)
    assert run(study, ScriptedEvaluator()).told == 4


def test_the_wall_clock_bounds_all_runs_together(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget={"trials": 1000, "wall_clock": 60})
    first = run(study, ScriptedEvaluator())
    assert first.reason == "wall_clock"
    assert 0 < first.told < 1000
    assert "running" not in states(study)
    assert run(study, ScriptedEvaluator()).told == first.told


def test_a_raised_budget_goes_on_where_the_study_ended(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    run(study, ScriptedEvaluator())
    study.close()
    more = make_study(tmp_path, budget={"trials": 6})
    assert run(more, ScriptedEvaluator()).told == 6
    assert [trial.number for trial in more.trials()] == list(range(6))


@pytest.mark.parametrize("nth", [1, 3])
@pytest.mark.parametrize(
    "at",
    ["trial_asked", "trial_proposed", "stage_queued", "stage_finished", "trial_told", "trial_ended", "front_changed"],
)
def test_a_run_killed_anywhere_is_completed_by_the_next(tmp_path: Path, at: str, nth: int) -> None:
    study, seen = make_study(tmp_path), [0]

    def kill(event: Event) -> None:
        seen[0] += event.name == at
        if seen[0] == nth:
            raise Killed

    with pytest.raises(Killed):
        run(study, ScriptedEvaluator(), Recorder(kill))
    study.close()
    study = make_study(tmp_path)
    assert run(study, ScriptedEvaluator()).told == 4
    assert sorted(trial.told or 0 for trial in study.trials() if trial.told) == [1, 2, 3, 4]
    assert not [one for one in study.optuna.trials if one.state == optuna.trial.TrialState.RUNNING]
    assert not [one for one in study.stage_attempts() if one.is_open]


@pytest.mark.parametrize("n_before", [0, 1, 2])
def test_a_candidate_that_was_never_recorded_is_asked_for_again_under_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_before: int
) -> None:
    space = {name: {"type": "int", "low": 1, "high": 99} for name in ("network.width", "network.depth")}
    alone: dict[str, Any] = {"space": space, "parallelism": {"in_flight": 1}, "sampler": {"name": "random"}}
    calm = make_study(tmp_path / "calm", **alone)
    run_study(calm, ScriptedEvaluator(), sampler_of(calm.file, calm.objectives), sink=Recorder(), clock=FastClock())
    disturbed = make_study(tmp_path / "disturbed", **alone)
    storage, calls = type(disturbed.optuna._storage), [0]
    set_param = storage.set_trial_param

    def kill(*arguments: Any) -> None:
        if calls[0] == 2 + n_before:  # amid the second candidate, or between it and its record
            raise Killed
        calls[0] += 1
        set_param(*arguments)

    def kill_after(event: Event) -> None:
        if event.name == "trial_asked" and calls[0] == 4:
            raise Killed

    sampler = sampler_of(disturbed.file, disturbed.objectives)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(storage, "set_trial_param", kill)
        run_study(disturbed, ScriptedEvaluator(), sampler, sink=Recorder(kill_after), clock=FastClock())
    disturbed.close()
    again = Study.open(tmp_path / "disturbed")
    run_study(again, ScriptedEvaluator(), sampler, sink=Recorder(), clock=FastClock())
    assert [(t.number, t.params, t.seed, t.told) for t in again.trials()] == [
        (t.number, t.params, t.seed, t.told) for t in calm.trials()
    ]
    assert len(again.optuna.trials) == 4


def test_an_open_attempt_is_published_again_under_the_same_task_id(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget={"trials": 1})

    def kill(request: StageRequest) -> StageResult:
        if request.stage == "train":
            raise Killed
        return complete(request)

    first = ScriptedEvaluator(kill)
    with pytest.raises(Killed):
        run(study, first)
    second = ScriptedEvaluator()
    run(study, second)
    assert second.submitted[0].task_id == first.submitted[-1].task_id


def test_events_tell_the_whole_story(tmp_path: Path) -> None:
    sink = Recorder()
    end = run(make_study(tmp_path, budget={"trials": 1}), ScriptedEvaluator(), sink)
    names = [event.name for event in sink.events]
    assert names[:5] == ["study_started", "trial_asked", "trial_proposed", "stage_queued", "stage_finished"]
    assert names[-1] == "study_finished"
    assert sink.named("study_finished") == [{"reason": "budget", "hypervolume": end.hypervolume}]
    assert sink.named("front_changed") == [{"hypervolume": end.hypervolume, "front_size": 1}]
    (ended,) = sink.named("trial_ended")
    assert ended["ending"] == "complete"
    assert set(ended["values"]) == {"rom", "error"}


def test_the_same_seed_gives_the_same_candidates_and_seeds(tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        study = make_study(tmp_path / name)
        run(study, ScriptedEvaluator())
        runs.append([(trial.number, dict(trial.params), trial.seed) for trial in study.trials()])
    assert runs[0] == runs[1]
    assert len({seed for _, _, seed in runs[0]}) == 4


def test_trial_seeds_are_fixed_small_and_different() -> None:
    seeds = {trial_seed(study, trial) for study in range(5) for trial in range(50)}
    assert len(seeds) == 250
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert trial_seed(1, 2) == trial_seed(1, 2)


def test_a_database_that_fails_during_the_run_is_a_study_error(tmp_path: Path) -> None:
    study = make_study(tmp_path)

    def break_it(event: Event) -> None:
        if event.name == "stage_finished":
            with study.ledger._engine.begin() as connection:
                connection.exec_driver_sql("DROP TABLE edgefront_attempts")

    with pytest.raises(StudyError, match=r"study\.db: no such table"):
        run(study, ScriptedEvaluator(), Recorder(break_it))


def test_a_resumed_run_says_where_the_study_stood(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    run(study, ScriptedEvaluator())
    study.close()
    study, sink = make_study(tmp_path, budget={"trials": 5}), Recorder()
    run(study, ScriptedEvaluator(), sink)
    (started,) = sink.named("study_started")
    assert started["standing"]["endings"] == {"complete": 4}
    errors = [trial.outcome.values["error"].amount for trial in study.trials() if trial.outcome is not None]
    assert started["standing"]["best_error"] == min(errors[:4])
