"""The batched Gaussian processes, against GPyTorch, finite differences and numbers computed by hand."""

from __future__ import annotations

import gpytorch
import numpy as np
import pytest
import torch

import orchestrator.surrogate as surrogate_module
from orchestrator.errors import ShapeError
from orchestrator.surrogate import (
    Hyperparameters,
    Observations,
    Surrogate,
    fit,
    log_likelihood,
    negative_log_posterior,
)


def smooth(points: np.ndarray) -> np.ndarray:
    return np.stack([np.sin(3 * points[:, 0]), (points**2).sum(axis=1)], axis=1)


@pytest.fixture
def points() -> np.ndarray:
    return np.random.default_rng(0).random((20, 2))


def one_output(lengths: list[float], *, scale: float, noise: float, mean: float) -> Hyperparameters:
    return Hyperparameters(
        lengths=torch.tensor([lengths], dtype=torch.float64),
        bends=torch.zeros(1, len(lengths), dtype=torch.float64),
        scale=torch.tensor([scale], dtype=torch.float64),
        noise=torch.tensor([noise], dtype=torch.float64),
        mean=torch.tensor([mean], dtype=torch.float64),
    )


class _Reference(gpytorch.models.ExactGP):
    """The same GP in GPyTorch."""

    def __init__(self, points: torch.Tensor, targets: torch.Tensor, hyper: Hyperparameters) -> None:
        likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
        super().__init__(points, targets, likelihood)
        self.mean_module = gpytorch.means.ConstantMean().double()
        self.covar_module = gpytorch.kernels.ScaleKernel(
            gpytorch.kernels.MaternKernel(nu=2.5, ard_num_dims=points.shape[1])
        ).double()
        likelihood.noise = hyper.noise
        self.mean_module.constant.data = hyper.mean[0]
        self.covar_module.outputscale = hyper.scale[0]
        self.covar_module.base_kernel.lengthscale = hyper.lengths

    def forward(self, points: torch.Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(points), self.covar_module(points))


def test_the_posterior_is_that_of_gpytorch(points: np.ndarray) -> None:
    hyper = one_output([0.4, 0.9], scale=1.7, noise=0.01, mean=0.3)
    observations = Observations.standardise(points, smooth(points)[:, :1])
    queries = torch.as_tensor(np.random.default_rng(1).random((7, 2)))
    reference = _Reference(observations.points, observations.targets[0], hyper).eval()
    with torch.no_grad():
        expected = reference(queries)
        mean, deviation = Surrogate.condition(observations, hyper).posterior(queries)
    torch.testing.assert_close(mean[:, 0], observations.centre + observations.spread * expected.mean)
    torch.testing.assert_close(deviation[:, 0], observations.spread * expected.stddev, rtol=1e-4, atol=1e-6)


def test_the_marginal_likelihood_is_that_of_gpytorch(points: np.ndarray) -> None:
    observations = Observations.standardise(points, smooth(points)[:, :1])
    theta = torch.tensor([[-0.9, -0.1, 0.5, -4.6, 0.3]], dtype=torch.float64)
    hyper = surrogate_module._unpack(theta, 2)
    reference = _Reference(observations.points, observations.targets[0], hyper).train()
    with torch.no_grad():
        likelihood = reference.likelihood(reference(observations.points)).log_prob(observations.targets[0])
    centres, widths = surrogate_module._priors(2, bent=False)
    prior = 0.5 * (((theta - centres) / widths) ** 2).sum()
    value, _ = negative_log_posterior(observations, theta)
    assert float(value - prior) == pytest.approx(-float(likelihood), rel=1e-6)


@pytest.mark.parametrize("n_columns", [5, 7], ids=["straight", "bent"])
def test_the_gradient_is_that_of_finite_differences_with_unknown_entries_too(
    points: np.ndarray, n_columns: int
) -> None:
    outcomes = smooth(points)
    outcomes[[2, 5], 0] = np.nan
    observations = Observations.standardise(points, outcomes)
    theta = torch.as_tensor(np.random.default_rng(2).normal(0, 0.5, (2, n_columns)))
    _, gradient = negative_log_posterior(observations, theta)
    step = 1e-5
    for row, column in np.ndindex(2, n_columns):
        nudge = torch.zeros_like(theta)
        nudge[row, column] = step
        above = negative_log_posterior(observations, theta + nudge)[0][row]
        below = negative_log_posterior(observations, theta - nudge)[0][row]
        assert float(gradient[row, column]) == pytest.approx(float(above - below) / (2 * step), rel=1e-5, abs=1e-6)


