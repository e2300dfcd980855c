"""Early stopping: what error a candidate must reach, what it still can, and when a search has stopped gaining."""

from __future__ import annotations

import math

import numpy as np
import pytest

from orchestrator.objectives import Objectives
from orchestrator.records import Ending, Source, StageResult, Value
from orchestrator.stopping import (
    ERROR_FLOOR,
    LEAST_CURVES,
    Curve,
    Finished,
    StoppingRule,
    error_threshold,
    errors_of,
    has_plateaued,
    known_of,
    lowest_values,
    remaining_shares,
    stopping_rule,
    worthless_error,
)
from orchestrator.studyfile import EarlyStopping, Plateau

# error, rom, ram; the smaller network has twice the error
FRONT = np.array([[0.10, 0.8, 0.5], [0.20, 0.4, 0.5]])
NEVER = math.inf
OBJECTIVES = Objectives(names=("error", "rom", "latency"), units=("1", "byte", "s"), limits=(0.5, 1000.0, 1.0))
CONSERVATIVE = EarlyStopping(chance=0.05, gain=0.0)


def threshold(rom: float, ram: float) -> float:
    return error_threshold(FRONT, np.array([math.nan, rom, ram]), 0)


def test_a_larger_network_must_beat_every_front_trial_that_is_smaller() -> None:
    assert threshold(0.9, 0.6) == 0.10
    assert threshold(0.5, 0.6) == 0.20


def test_equal_costs_are_no_advantage() -> None:
    assert threshold(0.4, 0.5) == 0.20


def test_a_network_smaller_in_one_thing_than_all_of_the_front_may_have_any_error() -> None:
    assert threshold(0.3, 0.9) == NEVER
    assert threshold(0.9, 0.4) == NEVER


def test_without_a_front_any_error_will_do() -> None:
    assert error_threshold(np.zeros((0, 3)), np.full(3, np.nan), 0) == NEVER


def test_an_error_is_worthless_from_where_it_adds_next_to_nothing() -> None:
    front, reference = np.array([[0.5, 0.5]]), np.ones(2)
    # Beside a square of 0.25, a point of cost 0.4 adds (1 − error) · 0.1 at least: 4 % of it at an error of 0.9.
    assert worthless_error(front, np.array([math.nan, 0.4]), 0, reference, 0.04) == pytest.approx(0.9, abs=1e-5)
    assert error_threshold(front, np.array([math.nan, 0.4]), 0) == NEVER


def test_without_a_least_gain_an_error_is_worthless_where_it_is_dominated() -> None:
    lowest = np.array([math.nan, 0.6])
    front, reference = np.array([[0.5, 0.5]]), np.ones(2)
    assert worthless_error(front, lowest, 0, reference, 0.0) == error_threshold(front, lowest, 0) == 0.5


def test_an_objective_that_nothing_is_known_of_can_always_rescue_the_trial() -> None:
    assert threshold(0.9, math.nan) == NEVER


def curves(n: int, fall: float = 0.5, spread: float = 0.0) -> list[Curve]:
    """Ten epochs that halve the error from 0.4 at epoch 5 on; then deployment multiplies it by ``fall``."""
    errors = tuple(0.4 if epoch < 5 else 0.2 for epoch in range(10))
    steps = np.linspace(-spread, spread, n)
    return [Curve(errors=errors, final=(0.2 + ERROR_FLOOR) * fall * math.exp(step) - ERROR_FLOOR) for step in steps]


def test_with_few_finished_trials_nothing_is_said() -> None:
    assert remaining_shares(curves(LEAST_CURVES - 1), 4, 0.05) == (0.0,) * 4


def test_what_is_still_to_come_is_read_off_at_the_same_fraction_of_the_training() -> None:
    early, late = remaining_shares(curves(100), 2, 0.5)
    assert early == pytest.approx(0.5 * 0.201 / 0.401, rel=0.02)
    assert late == pytest.approx(0.5, rel=0.02)


def test_a_fraction_between_two_epochs_counts_as_the_earlier_one() -> None:
    shares = remaining_shares(curves(20), 9, 0.05)
    # epoch 5 of 9 is 5.6 of 10: the fall at epoch 6 has not been seen yet
    assert shares[4] == shares[3]
    assert shares[5] > shares[4]


def test_at_a_small_chance_no_share_is_larger_than_the_deepest_fall_ever_seen() -> None:
    one_deep = [*curves(200), *curves(1, fall=0.05)]
    assert remaining_shares(one_deep, 1, 0.005)[0] <= 0.05 + 1e-9


def test_fewer_or_less_alike_trials_and_a_smaller_chance_stop_less() -> None:
    share = remaining_shares(curves(20, spread=0.2), 1, 0.05)[0]
    assert remaining_shares(curves(8, spread=0.2), 1, 0.05)[0] < share
    assert remaining_shares(curves(20, spread=0.6), 1, 0.05)[0] < share
    assert remaining_shares(curves(20, spread=0.2), 1, 0.01)[0] < share


def test_a_training_ends_at_the_first_epoch_from_which_the_threshold_is_out_of_reach() -> None:
    rule = StoppingRule(threshold=0.05, shares=(0.1, 0.4, 0.8))
    assert rule.look([0.3]) is None
    stop = rule.look([0.3, 0.2])
    assert stop is not None
    assert (stop.epoch, stop.epochs, stop.needed) == (2, 3, 0.05)
    assert stop.expected == pytest.approx(0.4 * 0.201 - 0.001)
    assert stop.message == (
        "stopped early at epoch 2 of 3: would need an error of at most 5.00 %, expected at least 7.94 %"
    )


