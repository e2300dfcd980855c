"""Every proposer: what all promise, and what ARS-MOBOpt adds."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

import orchestrator.proposers.ars_published as published_module
from orchestrator.acquisition import Reward
from orchestrator.arrays import FloatArray
from orchestrator.ars import Search
from orchestrator.errors import ShapeError, UsageError
from orchestrator.proposers.ars import ArsProposer
from orchestrator.proposers.ars_published import ArsPublishedProposer
from orchestrator.proposers.protocol import History
from orchestrator.proposers.registry import defaults, description, make_proposer, names
from orchestrator.proposers.trust_region import TrustRegion, perturbed, replayed
from orchestrator.proposers.untried import Tried
from orchestrator.space import SearchSpace
from orchestrator.surrogate import Fit, fit

MIXED: dict[str, BaseDistribution] = {
    "width": IntDistribution(8, 64, log=True),
    "rate": FloatDistribution(1e-4, 1e-1, log=True),
    "kernel": CategoricalDistribution([3, 5, 7]),
}
# Small enough to be quick; what is tested holds for any setting.
QUICK: dict[str, dict[str, float]] = {
    "ars": {"iterations": 2, "policies": 4, "directions": 4, "top": 2, "pool": 64, "polish": 1},
    "ars-published": {"iterations": 2, "policies": 3, "directions": 4, "top": 2, "draws": 16},
    "qparego": {"pool": 8, "restarts": 1, "draws": 8},
    "turbo-1": {"candidates": 50},
    "morbo-1": {"candidates": 50},
    "qlognehvi": {"pool": 8, "restarts": 1, "draws": 2},
    "tpe": {},
    "nsga2": {},
    "qmc": {},
    "random": {},
}
# Those that need seconds for a proposal are held to fewer promises here; a benchmark runs them at length.
SLOW = {"gp"}


def space_of(distributions: dict[str, BaseDistribution]) -> SearchSpace:
    return SearchSpace.from_distributions(distributions)


def history_of(points: FloatArray, outcomes: FloatArray, margins: FloatArray | None = None) -> History:
    if margins is None:
        margins = outcomes.max(axis=1) - 1.0
    return History(points=points, outcomes=outcomes, feasible=margins <= 0, margins=margins)


def random_history(space: SearchSpace, n: int, n_objectives: int = 2) -> History:
    rng = np.random.default_rng(n)
    points = space.at_quantiles(rng.random((n, len(space.names))))
    outcomes = np.abs(points @ rng.normal(size=(space.dim, n_objectives))) % 1.0
    return history_of(points, outcomes)


def propose(
    name: str, space: SearchSpace, history: History, pending: FloatArray | None = None, seed: int = 0
) -> FloatArray:
    waiting = np.zeros((0, space.dim)) if pending is None else pending
    return make_proposer(name, space, QUICK[name]).propose(history, waiting, np.random.default_rng(seed))


@pytest.fixture(params=QUICK)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_same_history_and_seed_give_the_same_proposal(name: str) -> None:
    space = space_of(MIXED)
    history = random_history(space, 12)
    assert propose(name, space, history, seed=3).tolist() == propose(name, space, history, seed=3).tolist()


@pytest.mark.parametrize("name", ["ars", "ars-published", "tpe", "nsga2", "random"])
def test_another_seed_gives_another_proposal(name: str) -> None:
    space = space_of(MIXED)
    history = random_history(space, 25)
    assert propose(name, space, history, seed=3).tolist() != propose(name, space, history, seed=4).tolist()


def test_a_proposal_is_a_candidate_of_the_space(name: str) -> None:
    space = space_of(MIXED)
    point = propose(name, space, random_history(space, 25))
    assert point.shape == (space.dim,)
    np.testing.assert_allclose(space.encode(space.decode(point)), point, atol=1e-8)


def test_an_empty_history_gives_a_proposal(name: str) -> None:
    space = space_of(MIXED)
    assert propose(name, space, History.empty(space.dim, 3)).shape == (space.dim,)


def test_the_last_candidate_neither_told_nor_pending_is_found(name: str) -> None:
    space = space_of({"depth": IntDistribution(1, 4), "kernel": CategoricalDistribution([3, 5, 7])})
    points = np.array(list(space.all_points()))
    told, pending, last = points[:8], points[8:11], points[11]
    history = history_of(told, np.random.default_rng(0).random((8, 2)))
    assert propose(name, space, history, pending).tolist() == last.tolist()


def test_a_space_used_up_gives_a_candidate_all_the_same(name: str) -> None:
    space = space_of({"depth": IntDistribution(1, 3)})
    points = np.array(list(space.all_points()))
    assert propose(name, space, history_of(points, np.array([[0.1], [0.2], [0.3]]))).tolist() in points.tolist()


@pytest.mark.parametrize("n_objectives", [1, 4])
def test_one_objective_and_one_parameter_are_enough(name: str, n_objectives: int) -> None:
    space = space_of({"x": FloatDistribution(0.0, 1.0)})
    assert 0.0 <= propose(name, space, random_history(space, 6, n_objectives))[0] <= 1.0


def all_infeasible(space: SearchSpace, n: int) -> History:
    points = space.at_quantiles(np.random.default_rng(0).random((n, len(space.names))))
    # The further "width" is from its low end, the larger the network is for its board.
    return history_of(points, np.full((n, 2), np.nan), 0.1 + points[:, 0])


def test_a_history_without_anything_feasible_gives_an_untried_proposal(name: str) -> None:
    space = space_of(MIXED)
    history = all_infeasible(space, 12)
    assert Tried(space, history.points).first_untried(propose(name, space, history)[None, :]) is not None


@pytest.mark.parametrize(
    "outcomes",
    [
        pytest.param(np.full((6, 3), 0.5), id="constant objectives"),
        pytest.param(np.array([[0.1, 0.1, 0.1]] + [[0.5, 0.6, 0.7]] * 5), id="a front of one point"),
        pytest.param(np.array([[0.1, 0.2, 0.3], [0.2, 0.1, 0.3]] * 3), id="repeated outcomes"),
    ],
)
def test_awkward_outcomes_give_a_proposal(name: str, outcomes: FloatArray) -> None:
    space = space_of(MIXED)
    points = space.at_quantiles(np.random.default_rng(5).random((6, 3)))
    assert propose(name, space, history_of(points, outcomes)).shape == (space.dim,)


def test_the_same_point_told_many_times_gives_a_proposal(name: str) -> None:
    space = space_of(MIXED)
    points = np.repeat(space.at_quantiles(np.array([[0.2, 0.7, 0.5]])), 10, axis=0)
    history = history_of(points, np.random.default_rng(0).random((10, 2)))
    assert propose(name, space, history).tolist() != points[0].tolist()


@pytest.mark.parametrize(
    ("name", "n_seeds"), [("ars", 6), ("ars-published", 6), ("morbo-1", 6), ("nsga2", 40), ("tpe", 20)]
)
def test_infeasible_trials_lead_away_from_what_made_them_infeasible(name: str, n_seeds: int) -> None:
    space = space_of({"width": FloatDistribution(0.0, 1.0), "rate": FloatDistribution(0.0, 1.0)})
    points = np.random.default_rng(1).random((40, 2))
    # Both objectives fall with the width, but nothing wider than a half fits, and what does not fit has no outcome.
    outcomes = np.stack([1 - points[:, 0], 0.9 - 0.5 * points[:, 0] + 0.1 * points[:, 1]], axis=1)
    margins = points[:, 0] - 0.5
    outcomes[margins > 0] = np.nan
    history = history_of(points, outcomes, margins)
    widths = [propose(name, space, history, seed=seed)[0] for seed in range(n_seeds)]
    assert np.mean(np.array(widths) <= 0.5) > 0.6


@pytest.mark.parametrize("name", ["ars", "ars-published"])
def test_ars_searches_for_something_feasible_while_there_is_nothing(name: str) -> None:
    space = space_of(MIXED)
    history = all_infeasible(space, 20)
    proposals = np.array([propose(name, space, history, seed=seed) for seed in range(5)])
    assert proposals[:, 0].mean() < np.quantile(history.points[:, 0], 0.2)


@pytest.mark.parametrize("proposer_class", [ArsProposer, ArsPublishedProposer])
def test_ars_proposes_near_the_optimum_of_an_easy_objective(
    proposer_class: type[ArsProposer] | type[ArsPublishedProposer],
) -> None:
    space = space_of({"x": FloatDistribution(0.0, 1.0), "y": FloatDistribution(0.0, 1.0)})
    points = np.random.default_rng(0).random((30, 2))
    outcomes = ((points - [0.7, 0.2]) ** 2).sum(axis=1, keepdims=True)
    proposer = proposer_class(space=space)
    point = proposer.propose(history_of(points, outcomes), np.zeros((0, 2)), np.random.default_rng(0))
    assert np.linalg.norm(point - [0.7, 0.2]) < 0.1


class Captured:
    """Stands in for the search: keeps the reward and the starts it was given, and finds the middle of the cube."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(published_module, "search", self)

    def __call__(self, reward: Reward, starts: torch.Tensor, *_: object) -> Search:
        self.reward, self.starts = reward, starts
        points = torch.full((1, 1, starts.shape[1]), 0.5, dtype=torch.float64)
        return Search(points=points, rewards=torch.ones(1, 1))

    def worth(self, points: FloatArray) -> list[float]:
        return self.reward(torch.as_tensor(points)).tolist()


