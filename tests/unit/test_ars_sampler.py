"""The default proposer in ordinary Optuna studies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from orchestrator.errors import UsageError
from orchestrator.sampler import ARSSampler

optuna.logging.set_verbosity(optuna.logging.WARNING)

QUICK = {"iterations": 2, "policies": 2, "directions": 3, "top": 2, "pool": 32, "polish": 1}


def quick(seed: int | None = 0, **changes: object) -> ARSSampler:
    return ARSSampler(seed=seed, n_startup_trials=4, options=QUICK, **changes)  # type: ignore[arg-type]


def branching(trial: optuna.Trial) -> tuple[float, float]:
    """Two kinds of model with parameters of their own beside a shared one."""
    shared = trial.suggest_float("shared", 0.0, 1.0)
    if trial.suggest_categorical("kind", ["deep", "wide"]) == "deep":
        return shared, 1.0 - 0.1 * trial.suggest_int("depth", 1, 5)
    return shared + 0.1, 1.0 - 0.01 * trial.suggest_int("width", 4, 64, log=True)


def asked(study: optuna.Study) -> list[dict[str, object]]:
    return [trial.params for trial in study.trials]


def test_conditional_parameters_are_proposed_group_by_group() -> None:
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=quick())
    study.optimize(branching, n_trials=16)
    space = study.sampler.infer_relative_search_space(study, study.trials[-1])
    assert set(space) == {"shared", "kind", "depth", "width"}
    widths = [trial.params["width"] for trial in study.trials[8:] if "width" in trial.params]
    depths = [trial.params["depth"] for trial in study.trials[8:] if "depth" in trial.params]
    assert np.mean(depths or [5]) > 2.5
    assert np.mean(widths or [64]) > 16


def test_a_group_learns_from_the_trials_that_had_it_alone() -> None:
    def objective(trial: optuna.Trial) -> float:
        if trial.suggest_categorical("kind", ["a", "b"]) == "a":
            return (trial.suggest_float("a", 0.0, 1.0) - 0.3) ** 2
        return (trial.suggest_float("b", 0.0, 1.0) - 0.8) ** 2

    study = optuna.create_study(sampler=ARSSampler(seed=1, n_startup_trials=10))
    study.optimize(objective, n_trials=24)
    late = study.trials[14:]
    for name, best in (("a", 0.3), ("b", 0.8)):
        found = [trial.params[name] for trial in late if name in trial.params]
        assert not found or min(abs(value - best) for value in found) < 0.1


def test_constraints_of_a_function_are_kept_with_the_trial_and_respected() -> None:
    def objective(trial: optuna.Trial) -> float:
        return 1.0 - trial.suggest_float("x", 0.0, 1.0)

    def constraints(trial: optuna.trial.FrozenTrial) -> tuple[float]:
        return (trial.params["x"] - 0.4,)

    study = optuna.create_study(sampler=ARSSampler(constraints_func=constraints, seed=0, n_startup_trials=6))
    study.optimize(objective, n_trials=16)
    assert study.trials[3].constraints == {"constraint_0": pytest.approx(study.trials[3].params["x"] - 0.4)}
    assert study.best_value == pytest.approx(0.6, abs=0.05)


def test_a_constraint_that_is_no_number_is_refused() -> None:
    study = optuna.create_study(sampler=quick(constraints_func=lambda trial: (float("nan"),)))
    with pytest.raises(ValueError, match="constraint 0 of trial 0 is NaN"):
        study.optimize(lambda trial: trial.suggest_float("x", 0.0, 1.0), n_trials=1)


def test_a_maximised_objective_is_maximised_whatever_its_units() -> None:
    def objective(trial: optuna.Trial) -> tuple[float, float]:
        x, y = trial.suggest_float("x", 0.0, 1.0), trial.suggest_float("y", 0.0, 1.0)
        return 1e-9 * (y + x), 1e9 * (1.0 - (x - 0.7) ** 2 - y)

    study = optuna.create_study(directions=["minimize", "maximize"], sampler=ARSSampler(seed=0, n_startup_trials=8))
    study.optimize(objective, n_trials=20)
    late = [trial.params["y"] for trial in study.trials[10:]]
    assert np.median(late) < 0.1


def test_a_study_in_a_file_goes_on_in_another_process_as_if_never_stopped(tmp_path: Path) -> None:
    def study_in(storage: str | None) -> optuna.Study:
        return optuna.create_study(
            study_name="s", storage=storage, directions=["minimize"] * 2, sampler=quick(), load_if_exists=True
        )

    whole = study_in(None)
    whole.optimize(branching, n_trials=9)
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    for n_trials in (5, 4):
        study_in(storage).optimize(branching, n_trials=n_trials)
    assert asked(study_in(storage)) == asked(whole)


def test_several_jobs_at_once_never_repeat_each_other() -> None:
    def objective(trial: optuna.Trial) -> float:
        return (trial.suggest_float("x", 0.0, 1.0) - 0.5) ** 2

    study = optuna.create_study(sampler=quick())
    study.optimize(objective, n_trials=12, n_jobs=3)
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials)
    assert len({trial.params["x"] for trial in study.trials}) == 12


def test_metrics_that_are_no_numbers_do_not_stop_the_search() -> None:
    def objective(trial: optuna.Trial) -> tuple[float, float]:
        x = trial.suggest_float("x", 0.0, 1.0)
        if trial.number % 3 == 0:
            return float("nan"), x
        return (float("inf"), x) if trial.number % 3 == 1 else (x, 1.0 - x)

    study = optuna.create_study(directions=["minimize"] * 2, sampler=quick())
    study.optimize(objective, n_trials=12)
    assert len(study.trials) == 12


def test_a_step_and_a_parameter_with_one_value_are_fine() -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.suggest_int("only", 3, 3)
        return abs(trial.suggest_float("x", 0.0, 1.0, step=0.25) - 0.5)

    study = optuna.create_study(sampler=quick())
    study.optimize(objective, n_trials=8)
    assert study.best_value == 0.0


def test_samplers_without_a_seed_differ() -> None:
    studies = [optuna.create_study(sampler=quick(seed=None)) for _ in range(2)]
    for study in studies:
        study.optimize(lambda trial: trial.suggest_float("x", 0.0, 1.0), n_trials=2)
    assert asked(studies[0]) != asked(studies[1])


def test_a_wrong_option_is_an_error_at_once() -> None:
    with pytest.raises(UsageError, match=r"sampler\.options\.polices"):
        ARSSampler(options={"polices": 3})
