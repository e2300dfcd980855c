"""Objectives that are computed instead of modelled."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from orchestrator import beliefs
from orchestrator.arrays import FloatArray, ParamArray
from orchestrator.ars import ArsSettings, Search
from orchestrator.improvement import LogHypervolumeImprovement
from orchestrator.known import Vectorised, checked_outcomes, known_outcomes
from orchestrator.objectives import Objectives
from orchestrator.proposers import ars
from orchestrator.proposers.ars import ArsProposer
from orchestrator.proposers.protocol import History
from orchestrator.records import Params
from orchestrator.sampler import ARSSampler, ProposerSampler
from orchestrator.space import SearchSpace

optuna.logging.set_verbosity(optuna.logging.WARNING)

SPACE = SearchSpace.from_distributions(
    {
        "width": IntDistribution(4, 64, log=True),
        "sparsity": FloatDistribution(0.0, 0.9),
        "kernel": CategoricalDistribution([3, 5, 7]),
    }
)
OBJECTIVES = Objectives(names=("error", "rom", "speed"), units=("1", "byte", "1"), limits=(1.0, 2000.0, math.inf))


def size(params: Params) -> float:
    return float(params["width"]) * (1.0 - float(params["sparsity"])) * float(params["kernel"]) ** 2  # type: ignore[arg-type]


def test_known_values_are_scaled_and_flipped_like_told_ones() -> None:
    known = known_outcomes(lambda params: {"rom": size(params), "speed": 3.0}, SPACE, OBJECTIVES, (1, 1, -1))
    points = SPACE.at_quantiles(np.random.default_rng(0).random((4, 3)))
    values = known(points)
    assert np.isnan(values[:, 0]).all()
    np.testing.assert_allclose(values[:, 1], [size(SPACE.decode(point)) / 2000 for point in points])
    assert values[:, 2].tolist() == [-3.0] * 4


def test_equal_candidates_are_computed_once() -> None:
    asked: list[Params] = []

    def values(params: Params) -> dict[str, float]:
        asked.append(params)
        return {"rom": 1.0}

    known = known_outcomes(values, SPACE, OBJECTIVES, (1, 1, 1))
    points = np.repeat(SPACE.at_quantiles(np.random.default_rng(0).random((2, 3))), 3, axis=0)
    known(points)
    known(points)
    assert len(asked) == 2


def test_a_candidate_known_not_to_fit_is_never_proposed() -> None:
    def known(points: FloatArray) -> FloatArray:
        rom = np.array([size(SPACE.decode(point)) for point in points]) / 100
        return np.stack([np.full(len(points), np.nan), rom], axis=1)

    rng = np.random.default_rng(0)
    points = SPACE.at_quantiles(rng.random((12, 3)))
    # Errors fall with the size, so everything draws the search to what does not fit: most of the space.
    outcomes = np.stack([1 / (1 + known(points)[:, 1]), known(points)[:, 1]], axis=1)
    margins = outcomes.max(axis=1) - 1
    history = History(points=points, outcomes=outcomes, feasible=margins <= 0, margins=margins)
    proposer = ArsProposer(space=SPACE, known=known)
    for seed in range(4):
        point = proposer.propose(history, np.zeros((0, SPACE.dim)), np.random.default_rng(seed))
        assert known(point[None])[0, 1] <= 1.0


def test_a_known_limit_holds_from_the_first_proposal_on() -> None:
    sampler = ProposerSampler(
        "ars",
        seed=0,
        initial=6,
        search_space=SPACE,
        objectives=Objectives(names=("error", "rom"), units=("1", "byte"), limits=(1.0, 300.0)),
        options={"policies": 4, "iterations": 3},
        known=lambda params: {"rom": size(params)},
    )
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    for _ in range(12):
        trial = study.ask(SPACE.distributions())
        study.tell(trial, [1 / (1 + size(trial.params) / 300), size(trial.params)])
    proposed = [size(trial.params) for trial in study.trials[6:]]
    assert max(proposed) <= 300


def test_many_candidates_at_once_give_what_each_of_them_does() -> None:
    points = SPACE.at_quantiles(np.random.default_rng(0).random((40, 3)))
    one_by_one = known_outcomes(lambda params: {"rom": size(params), "speed": 3.0}, SPACE, OBJECTIVES, (1, 1, -1))

    def sizes(params: Mapping[str, ParamArray]) -> dict[str, FloatArray | float]:
        width, sparsity, kernel = (np.asarray(params[name], dtype=np.float64) for name in SPACE.names)
        return {"rom": width * (1.0 - sparsity) * kernel**2, "speed": 3.0}

    at_once = known_outcomes(Vectorised(sizes), SPACE, OBJECTIVES, (1, 1, -1))
    np.testing.assert_allclose(at_once(points), one_by_one(points))


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")  # Optuna's names of objectives
def test_where_trials_have_different_parameters_nothing_is_asked_of_a_part_of_them() -> None:
    def objective(trial: optuna.Trial) -> tuple[float, float]:
        width = trial.suggest_int("width", 1, 9)
        deep = trial.suggest_int("depth", 1, 9) if trial.suggest_categorical("kind", ["deep", "wide"]) == "deep" else 1
        return 1 / (width * deep), width * deep

    sampler = ARSSampler(seed=0, n_startup_trials=4, known=lambda params: {"size": params["width"] * params["depth"]})
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    study.set_metric_names(["error", "size"])
    study.optimize(objective, n_trials=8)
    assert len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE])) == 8


def study_of(objective: Callable[[optuna.Trial], tuple[float, float]], **given: Any) -> optuna.Study:
    """Ten trials of error and size, where the size is known to be width · depth."""
    sampler = ARSSampler(seed=0, n_startup_trials=4, known=lambda params: {"size": params["width"] * params["depth"]})
    study = optuna.create_study(directions=["minimize"] * 2, sampler=given.get("wrap", lambda item: item)(sampler))
    study.set_metric_names(["error", "size"])
    study.optimize(objective, n_trials=10)
    return study


def plain(trial: optuna.Trial) -> tuple[float, float]:
    width, depth = trial.suggest_int("width", 1, 99), trial.suggest_int("depth", 1, 9)
    return 1 / (width * depth), width * depth


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")  # Optuna's names of objectives
def test_a_formula_may_use_a_parameter_with_a_single_value(caplog: pytest.LogCaptureFixture) -> None:
    def objective(trial: optuna.Trial) -> tuple[float, float]:
        width, depth = trial.suggest_int("width", 1, 99), trial.suggest_int("depth", 3, 3)
        return 1 / (width * depth), width * depth

    assert len(study_of(objective).best_trials) > 0
    assert not caplog.records


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_where_a_formula_lacks_a_parameter_every_objective_is_modelled_and_a_warning_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = study_of(plain, wrap=lambda sampler: optuna.samplers.PartialFixedSampler({"depth": 2}, sampler))
    assert {trial.params["depth"] for trial in study.trials} == {2}
    assert "known objectives need 'depth'" in caplog.text


# ---- looks at a few


def test_a_look_gives_shares_for_this_trial_and_infinity_where_it_does_not_fit() -> None:
    asked: list[int] = []

    def look(params: Params, trial: int) -> dict[str, float] | None:
        asked.append(trial)
        return {"rom": size(params)} if size(params) <= 1000 else None

    checked = checked_outcomes(look, SPACE, OBJECTIVES, (1, 1, 1), 7)
    points = SPACE.at_quantiles(np.array([[0.1, 0.5, 0.0], [0.99, 0.01, 0.99]]))
    small, large = checked(points)
    assert asked == [7, 7]
    assert np.isnan(small[0]) and small[1] == size(SPACE.decode(points[0])) / 2000
    assert np.isposinf(large).all()


def history_of(n: int) -> History:
    """Errors fall with the size; everything is feasible that takes up to 2,000 bytes."""
    points = SPACE.at_quantiles(np.random.default_rng(0).random((n, 3)))
    rom = np.array([size(SPACE.decode(point)) for point in points]) / 2000
    outcomes = np.stack([1 / (1 + 5 * rom), rom], axis=1)
    margins = outcomes.max(axis=1) - 1
    return History(points=points, outcomes=outcomes, feasible=margins <= 0, margins=margins)


def test_a_candidate_that_a_look_refuses_is_not_proposed() -> None:
    refused: list[bytes] = []

    def checked(points: FloatArray) -> FloatArray:
        # The best two of every shortlist do not fit.
        outcomes = np.full((len(points), 2), np.nan)
        outcomes[:2] = np.inf
        refused.extend(point.tobytes() for point in points[:2])
        return outcomes

    proposer = ArsProposer(space=SPACE, checked=checked, shortlist=4)
    point = proposer.propose(history_of(16), np.zeros((0, SPACE.dim)), np.random.default_rng(1))
    assert len(refused) == 2
    assert point.tobytes() not in refused


def test_exact_costs_decide_between_the_best_candidates() -> None:
    seen: list[FloatArray] = []

    def checked(points: FloatArray) -> FloatArray:
        seen.append(points)
        # Only the last candidate takes less than anything known; the others take as much as is allowed.
        outcomes = np.full((len(points), 2), np.nan)
        outcomes[:, 1] = 0.999
        outcomes[-1, 1] = 1e-6
        return outcomes

    proposer = ArsProposer(space=SPACE, checked=checked, shortlist=3)
    point = proposer.propose(history_of(16), np.zeros((0, SPACE.dim)), np.random.default_rng(1))
    assert len(seen) == 1 and len(seen[0]) == 3
    np.testing.assert_array_equal(point, seen[0][-1])


def test_when_nothing_fits_the_best_goes_out_after_a_few_shortlists() -> None:
    seen: list[FloatArray] = []

    def checked(points: FloatArray) -> FloatArray:
        seen.append(points)
        return np.full((len(points), 2), np.inf)

    proposer = ArsProposer(space=SPACE, checked=checked, shortlist=2)
    point = proposer.propose(history_of(16), np.zeros((0, SPACE.dim)), np.random.default_rng(1))
    assert len(seen) == 3
    np.testing.assert_array_equal(point, seen[0][0])


def test_a_shortlist_of_none_looks_at_nothing() -> None:
    def checked(points: FloatArray) -> FloatArray:
        raise AssertionError("nobody should look")

    proposer = ArsProposer(space=SPACE, checked=checked, shortlist=0)
    assert proposer.propose(history_of(16), np.zeros((0, SPACE.dim)), np.random.default_rng(1)).shape == (SPACE.dim,)


# ---- borders


@pytest.mark.parametrize("options", [{"policies": 1}, {"chebyshev": 1.0}, {"chebyshev": 0.0, "polish": 0}])
def test_settings_at_their_borders_propose(options: dict[str, Any]) -> None:
    settings = ArsSettings(policies=options.pop("policies", 3), iterations=2)
    proposer = ArsProposer(space=SPACE, settings=settings, **options)
    assert proposer.propose(history_of(12), np.zeros((0, SPACE.dim)), np.random.default_rng(0)).shape == (SPACE.dim,)


def test_with_nothing_feasible_and_a_trial_pending_known_costs_still_lead_on() -> None:
    def known(points: FloatArray) -> FloatArray:
        rom = np.array([size(SPACE.decode(point)) for point in points]) / 20
        return np.stack([np.full(len(points), np.nan), rom], axis=1)

    points = SPACE.at_quantiles(0.6 + 0.4 * np.random.default_rng(0).random((8, 3)))
    outcomes = np.stack([np.full(8, np.nan), known(points)[:, 1]], axis=1)
    margins = outcomes[:, 1] - 1
    assert margins.min() > 0
    history = History(points=points, outcomes=outcomes, feasible=margins <= 0, margins=margins)
    pending = SPACE.at_quantiles(np.array([[0.9, 0.9, 0.9]]))
    point = ArsProposer(space=SPACE, known=known).propose(history, pending, np.random.default_rng(0))
    assert known(point[None])[0, 1] < outcomes[:, 1].min()


def test_fits_go_on_from_their_anchor_where_nothing_has_a_limit() -> None:
    points = SPACE.at_quantiles(np.random.default_rng(0).random((20, 3)))
    outcomes = np.stack([points.sum(axis=1), 50 * (2 - points[:, 0])], axis=1)
    proposer = ArsProposer(space=SPACE, settings=ArsSettings(policies=2, iterations=1))
    beliefs._anchor.cache_clear()
    for n in (17, 18, 19, 20):
        history = History(
            points=points[:n],
            outcomes=outcomes[:n],
            feasible=np.ones(n, dtype=np.bool_),
            margins=np.full(n, -1.0),
            unbounded=(0, 1),
        )
        proposer.propose(history, np.zeros((0, SPACE.dim)), np.random.default_rng(n))
    assert beliefs._anchor.cache_info().misses == 1


@pytest.mark.parametrize(("doubt", "share"), [(0.0, 1.0), (0.05, 1.0), (0.1, 0.4), (0.5, 0.4)])
def test_deviations_count_in_full_only_while_they_are_small(
    doubt: float, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[float] = []
    original = LogHypervolumeImprovement.over

    def over(boxes: Any, believed: Any, reference: Any, optimism: float) -> LogHypervolumeImprovement:
        taken.append(optimism)
        return original(boxes, believed, reference, optimism)

    monkeypatch.setattr(beliefs.Beliefs, "doubt", lambda self, points: doubt)
    monkeypatch.setattr(LogHypervolumeImprovement, "over", over)
    proposer = ArsProposer(space=SPACE, settings=ArsSettings(policies=2, iterations=1), optimism=0.4)
    proposer.propose(history_of(12), np.zeros((0, SPACE.dim)), np.random.default_rng(0))
    assert taken == [pytest.approx(share)]


@pytest.mark.parametrize(("chebyshev", "trainings"), [(0.0, [4]), (0.5, [2, 2])])
def test_a_share_of_the_policies_is_trained_for_a_scalarisation(
    chebyshev: float, trainings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []

    def search(reward: Any, starts: Any, *others: Any) -> Search:
        trained.append(len(starts))
        return original(reward, starts, *others)

    original = ars.search
    monkeypatch.setattr(ars, "search", search)
    proposer = ArsProposer(space=SPACE, settings=ArsSettings(policies=4, iterations=1), chebyshev=chebyshev)
    proposer.propose(history_of(12), np.zeros((0, SPACE.dim)), np.random.default_rng(0))
    assert trained == trainings
