"""Commands for searches in the background that need no process beside this one, and looking at a study from outside."""

from __future__ import annotations

import io
import json
import os
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

import cli
import cli_service
from cli_background import Orders, ending_of, run_submitted
from cli_status import shortened
from mcu_agent.errors import UnknownKind
from orchestrator.closing import close_open_trials
from orchestrator.errors import EvaluationDefect, OrchestratorError, StudyError, UsageError
from orchestrator.fencing import FencedEvaluator
from orchestrator.following import Follower, standing
from orchestrator.leash import Leash
from orchestrator.locks import StudyTaken
from orchestrator.logreading import LogReader, attempt_lines, log_text
from orchestrator.loop import run_study
from orchestrator.notify import Notifier, Poster, Webhook
from orchestrator.postgres import DatabaseAway
from orchestrator.progress import Progress
from orchestrator.records import Event, Json, StageRequest, StageResult
from orchestrator.registry import LeaseLost, Registry
from orchestrator.study import Study
from orchestrator.view import StudyScreen
from tasks.errors import Defect, TransientFault
from tasks.messages import announced, announcement
from tasks.nn.sources import sources_of
from tasks.slots import slots_of
from tests.support.lab import ManualClock, submission
from tests.support.scripted import ScriptedEvaluator, complete
from tests.support.studies import Recorder, make_sampler, make_study, request, study_file

AT = "2030-01-01T00:00:00+00:00"
EXAMPLES = Path(__file__).parents[2] / "examples"


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


@pytest.fixture
def finished(tmp_path: Path) -> Iterator[Study]:
    study = make_study(tmp_path / "small")
    study.take_sources(sources_of(study.file))
    run_study(study, ScriptedEvaluator(), make_sampler(), sink=Recorder())
    yield study
    study.close()


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
    assert (
        submit(registry, studies)
        == "small was submitted before, its file is unchanged since, and it waits for its turn"
    )
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


def test_a_study_that_will_not_run_again_by_itself_says_so_when_it_is_submitted_again(
    registry: Registry, studies: Path
) -> None:
    submit(registry, studies)
    registry.want("small", "pause", AT)
    assert "is paused: edgefront resume small" in submit(registry, studies)
    taken = registry.take(registry.entry("small"), "a", AT)
    assert taken == 1
    registry.release("small", taken, "failed", "the data are gone", AT)
    with pytest.raises(UsageError, match=r"(?s)has failed .* does not run: the data are gone.*edgefront resume small"):
        submit(registry, studies)
    taken = registry.take(registry.entry("small"), "a", AT)
    assert taken == 2
    registry.release("small", taken, "stopped", "", AT)
    with pytest.raises(UsageError, match=r"was stopped for good .* does not run again.*a new name"):
        submit(registry, studies)


def test_a_study_that_has_not_begun_is_known_to_every_command(registry: Registry, studies: Path) -> None:
    submit(registry, studies)
    shown = call("status", "small")
    assert (shown.exit_code, "it has not begun, 0/4 trials told\nsubmitted since" in shown.stdout) == (0, True)
    as_json = json.loads(call("status", "small", "--json").stdout)
    assert (as_json["told"], as_json["budget"], as_json["front"], as_json["submitted"]["state"]) == (
        0,
        4,
        [],
        "submitted",
    )
    for command in ("logs small", "report small", "dashboard small", f"study backup small --to {studies / 'a.tar.gz'}"):
        told = call(*command.split())
        assert (told.exit_code, "study small was submitted, is submitted and has not begun" in told.stderr) == (2, True)
    assert "(did you mean 'small'?)" in call("status", "smal").stderr
    assert f"in the folder {studies}: none; submitted and not begun: small" in call("status", "nope").stderr


def test_the_logs_of_a_study_that_could_not_begin_are_shown(registry: Registry, studies: Path) -> None:
    submit(registry, studies)
    (studies / "small" / "logs").mkdir(parents=True)
    (studies / "small" / "logs" / "orchestrator.log").write_text(f"{AT} failed: the data are gone\n")
    shown = call("logs", "small")
    assert (shown.exit_code, shown.stdout) == (0, f"orchestrator | {AT} failed: the data are gone\n")
    assert "has not begun" in shown.stderr


