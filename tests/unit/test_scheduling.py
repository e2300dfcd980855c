"""Who gets how many slots: fair, by priority, none wasted."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.scheduling import Demand, backoff_s, shares


def demand(name: str, could_use: int = 100, priority: int = 0, order: int = 0) -> Demand:
    return Demand(name=name, could_use=could_use, priority=priority, order=order)


def test_studies_of_equal_priority_share_alike_and_the_odd_slot_goes_to_the_older() -> None:
    assert shares([demand("b", order=2), demand("a", order=1)], 5) == {"a": 3, "b": 2}


def test_each_step_of_priority_doubles_the_share() -> None:
    assert shares([demand("a"), demand("b", priority=1), demand("c", priority=2)], 70) == {"a": 10, "b": 20, "c": 40}


def test_what_a_study_cannot_use_goes_to_the_others() -> None:
    assert shares([demand("a", could_use=1, priority=3), demand("b"), demand("c", could_use=0)], 8) == {
        "a": 1,
        "b": 7,
        "c": 0,
    }


def test_every_study_gets_a_slot_before_any_gets_two() -> None:
    assert shares([demand("a", priority=5), demand("b"), demand("c", priority=-5)], 3) == {"a": 1, "b": 1, "c": 1}


def test_where_slots_are_fewer_than_studies_priority_decides_then_age() -> None:
    asked = [demand("old", order=1), demand("new", order=2), demand("urgent", priority=1, order=3)]
    assert shares(asked, 2) == {"urgent": 1, "old": 1, "new": 0}


DEMANDS = st.lists(
    st.tuples(st.integers(0, 12), st.integers(-5, 5)).map(lambda pair: pair), min_size=0, max_size=8
).map(
    lambda pairs: [
        demand(f"s{order}", could_use=use, priority=priority, order=order)
        for order, (use, priority) in enumerate(pairs)
    ]
)


@settings(derandomize=True, max_examples=200)
@given(DEMANDS, st.integers(0, 40))
def test_no_slot_is_wasted_and_none_given_twice(asked: list[Demand], slots: int) -> None:
    found = shares(asked, slots)
    assert all(0 <= found[item.name] <= item.could_use for item in asked)
    assert sum(found.values()) == min(slots, sum(item.could_use for item in asked))


@settings(derandomize=True, max_examples=200)
@given(DEMANDS, st.integers(0, 40))
def test_a_higher_priority_never_gets_less_of_what_both_could_use(asked: list[Demand], slots: int) -> None:
    found = shares(asked, slots)
    for one in asked:
        for other in asked:
            if one.priority > other.priority and one.could_use >= other.could_use:
                assert found[one.name] >= found[other.name]


@pytest.mark.parametrize(("failures", "pause_s"), [(1, 1.0), (2, 2.0), (5, 16.0), (7, 60.0), (1000, 60.0)])
def test_pauses_after_failures_double_up_to_a_minute(failures: int, pause_s: float) -> None:
    assert backoff_s(failures) == pause_s
