"""Commands for searches in the background that need no process beside this one, and looking at a study from outside."""

from __future__ import annotations

import io
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

import cli
import cli_service
from cli_background import Orders, ending_of
from mcu_agent.errors import UnknownKind
from orchestrator.closing import close_open_trials
from orchestrator.errors import EvaluationDefect, OrchestratorError, StudyError, UsageError
from orchestrator.fencing import FencedEvaluator
from orchestrator.following import Follower, LogReader, attempt_lines, log_text, standing
from orchestrator.leash import Leash
from orchestrator.locks import StudyTaken
from orchestrator.loop import run_study
from orchestrator.postgres import DatabaseAway
from orchestrator.progress import Progress
from orchestrator.records import Event, StageRequest, StageResult
from orchestrator.registry import LeaseLost, Registry
from orchestrator.study import Study
from orchestrator.view import StudyScreen
from tasks.errors import Defect, TransientFault
from tasks.messages import announced, announcement
from tasks.slots import slots_of
from tests.support.lab import submission
from tests.support.scripted import ScriptedEvaluator, complete
from tests.support.studies import Recorder, make_sampler, make_study, request, study_file

AT = "2030-01-01T00:00:00+00:00"


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("EDGEFRONT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("EDGEFRONT_STUDIES", str(tmp_path))
    return tmp_path


@pytest.fixture
def registry(studies: Path) -> Iterator[Registry]:
    made = cli_service.open_registry(studies)
    yield made
    made.close()


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, list(arguments))


def submit(registry: Registry, studies: Path, **changes: object) -> str:
    file = study_file(**changes)
    path = studies / "small.yaml"
    path.write_text("name: small\n")
    return cli_service.submit_study(file, path, studies, registry, 0)


# -- submitting and steering --------------------------------------------------------------------------------------


def test_the_same_study_twice_is_submitted_once(registry: Registry, studies: Path) -> None:
    assert submit(registry, studies) == "small is submitted: 4 trials"
    assert "was submitted before, unchanged since, and is submitted" in submit(registry, studies)
    entry = registry.entry("small")
    assert (entry.submission.source_folder, entry.submission.source_text) == (str(studies), "name: small\n")
    assert set(entry.submission.sources) == {"dataset"}
    assert "@" in entry.submission.submitter


def test_a_changed_study_is_refused_with_each_change_and_what_may_change(registry: Registry, studies: Path) -> None:
    submit(registry, studies, notify={"webhook": "https://hooks.example/T0KEN"})
    with pytest.raises(UsageError) as refused:
        submit(registry, studies, seed=2, budget={"trials": 9}, notify={"webhook": "https://hooks.example/0THER"})
    text = str(refused.value)
    assert "budget.trials: was 4, is 9" in text
    assert "seed: was 1, is 2" in text
    assert "edgefront edit small --trials N" in text
    assert "T0KEN" not in text


def test_a_study_that_was_begun_by_hand_goes_on_only_as_it_is(registry: Registry, studies: Path) -> None:
    begun = make_study(studies / "small")
    run_study(begun, ScriptedEvaluator(), make_sampler(), sink=Recorder())
    begun.close()
    with pytest.raises(UsageError, match="study small has begun, and its file has changed since"):
        submit(registry, studies, seed=2)


def test_all_studies_are_listed_for_people_and_for_scripts(registry: Registry) -> None:
    assert "nothing was submitted" in call("status").stdout
    registry.submit(submission("one"))
    registry.submit(submission("two", priority=2))
    registry.want("two", "pause", AT)
    head, one, two, *_ = call("status").stdout.splitlines()
    assert head.split()[:3] == ["study", "state", "trials"]
    assert one.split()[:3] == ["one", "submitted", "0/8"]
    assert two.split()[:2] == ["two", "paused"]
    assert "no orchestrator is at work" in call("status").stdout
    listed = json.loads(call("status", "--json").stdout)
    assert [item["name"] for item in listed] == ["one", "two"]
    assert "file" not in listed[0]