def test_one_observation_gives_the_posterior_computed_by_hand() -> None:
    # k = 1, noise 0.25, target 2 - mean 0: weight 1 / 1.25 of the residual, variance 1 - 1 / 1.25.
    observations = Observations(
        points=torch.tensor([[0.5]], dtype=torch.float64),
        targets=torch.tensor([[2.0]], dtype=torch.float64),
        known=torch.ones(1, 1, dtype=torch.float64),
        centre=torch.tensor([10.0], dtype=torch.float64),
        spread=torch.tensor([3.0], dtype=torch.float64),
    )
    conditioned = Surrogate.condition(observations, one_output([1.0], scale=1.0, noise=0.25, mean=0.0))
    mean, deviation = conditioned.posterior(observations.points)
    assert float(mean) == pytest.approx(10 + 3 * 1.6)
    assert float(deviation) == pytest.approx(3 * 0.2**0.5)


def test_an_unknown_entry_counts_for_nothing(points: np.ndarray) -> None:
    outcomes = smooth(points)
    holes = outcomes.copy()
    holes[15:, 0] = np.nan
    queries = torch.as_tensor(np.random.default_rng(3).random((5, 2)))
    hyper = Hyperparameters.prior(2, 2)
    masked = Surrogate.condition(Observations.standardise(points, holes), hyper).posterior(queries)
    first = Surrogate.condition(Observations.standardise(points[:15], outcomes[:15]), hyper).posterior(queries)
    second = Surrogate.condition(Observations.standardise(points, outcomes), hyper).posterior(queries)
    for part in (0, 1):
        torch.testing.assert_close(masked[part][:, 0], first[part][:, 0])
        torch.testing.assert_close(masked[part][:, 1], second[part][:, 1])


def test_a_fit_predicts_a_smooth_function_far_better_than_its_mean(points: np.ndarray) -> None:
    fitted = fit(points, smooth(points))
    queries = np.random.default_rng(4).random((200, 2))
    mean, deviation = fitted.surrogate.posterior(torch.as_tensor(queries))
    errors = np.abs(mean.numpy() - smooth(queries))
    assert fitted.warning == ""
    assert errors.mean() < 0.05 * smooth(queries).std()
    assert np.mean(errors < 3 * deviation.numpy() + 1e-3) > 0.9


def test_believing_leaves_the_mean_and_shrinks_the_uncertainty_at_pending_points(points: np.ndarray) -> None:
    surrogate = fit(points, smooth(points)).surrogate
    pending = torch.tensor([[0.05, 0.95], [0.5, 0.02]], dtype=torch.float64)
    queries = torch.cat([pending, torch.as_tensor(np.random.default_rng(5).random((6, 2)))])
    before, after = surrogate.posterior(queries), surrogate.believing(pending).posterior(queries)
    torch.testing.assert_close(after[0], before[0], rtol=1e-6, atol=1e-8)
    assert torch.all(after[1] <= before[1] + 1e-9)
    assert torch.all(after[1][:2] < before[1][:2])


@pytest.mark.parametrize(
    ("points", "outcomes"),
    [
        pytest.param(np.full((1, 3), 0.5), np.array([[0.2, 0.7]]), id="one trial"),
        pytest.param(np.random.default_rng(0).random((9, 2)), np.full((9, 2), 0.25), id="constant objectives"),
        pytest.param(np.repeat([[0.2, 0.4], [0.6, 0.1]], 10, axis=0), np.repeat([[1.0], [2.0]], 10, 0), id="repeated"),
        pytest.param(np.full((12, 2), 0.3), np.arange(12.0)[:, None], id="one point with many outcomes"),
        pytest.param(np.random.default_rng(1).random((6, 2)), np.full((6, 2), np.nan), id="nothing known"),
        pytest.param(np.random.default_rng(1).random((6, 1)), np.geomspace(1e-9, 1e9, 6)[:, None], id="wild scale"),
        pytest.param(np.random.default_rng(1).random((4, 2)), np.array([[1.0], [np.inf], [-np.inf], [2.0]]), id="inf"),
    ],
)
def test_awkward_histories_give_a_finite_posterior(points: np.ndarray, outcomes: np.ndarray) -> None:
    fitted = fit(points, outcomes)
    mean, deviation = fitted.surrogate.posterior(torch.as_tensor(np.vstack([points, points / 2])))
    assert fitted.warning == ""
    assert torch.isfinite(mean).all()
    assert torch.isfinite(deviation).all()
    assert torch.all(deviation > 0)