def plane() -> SearchSpace:
    return space_of({"x": FloatDistribution(0.0, 1.0), "y": FloatDistribution(0.0, 1.0)})


def test_a_pending_point_is_worth_little_to_ars(monkeypatch: pytest.MonkeyPatch) -> None:
    captured, space = Captured(monkeypatch), plane()
    points = np.random.default_rng(0).random((6, 2))
    history = history_of(points, np.sin(3 * points).sum(axis=1, keepdims=True) / 2.1)
    pool = np.random.default_rng(1).random((200, 2))
    propose("ars-published", space, history)
    before = captured.worth(pool)
    best = pool[[int(np.argmax(before))]]
    propose("ars-published", space, history, best)
    assert captured.worth(best)[0] < 0.5 * max(before)


def test_points_that_decode_to_the_same_candidate_are_worth_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    captured, space = Captured(monkeypatch), space_of({"depth": IntDistribution(1, 3), "x": FloatDistribution(0, 1)})
    points = space.snap(np.random.default_rng(0).random((6, 2)))
    propose("ars-published", space, history_of(points, np.sin(3 * points).sum(axis=1, keepdims=True) / 2.1))
    # Half-way between the levels 1 and 2 of three, at 0 and 0.5, is 0.25.
    low, high, other = captured.worth(np.array([[0.3, 0.05], [0.7, 0.05], [0.2, 0.05]]))
    assert low == high != other


