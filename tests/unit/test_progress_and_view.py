"""The picture of a running study, from events alone."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from orchestrator.progress import Progress
from orchestrator.quantities import elapsed, exact, rounded, show
from orchestrator.records import Event
from orchestrator.view import FanOut, JsonLines, LiveView, PlainLines, StudyScreen, sparkline

OBJECTIVES = {"error": "1", "rom": "byte"}
STAGES = ("gate", "train", "compress", "build", "profile")


class HandClock:
    def __init__(self) -> None:
        self.time_s = 100.0

    def __call__(self) -> float:
        return self.time_s


def event(name: str, /, **fields: object) -> Event:
    return Event(name=name, fields=dict(fields))


def after(*events: Event, clock: HandClock | None = None) -> Progress:
    progress = Progress(clock or HandClock())
    for one in events:
        progress.emit(one)
    return progress


def ended(trial: int, ending: str = "complete", **values: float) -> Event:
    return event("trial_ended", trial=trial, ending=ending, values=values, reason="")


def test_time_left_follows_the_pace_of_this_run_and_not_of_earlier_ones() -> None:
    clock = HandClock()
    progress = after(event("study_started", name="s", budget=10), event("study_resumed", told=6), clock=clock)
    assert progress.seconds_left() is None
    clock.time_s += 20
    progress.emit(ended(6, error=0.1))
    assert progress.told == 7
    assert progress.seconds_left() == pytest.approx(3 * 20)


def test_a_fault_uses_up_no_budget() -> None:
    progress = after(event("study_started", name="s", budget=3), ended(0, "fault"), ended(1, "infeasible"))
    assert progress.told == 1


def test_the_best_error_comes_from_complete_trials_only() -> None:
    progress = after(ended(0, error=0.2), ended(1, "infeasible", error=0.01))
    assert progress.best_error == 0.2


def test_a_trial_is_shown_at_its_stage_until_it_has_ended() -> None:
    progress = after(
        event("trial_proposed", trial=4, params={}, seconds=0.1),
        event("stage_queued", trial=4, stage="train", attempt=1),
        event("stage_started", trial=4, stage="train", attempt=1, worker="train-1"),
        event("epoch_finished", trial=4, stage="train", epoch=3, epochs=9, loss=1.0, accuracy=0.5),
    )
    text = draw(progress)
    assert "epoch 3/9, accuracy 50.0 %" in text
    assert "train-1" in text
    progress.emit(ended(4, error=0.25, rom=2048))
    text = draw(progress)
    assert "nothing under way" in text
    assert "25.00 %" in text
    assert "2.0 KiB" in text


def test_the_test_split_is_the_last_thing_a_trial_is_shown_at() -> None:
    progress = after(ended(4, error=0.25), event("stage_started", trial=4, stage="final", attempt=1, worker="build-1"))
    assert "● ● ● ● ●" in draw(progress)
    progress.emit(event("stage_finished", trial=4, stage="final", ending="complete", seconds=1.0, wait_seconds=0.0))
    assert "nothing under way" in draw(progress)


def draw(progress: Progress) -> str:
    console = Console(file=io.StringIO(), width=110, height=40, force_terminal=False)
    console.print(StudyScreen(progress, OBJECTIVES, STAGES, lambda: 100.0))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_live_view_leaves_faults_standing_above_the_picture() -> None:
    console = Console(file=io.StringIO(), width=100, height=30, force_terminal=True)
    progress = Progress(lambda: 0.0)
    with LiveView(progress, OBJECTIVES, STAGES, console, lambda: 0.0) as view:
        view.emit(event("fault", trial=2, stage="profile", reason="board_hung", attempt=1))
    assert "fault in trial 2 at profile: board_hung" in console.file.getvalue()  # type: ignore[attr-defined]


def test_plain_lines_say_one_line_a_trial() -> None:
    lines: list[str] = []
    progress = Progress(HandClock())
    sink = FanOut(progress, PlainLines(progress, OBJECTIVES, lines.append))
    sink.emit(event("study_started", name="digits", budget=2))
    sink.emit(event("stage_started", trial=0, stage="gate", attempt=1, worker="w"))
    sink.emit(event("fault", trial=0, stage="gate", reason="worker_lost", attempt=1))
    sink.emit(ended(0, error=0.0312, rom=30720))
    assert lines == [
        "study digits: 2 trials",
        "  fault in trial 0 at gate (attempt 1): worker_lost",
        "[1/2] trial 0 complete: error 3.12 %  rom 30.0 KiB",
    ]


def test_json_lines_hold_the_event_with_its_time() -> None:
    lines: list[str] = []
    JsonLines(lines.append, lambda: "2026-01-01T00:00:00+00:00").emit(ended(3, error=0.5))
    assert json.loads(lines[0]) == {
        "event": "trial_ended",
        "time": "2026-01-01T00:00:00+00:00",
        "trial": 3,
        "ending": "complete",
        "values": {"error": 0.5},
        "reason": "",
    }


@pytest.mark.parametrize(
    ("values", "expected"), [([], ""), ([0.0, 0.0], "▁▁"), ([0.5, 0.75, 1.0], "▁▅█"), ([1.0] * 100, "█" * 25)]
)
def test_a_sparkline_reaches_from_its_lowest_to_its_highest_value(values: list[float], expected: str) -> None:
    assert sparkline(values, 30) == expected


@pytest.mark.parametrize(
    ("amount", "unit", "name", "expected"),
    [
        (0.0312, "1", "error", "3.12 %"),
        (1536, "byte", "rom", "1.5 KiB"),
        (12, "byte", "rom", "12 B"),
        (2**20, "byte", "rom", "1.00 MiB"),
        (1.25e6, "1", "flops", "1.25 M"),
        (0.00321, "s", "latency", "3.21 ms"),
        (250, "s", "", "4 min 10 s"),
        (7260, "s", "", "2 h 01 min"),
        (4.2e-5, "J", "energy", "42 µJ"),
        (0.0, "s", "", "0 s"),
        (float("nan"), "byte", "ram", "–"),
    ],
)
def test_numbers_read_as_a_person_would_write_them(amount: float, unit: str, name: str, expected: str) -> None:
    assert show(amount, unit, name) == expected


@pytest.mark.parametrize(
    ("amount", "unit", "name", "expected"),
    [
        (61720, "byte", "rom", "61,720 bytes"),
        (1, "byte", "rom", "1 byte"),
        (2814900.0, "1", "flops", "2,814,900"),
        (0.2987465181, "1", "error", "29.87 %"),
        (0.0053, "s", "latency", "5.3 ms"),
    ],
)
def test_bytes_and_counts_can_be_had_to_the_last_one(amount: float, unit: str, name: str, expected: str) -> None:
    assert exact(amount, unit, name) == expected


@pytest.mark.parametrize(
    ("amount", "unit", "name", "expected"),
    [
        (0.25, "1", "error", "25 %"),
        (0.125, "1", "error", "12.5 %"),
        (32768, "byte", "rom", "32 KiB"),
        (100, "byte", "rom", "100 B"),
        (1800, "s", "", "30 min"),
        (28800, "s", "", "8 h"),
        (1e9, "1", "flops", "1 G"),
    ],
)
def test_a_limit_is_written_without_zeros_that_say_nothing(amount: float, unit: str, name: str, expected: str) -> None:
    assert rounded(amount, unit, name) == expected


def test_a_span_that_grows_is_told_in_whole_seconds() -> None:
    assert [elapsed(seconds) for seconds in (0.2, 31.3, 59.7, 76)] == ["0 s", "31 s", "1 min 00 s", "1 min 16 s"]


def test_a_narrow_terminal_shows_every_value_and_a_wide_one_the_reason_too() -> None:
    progress, units = Progress(lambda: 0.0), {"error": "1", "rom": "byte", "ram": "byte", "latency": "s", "energy": "J"}
    values = {"error": 0.5042, "rom": 12_700.0, "ram": 1_840.0, "latency": 629e-6, "energy": 74.8e-6}
    progress.emit(Event(name="trial_proposed", fields={"trial": 0, "params": {}}))
    ended = {"trial": 0, "ending": "infeasible", "values": values, "reason": "latency is over the limit"}
    progress.emit(Event(name="trial_ended", fields=ended))
    screen = StudyScreen(progress, units, ("gate", "train"), lambda: 0.0)
    for width in (80, 140):
        console = Console(width=width, height=30, file=io.StringIO(), force_terminal=True, color_system=None)
        console.print(screen)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert all(part in text for part in ("infeasible", "50.42 %", "12.4 KiB", "1.8 KiB", "629 µs", "74.8 µJ"))
        assert ("latency is over the limit" in text) is (width == 140)


def test_the_picture_leaves_room_for_what_the_terminal_writes_behind_it() -> None:
    console = Console(width=80, height=30, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(StudyScreen(Progress(lambda: 0.0), {"error": "1"}, ("gate",), lambda: 0.0))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(len(line.rstrip()) for line in lines) == 80 - len("^C") - 1