def test_the_best_epoch_counts_not_the_last() -> None:
    rule = StoppingRule(threshold=0.05, shares=(1.0, 1.0))
    assert rule.look([0.04, 0.5]) is None


def test_beyond_the_epochs_it_was_made_for_a_rule_is_silent() -> None:
    rule = StoppingRule(threshold=0.05, shares=(1.0,))
    assert rule.look([0.9]) is not None
    assert rule.look([0.9, 0.9]) is None
    assert rule.look([]) is None


def test_a_rule_survives_its_json_form() -> None:
    rule = StoppingRule(threshold=0.05, shares=(0.0, 0.25))
    assert StoppingRule.from_json(rule.to_json()) == rule


def finished(n: int = 8) -> list[Finished]:
    values = {"error": 0.1, "rom": 500.0, "latency": 0.5, "macs": 1000.0}
    return [Finished(values=values, errors=(0.3, 0.1))] * n


def rule_for(rom: float, macs: float, n: int = 8, mode: str = "conservative") -> StoppingRule | None:
    settings = EarlyStopping.model_validate({"mode": mode, "chance": 0.05, "gain": 0.0})
    return stopping_rule({"rom": rom, "macs": macs}, 3, finished(n), OBJECTIVES, settings)


def test_the_rule_holds_the_threshold_in_natural_units_and_a_share_for_each_epoch() -> None:
    rule = rule_for(rom=600, macs=2000)
    assert rule is not None
    assert rule.threshold == pytest.approx(0.1)
    assert len(rule.shares) == 3


def test_a_measured_objective_is_credited_with_half_the_least_cost_of_its_work() -> None:
    # least 0.5 ms a MAC, so 2,000 MACs take at least 0.5 s: no faster than the front
    assert lowest_values({"macs": 2000.0}, OBJECTIVES, [trial.values for trial in finished()])[2] == 0.5
    assert rule_for(rom=600, macs=2000) is not None
    assert rule_for(rom=600, macs=1900) is None


@pytest.mark.parametrize("reason", [{"rom": 400}, {"n": 0}, {"n": LEAST_CURVES - 1}, {"mode": "off"}])
def test_there_is_no_rule_for_a_trial_that_goes_through_anyway(reason: dict[str, object]) -> None:
    assert rule_for(**({"rom": 600, "macs": 2000} | reason)) is None  # type: ignore[arg-type]


def test_with_a_least_gain_even_a_trial_that_cannot_be_dominated_has_an_error_to_reach() -> None:
    settings = EarlyStopping(chance=0.05, gain=0.01)
    rule = stopping_rule({"rom": 400, "macs": 2000}, 3, finished(), OBJECTIVES, settings)
    assert rule is not None
    assert 0.1 < rule.threshold < 0.5


def test_a_bare_off_in_yaml_which_reads_as_false_is_off() -> None:
    assert EarlyStopping.model_validate({"mode": False}).mode == "off"


def result(stage: str, **fields: object) -> StageResult:
    about = {"study_id": "s", "trial": 0, "attempt": 1, "ending": Ending.COMPLETE, "seconds": 1.0}
    return StageResult(**{**about, "stage": stage, **fields})  # type: ignore[arg-type]


def test_of_ram_only_the_static_part_is_known_before_the_board_has_measured_the_stack() -> None:
    values = {"ram": Value(amount=3000.0, unit="byte", source=Source.EXACT)}
    assert known_of(result("gate", values=values)) == {"ram": 3000.0}
    assert known_of(result("gate", values=values, notes={"memory": {"ram": {"static": 1000}}})) == {"ram": 1000.0}


def test_errors_are_read_from_the_curve_that_training_notes() -> None:
    assert errors_of(result("train", notes={"curve": [[2.0, 0.25], [1.0, 0.5]]})) == (0.75, 0.5)
    assert errors_of(result("train")) == ()


@pytest.mark.parametrize(
    ("hypervolumes", "is_over"),
    [
        ([0.1, 0.5, 0.5, 0.5], True),
        ([0.1, 0.499, 0.5, 0.5], True),  # 0.2 % over the last two
        ([0.1, 0.49, 0.5, 0.5], False),  # 2 %
        ([0.5, 0.5, 0.5], False),  # one of the last two belongs to the initial design
        ([0.0, 0.0, 0.0, 0.0], False),  # nothing feasible was found yet
        ([], False),
    ],
)
def test_a_plateau_is_little_gain_over_the_last_trials_after_the_initial_design(
    hypervolumes: list[float], *, is_over: bool
) -> None:
    assert has_plateaued(hypervolumes, 2, Plateau(trials=2, gain=0.005)) is is_over


def test_with_many_trials_a_share_of_them_as_large_as_the_chance_may_have_fallen_deeper() -> None:
    one_deep = [*curves(200), *curves(1, fall=0.3)]
    cautious, bold = (remaining_shares(one_deep, 1, chance)[0] for chance in (0.005, 0.05))
    assert cautious <= 0.3
    assert bold > 0.3