def test_policies_start_on_the_pareto_set(monkeypatch: pytest.MonkeyPatch) -> None:
    captured, space = Captured(monkeypatch), plane()
    points = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8]])
    outcomes = np.array([[0.1, 0.9], [0.9, 0.1], [0.95, 0.95], [0.05, 1.5]])
    # The third is dominated and the fourth infeasible; three policies share the two starts.
    propose("ars-published", space, history_of(points, outcomes))
    assert captured.starts.tolist() == [[0.1, 0.2], [0.3, 0.4], [0.1, 0.2]]


def test_every_proposal_weighs_the_objectives_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    captured, space = Captured(monkeypatch), plane()
    history, pool = random_history(space, 15), np.random.default_rng(1).random((100, 2))
    favourites = set()
    for seed in range(6):
        propose("ars-published", space, history, seed=seed)
        favourites.add(int(np.argmax(captured.worth(pool))))
    assert len(favourites) > 1


def test_ars_goes_on_with_a_warning_when_a_fit_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(points: FloatArray, outcomes: FloatArray) -> Fit:
        return Fit(
            surrogate=fit(points, outcomes, max_iterations=1).surrogate, warning="fitting failed; used the prior"
        )

    monkeypatch.setattr(published_module, "fit", failing)
    space = space_of(MIXED)
    with caplog.at_level(logging.WARNING):
        assert propose("ars-published", space, random_history(space, 10)).shape == (space.dim,)
    assert "fitting failed; used the prior" in caplog.text


