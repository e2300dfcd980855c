"""Proposers as Optuna samplers, and the rule by which trials are told."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from orchestrator.errors import UsageError
from orchestrator.objectives import Objectives
from orchestrator.records import Ending, Fault, FaultKind, Outcome, Source, Value, Violation
from orchestrator.sampler import ProposerSampler, make_sampler, read_history, read_pending
from orchestrator.space import SearchSpace
from orchestrator.studyfile import StudyFile
from orchestrator.telling import VIOLATIONS_ATTR, tell_outcome

optuna.logging.set_verbosity(optuna.logging.WARNING)

DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "width": IntDistribution(4, 32, log=True),
    "rate": FloatDistribution(1e-4, 1e-1, log=True),
    "kernel": CategoricalDistribution([3, 5]),
}
SPACE = SearchSpace.from_distributions(DISTRIBUTIONS)
OBJECTIVES = Objectives(names=("error", "rom"), units=("1", "byte"), limits=(1.0, 1000.0))
QUICK = {"iterations": 2, "policies": 2, "directions": 3, "top": 2, "pool": 32, "polish": 1}
OPTIONS: dict[str, dict[str, Any]] = {"ars": QUICK, "random": {}, "nsga2": {"population": 4}}


def sampler(name: str = "ars", *, seed: int = 1, initial: int = 4) -> ProposerSampler:
    return ProposerSampler(
        name, seed=seed, initial=initial, search_space=SPACE, objectives=OBJECTIVES, options=OPTIONS[name]
    )


def create(chosen: ProposerSampler, storage: InMemoryStorage | None = None) -> optuna.Study:
    return optuna.create_study(
        study_name="s", sampler=chosen, directions=["minimize"] * 2, storage=storage, load_if_exists=True
    )


def complete(error: float, rom: float) -> Outcome:
    values = {
        "error": Value(amount=error, unit="1", source=Source.EXACT),
        "rom": Value(amount=rom, unit="byte", source=Source.EXACT),
    }
    return Outcome(ending=Ending.COMPLETE, values=values)


def infeasible(quantity: str = "rom", amount: float = 1500.0, limit: float = 1000.0) -> Outcome:
    violation = Violation(quantity=quantity, amount=amount, limit=limit, unit="byte", message="too large")
    return Outcome(ending=Ending.INFEASIBLE, violations=(violation,))


FAULT = Outcome(ending=Ending.FAULT, fault=Fault(kind=FaultKind.TRANSIENT, reason="board_hung", detail=""))


def evaluate(params: dict[str, Any]) -> Outcome:
    rom = 40.0 * params["width"] * (params["kernel"] - 1)
    if rom > 4000:
        return infeasible(amount=rom)
    return complete(abs(math.log10(params["rate"]) + 2.5) / 3 + 1 / params["width"], rom)


def run(study: optuna.Study, n_trials: int) -> None:
    for _ in range(n_trials):
        trial = study.ask(DISTRIBUTIONS)
        tell_outcome(study, trial.number, evaluate(trial.params), OBJECTIVES)


def asked(study: optuna.Study) -> list[dict[str, Any]]:
    return [trial.params for trial in study.trials]


def history(study: optuna.Study) -> Any:
    return read_history(study.trials, SPACE, OBJECTIVES, study.directions)


@pytest.mark.parametrize("name", ["ars", "random", "nsga2"])
def test_the_same_seed_asks_for_the_same_trials_and_another_seed_for_others(name: str) -> None:
    studies = [create(sampler(name, seed=seed)) for seed in (1, 1, 2)]
    for study in studies:
        run(study, 9)
    assert asked(studies[0]) == asked(studies[1])
    assert all(one != other for one, other in zip(asked(studies[0]), asked(studies[2]), strict=True))


@pytest.mark.parametrize("name", ["ars", "random", "nsga2"])
def test_a_resumed_study_goes_on_as_if_never_stopped(name: str) -> None:
    whole = create(sampler(name))
    run(whole, 9)
    storage = InMemoryStorage()
    for n_trials in (3, 4, 2):
        run(create(sampler(name), storage), n_trials)
    assert asked(create(sampler(name), storage)) == asked(whole)


def test_the_first_trials_are_the_design_in_whatever_order_they_are_told() -> None:
    told, waiting = create(sampler(initial=6)), create(sampler(initial=6))
    run(told, 6)
    for _ in range(6):
        waiting.ask(DISTRIBUTIONS)
    assert asked(told) == asked(waiting)
    widths = [SPACE.encode(params)[1] for params in asked(told)]
    assert sorted(np.floor(np.array(widths) * 6).astype(int)) == list(range(6))


def test_running_trials_are_pending_and_never_proposed_again() -> None:
    small = {"kernel": IntDistribution(1, 6)}
    study = optuna.create_study(
        directions=["minimize"] * 2,
        sampler=ProposerSampler(
            "ars", seed=0, initial=2, search_space=small, objectives=OBJECTIVES, options=OPTIONS["ars"]
        ),
    )
    first = study.ask(small)
    tell_outcome(study, first.number, complete(0.5, 500), OBJECTIVES)
    for _ in range(5):
        study.ask(small)
    assert sorted(params["kernel"] for params in asked(study)) == [1, 2, 3, 4, 5, 6]
    assert len(read_pending(study.trials, SearchSpace.from_distributions(small))) == 5


def test_a_complete_trial_keeps_natural_units_and_its_margins_as_constraints() -> None:
    study = create(sampler())
    tell_outcome(study, study.ask(DISTRIBUTIONS).number, complete(0.25, 800), OBJECTIVES)
    trial = study.trials[0]
    assert trial.state == TrialState.COMPLETE
    assert trial.values == [0.25, 800.0]
    assert trial.constraints == pytest.approx({"error": -0.75, "rom": -0.2})
    assert history(study).outcomes.tolist() == [[0.25, 0.8]]
    assert history(study).feasible.tolist() == [True]


def test_a_complete_trial_beyond_a_limit_keeps_its_values_and_is_infeasible() -> None:
    study = create(sampler())
    tell_outcome(study, study.ask(DISTRIBUTIONS).number, complete(0.25, 1200), OBJECTIVES)
    told = history(study)
    assert study.trials[0].state == TrialState.COMPLETE
    assert told.outcomes.tolist() == [[0.25, 1.2]]
    assert told.feasible.tolist() == [False]
    assert told.margins == pytest.approx([0.2])


def test_an_infeasible_trial_is_pruned_with_its_violations_and_teaches_what_is_known() -> None:
    study = create(sampler())
    tell_outcome(study, study.ask(DISTRIBUTIONS).number, infeasible(), OBJECTIVES)
    trial, told = study.trials[0], history(study)
    assert trial.state == TrialState.PRUNED
    assert trial.user_attrs[VIOLATIONS_ATTR] == [0.5]
    assert trial.constraints == {"rom": 0.5}
    # The ROM is known to be 1.5 times its limit; the error is not known.
    np.testing.assert_array_equal(told.outcomes, [[np.nan, 1.5]])
    assert told.margins == pytest.approx([0.5])
    assert told.feasible.tolist() == [False]


def test_a_violation_of_no_objective_is_a_margin_only() -> None:
    study = create(sampler())
    diverged = infeasible("training_loss", math.inf, 100.0)
    tell_outcome(study, study.ask(DISTRIBUTIONS).number, diverged, OBJECTIVES)
    assert np.isnan(history(study).outcomes).all()
    assert history(study).margins == pytest.approx([1e6])


def test_violations_in_the_attribute_alone_are_understood() -> None:
    study = create(sampler())
    trial = study.ask(DISTRIBUTIONS)
    trial.set_user_attr(VIOLATIONS_ATTR, [0.1, 0.3])
    study.tell(trial, state=TrialState.PRUNED)
    assert history(study).margins == pytest.approx([0.3])


def test_a_fault_is_never_seen() -> None:
    study = create(sampler())
    tell_outcome(study, study.ask(DISTRIBUTIONS).number, FAULT, OBJECTIVES)
    assert study.trials[0].state == TrialState.FAIL
    assert len(history(study)) == 0
    assert len(read_pending(study.trials, SPACE)) == 0


def test_telling_again_after_a_crash_half_way_does_no_harm() -> None:
    study = create(sampler())
    trial = study.ask(DISTRIBUTIONS)
    # The crash left the constraint behind, but not the state.
    trial.set_constraint("rom", 0.5)
    tell_outcome(study, trial.number, infeasible(), OBJECTIVES)
    assert history(study).margins == pytest.approx([0.5])
    with pytest.raises(ValueError, match="trial 0 is not running"):
        tell_outcome(study, trial.number, infeasible(), OBJECTIVES)


def test_an_infeasible_outcome_without_violation_is_refused() -> None:
    study = create(sampler())
    with pytest.raises(ValueError, match="infeasible without a violation"):
        tell_outcome(study, study.ask(DISTRIBUTIONS).number, Outcome(ending=Ending.INFEASIBLE), OBJECTIVES)


def test_trials_of_another_space_are_passed_over() -> None:
    study = create(sampler())
    run(study, 2)
    study.add_trial(
        optuna.trial.create_trial(
            params={"other": 1}, distributions={"other": IntDistribution(0, 3)}, values=[0.1, 1.0]
        )
    )
    assert len(history(study)) == 2


def test_an_ordinary_optuna_study_needs_no_space_and_may_maximise() -> None:
    def objective(trial: optuna.Trial) -> tuple[float, float]:
        x = trial.suggest_float("x", 0.0, 1.0)
        y = trial.suggest_float("y", 0.0, 1.0)
        return (x - 0.5) ** 2 + y, 1.0 - x

    study = optuna.create_study(
        directions=["minimize", "maximize"], sampler=ProposerSampler("ars", seed=0, initial=3, options=QUICK)
    )
    study.optimize(objective, n_trials=8)
    told = read_history(
        study.trials,
        SearchSpace.from_distributions({"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}),
        Objectives(names=("a", "b"), units=("1", "1"), limits=(math.inf, math.inf)),
        study.directions,
    )
    np.testing.assert_allclose(told.outcomes[:, 1], [-trial.values[1] for trial in study.trials])
    assert told.feasible.all()


def test_constraints_of_an_ordinary_study_are_respected() -> None:
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0.0, 1.0)
        trial.set_constraint("budget", x - 0.4)
        return 1.0 - x

    study = optuna.create_study(sampler=ProposerSampler("ars", seed=0, initial=6))
    study.optimize(objective, n_trials=14)
    assert study.best_value == pytest.approx(0.6, abs=0.05)


def study_file(**changes: Any) -> StudyFile:
    return StudyFile.model_validate(
        {
            "name": "s",
            "dataset": {"source": "digits"},
            "network": {"family": "cnn"},
            "space": {
                "network.width": {"type": "int", "low": 4, "high": 32, "log": True},
                "training.epochs": 12,
            },
            "board": "nrf52840-dk",
            "objectives": {"error": {}, "rom": {}},
            "budget": {"trials": 4},
        }
        | changes
    )


def test_a_study_file_makes_its_sampler_and_fixed_parameters_reach_the_trial() -> None:
    file = study_file(sampler={"name": "random", "initial": 2})
    objectives = Objectives.from_study(file, 1e6, 1e5)
    study = optuna.create_study(directions=["minimize"] * 2, sampler=make_sampler(file, objectives))
    distributions = SearchSpace.from_parameters(file.space).distributions()
    params = [study.ask(distributions).params for _ in range(4)]
    assert {item["training.epochs"] for item in params} == {12}
    assert len({item["network.width"] for item in params}) == 4


def test_a_wrong_sampler_in_the_study_file_is_a_usage_error() -> None:
    objectives = Objectives.from_study(study_file(), 1e6, 1e5)
    with pytest.raises(UsageError, match=r"sampler\.name: found 'tpes'"):
        make_sampler(study_file(sampler={"name": "tpes"}), objectives)
    with pytest.raises(UsageError, match=r"sampler\.options\.depth"):
        make_sampler(study_file(sampler={"options": {"depth": 3}}), objectives)
