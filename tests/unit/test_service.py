"""The service's rounds, with children played by the test: shares, states, supervision, and who holds what."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.errors import StudyError, UsageError
from orchestrator.registry import LeaseLost, Registry
from orchestrator.service import FENCE_S, LEASE_S, MOST_DEATHS
from tests.support.lab import FakeLab, ManualClock, submission

AT = "2030-01-01T00:00:00+00:00"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    made = Registry(f"sqlite:///{tmp_path / 'lab.db'}")
    yield made
    made.close()


@pytest.fixture
def lab(registry: Registry) -> FakeLab:
    return FakeLab(registry, ManualClock())


def test_a_name_is_submitted_once(registry: Registry) -> None:
    registry.submit(submission("one"))
    with pytest.raises(UsageError, match="one is submitted already"):
        registry.submit(submission("one"))


def test_an_unknown_name_is_told_with_those_there_are(registry: Registry) -> None:
    with pytest.raises(UsageError, match="nothing was submitted yet"):
        registry.entry("other")
    registry.submit(submission("one"))
    with pytest.raises(UsageError, match="no study 'other'; submitted were: one"):
        registry.entry("other")
    with pytest.raises(UsageError, match=r"no study 'on' \(did you mean 'one'\?\)"):
        registry.entry("on")


def test_a_list_that_many_open_for_the_first_time_at_once_is_made_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'lab.db'}"

    def submit(number: int) -> None:
        opened = Registry(url)
        opened.submit(submission(f"s{number}"))
        opened.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(submit, range(8)))
    opened = Registry(url)
    assert {entry.name for entry in opened.entries()} == {f"s{number}" for number in range(8)}
    opened.close()


@pytest.mark.parametrize("url", ["mysql://u:secret@h/d", "secret", ""])
def test_an_address_of_no_database_of_ours_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(UsageError, match="EDGEFRONT_DATABASE") as refused:
        Registry(url)
    assert "secret" not in str(refused.value)


def test_submitted_studies_run_with_their_shares(lab: FakeLab) -> None:
    lab.registry.submit(submission("one"))
    lab.tick()
    assert (lab.state("one"), lab.children["one"].limit) == ("running", 4)
    lab.registry.submit(submission("two"))
    lab.tick()
    lab.tick()
    assert {name: child.limit for name, child in lab.children.items()} == {"one": 2, "two": 2}
    assert lab.n_started == 2
    assert lab.counts == {"running": 2}


def test_a_share_that_a_study_cannot_use_any_more_goes_to_the_other_at_once(lab: FakeLab) -> None:
    for name in ("one", "two"):
        lab.registry.submit(submission(name))
    lab.tick()
    lab.children["one"].tell("could_use", trials=1)
    lab.service.take_events(0.1)
    lab.tick()
    lab.tick()
    assert {name: child.limit for name, child in lab.children.items()} == {"one": 1, "two": 3}


def test_a_changed_priority_changes_the_shares_of_running_studies(lab: FakeLab) -> None:
    for name in ("one", "two"):
        lab.registry.submit(submission(name))
    lab.tick()
    before = lab.registry.entry("two").changed_at
    lab.registry.set_priority("two", 1)
    assert lab.registry.entry("two").changed_at == before, "since when it runs has not changed with it"
    lab.slots = 6
    lab.tick()
    assert {name: child.limit for name, child in lab.children.items()} == {"one": 2, "two": 4}


def test_a_study_without_a_slot_ends_its_process_and_waits(lab: FakeLab) -> None:
    lab.slots = 1
    lab.registry.submit(submission("one"))
    lab.tick()
    lab.registry.submit(submission("urgent", priority=2))
    lab.tick()
    assert lab.children["one"].told("pause")
    lab.children["one"].end("paused")
    lab.tick()
    assert (lab.state("one"), lab.state("urgent")) == ("submitted", "running")
    assert lab.n_started == 2


def test_a_study_says_how_far_it_is(lab: FakeLab) -> None:
    lab.registry.submit(submission("one"))
    lab.tick()
    child = lab.children["one"]
    child.tell("study_started", name="one", budget=8)
    child.tell("trial_ended", trial=0, ending="complete")
    child.tell("trial_ended", trial=1, ending="fault")
    child.tell("front_changed", hypervolume=0.25, front_size=1)
    lab.service.take_events(0.0001)
    child.end("finished", "all told")
    lab.tick()
    entry = lab.registry.entry("one")
    assert (entry.state, entry.reached.told, entry.reached.hypervolume, entry.owner) == ("finished", 1, 0.25, "")
    assert lab.heard["one"].ends == [("finished", "all told")]
    assert [event.name for event in lab.heard["one"].events][-1] == "front_changed"


def test_pause_lets_the_process_end_and_resume_starts_it_again(lab: FakeLab) -> None:
    lab.registry.submit(submission("one"))
    lab.tick()
    lab.registry.want("one", "pause", AT)
    lab.tick()
    lab.tick()
    assert [name for name, _ in lab.children["one"].orders].count("pause") == 1
    lab.children["one"].end("paused")
    lab.tick()
    lab.tick()
    assert (lab.state("one"), lab.n_started) == ("paused", 1)
    lab.registry.want("one", "run", AT)
    lab.tick()
    assert (lab.state("one"), lab.n_started) == ("running", 2)


def test_resuming_while_it_is_pausing_takes_the_pause_back(lab: FakeLab) -> None:
    lab.registry.submit(submission("one"))
    lab.tick()
    lab.registry.want("one", "pause", AT)
    lab.tick()
    lab.registry.want("one", "run", AT)
    lab.tick()
    orders = [name for name, _ in lab.children["one"].orders if name != "beat"]
    assert orders == ["limit", "pause", "limit"]


def test_a_study_that_waits_is_paused_without_ever_being_run(lab: FakeLab) -> None:
    lab.registry.submit(submission("one"))
    lab.registry.want("one", "pause", AT)
    assert lab.state("one") == "paused"
    lab.tick()
    assert lab.n_started == 0


@pytest.mark.parametrize("state", ["running", "waiting", "paused"])
def test_stop_ends_a_study_for_good_from_every_state(lab: FakeLab, state: str) -> None:
    lab.registry.submit(submission("one"))
    if state == "running":
        lab.tick()
    if state == "paused":
        lab.registry.want("one", "pause", AT)
    lab.registry.want("one", "stop", AT)
    lab.tick()
    assert lab.children["one"].told("stop")
    lab.children["one"].end("stopped", "stopped for good after 0 trials")
    lab.tick()
    lab.tick()
    assert (lab.state("one"), lab.n_started) == ("stopped", 1)


def test_a_defect_marks_the_study_as_failed_until_it_is_resumed(lab: FakeLab) -> None:
    lab.registry.submit(submission("one"))
    lab.tick()
    lab.children["one"].end("failed", "bit_mismatch: layer 2 differs")
    lab.tick()
    lab.tick(1000)
    entry = lab.registry.entry("one")
    assert (entry.state, entry.reason, lab.n_started) == ("failed", "bit_mismatch: layer 2 differs", 1)
    lab.registry.want("one", "run", AT)
    lab.tick()
    assert (lab.state("one"), lab.n_started) == ("running", 2)


def test_a_process_that_dies_is_started_again_after_ever_longer_pauses_and_given_up_in_the_end(lab: FakeLab) -> None:
    lab.registry.submit(submission("one"))
    lab.tick()
    pauses = []
    for _ in range(MOST_DEATHS - 1):
        lab.children["one"].die()
        lab.tick()
        assert lab.state("one") == "submitted"
        before, started = lab.clock.now, lab.n_started
        while lab.n_started == started:
            lab.tick(1.0)
        pauses.append(round(lab.clock.now - before))
    assert pauses == [1, 2, 4, 8, 16, 32, 60]
    lab.children["one"].die()
    lab.tick()
    entry = lab.registry.entry("one")
    assert (entry.state, entry.reason) == ("failed", "its process was ended by SIGKILL")


def test_a_pause_takes_the_reason_with_it_for_which_a_study_was_to_be_tried_again(lab: FakeLab) -> None:
    lab.registry.submit(submission("one"))
    lab.tick()
    lab.children["one"].die()
    lab.tick()
    assert "tried again after" in lab.registry.entry("one").reason
    lab.registry.want("one", "pause", AT)
    assert (lab.state("one"), lab.registry.entry("one").reason) == ("paused", "")


def test_a_study_that_gets_on_between_deaths_is_never_given_up(lab: FakeLab) -> None:
    lab.registry.submit(submission("one"))
    lab.tick()
    for trial in range(2 * MOST_DEATHS):
        lab.children["one"].tell("trial_ended", trial=trial, ending="complete")
        lab.children["one"].die()
        lab.tick()
        lab.tick(1.5)
    assert lab.state("one") == "running"


def test_what_the_lab_is_at_fault_for_is_waited_for_without_end(lab: FakeLab) -> None:
    lab.registry.submit(submission("one"))
    lab.tick()
    for _ in range(3 * MOST_DEATHS):
        lab.children["one"].end("again", "the broker is away.", is_patient=True)
        lab.tick()
        assert "the broker is away; tried again after" in lab.registry.entry("one").reason
        assert lab.said[-1].count("again") == 1
        lab.tick(61)
    assert lab.state("one") == "running"


def test_why_a_study_was_tried_again_is_not_said_any_more_once_it_works(lab: FakeLab) -> None:
    lab.registry.submit(submission("one"))
    lab.tick()
    lab.children["one"].tell("could_use", trials=2)
    lab.children["one"].end("again", "the disk is full")
    lab.tick()
    lab.tick(61)
    assert "the disk is full" in lab.registry.entry("one").reason
    lab.children["one"].tell("could_use", trials=2)
    lab.service.take_events(0.01)
    lab.tick()
    assert (lab.state("one"), lab.registry.entry("one").reason) == ("running", "")


def test_two_orchestrators_never_hold_the_same_study(registry: Registry) -> None:
    clock = ManualClock()
    a, b = FakeLab(registry, clock, "a"), FakeLab(registry, clock, "b")
    for number in range(6):
        registry.submit(submission(f"s{number}"))
        (a if number % 2 else b).tick()
    for _ in range(5):
        a.tick()
        b.tick()
    assert not set(a.children) & set(b.children)
    assert a.n_started + b.n_started == len({*a.children, *b.children})


def test_of_two_that_saw_the_same_one_takes_it(registry: Registry) -> None:
    registry.submit(submission("one"))
    seen = registry.entry("one")
    assert registry.take(seen, "a", AT) == 1
    assert registry.take(seen, "b", AT) is None


def test_a_silent_orchestrators_study_is_taken_over_within_a_minute_under_a_new_token(registry: Registry) -> None:
    clock = ManualClock()
    a, b = FakeLab(registry, clock, "a"), FakeLab(registry, clock, "b")
    registry.submit(submission("one"))
    a.tick()
    b.tick()
    began = clock.now
    while not b.children:
        b.tick()
    assert LEASE_S <= clock.now - began <= 60
    assert (registry.entry("one").owner, b.children["one"].token) == ("b", 2)
    with pytest.raises(LeaseLost, match="another orchestrator has taken it over"):
        registry.check_held("one", 1)
    registry.check_held("one", 2)
    a.tick()  # it wakes up
    assert a.children["one"].is_killed
    assert a.heard["one"].ends == [("elsewhere", "")]
    assert registry.entry("one").owner == "b"
    assert [other.owner for other in registry.orchestrators()] == ["a", "b"]


def test_one_whose_process_is_gone_from_this_host_is_followed_at_once(registry: Registry) -> None:
    clock = ManualClock()
    a, b = FakeLab(registry, clock, "a"), FakeLab(registry, clock, "b")
    registry.submit(submission("one"))
    a.tick()
    b.gone = {"a"}
    b.tick()
    assert registry.entry("one").owner == "b"
    b.tick()
    assert [other.owner for other in registry.orchestrators()] == ["b"]


def test_a_study_whose_trials_are_all_told_is_taken_over_for_the_rest_of_its_work(registry: Registry) -> None:
    clock = ManualClock()
    a, b = FakeLab(registry, clock, "a"), FakeLab(registry, clock, "b")
    registry.submit(submission("one"))
    a.tick()
    a.children["one"].tell("could_use", trials=0)
    a.service.take_events(0.1)
    a.tick()
    assert not a.children["one"].told("pause")
    assert registry.entry("one").could_use == 0
    b.gone = {"a"}
    b.tick()
    assert b.children["one"].limit == 1


def test_a_pause_outlives_the_orchestrator_that_was_to_let_the_study_pause(registry: Registry) -> None:
    clock = ManualClock()
    a, b = FakeLab(registry, clock, "a"), FakeLab(registry, clock, "b")
    registry.submit(submission("one"))
    a.tick()
    registry.want("one", "pause", AT)
    b.gone = {"a"}
    b.tick()
    assert (registry.entry("one").state, registry.entry("one").owner, b.n_started) == ("paused", "", 0)
    registry.want("one", "run", AT)
    b.tick()
    assert b.n_started == 1


def test_a_slow_orchestrator_that_still_beats_keeps_its_study(registry: Registry) -> None:
    clock = ManualClock()
    a, b = FakeLab(registry, clock, "a"), FakeLab(registry, clock, "b")
    registry.submit(submission("one"))
    for _ in range(20):
        a.tick(LEASE_S / 2 - 1)
        b.tick(1)
    assert not b.children


def test_news_of_a_process_that_was_taken_over_change_nothing(registry: Registry) -> None:
    clock = ManualClock()
    a, b = FakeLab(registry, clock, "a"), FakeLab(registry, clock, "b")
    registry.submit(submission("one"))
    a.tick()
    b.gone = {"a"}
    b.tick()
    assert not registry.release("one", 1, "finished", "", AT)
    assert registry.entry("one").state == "running"


class Unreachable(Registry):
    """A registry that can be cut off."""

    is_cut = False

    def beat(self, *given: object) -> None:
        if self.is_cut:
            raise StudyError("the list of studies cannot be reached")
        super().beat(*given)  # type: ignore[arg-type]


def test_an_orchestrator_cut_off_from_the_registry_ends_its_processes_before_others_may_start_theirs(
    tmp_path: Path,
) -> None:
    registry = Unreachable(f"sqlite:///{tmp_path / 'lab.db'}")
    lab = FakeLab(registry, ManualClock())
    registry.submit(submission("one"))
    lab.tick()
    registry.is_cut = True
    lab.tick(FENCE_S - 2)
    assert not lab.children["one"].is_killed
    lab.tick(3)
    assert lab.children["one"].is_killed
    assert FENCE_S + 1 < LEASE_S
    registry.is_cut = False
    lab.tick()
    assert (lab.state("one"), lab.n_started) == ("running", 2)
    registry.close()


def test_the_same_trouble_with_the_list_is_said_once_a_minute_and_its_end_once(tmp_path: Path) -> None:
    registry = Unreachable(f"sqlite:///{tmp_path / 'lab.db'}")
    lab = FakeLab(registry, ManualClock())
    lab.tick()
    registry.is_cut = True
    for _ in range(90):
        lab.tick()
    registry.is_cut = False
    lab.tick()
    lab.tick()
    assert lab.said == [
        "the list of studies cannot be reached (for 1 s)",
        "the list of studies cannot be reached (for 61 s)",
        "the list of studies is there again",
    ]
    registry.close()


def test_what_is_wrong_with_the_list_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "lab.db").write_bytes(b"garbage " * 1000)
    with pytest.raises(
        StudyError, match=r"the list of studies, .*lab\.db: file is not a database.*submit the studies again"
    ):
        Registry(f"sqlite:///{tmp_path / 'lab.db'}")
    with pytest.raises(StudyError, match="Start it, or correct the address") as away:
        Registry("postgresql://lab:secret@127.0.0.1:1/lab")
    assert "secret" not in str(away.value)
    for text, part in (
        ("mysql://a:secret@c/d", "found an address of mysql; allowed is PostgreSQL"),
        ("postgresql://a:secret@c:abc/d", "its port is no number"),
        ("lab", "does not begin with postgresql://"),
    ):
        with pytest.raises(UsageError, match=part) as wrong:
            Registry(text)
        assert "secret" not in str(wrong.value)
        assert "postgresql://USER:PASSWORD@HOST/DATABASE" in str(wrong.value)


def test_draining_interrupts_the_studies_and_gives_them_back_to_be_gone_on_with(lab: FakeLab) -> None:
    lab.registry.submit(submission("one"))
    lab.tick()
    lab.children["one"].end("interrupted")
    lab.service.drain(grace_s=1.0)
    assert lab.children["one"].told("interrupt")
    assert (lab.state("one"), lab.registry.entry("one").owner) == ("submitted", "")
    assert lab.registry.orchestrators() == []


def test_a_finished_study_that_was_edited_runs_again(lab: FakeLab) -> None:
    lab.registry.submit(submission("one"))
    lab.tick()
    lab.registry.add_edit("one", {"trials": 9}, "ada", AT)
    lab.children["one"].end("finished")  # it had ended when the edit came
    lab.tick()
    lab.tick()
    assert (lab.state("one"), lab.n_started) == ("running", 2)


def test_a_running_study_hears_of_edits_until_they_are_answered(lab: FakeLab) -> None:
    lab.registry.submit(submission("one"))
    lab.tick()
    number = lab.registry.add_edit("one", {"trials": 9}, "ada", AT)
    lab.tick()
    assert lab.children["one"].told("edits")
    lab.registry.answer_edit(number, "9 trials instead of 8")
    (row,) = lab.registry.edits("one")
    assert (row.is_pending, row.answer, lab.registry.edited_names()) == (False, "9 trials instead of 8", set())
