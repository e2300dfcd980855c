"""Encoding parameters in the unit cube."""

from __future__ import annotations

import math

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from orchestrator.errors import ShapeError, UsageError
from orchestrator.space import SearchSpace
from orchestrator.studyfile import CategoricalParameter, FixedParameter, FloatParameter, IntParameter

PARAMETERS = {
    "network.width": IntParameter(type="int", low=8, high=64, log=True),
    "network.depth": IntParameter(type="int", low=1, high=6, step=2),
    "training.learning_rate": FloatParameter(type="float", low=1e-4, high=1e-2, log=True),
    "compression.sparsity": FloatParameter(type="float", low=0.2, high=0.8),
    "network.kernel": CategoricalParameter(type="categorical", choices=(3, 5, 7)),
    "training.optimizer": CategoricalParameter(type="categorical", choices=("adamw", "sgd")),
    "training.epochs": FixedParameter(type="fixed", value=12),
}


@pytest.fixture
def space() -> SearchSpace:
    return SearchSpace.from_parameters(PARAMETERS)


def test_one_column_a_number_one_a_choice_and_one_for_a_choice_of_two(space: SearchSpace) -> None:
    assert space.dim == 4 + 3 + 1


def test_encoding_places_values_on_their_scales(space: SearchSpace) -> None:
    params = {
        "network.width": 8,
        "network.depth": 3,
        "training.learning_rate": 1e-3,
        "compression.sparsity": 0.35,
        "network.kernel": 5,
        "training.optimizer": "sgd",
    }
    # depth has the levels 1, 3, 5; the learning rate is half-way in decades.
    assert space.encode(params) == pytest.approx([0.0, 0.5, 0.5, 0.25, 0.0, 1.0, 0.0, 1.0])


def test_decoding_carries_fixed_parameters_along(space: SearchSpace) -> None:
    assert space.decode(np.zeros(space.dim))["training.epochs"] == 12


def test_decoding_takes_the_nearest_level_and_clips_outside_the_cube(space: SearchSpace) -> None:
    low = space.decode(np.array([-1.0, 0.2, -0.1, -3.0, 0.4, 0.3, 0.2, 0.4]))
    high = space.decode(np.array([2.0, 0.8, 1.1, 7.0, 0.4, 0.3, 0.5, 0.6]))
    assert [low[name] for name in space.names] == [8, 1, 1e-4, 0.2, 3, "adamw"]
    assert [high[name] for name in space.names] == [64, 5, 1e-2, 0.8, 7, "sgd"]


def test_an_int_whose_step_misses_the_high_end_stops_below_it() -> None:
    space = SearchSpace.from_parameters({"depth": IntParameter(type="int", low=1, high=6, step=2)})
    assert [space.decode(point)["depth"] for point in space.all_points()] == [1, 3, 5]
    assert space.distributions() == {"depth": IntDistribution(1, 5, step=2)}


def test_the_size_counts_candidates_and_is_infinite_with_a_real_number(space: SearchSpace) -> None:
    discrete = {name: item for name, item in PARAMETERS.items() if not isinstance(item, FloatParameter)}
    assert SearchSpace.from_parameters(discrete).size() == 57 * 3 * 3 * 2
    assert space.size() == math.inf


def test_all_points_lists_every_candidate_once() -> None:
    space = SearchSpace.from_parameters({name: PARAMETERS[name] for name in ("network.depth", "network.kernel")})
    candidates = {tuple(space.decode(point).values()) for point in space.all_points()}
    assert candidates == {(depth, kernel) for depth in (1, 3, 5) for kernel in (3, 5, 7)}


def test_distributions_are_optunas_with_fixed_parameters_as_a_choice_of_one(space: SearchSpace) -> None:
    assert space.distributions() == {
        "training.epochs": CategoricalDistribution([12]),
        "network.width": IntDistribution(8, 64, log=True),
        "network.depth": IntDistribution(1, 5, step=2),
        "training.learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
        "compression.sparsity": FloatDistribution(0.2, 0.8),
        "network.kernel": CategoricalDistribution((3, 5, 7)),
        "training.optimizer": CategoricalDistribution(("adamw", "sgd")),
    }


@pytest.mark.parametrize(
    "distribution",
    [
        FloatDistribution(0.0, 1.0, step=0.25),
        FloatDistribution(1e-3, 1.0, log=True),
        IntDistribution(1, 9, step=4),
        IntDistribution(1, 100, log=True),
        CategoricalDistribution(["a", "b", "c"]),
    ],
)
def test_a_space_of_optuna_distributions_gives_the_same_distributions_back(distribution: FloatDistribution) -> None:
    assert SearchSpace.from_distributions({"x": distribution}).distributions() == {"x": distribution}


def test_quantiles_give_every_choice_and_level_its_equal_share(space: SearchSpace) -> None:
    quantiles = np.tile(((np.arange(600) + 0.5) / 600)[:, None], (1, len(space.names)))
    decoded = [space.decode(point) for point in space.at_quantiles(quantiles)]
    for name in ("network.kernel", "network.depth"):
        values, counts = np.unique([params[name] for params in decoded], return_counts=True)
        assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == dict.fromkeys(values.tolist(), 200)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("network.width", 65, "allowed are values from 8 to 64"),
        ("network.width", 8.5, "allowed are whole numbers"),
        ("network.depth", 2, "allowed are steps of 2 from 1"),
        ("compression.sparsity", float("nan"), "allowed are finite numbers"),
        ("compression.sparsity", True, "allowed are finite numbers"),
        ("network.kernel", 4, "allowed are 3, 5, 7"),
    ],
)
def test_a_value_outside_the_space_is_refused_by_name(
    space: SearchSpace, name: str, value: float, message: str
) -> None:
    params = space.decode(np.zeros(space.dim)) | {name: value}
    with pytest.raises(ValueError, match=f"parameter {name} is .*{message}"):
        space.encode(params)


def test_a_missing_parameter_is_named(space: SearchSpace) -> None:
    with pytest.raises(ValueError, match=r"network\.depth is missing"):
        space.encode({"network.width": 8})


def test_a_space_with_nothing_to_search_is_refused() -> None:
    single = CategoricalParameter(type="categorical", choices=("only",))
    with pytest.raises(UsageError, match="nothing to search"):
        SearchSpace.from_parameters({"a": FixedParameter(type="fixed", value=1), "b": single})


def test_a_point_of_the_wrong_width_is_refused(space: SearchSpace) -> None:
    with pytest.raises(ShapeError, match=r"point has shape \(3,\), expected \(8\)"):
        space.decode(np.zeros(3))
