"""What every proposer promises, whatever the history."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from orchestrator.proposers.protocol import History
from orchestrator.proposers.registry import make_proposer
from orchestrator.proposers.untried import Tried
from orchestrator.space import SearchSpace

SPACES = {
    "mixed": SearchSpace.from_distributions(
        {
            "rate": FloatDistribution(1e-4, 1e-1, log=True),
            "width": IntDistribution(4, 64, log=True),
            "kernel": CategoricalDistribution([1, 3, 5]),
        }
    ),
    "small": SearchSpace.from_distributions(
        {"depth": IntDistribution(1, 5), "skip": CategoricalDistribution([False, True])}
    ),
}
OPTIONS = {
    "ars": {"iterations": 1, "policies": 2, "directions": 2, "top": 1, "horizon": 2, "pool": 16, "polish": 1},
    "ars-published": {"iterations": 1, "policies": 2, "directions": 2, "top": 1, "horizon": 2, "draws": 4},
    "random": {},
    "turbo-1": {"candidates": 10, "initial": 2},
    "morbo-1": {"candidates": 10, "initial": 2},
    "tpe": {},
    "nsga2": {"population": 4},
    "qmc": {},
}
# A few values only, so that ties, constant objectives and repeated rows are frequent.
levels = st.sampled_from([0.0, 0.25, 0.5, 0.999, 1.5, float("nan")])


@st.composite
def histories(draw: st.DrawFn, space: SearchSpace) -> History:
    n, m = draw(st.integers(0, 7)), draw(st.integers(1, 4))
    quantiles = draw(st.lists(st.sampled_from([0.0, 0.3, 0.6, 0.99]), min_size=n * 3, max_size=n * 3))
    points = space.at_quantiles(np.array(quantiles).reshape(n, 3)[:, : len(space.names)])
    outcomes = np.array(draw(st.lists(levels, min_size=n * m, max_size=n * m))).reshape(n, m)
    margins = np.where(np.isnan(outcomes), 0.5, outcomes - 1.0).max(axis=1)
    return History(points=points, outcomes=outcomes, feasible=margins <= 0, margins=margins)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_proposal_is_a_new_candidate_of_the_space_while_there_is_one(
    name: str, space: SearchSpace, data: st.DataObject
) -> None:
    history = data.draw(histories(space))
    pending = space.at_quantiles(np.random.default_rng(len(history)).random((2, len(space.names))))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    point = make_proposer(name, space, OPTIONS[name]).propose(history, pending, rng)
    assert point.shape == (space.dim,)
    assert np.all((point >= 0) & (point <= 1))
    # At most nine of the small space's ten candidates are told or pending.
    assert Tried(space, history.points, pending).first_untried(point[None, :]) is not None