def test_a_study_that_waits_is_paused_resumed_edited_and_stopped(registry: Registry) -> None:
    registry.submit(submission("one"))
    assert call("pause", "one").stdout == "one is paused\n"
    assert "goes on as soon as there is room" in call("resume", "one").stdout
    edited = call("edit", "one", "--trials", "20", "--priority", "3")
    assert edited.stdout == "one: taken over when it runs next\none: priority 3\n"
    assert call("stop", "one", "--yes").stdout == "one: stopped for good before it began\n"
    entry = registry.entry("one")
    assert (entry.state, entry.owner, entry.priority) == ("stopped", "", 3)
    for command in ("pause", "resume", "stop"):
        refused = call(command, "one")
        assert (refused.exit_code, "is stopped since" in refused.stderr) == (2, True)
    assert "stopped for good" in call("edit", "one", "--trials", "30").stderr


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--trials", "3"), "budget.trials: is 8, asked for is 3; it may only be raised"),
        (("--limit", "latency=20ms"), "latency: is no objective of the study"),
        (("--limit", "speed=1"), "--limit: found 'speed=1'"),
        (("--wall-clock", "soon"), "--wall-clock: found 'soon'"),
        ((), "nothing to change"),
    ],
)
def test_edits_that_cannot_be_made_are_refused_at_once(registry: Registry, options: tuple[str, ...], why: str) -> None:
    registry.submit(submission("one"))
    refused = call("edit", "one", *options)
    assert refused.exit_code == 2
    assert why in refused.stderr
    assert registry.edits("one") == []


def test_an_edit_is_checked_against_those_that_wait_before_it(registry: Registry) -> None:
    registry.submit(submission("one"))
    assert call("edit", "one", "--limit", "rom=20 KiB").exit_code == 0
    assert "may only be tightened" in call("edit", "one", "--limit", "rom=30 KiB").stderr


# -- the process of a study ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "how", "is_patient"),
    [
        (EvaluationDefect("layer 2 differs"), "failed", False),
        (UsageError("seed"), "failed", False),
        (Defect("missing_file", "mine.npz"), "failed", False),
        (UnknownKind("no such board"), "failed", False),
        (TransientFault("os_error", "the share is away"), "again", False),
        (StudyError("disk is full"), "again", False),
        (OSError(28, "No space left on device"), "again", False),
        (OrchestratorError("the broker is away"), "again", True),
        (LeaseLost("another has it"), "again", True),
        (StudyTaken("edgefront run has it"), "again", True),
        (DatabaseAway("the server starts"), "again", True),
    ],
)
def test_who_is_at_fault_decides_whether_a_study_is_tried_again(error: Exception, how: str, is_patient: bool) -> None:
    def fail() -> tuple[str, str]:
        raise error

    found = ending_of(fail).fields
    assert (found["how"], found["is_patient"]) == (how, is_patient)
    assert str(error) in found["text"]


def test_orders_are_understood_and_a_new_limit_ends_a_pause() -> None:
    orders = Orders()
    orders.take(Event(name="pause"))
    assert orders.is_pausing
    orders.take(Event(name="limit", fields={"trials": 3}))
    assert (orders.is_pausing, orders.limit) == (False, 3)
    orders.take(Event(name="interrupt"))
    assert (orders.stop.is_set(), orders.for_good.is_set()) == (True, False)
    orders.take(Event(name="stop"))
    assert orders.for_good.is_set()


def test_the_leash_carries_events_both_ways_in_order_and_tells_when_it_is_cut() -> None:
    ours, theirs = socket.socketpair()
    up: list[Event] = []
    down: list[Event] = []
    one = Leash(ours, up.append)
    other = Leash(theirs, down.append)
    one.send(Event(name="limit", fields={"trials": 3}))
    for number in range(500):
        other.send(Event(name="trial_ended", fields={"trial": number, "values": {"é": "x" * 1000}}))
    other.close()
    one.finish()
    assert [event.fields["trial"] for event in up] == list(range(500))
    assert down == [Event(name="limit", fields={"trials": 3})]


def test_half_a_line_and_nonsense_end_the_leash_quietly() -> None:
    ours, theirs = socket.socketpair()
    up: list[Event] = []
    ends: list[bool] = []
    one = Leash(ours, up.append, lambda: ends.append(True))
    theirs.sendall(b'{"name": "beat", "fields": {}}\n{"name": "lim')
    theirs.close()
    one.finish()
    assert (up, ends) == ([Event(name="beat")], [True])


def test_nobody_publishes_or_records_once_the_study_has_changed_hands() -> None:
    inner = ScriptedEvaluator()
    held = [True]

    def check() -> None:
        if not held[0]:
            raise LeaseLost("another orchestrator has it")

    fenced = FencedEvaluator(inner, check)
    fenced.submit(request("gate"))
    held[0] = False
    with pytest.raises(LeaseLost):
        fenced.submit(request("train"))
    with pytest.raises(LeaseLost):
        fenced.collect(0.0)
    assert len(inner.submitted) == 1