def test_ars_takes_the_point_with_the_largest_reward_of_its_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(reward: object, starts: torch.Tensor, *_: object) -> Search:
        assert starts.shape == (10, 2)
        points = torch.tensor([[[0.1, 0.1], [0.2, 0.2]], [[0.3, 0.3], [0.4, 0.4]]], dtype=torch.float64)
        return Search(points=points, rewards=torch.tensor([[0.1, 0.5], [0.9, 0.7]]))

    monkeypatch.setattr(published_module, "search", found)
    space = space_of({"x": FloatDistribution(0.0, 1.0), "y": FloatDistribution(0.0, 1.0)})
    proposer, rng = ArsPublishedProposer(space=space), np.random.default_rng(0)
    history = random_history(space, 5)
    assert proposer.propose(history, np.zeros((0, 2)), rng).tolist() == [0.3, 0.3]
    # With the best one pending, the next best.
    assert proposer.propose(history, np.array([[0.3, 0.3]]), rng).tolist() == [0.4, 0.4]


def test_nsga2_crosses_the_best_trials_once_a_generation_is_full() -> None:
    space = space_of({f"x{index}": FloatDistribution(0.0, 1.0) for index in range(4)})
    points = np.random.default_rng(0).random((20, 4))
    outcomes = points[:, :1] * 0.9
    history = history_of(points, outcomes)
    ranked = np.sort(points[:, 0]).round(6)
    proposer = make_proposer("nsga2", space, {"population": 20})
    rngs = map(np.random.default_rng, range(40))
    proposed = np.array([proposer.propose(history, np.zeros((0, 4)), rng)[0] for rng in rngs]).round(6)
    # Of four values one is mutated; of the rest three quarters come from the better half by tournament.
    assert np.isin(proposed, ranked).mean() > 0.5
    assert np.isin(proposed, ranked[:10]).sum() > 1.5 * np.isin(proposed, ranked[10:]).sum()