def test_the_status_of_one_study_tells_its_state_and_why(registry: Registry, studies: Path, finished: Study) -> None:
    assert submit(registry, studies) == "small is submitted: 4 trials, 4 of them told"
    taken = registry.take(registry.entry("small"), "a", AT)
    assert taken == 1
    registry.release("small", taken, "failed", "the data are gone", AT)
    lines = call("status", "small").stdout.splitlines()
    assert "4/4 trials told" in lines[0]
    assert lines[-2].startswith(f"failed since {AT}, submitted by ") and lines[-2].endswith(": the data are gone")
    assert lines[-1] == "once its cause is removed: edgefront resume small"
    as_json = json.loads(call("status", "small", "--json").stdout)
    assert (as_json["submitted"]["state"], as_json["submitted"]["reason"]) == ("failed", "the data are gone")


def test_a_study_that_was_not_submitted_is_not_on_the_list_and_the_remedy_is_told(
    registry: Registry, studies: Path, finished: Study
) -> None:
    assert json.loads(call("status", "small", "--json").stdout)["submitted"] is None
    for command in ("pause", "resume", "stop", "edit"):
        refused = call(command, "small", *(("--trials", "9") if command == "edit" else ()))
        assert refused.exit_code == 2
        remedy = f"edgefront submit {studies / 'small' / 'study.yaml'} --studies {studies}"
        assert ("is not on the lab's list" in refused.stderr, remedy in refused.stderr) == (True, True)
    submit(registry, studies)
    assert call("status").stdout.splitlines()[1].split()[:3] == ["small", "submitted", "4/4"]
    reached = registry.entry("small").reached
    assert reached.hypervolume == finished.hypervolume_history()[-1][1]
    assert reached.front_size == len(finished.front()) > 0


@pytest.mark.parametrize(
    "command",
    [
        "submit FILE", "orchestrator --metrics-port 0", "status", "status small", "watch small", "logs small",
        "pause small", "resume small", "stop small --yes", "edit small --trials 9",
    ],
)  # fmt: skip
def test_every_command_of_the_lab_takes_the_address_of_the_database(
    registry: Registry, studies: Path, command: str
) -> None:
    registry.submit(submission("small"))
    refused = call(
        *command.replace("FILE", str(EXAMPLES / "digits.yaml")).split(), "--database", "mysql://lab:secret@host/db"
    )
    assert refused.exit_code == 2
    assert "--database: found an address of mysql" in refused.stderr
    assert "secret" not in refused.output


def test_a_long_reason_is_cut_between_two_words_and_says_that_there_is_more() -> None:
    assert shortened("the data are gone") == "the data are gone"
    assert shortened("the data are gone\nTraceback") == "the data are gone …"
    cut = shortened("the broker is away, " * 10)
    assert cut == "the broker is away, " * 4 + "the broker is away …"


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
    changed_at = registry.entry("one").changed_at
    assert call("edit", "one", "--priority", "3").stdout == "one: priority 3\n"
    assert registry.entry("one").changed_at == changed_at
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