def test_a_constant_objective_is_predicted_as_that_constant() -> None:
    points = np.random.default_rng(0).random((9, 2))
    mean, _ = fit(points, np.full((9, 1), 0.1 + 0.2)).surrogate.posterior(torch.as_tensor(points[:3]))
    torch.testing.assert_close(mean, torch.full((3, 1), 0.3, dtype=torch.float64))


def test_a_failing_fit_falls_back_to_the_prior_and_says_so(points: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> Hyperparameters:
        raise ArithmeticError("covariance of 20 points is not positive definite")

    monkeypatch.setattr(surrogate_module, "_maximise_likelihood", fails)
    fitted = fit(points, smooth(points))
    mean, _ = fitted.surrogate.posterior(torch.as_tensor(points))
    assert "not positive definite" in fitted.warning
    assert np.corrcoef(mean[:, 0].numpy(), smooth(points)[:, 0])[0, 1] > 0.5


def test_the_same_data_give_the_same_fit(points: np.ndarray) -> None:
    first, second = (fit(points, smooth(points)).surrogate.hyperparameters for _ in range(2))
    assert torch.equal(first.lengths, second.lengths)
    assert torch.equal(first.noise, second.noise)


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ShapeError, match="outcomes has shape"):
        fit(np.zeros((3, 2)), np.zeros((4, 1)))


def test_a_bent_process_predicts_a_function_of_the_logarithm_better() -> None:
    rng = np.random.default_rng(0)
    points, others = rng.random((20, 1)), rng.random((200, 1))

    def outcome(points: np.ndarray) -> np.ndarray:
        return np.sin(6 * np.log10(0.02 + 0.98 * points))

    errors = []
    for bent in (False, True):
        mean, _ = fit(points, outcome(points), bent=bent).surrogate.posterior(torch.as_tensor(others))
        errors.append(float(np.abs(mean.numpy() - outcome(others)).mean()))
    assert errors[1] < 0.5 * errors[0]


def test_a_positive_outcome_that_grows_by_factors_is_more_likely_as_its_logarithm() -> None:
    points = np.random.default_rng(0).random((30, 2))
    outcomes = np.exp(6 * points.sum(axis=1, keepdims=True))
    as_log = log_likelihood(points, np.log(outcomes)) - np.log(outcomes).sum(axis=0)
    assert as_log > log_likelihood(points, outcomes) + 30


@pytest.mark.parametrize("dim", [1, 3])
def test_bent_length_scales_have_a_correlated_normal_prior(dim: int) -> None:
    observations = Observations.standardise(np.zeros((1, dim)), np.full((1, 1), np.nan))
    width, shared = surrogate_module._BENT_LENGTH_PRIOR[1], surrogate_module._BENT_SHARED_WIDTH
    covariance = width**2 * torch.eye(dim, dtype=torch.float64) + shared**2
    centre = surrogate_module._priors(dim, bent=True)[0]
    prior = torch.distributions.MultivariateNormal(centre[dim : 2 * dim], covariance)

    def value(lengths: torch.Tensor) -> float:
        theta = centre.clone()
        theta[dim : 2 * dim] = lengths
        return float(negative_log_posterior(observations, theta[None])[0])

    # Without any data the prior is all there is.
    one, other = centre[dim : 2 * dim] + 0.7, centre[dim : 2 * dim] - torch.linspace(-1, 2, dim, dtype=torch.float64)
    expected = float(prior.log_prob(one) - prior.log_prob(other))
    assert value(other) - value(one) == pytest.approx(expected)
