"""What the live page is told of a study, while it runs and afterwards."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from orchestrator.closing import close_open_trials
from orchestrator.ledger import CandidateRow, StageAttempt
from orchestrator.loop import run_study
from orchestrator.objectives import Objectives
from orchestrator.records import Event, FaultKind, Json, Outcome
from orchestrator.report.live import LISTED, Seen, Standing, read_study, snapshot
from orchestrator.study import Study
from orchestrator.studyedit import StudyEdit, apply_edit
from tests.support.scripted import ScriptedEvaluator, complete, fault, infeasible
from tests.support.studies import FLASH_BYTES, RAM_BYTES, Recorder, make_sampler, make_study

STAGES = ("gate", "train", "build")
NOW = 1_800_000_000.0


def run(study: Study, evaluator: ScriptedEvaluator, stop: threading.Event | None = None) -> None:
    run_study(study, evaluator, make_sampler(), sink=Recorder(), stop=stop, retry_delays_s=())


def look(
    study: Study, now: float = NOW, progress: dict[int, Json] | None = None, submitted: Standing | None = None
) -> Json:
    data = snapshot(read_study(study, STAGES, now, progress, submitted))
    assert json.loads(json.dumps(data, allow_nan=False))["name"] == "small"
    return data


def figure(data: Json, title: str) -> str:
    return str(next(one["figure"] for one in data["figures"] if one["title"] == title))


def test_a_finished_study_shows_its_front_its_course_and_how_it_ended(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    run(study, ScriptedEvaluator())
    data = look(study)
    assert (data["told"], data["budget"], data["under_way"]) == (4, 4, [])
    assert data["state"]["word"] == "ended" and "the budget is used up" in data["state"]["text"]
    front = [
        number
        for number, state in zip(*(data["points"][key] for key in ("number", "state")), strict=True)
        if state == "front"
    ]
    assert front == [trial.number for trial in study.front()]
    assert figure(data, "on the front") == str(len(front))
    assert data["history"][-1][1] == study.hypervolume_history()[-1][1]
    assert [row["number"] for row in data["ended"]] == [3, 2, 1, 0]
    assert data["ended"][0]["values"]["rom"]["source"] == "exact"
    assert figure(data, "feasible") == "100 %"


def test_what_is_infeasible_or_faulty_says_why_and_the_share_is_that_of_the_judged(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    answers = {0: infeasible, 1: lambda one: fault(one, FaultKind.TRANSIENT)}
    run(study, ScriptedEvaluator(lambda one: answers.get(one.trial, complete)(one)))
    data = look(study)
    reasons = {row["number"]: (row["state"], row["reason"]) for row in data["ended"]}
    assert reasons[0] == ("infeasible", "rom: 100 bytes over")
    assert reasons[1] == ("fault", "board_lost")
    assert figure(data, "feasible") == "75 %"
    assert data["told"] == 4


def test_a_stopped_study_shows_what_was_under_way_and_at_which_stage(tmp_path: Path) -> None:
    study, stop = make_study(tmp_path), threading.Event()

    def stop_in_training(request: object) -> None:
        stop.set()

    evaluator = ScriptedEvaluator(lambda one: stop_in_training(one) if one.stage == "train" else complete(one))
    run(study, evaluator, stop)
    data = look(study)
    assert data["state"]["word"] == "stopped"
    assert [(row["number"], row["stage"], row["state"]) for row in data["under_way"]] == [(0, "train", "queued")]


def test_a_study_that_was_stopped_for_good_says_so_and_not_that_it_can_go_on(tmp_path: Path) -> None:
    stop = threading.Event()

    def stop_in_training(request: object) -> None:
        stop.set()

    study = make_study(tmp_path)
    run(study, ScriptedEvaluator(lambda one: stop_in_training(one) if one.stage == "train" else complete(one)), stop)
    assert look(study)["state"]["word"] == "stopped"
    close_open_trials(study, "2030-01-01T00:00:00+00:00")
    data = look(study, submitted=Standing(state="stopped", wanted="stop", reason=""))
    assert data["state"]["word"] == "stopped"
    assert "stopped for good, 1 trial under way was given up" in data["state"]["text"]
    assert data["under_way"] == []


@pytest.mark.parametrize(
    ("state", "wanted", "word", "text"),
    [
        ("running", "pause", "pausing", "trials under way end, and none begins"),
        ("submitted", "stop", "stopping", "stopped for good"),
        ("failed", "run", "failed", "failed: no such dataset"),
        ("submitted", "run", "waiting", "waits to be run: no such dataset"),
        ("paused", "pause", "paused", "edgefront resume"),
        ("running", "run", "new", "nothing has begun yet"),
    ],
)
def test_what_only_the_labs_list_knows_of_a_study_is_shown(
    tmp_path: Path, state: str, wanted: str, word: str, text: str
) -> None:
    data = look(make_study(tmp_path), submitted=Standing(state=state, wanted=wanted, reason="no such dataset"))
    assert data["state"]["word"] == word
    assert text in data["state"]["text"]


def seen(
    study: Study, *, attempt: str, stamp: str = "2027-01-15T07:59:00+00:00", progress: dict[int, Json] | None = None
) -> Json:
    """One trial in training since a minute before ``NOW``."""
    row = CandidateRow(
        trial=0, params={}, seed=0, state="open", told=None, started_at=stamp, ended_at=None, outcome=None
    )
    training = StageAttempt(
        trial=0, stage="train", attempt=2, task_id="t", state=attempt, queued_at=stamp, started_at=stamp,
        ended_at=None, seconds=None, worker="gpu-1", fault=None,
    )  # fmt: skip
    return snapshot(
        Seen(
            file=study.file,
            objectives=study.objectives,
            candidates=[row],
            attempts=[training],
            events=[(stamp, Event(name="study_started", fields={"told": 0}))],
            stages=("gate", "train", "profile@nrf52-dk", "profile@nucleo-h743zi"),
            now=NOW,
            progress=progress or {},
        )
    )


def test_a_trial_in_training_says_its_worker_and_its_epoch(tmp_path: Path) -> None:
    epoch = {"epoch": 3, "epochs": 10, "accuracy": 0.5}
    data = seen(make_study(tmp_path), attempt="started", progress={0: epoch})
    (row,) = data["under_way"]
    assert (row["worker"], row["attempt"], row["state"], row["epoch"]) == ("gpu-1", 2, "running", 3)
    assert row["since"] == NOW - 60
    assert data["state"]["word"] == "running"
    assert data["stages"] == ["gate", "train", "profile"], "boards that measure side by side are one step"


@pytest.mark.parametrize(("progress", "word"), [({}, "quiet"), ({0: {"epoch": 1, "epochs": 2}}, "running")])
def test_a_study_of_which_nothing_is_heard_for_long_is_quiet_unless_its_trainings_go_on(
    tmp_path: Path, progress: dict[int, Json], word: str
) -> None:
    data = seen(make_study(tmp_path), attempt="started", stamp="2027-01-15T07:00:00+00:00", progress=progress)
    assert data["state"]["word"] == word


def test_a_study_that_has_not_begun_says_so(tmp_path: Path) -> None:
    data = look(make_study(tmp_path))
    assert data["state"]["word"] == "new"
    assert (data["ended"], data["history"], figure(data, "feasible")) == ([], [], "–")


def test_without_news_the_document_stays_the_same(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    run(study, ScriptedEvaluator())
    assert look(study, NOW) == look(study, NOW + 5)


def test_a_raised_budget_is_seen_by_who_opened_the_study_before(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    make_study(tmp_path, budget={"trials": 9})
    assert look(study)["budget"] == 9


def test_after_a_tightened_limit_the_whole_course_is_judged_by_it_and_the_edit_is_marked(tmp_path: Path) -> None:
    study = make_study(tmp_path, objectives={"error": {}, "rom": {"limit": 40_000}})
    run(study, ScriptedEvaluator())
    before = look(study)
    for edit in (StudyEdit(limits={"rom": 25_600.0}), StudyEdit(trials=9, limits={"rom": 25_600.0})):
        apply_edit(study, edit, lambda file: Objectives.from_study(file, FLASH_BYTES, RAM_BYTES), "2027-01-15T07:00Z")
    data = look(study)
    values = [value for _, value in data["history"]]
    assert (before["edits"], data["edits"]) == ([], [[NOW - 3600, "ROM ≤ 25 KiB"]]), "a raised budget is no mark"
    assert values == sorted({value for _, value in study.hypervolume_history() if value})
    assert values[-1] != before["history"][-1][1]
    assert figure(data, "hypervolume") == f"{values[-1]:.3f}"
    ends = {row["ended"] for row in data["ended"]}
    assert {time for time, _ in data["history"]} <= ends, "a gain comes with the end of a trial"


def test_of_very_many_trials_the_last_are_listed_and_all_are_plotted(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    run(study, ScriptedEvaluator())
    whole = read_study(study, STAGES, NOW)
    first: Outcome | None = whole.candidates[0].outcome
    stamps = [f"2026-01-01T{n // 60:02d}:{n % 60:02d}" for n in range(900)]
    rows = [
        CandidateRow(
            trial=n, params={}, seed=0, state="complete", told=n + 1, started_at=f"{stamp}:00+00:00",
            ended_at=f"{stamp}:30+00:00", outcome=first,
        )
        for n, stamp in enumerate(stamps)
    ]  # fmt: skip
    seen = Seen(
        file=whole.file,
        objectives=whole.objectives,
        candidates=rows,
        attempts=[],
        events=whole.events,
        stages=STAGES,
        now=NOW,
    )
    data = snapshot(seen)
    assert [row["number"] for row in data["ended"]] == list(range(899, 899 - LISTED, -1))
    assert len(data["points"]["number"]) == 900
    assert figure(data, "trials an hour") == "60"