class Sent(Leash):
    """A leash that keeps what it would send."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def send(self, event: Event) -> None:
        self.events.append(event)


class Kept(Poster):
    """A poster that keeps what it would post."""

    def __init__(self) -> None:
        self.contents: list[Json] = []

    def post(self, webhook: Webhook, content: Json) -> None:
        self.contents.append(content)


def test_a_study_that_another_orchestrator_closes_has_its_true_figures_in_the_last_notification(
    registry: Registry, studies: Path, finished: Study
) -> None:
    submit(registry, studies)
    taken = registry.take(registry.entry("small"), "a", AT)
    orders, leash, poster = Orders(), Sent(), Kept()
    orders.take(Event(name="stop"))
    how, text = run_submitted(registry.entry("small"), registry, orders, leash)
    assert (taken, how, text) == (1, "stopped", "stopped for good after 4 trials")
    hooks = [Webhook(url="http://hook")]
    notifier = Notifier(study="small", webhooks=hooks, poster=poster, clock=ManualClock())
    for event in leash.events:
        notifier.emit(event)
    notifier.end(how, text)
    (end,) = poster.contents
    assert end["hypervolume"] == finished.hypervolume_history()[-1][1] > 0
    assert end["front_size"] == len(finished.front())


def test_slots_are_the_training_processes_and_as_many_that_build() -> None:
    assert slots_of([]) == 1
    assert slots_of([announcement(["train"], 4)]) == 4
    assert slots_of([announcement(["train"], 4), announcement(["train", "build"], 2), announcement(["build"], 1)]) == 9
    assert slots_of([announcement(["train"], 1), announcement(["build"], 8), announcement(["board.x"], 8)]) == 2
    assert announced(announcement(["train", "build"], 3)) == (("build", "train"), 3)
    assert announced("train") == (("train",), 1)  # of a worker that does not say


# -- looking from outside -----------------------------------------------------------------------------------------


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
    assert [(fields["name"], fields["budget"]) for fields in recorder.named("study_started")] == [("small", 4)]
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


def of_files(lines: list[Json]) -> list[tuple[str, str]]:
    return [(line["log"], line["text"]) for line in lines if "log" in line]


def test_logs_are_in_the_order_of_time_whoever_wrote_them(finished: Study) -> None:
    folder = finished.folder / "logs"
    folder.mkdir()
    last = finished.ledger.events()[-1][0]
    local = datetime.fromisoformat(last).astimezone().strftime("%Y-%m-%d %H:%M:%S,999")
    (folder / "orchestrator.log").write_text(
        f"2001-01-01T00:00:00.000+00:00 runs in process 7\nTraceback\n{last} finished: all trials\n"
    )
    (folder / "worker.log").write_text(f"[{local}: INFO/MainProcess] bye\n")
    (folder / "redis.log").write_text("9:M 01 Jan 2001 12:00:00.000 * Ready\n")
    lines = LogReader(folder=finished.folder, study=finished).news()
    shown = [line["text"] if "log" in line else line["event"] for line in lines]
    assert shown[:4] == ["2001-01-01T00:00:00.000+00:00 runs in process 7", "Traceback", shown[2], "study_started"]
    assert shown[2].endswith("Ready")
    assert shown.index(f"{last} finished: all trials") > shown.index("study_finished") > 4
    assert shown[-1].endswith("bye")


def test_logs_of_a_trial_that_does_not_exist_are_refused(finished: Study, studies: Path) -> None:
    refused = call("logs", "small", "--trial", "99")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "--trial: found 99; the trials of study small are 0 to 3" in refused.stderr


def test_logs_hold_events_files_and_stages_and_each_line_once(finished: Study) -> None:
    folder = finished.folder / "logs"
    folder.mkdir()
    (folder / "worker-train.log").write_text("ready\nhalf a li")
    (folder / "trial-2-train.txt").write_text("Traceback\n")
    reader = LogReader(folder=finished.folder, study=finished)
    lines = reader.news()
    assert [line.get("event") for line in lines].count("trial_ended") == 4
    assert of_files(lines) == [("worker-train", "ready")]
    with (folder / "worker-train.log").open("a") as file:
        file.write("ne\n")
    assert of_files(reader.news()) == [("worker-train", "half a line")]
    assert reader.news() == []
    of_trial = LogReader(folder=finished.folder, study=finished, trial=2)
    lines = of_trial.news()
    assert {line["trial"] for line in lines if "log" not in line} == {2}
    assert of_files(lines) == [("trial-2-train", "Traceback")]
    stages = [line["stage"] for line in lines if line.get("event") == "stage"]
    assert stages[:3] == ["gate", "train", "build"]
    assert of_trial.news() == []
    text = log_text(next(attempt_lines(finished, 2)))
    assert "gate attempt 1: ended, 0.1 s on scripted" in text


def test_watch_and_logs_work_for_a_study_that_was_never_submitted(finished: Study, studies: Path) -> None:
    finished.close()
    shown = call("logs", "small", "--json").stdout.splitlines()
    assert json.loads(shown[0])["event"] == "study_started"
    assert "trial 0 complete" in call("logs", "small").stdout
    assert "no study 'other'" in call("logs", "other").stderr
