"""The first trials."""

from __future__ import annotations

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from orchestrator.design import initial_design, latin_hypercube
from orchestrator.space import SearchSpace


@pytest.mark.parametrize(("n", "n_columns"), [(1, 1), (8, 12), (20, 3)])
def test_every_stratum_of_every_column_holds_exactly_one_point(n: int, n_columns: int) -> None:
    strata = np.floor(latin_hypercube(n, n_columns, np.random.default_rng(0)) * n).astype(int)
    for column in strata.T:
        assert sorted(column) == list(range(n))


def test_a_choice_of_four_is_used_twice_each_in_eight_trials() -> None:
    space = SearchSpace.from_distributions(
        {"kernel": CategoricalDistribution(["a", "b", "c", "d"]), "rate": FloatDistribution(1e-4, 1e-1, log=True)}
    )
    design = [space.decode(point) for point in initial_design(space, 8, np.random.default_rng(1))]
    assert sorted(params["kernel"] for params in design) == list("aabbccdd")


def test_a_small_space_is_used_up_before_anything_repeats() -> None:
    space = SearchSpace.from_distributions({"depth": IntDistribution(1, 3), "skip": CategoricalDistribution([0, 1])})
    design = [tuple(space.decode(point).values()) for point in initial_design(space, 9, np.random.default_rng(2))]
    assert len(set(design)) == 6
    assert len(design) == 9
