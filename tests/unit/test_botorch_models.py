"""BoTorch's models say what the surrogate they were made from says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from orchestrator.proposers.models import length_scales, model_of
from orchestrator.surrogate import fit

RNG = np.random.default_rng(0)
POINTS, ASKED = RNG.random((25, 4)), torch.as_tensor(RNG.random((9, 4)))
COLUMNS = np.stack([np.sin(4 * POINTS[:, 0]) + POINTS[:, 1], 100 * np.exp(3 * POINTS[:, 2])], axis=1)


@pytest.mark.parametrize("is_bent", [False, True])
@pytest.mark.parametrize("known", ["all", "some"])
@pytest.mark.parametrize("n_outputs", [1, 2])
def test_means_deviations_and_lengths_are_those_of_the_fit(is_bent: bool, known: str, n_outputs: int) -> None:
    columns = COLUMNS[:, :n_outputs].copy()
    if known == "some":
        columns[3, 0] = np.nan
    model = model_of(POINTS, columns, is_bent=is_bent)
    surrogate = fit(POINTS, columns, bent=is_bent).surrogate
    posterior, (mean, deviation) = model.posterior(ASKED), surrogate.posterior(ASKED)
    spread = np.nanstd(columns, axis=0)
    np.testing.assert_allclose(posterior.mean.numpy() / spread, mean.numpy() / spread, atol=1e-8)
    np.testing.assert_allclose(posterior.variance.sqrt().numpy() / spread, deviation.numpy() / spread, atol=1e-6)
    np.testing.assert_allclose(length_scales(model), surrogate.hyperparameters.lengths.numpy())


def test_one_trial_makes_a_model() -> None:
    model = model_of(POINTS[:1], COLUMNS[:1], is_bent=True)
    assert model.posterior(ASKED).mean.isfinite().all()
