"""Trials that are given up while they train: how they end, what is told of them, and that a study goes on exactly."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from orchestrator.errors import UsageError
from orchestrator.loop import StudyEnd, run_study
from orchestrator.progress import Progress
from orchestrator.records import Ending, FaultKind, Source, StageRequest, StageResult, Value
from orchestrator.report.contents import ReportInput, contents
from orchestrator.sampler import make_sampler, read_history, read_pending
from orchestrator.space import SearchSpace
from orchestrator.stopping import StoppingRule
from orchestrator.study import Study
from orchestrator.summary import summarise
from orchestrator.telling import STOPPED_ATTR
from orchestrator.view import PlainLines
from tasks.errors import Stopped
from tasks.registry import memo_key
from tasks.stage import StageContext, StageOutput, run_stage
from tests.support.scripted import Answer, ScriptedEvaluator, complete, fault
from tests.support.studies import Recorder, make_study, request

EPOCHS = 4
INITIAL = 8


def final_error(params: Any) -> float:
    """Wide networks are bad here and cost the same: nothing can be said for them."""
    return 0.05 + 0.01 * float(params["network.width"])


def train(asked: StageRequest, context: StageContext) -> StageOutput:
    """A training whose error falls by halves to where it ends, stopped where the rule says so."""
    errors = [min(1.0, final_error(asked.params) * factor) for factor in (8, 4, 2, 1)]
    curve = [[1.0, 1.0 - error] for error in errors]
    rule = StoppingRule.from_json(asked.stopping) if asked.stopping is not None else None
    for epoch in range(1, EPOCHS + 1):
        stop = rule.look(errors[:epoch]) if rule is not None else None
        if stop is not None:
            raise Stopped(stop, {"curve": curve[:epoch]})
    return StageOutput(notes={"curve": curve}, artifacts={"weights": f"{asked.trial:064x}"})


def learning(asked: StageRequest) -> StageResult:
    if asked.stage == "train":
        return run_stage(train, asked, StageContext(artifacts=None))  # type: ignore[arg-type]
    result = complete(asked)
    rom = Value(amount=1000.0, unit="byte", source=Source.EXACT)
    error = Value(amount=final_error(asked.params), unit="1", source=Source.EXACT)
    values = {"gate": {"rom": rom}, "build": {"rom": rom, "error": error}}.get(asked.stage, result.values)
    return replace(result, values=values)


def begin(folder: Path, trials: int = 24, **changes: Any) -> Study:
    sampler = {"name": "random", "initial": INITIAL}
    about: dict[str, Any] = {"budget": {"trials": trials}, "sampler": sampler, "training": {"epochs": EPOCHS}}
    return make_study(folder, **{**about, "early_stopping": {"chance": 0.05}, **changes})


def run(study: Study, answer: Answer = learning, sink: Any = None) -> tuple[StudyEnd, ScriptedEvaluator]:
    evaluator = ScriptedEvaluator(answer)
    sampler = make_sampler(study.file, study.objectives)
    return run_study(study, evaluator, sampler, sink=sink or Recorder(), retry_delays_s=()), evaluator


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, StudyEnd, ScriptedEvaluator]:
    study = begin(tmp_path_factory.mktemp("study"))
    return (study, *run(study))


Ended = tuple[Study, StudyEnd, ScriptedEvaluator]


def test_trials_that_cannot_reach_the_front_are_stopped_and_count_towards_the_budget(ended: Ended) -> None:
    study, end, _ = ended
    assert end.stopped > 3
    assert (end.told, end.complete + end.stopped) == (24, 24)
    assert f"24 trials ({end.stopped} stopped early)" in end.text
    assert {trial.told for trial in study.trials()} == set(range(1, 25))


def test_what_was_stopped_would_have_been_dominated(ended: Ended) -> None:
    study, _, _ = ended
    best = min(final_error(trial.params) for trial in study.trials() if trial.state == "complete")
    assert all(final_error(trial.params) > best for trial in study.trials() if trial.state == "stopped")


def test_after_a_stop_no_later_stage_runs_and_the_reason_is_kept(ended: Ended) -> None:
    study, _, evaluator = ended
    stopped = [trial for trial in study.trials() if trial.state == "stopped"]
    for trial in stopped:
        assert [one.stage for one in evaluator.submitted if one.trial == trial.number] == ["gate", "train"]
        assert trial.outcome is not None
        assert trial.outcome.reason.startswith("stopped early at epoch ")
        assert set(trial.outcome.values) == {"rom"}
        assert len(trial.notes["train"]["curve"]) == trial.notes["train"]["stopped"]["epoch"]


def test_the_initial_design_is_trained_to_its_end(ended: Ended) -> None:
    _, _, evaluator = ended
    rules = {one.trial: one.stopping for one in evaluator.submitted if one.stage == "train"}
    assert all(rules[trial] is None for trial in range(INITIAL))
    assert any(rules[trial] is not None for trial in range(INITIAL, 24))
    assert all(one.stopping is None for one in evaluator.submitted if one.stage != "train")


def test_off_lets_all_run_to_the_end(tmp_path: Path) -> None:
    end, evaluator = run(begin(tmp_path, early_stopping={"mode": "off"}))
    assert (end.complete, end.stopped) == (24, 0)
    assert all(one.stopping is None for one in evaluator.submitted)


def test_optuna_sees_a_pruned_trial_with_the_reason_and_no_number(ended: Ended) -> None:
    study, _, _ = ended
    for trial in study.trials():
        if trial.state == "stopped":
            told = study.optuna.trials[trial.number]
            assert told.state == optuna.trial.TrialState.PRUNED
            assert told.values is None
            assert not told.constraints
            assert trial.outcome is not None
            assert told.user_attrs[STOPPED_ATTR] == trial.outcome.reason


def test_proposers_learn_nothing_from_a_stopped_trial_but_take_it_for_pending(ended: Ended) -> None:
    study, end, _ = ended
    space = SearchSpace.from_parameters(study.file.space)
    history = read_history(study.optuna.trials, space, study.objectives, study.optuna.directions)
    assert len(history) == end.complete
    stopped = [space.encode(trial.params) for trial in study.trials() if trial.state == "stopped"]
    assert np.array_equal(read_pending(study.optuna.trials, space), np.array(stopped))


def test_no_candidate_is_proposed_again_after_it_was_stopped(ended: Ended) -> None:
    study, _, _ = ended
    widths = [trial.params["network.width"] for trial in study.trials()]
    assert len(set(widths[INITIAL:])) == len(widths[INITIAL:])


def test_a_rule_that_was_decided_on_holds_whatever_the_front_is_by_now(tmp_path: Path) -> None:
    study, decided = begin(tmp_path), {"threshold": 0.123, "shares": [0.0, 0.0, 0.0, 0.5]}
    study.ledger.record_stopping(9, decided)
    study.ledger.record_stopping(12, None)
    failed: set[int] = set()

    def failing_once(asked: StageRequest) -> StageResult:
        if asked.stage == "train" and asked.trial not in failed:
            failed.add(asked.trial)
            return fault(asked, FaultKind.TRANSIENT)
        return learning(asked)

    _, evaluator = run(study, failing_once)
    rules: dict[int, list[Any]] = {}
    for one in evaluator.submitted:
        if one.stage == "train":
            rules.setdefault(one.trial, []).append(one.stopping)
    assert rules[9] == [decided, decided]
    assert rules[12] == [None, None]
    assert all(first == second for first, second in rules.values())
    kept = Study.open(study.folder).ledger
    assert all(kept.stopping(trial) == (first,) for trial, (first, _) in rules.items())


class Killed(BaseException):
    """Stands for kill -9."""


def test_a_killed_study_goes_on_to_the_same_end(tmp_path: Path, ended: Ended) -> None:
    study = begin(tmp_path)
    for trial in (9, 12, 15):

        def dying(asked: StageRequest, last: int = trial) -> StageResult:
            if asked.trial == last and asked.stage == "train":
                raise Killed
            return learning(asked)

        with pytest.raises(Killed):
            run(study, dying)
    run(study)
    whole = {trial.number: (trial.state, trial.params) for trial in ended[0].trials()}
    assert {trial.number: (trial.state, trial.params) for trial in study.trials()} == whole


def test_a_result_is_recalled_only_under_the_rule_it_was_made_by() -> None:
    plain = request("train")
    strict = replace(plain, stopping={"threshold": 0.1, "shares": [0.5]})
    lax = replace(plain, stopping={"threshold": 0.2, "shares": [0.5]})
    assert len({memo_key(plain), memo_key(strict), memo_key(lax)}) == 3
    assert memo_key(replace(strict, trial=7, attempt=2)) == memo_key(strict)
    assert StageRequest.from_json(strict.to_json()) == strict


def test_what_a_study_says_about_early_stopping_is_no_part_of_a_results_name() -> None:
    off = {**request("build").study, "early_stopping": {"mode": "off", "chance": 0.1}}
    assert memo_key(replace(request("build"), study=off)) == memo_key(request("build"))


def test_status_report_and_lines_show_stopped_trials_with_their_reason(tmp_path: Path) -> None:
    study, lines = begin(tmp_path), []
    progress = Progress(lambda: 0.0)
    plain = PlainLines(progress, {"error": "1"}, lines.append)

    class Both:
        def emit(self, event: Any) -> None:
            progress.emit(event)
            plain.emit(event)

    end, _ = run(study, sink=Both())
    stopped = [trial for trial in study.trials() if trial.state == "stopped"]
    assert stopped[0].outcome is not None
    reason = stopped[0].outcome.reason
    assert f"trial {stopped[0].number} {reason}" in "\n".join(lines)
    assert progress.told == 24
    history = study.hypervolume_history()
    summary = summarise(study.file, study.objectives, study.trials(), history, {})
    assert (summary["told"], summary["states"]["stopped"]) == (24, end.stopped)
    page = contents(
        ReportInput(
            study=study.file,
            limits={"error": 1.0},
            trials=study.trials(),
            front=[],
            history=history,
            test_results={},
            written_at="now",
        )
    )
    shown = page["trials"][stopped[0].number]
    assert (shown["state"], shown["reason"]) == ("stopped", reason)
    assert f"{end.stopped} stopped" in page["headline"][1]["about"]


def test_early_stopping_may_be_changed_while_a_study_is_under_way(tmp_path: Path) -> None:
    before, _ = run(begin(tmp_path, trials=12))
    end, _ = run(begin(tmp_path, trials=20, early_stopping={"mode": "off"}))
    assert (end.told, end.stopped) == (20, before.stopped)
    with pytest.raises(UsageError, match="other early stopping can be taken over"):
        begin(tmp_path, trials=20, seed=5)


def test_a_plateau_ends_the_search_and_says_so(tmp_path: Path) -> None:
    budget = {"trials": 40, "plateau": {"trials": 5, "gain": 0.5}}
    study = begin(tmp_path, budget=budget, parallelism={"in_flight": 1})
    end, _ = run(study)
    assert (end.reason, end.told) == ("plateau", INITIAL + 5)
    assert end.text.startswith("the last 5 trials raised the hypervolume by no more than 50 %: 13 trials")
    assert run(study)[0].reason == "plateau"


def test_a_plateau_may_be_lifted_and_the_search_goes_on(tmp_path: Path) -> None:
    run(begin(tmp_path, budget={"trials": 20, "plateau": {"trials": 5, "gain": 0.5}}))
    assert run(begin(tmp_path, budget={"trials": 20}))[0].reason == "budget"


def test_a_stop_on_request_is_no_plateau(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    study = begin(tmp_path, budget={"trials": 20, "plateau": {"trials": 1, "gain": 0.9}})
    sampler = make_sampler(study.file, study.objectives)
    assert run_study(study, ScriptedEvaluator(), sampler, sink=Recorder(), stop=stop).reason == "interrupted"


def test_a_stage_that_is_given_up_ends_as_stopped_with_what_it_noted() -> None:
    asked = replace(request("train"), params={"network.width": 40}, stopping={"threshold": 0.01, "shares": [0.5] * 4})
    result = run_stage(train, asked, StageContext(artifacts=None))  # type: ignore[arg-type]
    assert result.ending is Ending.STOPPED
    assert (len(result.notes["curve"]), result.notes["stopped"]["epoch"]) == (1, 1)
    assert StageResult.from_json(result.to_json()) == result