def test_the_registry_knows_and_describes_every_proposer() -> None:
    assert set(names()) == {*QUICK, *SLOW}
    assert all(description(name) for name in names())
    assert defaults("ars")["policies"] == 10
    assert defaults("random") == {}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("arss", {}, r"sampler\.name: found 'arss', allowed are ars, ars-published, qparego"),
        ("ars", {"polices": 5}, r"sampler\.options\.polices: .*allowed are policies, directions"),
        ("random", {"policies": 5}, r"sampler random has no such option; it has none"),
        ("ars", {"horizon": "long"}, r"sampler\.options\.horizon: found 'long', allowed is a number like 4"),
        ("ars", {"horizon": 2.5}, r"sampler\.options\.horizon: found 2\.5, allowed is a whole number"),
        ("ars", {"noise": True}, r"sampler\.options\.noise: found True"),
        ("ars", {"noise": float("inf")}, r"sampler\.options\.noise: found inf"),
        ("ars", {"directions": 4, "top": 8}, r"sampler\.options\.top: found 8, allowed is at most directions = 4"),
        ("ars-published", {"draws": 0}, r"sampler\.options\.draws: found 0"),
        ("ars", {"pool": 0}, r"sampler\.options\.pool: found 0"),
        ("ars", {"polish": -1}, r"sampler\.options\.polish: found -1"),
        ("ars", {"off_front": 1.5}, r"sampler\.options\.off_front: found 1\.5"),
        ("qparego", {"restarts": 0}, r"sampler\.options\.restarts: found 0"),
        ("qlognehvi", {"draws": 0}, r"sampler\.options\.draws: found 0"),
        ("turbo-1", {"candidates": 0}, r"sampler\.options\.candidates: found 0"),
        ("morbo-1", {"initial": 0}, r"sampler\.options\.initial: found 0"),
        ("qmc", {"scrambling": -1}, r"sampler\.options\.scrambling: found -1"),
        ("nsga2", {"population": 1}, r"sampler\.options\.population: found 1, allowed are whole numbers from 2"),
    ],
)
def test_a_wrong_name_or_option_is_a_usage_error(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_proposer(name, space_of(MIXED), options)


def test_a_history_that_contradicts_itself_is_refused() -> None:
    one = np.array([[0.5]])
    with pytest.raises(ValueError, match="not a finite number"):
        History(points=one, outcomes=np.array([[np.nan]]), feasible=np.array([True]), margins=np.array([-1.0]))
    with pytest.raises(ValueError, match="margins"):
        History(points=one, outcomes=one, feasible=np.array([True]), margins=np.array([0.2]))
    with pytest.raises(ShapeError, match="outcomes has shape"):
        History(points=one, outcomes=np.zeros((2, 1)), feasible=np.array([True]), margins=np.array([0.0]))


def test_optunas_gp_goes_on_from_a_history_with_infeasible_and_pending_trials() -> None:
    space = plane()
    points = np.random.default_rng(0).random((8, 2))
    outcomes = np.stack([points[:, 0], 1.2 - points[:, 0]], axis=1)
    outcomes[-1] = np.nan
    margins = np.where(np.isnan(outcomes[:, 0]), 0.5, outcomes.max(axis=1) - 1)
    found = make_proposer("gp", space).propose(
        history_of(points, outcomes, margins), np.array([[0.5, 0.5]]), np.random.default_rng(0)
    )
    assert Tried(space, points).first_untried(found[None]) is not None


def test_the_quasi_random_sequence_goes_on_term_by_term_and_fills_the_space() -> None:
    space = plane()
    proposer = make_proposer("qmc", space)
    points = np.zeros((0, 2))
    for _ in range(16):
        pending = np.zeros((0, 2))
        history = history_of(points, np.full((len(points), 1), 0.5))
        points = np.vstack([points, proposer.propose(history, pending, np.random.default_rng(0))])
    assert sorted(np.floor(points[:, 0] * 16).astype(int)) == list(range(16))


def test_a_trust_region_grows_with_success_shrinks_with_failure_and_starts_anew() -> None:
    def region(errors: list[float]) -> TrustRegion:
        n = len(errors)
        history = history_of(np.random.default_rng(0).random((n, 2)), np.array(errors).reshape(n, 1))
        return replayed(history, design=2, n_parameters=2)

    assert region([0.9, 0.8]).side == 0.8
    assert region([0.9, 0.8, 0.7, 0.6, 0.5]).side == 1.6
    assert region([0.5, 0.5, *[0.9] * 4]).side == 0.4
    anew = region([0.5, 0.5, *[0.9] * 28])
    assert (anew.side, anew.first) == (0.8, 30)
    # The new region's design is not counted, and the old region's best does not stand in its way.
    assert region([0.5, 0.5, *[0.9] * 28, 0.9, 0.9, 0.8, 0.7, 0.6]).side == 1.6


def test_candidates_of_a_trust_region_stay_in_its_box() -> None:
    space = space_of({f"x{index}": FloatDistribution(0.0, 1.0) for index in range(3)})
    centre, sides = np.array([0.5, 0.1, 0.9]), np.array([0.2, 0.4, 0.2])
    found = perturbed(space, centre, sides, 100, np.random.default_rng(0))
    assert np.all(np.abs(found - centre) <= sides / 2 + 1e-12)
    assert np.all((found >= 0) & (found <= 1))


@pytest.mark.parametrize("name", ["qparego", "qlognehvi", "turbo-1", "morbo-1"])
def test_methods_on_botorch_go_where_the_front_moves(name: str) -> None:
    space = plane()
    points = np.random.default_rng(0).random((20, 2))
    # Both objectives fall with y; x trades one against the other.
    outcomes = np.stack([points[:, 0] * 0.5 + 0.4 * (1 - points[:, 1]), 0.9 - 0.5 * points[:, 0]], axis=1)
    outcomes[:, 1] -= 0.3 * points[:, 1]
    proposed = np.array([propose(name, space, history_of(points, outcomes), seed=seed) for seed in range(3)])
    assert proposed[:, 1].mean() > 0.75
