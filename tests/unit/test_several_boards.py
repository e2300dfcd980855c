"""Several boards in one study: names, worst values, fronts, and the way of a trial over boards side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.boards import base, kind_of, named, on_board, side_by_side, with_worst
from orchestrator.fronts import front, front_hypervolume, vector
from orchestrator.loop import StudyEnd, run_study
from orchestrator.objectives import Objectives
from orchestrator.pareto import non_dominated
from orchestrator.records import Ending, FaultKind, Outcome, Source, StageRequest, StageResult, Value, Violation
from orchestrator.study import Study
from orchestrator.summary import summarise, summary_view
from orchestrator.telling import VIOLATIONS_ATTR
from tests.support.scripted import (
    TWO_BOARD_STAGES,
    TWO_BOARDS,
    Answer,
    ScriptedEvaluator,
    complete,
    fault,
    infeasible,
)
from tests.support.studies import Recorder, make_sampler, make_study, study_file

FIRST, SECOND = TWO_BOARDS
PROFILES = TWO_BOARD_STAGES[-2:]
amounts = st.floats(min_value=0.0, max_value=1e6)


def value(amount: float, source: Source = Source.EXACT, note: str = "") -> Value:
    return Value(amount=amount, unit="s", source=source, note=note)


def two_boards(folder: Path, **changes: Any) -> Study:
    objectives = {"error": {}, "latency": {"limit": "100 s"}}
    return make_study(folder, **{"board": None, "boards": list(TWO_BOARDS), "objectives": objectives, **changes})


def run(study: Study, answer: Answer = complete) -> tuple[StudyEnd, ScriptedEvaluator]:
    evaluator = ScriptedEvaluator(answer, TWO_BOARD_STAGES)
    return run_study(study, evaluator, make_sampler(), sink=Recorder(), retry_delays_s=(0.0,)), evaluator


def stages_of(evaluator: ScriptedEvaluator, trial: int) -> list[str]:
    return [request.stage for request in evaluator.submitted if request.trial == trial]


# ------------------------------------------------------------------------------------------------ names and values


def test_names_carry_the_board_only_where_there_are_several() -> None:
    assert named("rom", "a", ("a",)) == "rom"
    assert named("rom", "a", ("a", "b")) == "rom@a"
    assert (base("rom@a"), kind_of("rom@a"), base("rom"), kind_of("rom")) == ("rom", "a", "rom", "")


def test_the_worst_is_the_largest_with_its_source_and_names_its_board() -> None:
    values = {"error": value(0.5), "t@a": value(3.0, Source.MEASURED, "x"), "t@b": value(2.0, Source.ESTIMATED)}
    found = with_worst(values, ("a", "b"))
    assert found["t"] == value(3.0, Source.MEASURED, "on a, the worst of 2 boards: x")
    assert {name: found[name] for name in values} == values


def test_values_that_are_alike_on_all_boards_say_so() -> None:
    assert with_worst({"t@a": value(2.0), "t@b": value(2.0)}, ("a", "b"))["t"].note == "the same on all 2 boards"


def test_what_only_some_boards_have_has_no_worst_yet() -> None:
    stale = value(9.0)  # of a stage before, when it was another value
    assert set(with_worst({"t": stale, "t@a": value(2.0)}, ("a", "b"))) == {"t@a"}


@given(st.dictionaries(st.sampled_from("abc"), amounts, min_size=1), st.dictionaries(st.sampled_from("xyz"), amounts))
def test_with_one_board_nothing_changes_and_with_more_every_value_stays(
    own: dict[str, float], shared: dict[str, float]
) -> None:
    plain = {name: value(amount) for name, amount in shared.items()}
    assert with_worst(plain, ("only",)) == plain
    kinds = tuple(sorted(own))
    values = plain | {f"t@{kind}": value(own[kind]) for kind in kinds}
    found = with_worst(values, kinds if len(kinds) > 1 else (*kinds, "another"))
    assert {name: found[name] for name in values} == values
    for kind in kinds:
        here = on_board(found, kind)
        assert here == plain | {"t": value(own[kind])}
        if "t" in found:
            assert here["t"].amount <= found["t"].amount


def test_only_stages_that_differ_in_the_board_run_side_by_side() -> None:
    assert side_by_side(("gate", "train", "profile@a", "profile@b")) == [
        ("gate",),
        ("train",),
        ("profile@a", "profile@b"),
    ]


# ------------------------------------------------------------------------------------------------------- objectives


class Memory:
    def __init__(self, flash_bytes: float, ram_bytes: float) -> None:
        self.flash_bytes, self.ram_bytes = flash_bytes, ram_bytes


def test_the_smallest_board_bounds_what_has_no_lower_limit() -> None:
    file = study_file(board=None, boards=["a", "b"], objectives={"rom": {}, "ram": {}, "error": {"limit": 0.3}})
    found = Objectives.on_boards(file, {"a": Memory(1000, 50), "b": Memory(500, 70), "another": Memory(1, 1)})
    assert found.limits == (500, 50, 0.3)


def test_a_limit_that_some_boards_break_is_broken_on_each_of_them_by_name() -> None:
    objectives = Objectives(names=("error", "rom"), units=("1", "byte"), limits=(0.5, 1000.0))
    values = {"error": 0.1, "rom": 1300.0, "rom@a": 1300.0, "rom@b": 1001.0, "rom@c": 1000.0}
    found = objectives.violations(values)
    assert [(item.quantity, item.amount) for item in found] == [("rom", 1300.0), ("rom", 1001.0)]
    assert [item.message for item in found] == [
        "rom on a is 1,300 bytes, 300 bytes over the limit of 1,000 bytes",
        "rom on b is 1,001 bytes, 1 byte over the limit of 1,000 bytes",
    ]


# ----------------------------------------------------------------------------------------------------------- fronts


class MadeUp:
    state = "complete"

    def __init__(self, values: Mapping[str, float]) -> None:
        kinds = ("a", "b")
        self.outcome: Outcome | None = Outcome(
            ending=Ending.COMPLETE, values=with_worst({name: value(v) for name, v in values.items()}, kinds)
        )


OBJECTIVES = Objectives(names=("error", "t"), units=("1", "s"), limits=(1.0, 10.0))
rows = st.lists(st.tuples(*[st.integers(0, 9)] * 3), min_size=1, max_size=12)


@given(rows)
def test_each_boards_front_is_what_nothing_dominates_there_and_the_joint_ones_by_the_worst(
    table: list[tuple[int, ...]],
) -> None:
    trials = [MadeUp({"error": e / 10, "t@a": a, "t@b": b}) for e, a, b in table]
    points = np.array(table, dtype=float)
    for kind, column in (("a", points[:, 1]), ("b", points[:, 2]), ("", points[:, 1:].max(axis=1))):
        expected = non_dominated(np.column_stack([points[:, 0], column]))
        assert front(trials, OBJECTIVES, kind) == [t for t, best in zip(trials, expected, strict=True) if best]
    joint = front_hypervolume(front(trials, OBJECTIVES), OBJECTIVES)
    for kind in ("a", "b"):  # what every board does at least as well, each does
        assert front_hypervolume(front(trials, OBJECTIVES, kind), OBJECTIVES, kind) >= joint - 1e-12


# ------------------------------------------------------------------------------------------------------ in the loop


def test_a_trial_is_trained_once_and_measured_on_each_board(tmp_path: Path) -> None:
    study = two_boards(tmp_path)
    end, evaluator = run(study)
    assert (end.told, end.complete) == (4, 4)
    for trial in study.trials():
        assert stages_of(evaluator, trial.number)[:5] == ["gate", "train", "build", *PROFILES]
        assert trial.outcome is not None
        values = trial.outcome.values
        width = float(trial.params["network.width"])
        slower = SECOND if 10 + width / 2 > 1 + width else FIRST
        assert values["latency"].amount == max(values[f"latency@{kind}"].amount for kind in TWO_BOARDS)
        assert values["latency"].note.startswith(f"on {slower}, the worst of 2 boards")
        assert values["latency"].source is Source.EMULATED
        assert tuple(study.vector(trial)) == tuple(study.optuna.get_trials()[trial.number].values)


def test_boards_are_asked_at_the_same_time(tmp_path: Path) -> None:
    study, waiting = two_boards(tmp_path, budget={"trials": 1}), []

    class Patient(ScriptedEvaluator):
        def collect(self, timeout_s: float) -> list[StageResult]:
            waiting.append({one.stage for one in self.submitted if one.task_id not in done})
            results = list(super().collect(timeout_s))
            done.update(request.task_id for request in self.submitted)
            return results

    done: set[str] = set()
    run_study(study, Patient(complete, TWO_BOARD_STAGES), make_sampler(), sink=Recorder())
    assert set(PROFILES) in waiting


def test_the_test_split_is_used_for_the_trials_of_every_front(tmp_path: Path) -> None:
    study = two_boards(tmp_path, budget={"trials": 12})
    run(study)
    fronts = study.fronts()
    assert set(fronts) == set(TWO_BOARDS)
    numbers = {trial.number for members in (study.front(), *fronts.values()) for trial in members}
    assert set(study.test_results()) == numbers
    for kind, members in fronts.items():
        assert non_dominated(np.array([vector(trial, study.objectives, kind) for trial in members])).all()


def only(stage: str, answer: Answer, times: int = 99) -> Answer:
    left = [times]

    def respond(request: StageRequest) -> StageResult | None:
        if request.stage == stage and left[0] > 0:
            left[0] -= 1
            return answer(request)
        return complete(request)

    return respond


def test_a_candidate_that_one_board_finds_infeasible_is_told_once_all_have_answered(tmp_path: Path) -> None:
    study = two_boards(tmp_path, budget={"trials": 1})
    end, evaluator = run(study, only(PROFILES[0], infeasible))
    assert end.infeasible == 1
    assert stages_of(evaluator, 0) == ["gate", "train", "build", *PROFILES]
    (trial,) = study.trials()
    assert trial.outcome is not None
    assert f"latency@{SECOND}" in trial.outcome.values
    assert "latency" not in trial.outcome.values  # the first board has given none


def test_what_is_told_of_a_limit_broken_on_two_boards_is_the_larger_excess(tmp_path: Path) -> None:
    study = two_boards(tmp_path, budget={"trials": 1})

    def over(request: StageRequest) -> StageResult | None:
        result = complete(request)
        if base(request.stage) != "profile":
            return result
        amount = 150.0 if kind_of(request.stage) == FIRST else 120.0
        found = Violation(quantity="latency", amount=amount, limit=100.0, unit="s", message="too slow")
        return StageResult(
            study_id=request.study_id,
            trial=request.trial,
            stage=request.stage,
            attempt=request.attempt,
            ending=Ending.INFEASIBLE,
            seconds=0.0,
            violations=(found,),
        )

    end, _ = run(study, over)
    assert end.infeasible == 1
    assert study.optuna.get_trials()[0].user_attrs[VIOLATIONS_ATTR] == [pytest.approx(0.5)]
    assert "latency: 1 of 1" in end.text  # one trial, however many boards


def test_a_board_that_fails_for_good_ends_the_trial_and_leaves_nothing_open(tmp_path: Path) -> None:
    study = two_boards(tmp_path, budget={"trials": 1})
    broken = only(PROFILES[1], lambda request: fault(request, FaultKind.TRANSIENT), times=3)
    end, _ = run(study, broken)
    assert (end.told, end.faults) == (1, 1)
    assert not [attempt for attempt in study.stage_attempts() if attempt.is_open]


def test_one_boards_hiccup_repeats_that_boards_stage_alone(tmp_path: Path) -> None:
    study = two_boards(tmp_path, budget={"trials": 1})
    end, evaluator = run(study, only(PROFILES[0], lambda request: fault(request, FaultKind.TRANSIENT), times=1))
    assert end.complete == 1
    assert stages_of(evaluator, 0).count(PROFILES[0]) == 2
    assert stages_of(evaluator, 0).count(PROFILES[1]) == stages_of(evaluator, 0).count("train") == 1


def test_a_lost_artifact_sends_both_boards_back_to_the_stage_that_wrote_it(tmp_path: Path) -> None:
    study = two_boards(tmp_path, budget={"trials": 1})

    def gone(request: StageRequest) -> StageResult:
        lost = request.inputs["build"]
        return fault(request, FaultKind.TRANSIENT, "artifact_missing", f"artifact {lost} is missing")

    end, evaluator = run(study, only(PROFILES[0], gone, times=1))
    assert end.complete == 1
    assert stages_of(evaluator, 0).count("build") == 2
    assert stages_of(evaluator, 0).count("train") == 1
    assert not [attempt for attempt in study.stage_attempts() if attempt.is_open]


class Killed(BaseException):
    """Stands for kill -9."""


def test_a_run_killed_as_it_asks_the_second_board_goes_on_with_both_and_trains_no_second_time(tmp_path: Path) -> None:
    def kill(request: StageRequest) -> StageResult:
        raise Killed

    with pytest.raises(Killed):
        run(two_boards(tmp_path, budget={"trials": 1}), only(PROFILES[1], kill))
    study = two_boards(tmp_path, budget={"trials": 1})
    end, evaluator = run(study)
    assert end.complete == 1
    assert stages_of(evaluator, 0) == [*PROFILES, "final"]
    assert study.trials()[0].outcome is not None


# ---------------------------------------------------------------------------------------------------------- summary


def test_the_summary_has_the_joint_front_and_that_of_each_board(tmp_path: Path) -> None:
    from rich.console import Console

    study = two_boards(tmp_path, budget={"trials": 12})
    run(study)
    summary = summarise(study.file, study.objectives, study.trials(), study.hypervolume_history(), study.test_results())
    assert summary["boards"] == list(TWO_BOARDS)
    assert "board" not in summary
    assert {row["trial"] for row in summary["front"]} == {trial.number for trial in study.front()}
    for kind, members in study.fronts().items():
        rows = {row["trial"]: row["values"]["latency"]["amount"] for row in summary["fronts"][kind]}
        assert set(rows) == {trial.number for trial in members}
        for trial in members:
            assert trial.outcome is not None
            assert rows[trial.number] == trial.outcome.values[f"latency@{kind}"].amount
        assert 0 < summary["hypervolumes"][kind] <= 1
    with Console(width=100, record=True) as console:
        console.print(summary_view(summary))
    text = console.export_text()
    assert f"small on {FIRST} and {SECOND}: 12/12" in text
    assert f"joint front {len(study.front())}" in text
    assert f"{SECOND}  hypervolume" in text


def test_the_summary_of_one_board_is_as_it_was(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    summary = summarise(study.file, study.objectives, [], [], {})
    assert summary["board"] == "nrf52-dk"
    assert not {"boards", "fronts", "hypervolumes"} & set(summary)