def test_closing_for_good_leaves_nothing_open(tmp_path: Path) -> None:
    study = make_study(tmp_path)

    class Killed(BaseException):
        pass

    def answer(asked: StageRequest) -> StageResult:
        if asked.trial == 2:
            raise Killed
        return complete(asked)

    with pytest.raises(Killed):
        run_study(study, ScriptedEvaluator(answer), make_sampler(), sink=Recorder())
    assert close_open_trials(study, AT) >= 1
    assert close_open_trials(study, AT) == 0
    assert not [trial for trial in study.trials() if trial.state in ("running", "proposed")]
    assert not [trial for trial in study.optuna.get_trials() if not trial.state.is_finished()]
    assert not [attempt for attempt in study.stage_attempts() if attempt.is_open]
    study.close()


def test_slots_are_the_training_processes_and_as_many_that_build() -> None:
    assert slots_of([]) == 1
    assert slots_of([announcement(["train"], 4)]) == 4
    assert slots_of([announcement(["train"], 4), announcement(["train", "build"], 2), announcement(["build"], 1)]) == 9
    assert slots_of([announcement(["train"], 1), announcement(["build"], 8), announcement(["board.x"], 8)]) == 2
    assert announced(announcement(["train", "build"], 3)) == (("build", "train"), 3)
    assert announced("train") == (("train",), 1)  # of a worker that does not say


# -- looking from outside -----------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path: Path) -> Iterator[Study]:
    study = make_study(tmp_path / "small")
    run_study(study, ScriptedEvaluator(), make_sampler(), sink=Recorder())
    yield study
    study.close()


def test_whoever_looks_later_sees_where_a_study_stands(finished: Study) -> None:
    progress = Progress(lambda: 0.0)
    standing(finished, progress)
    assert (progress.told, progress.budget) == (4, 4)
    assert progress.hypervolumes == [value for _, value in finished.hypervolume_history()]
    assert progress.front_size == len(finished.front())
    complete_ones = [trial for trial in finished.trials() if trial.state == "complete" and trial.outcome]
    assert progress.best_error == min(trial.outcome.values["error"].amount for trial in complete_ones if trial.outcome)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(StudyScreen(progress, {"error": "1", "rom": "byte"}, ("gate",), lambda: 0.0))
    assert "4/4 trials" in console.export_text()


def test_a_follower_tells_what_happens_from_now_on_once(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    recorder = Recorder()
    follower = Follower(study=study, sink=recorder)
    follower.poll()
    run_study(study, ScriptedEvaluator(), make_sampler(), sink=Recorder())
    follower.poll()
    follower.poll()
    assert [fields["trial"] for fields in recorder.named("trial_ended")] == [0, 1, 2, 3]
    assert follower.is_over
    study.close()


def test_a_follower_sees_stages_begin(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    recorder = Recorder()
    follower = Follower(study=study, sink=recorder)
    seen: list[str] = []

    def answer(asked: StageRequest) -> StageResult:
        follower.poll()
        seen.append(asked.stage)
        study.ledger.record_start(asked.trial, asked.stage, asked.attempt, "worker-1", AT)
        follower.poll()
        follower.poll()
        return complete(asked)

    run_study(study, ScriptedEvaluator(answer), make_sampler(), sink=Recorder())
    started = recorder.named("stage_started")
    assert sorted(fields["stage"] for fields in started) == sorted(seen)
    assert {fields["worker"] for fields in started} == {"worker-1"}
    study.close()


def test_logs_hold_events_files_and_stages_and_each_line_once(finished: Study) -> None:
    folder = finished.folder / "logs"
    folder.mkdir()
    (folder / "worker-train.log").write_text("ready\nhalf a li")
    (folder / "trial-2-train.txt").write_text("Traceback\n")
    reader = LogReader(study=finished)
    events = [line["event"] for line in reader.events()]
    assert events.count("trial_ended") == 4
    assert list(reader.lines()) == [("worker-train", "ready")]
    with (folder / "worker-train.log").open("a") as file:
        file.write("ne\n")
    assert list(reader.lines()) == [("worker-train", "half a line")]
    assert list(reader.events()) == []
    of_trial = LogReader(study=finished, trial=2)
    assert {line["trial"] for line in of_trial.events()} == {2}
    assert list(of_trial.lines()) == [("trial-2-train", "Traceback")]
    stages = [line["stage"] for line in attempt_lines(finished, 2)]
    assert stages[:3] == ["gate", "train", "build"]
    text = log_text(next(attempt_lines(finished, 2)))
    assert "gate attempt 1: ended, 0.1 s on scripted" in text


def test_watch_and_logs_work_for_a_study_that_was_never_submitted(finished: Study, studies: Path) -> None:
    finished.close()
    shown = call("logs", "small", "--json").stdout.splitlines()
    assert json.loads(shown[0])["event"] == "study_started"
    assert "trial 0 complete" in call("logs", "small").stdout
    assert "no study 'other'" in call("logs", "other").stderr
