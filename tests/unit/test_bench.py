"""The benchmark's arithmetic, without running it."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_trials import study_file

from bench.pipelining.gpu import figures
from orchestrator.records import Ending, Event

ROOT = Path(__file__).parents[2]


@pytest.fixture
def overhead(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]  # a module that is loaded by its path
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import overhead

    return overhead


def test_overhead_is_what_lies_between_trials_less_their_stages(overhead, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    times = iter([10.0, 14.0, 15.5])
    monkeypatch.setattr(overhead.time, "monotonic", lambda: next(times))
    watch = overhead.Stopwatch()
    for stages in ((5.0,), (1.0, 2.5), (1.0,)):
        for seconds in stages:
            watch.emit(Event(name="stage_finished", fields={"stage": "gate", "seconds": seconds}))
        watch.emit(Event(name="trial_ended", fields={}))
    watch.emit(Event(name="stage_finished", fields={"stage": "final", "seconds": 99.0}))
    assert watch.overhead_s() == [0.5, 0.5]


def test_a_shortened_study_trains_one_epoch_and_has_one_trial_in_flight(overhead) -> None:  # type: ignore[no-untyped-def]
    short = overhead.shortened(study_file(), trials=7)
    assert short.space["training.epochs"].value == 1
    assert (short.training.epochs, short.budget.trials, short.parallelism.trials_in_flight) == (1, 7, 1)


def test_made_up_outcomes_are_within_every_limit(overhead) -> None:  # type: ignore[no-untyped-def]
    objectives = overhead.objectives_of(study_file())
    for corner in (0.0, 0.5, 1.0):
        outcome = overhead.made_up_outcome([corner] * 5, objectives)
        assert outcome.ending is Ending.COMPLETE
        assert objectives.violations(outcome.values) == ()
        assert all(value.amount > 0 for value in outcome.values.values())


def test_proposals_are_timed_on_a_history_of_the_asked_length(overhead) -> None:  # type: ignore[no-untyped-def]
    assert overhead.proposal_s(study_file(sampler={"name": "random"}), 9) > 0


def test_a_gpus_speed_is_told_by_the_ratio_within_each_repeat() -> None:
    found = figures([[4.0, 2.0], [9.0, 3.0], [8.0, 1.0]], epochs=5)
    assert found == {"epochs": 5, "cpu_s": [4.0, 9.0, 8.0], "gpu_s": [2.0, 3.0, 1.0], "ratio": [3.0, 2.0, 8.0]}
