"""Gaussian processes, one per output, fitted and evaluated as one batch.

Each output has a constant mean, a Matérn 5/2 kernel with one length scale per column and homoscedastic noise. Their
hyperparameters maximise the marginal likelihood times broad priors, in one joint run of L-BFGS with analytic gradients:
all outputs share every tensor operation, which is what makes a proposal cheap. Nothing is kept between calls: a fit is
a function of the trials and of where it starts, so a resumed study goes on identically.

Optionally every column is *bent* before the kernel sees it, by log(1 + (eᵇ − 1) u) / b with b per output and column,
found with the other hyperparameters: b = log 10 turns a share u of [0.1, 1] into its logarithm, b = −log 10 does it to
what a sparsity leaves over, and b = 0 leaves the column as it is. Both ends of a column stay where they are.

Outputs may know different points: an unknown entry (NaN) is left out of its output's likelihood and posterior exactly,
by giving it a row of the identity in the covariance.

Shapes: n points, d columns, m outputs, q query points. Everything is float64 on the CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from orchestrator.arrays import FloatArray, check_shape
from orchestrator.fittime import counted_as_fit

# Normal priors on the logarithms: (centre, width). The length scale is 0.5 in one dimension and grows with the square
# root of the dimension (Hvarfner et al., ICML 2024). BoTorch's default centre is eight times larger: with few trials
# the surrogate is then a plane, its improvement lies in the corners, and ARS loses to random search on interior optima.
# The noise is centred lower than BoTorch's (-4) because most objectives here are counted, not measured.
_LENGTH_PRIOR = (math.log(0.5), 1.0)
# Bent columns vary more evenly, and the logarithm of the improvement is less drawn to corners: twice the length finds
# more on smooth problems and as much on others. How smooth an output is shows in all of its columns, so their lengths
# are correlated: a width each, and one that all share. On recorded searches this predicts the next 25 trials better
# than independent lengths of width 1 do, on smooth problems and on rough ones.
_BENT_LENGTH_PRIOR = (math.log(1.0), 0.5)
_BENT_SHARED_WIDTH = 1.0
_NOISE_PRIOR = (-6.0, 1.5)
_SCALE_PRIOR = (1.0, 1.0)
_MEAN_PRIOR = (0.0, 1.0)
_BEND_PRIOR = (0.0, 1.0)

# Bounds on the natural scale of standardised outputs in the unit cube. The least noise keeps the covariance of repeated
# points invertible in float64.
_LENGTH_BOUNDS = (0.02, 200.0)
_SCALE_BOUNDS = (0.02, 50.0)
_NOISE_BOUNDS = (1e-5, 2.0)
_MEAN_BOUNDS = (-5.0, 5.0)
_BEND_BOUNDS = (-4.0, 4.0)
# Bends smaller than this are no bends; the formula would divide by almost nothing.
_STRAIGHT = 1e-3

_JITTERS = (0.0, 1e-8, 1e-6, 1e-4, 1e-2)
_ROOT_5 = math.sqrt(5.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hyperparameters:
    """For standardised outcomes: ``lengths`` and ``bends`` (m, d); the variances ``scale`` and ``noise``, and ``mean``,
    are (m,)."""

    lengths: Tensor
    bends: Tensor
    scale: Tensor
    noise: Tensor
    mean: Tensor

    @staticmethod
    def prior(n_outputs: int, dim: int) -> Hyperparameters:
        """The centres of the priors."""
        ones = torch.ones(n_outputs, dtype=torch.float64)
        return Hyperparameters(
            lengths=math.exp(_grown(_LENGTH_PRIOR[0], dim)) * torch.ones(n_outputs, dim, dtype=torch.float64),
            bends=torch.zeros(n_outputs, dim, dtype=torch.float64),
            scale=math.exp(_SCALE_PRIOR[0]) * ones,
            noise=math.exp(_NOISE_PRIOR[0]) * ones,
            mean=_MEAN_PRIOR[0] * ones,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Observations:
    """Standardised training data: ``points`` (n, d), ``targets`` (m, n) with 0 where ``known`` (m, n) is 0, and the
    ``centre`` and ``spread`` (m,) that lead back to natural units."""

    points: Tensor
    targets: Tensor
    known: Tensor
    centre: Tensor
    spread: Tensor

    @staticmethod
    def standardise(points: FloatArray, outcomes: FloatArray) -> Observations:
        """Per output, subtract the mean and divide by the standard deviation of its known entries.

        An output without known entries keeps centre 0 and spread 1, a constant one spread 1.

        Raises:
            ShapeError: ``points`` is not (n, d) or ``outcomes`` not (n, m).
        """
        check_shape("points", points, None, None)
        check_shape("outcomes", outcomes, len(points), None)
        known = np.isfinite(outcomes)
        counts = np.maximum(known.sum(axis=0), 1)
        filled = np.where(known, outcomes, 0.0)
        centre = filled.sum(axis=0) / counts
        residuals = np.where(known, outcomes - centre, 0.0)
        spread = np.sqrt((residuals**2).sum(axis=0) / counts)
        # Differences at rounding level are a constant output, not structure to be blown up to unit variance.
        spread = np.where(spread > 1e-12 * np.maximum(np.abs(centre), 1e-12), spread, 1.0)
        return Observations(
            points=torch.as_tensor(points, dtype=torch.float64),
            targets=torch.as_tensor((residuals / spread).T.copy(), dtype=torch.float64),
            known=torch.as_tensor(known.T.astype(np.float64)),
            centre=torch.as_tensor(centre, dtype=torch.float64),
            spread=torch.as_tensor(spread, dtype=torch.float64),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Surrogate:
    """The posterior of all outputs, ready for batched queries.

    ``weights`` (m, n) are K⁻¹ times the residuals, ``whitener`` (m, n, n) is the inverse of K's Cholesky factor.
    """

    observations: Observations
    hyperparameters: Hyperparameters
    weights: Tensor
    whitener: Tensor

    @staticmethod
    def condition(observations: Observations, hyperparameters: Hyperparameters) -> Surrogate:
        """The posterior given data and hyperparameters.

        Raises:
            ArithmeticError: a covariance cannot be factored even with jitter.
        """
        covariance = _covariance(observations, hyperparameters)[0]
        factor = _cholesky(covariance)
        residuals = (observations.targets - hyperparameters.mean[:, None]) * observations.known
        identity = torch.eye(covariance.shape[-1], dtype=torch.float64).expand_as(covariance)
        return Surrogate(
            observations=observations,
            hyperparameters=hyperparameters,
            weights=torch.cholesky_solve(residuals[..., None], factor)[..., 0],
            whitener=torch.linalg.solve_triangular(factor, identity, upper=False),
        )

    def posterior(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the noise-free outputs, in natural units: (q, d) → (q, m), (q, m)."""
        mean, deviation = self._standard_posterior(points)
        centre, spread = self.observations.centre, self.observations.spread
        return (centre[:, None] + spread[:, None] * mean).T, (spread[:, None] * deviation).T

    def believing(self, points: Tensor) -> Surrogate:
        """The surrogate after its own mean had been observed at ``points`` (k, d).

        This is how pending trials are conditioned on: the mean stays what it is and the uncertainty near them shrinks,
        so proposing the same thing again is worth little.
        """
        mean, _ = self._standard_posterior(points)
        old = self.observations
        observations = replace(
            old,
            points=torch.cat([old.points, points]),
            targets=torch.cat([old.targets, mean], dim=1),
            known=torch.cat([old.known, torch.ones_like(mean)], dim=1),
        )
        return Surrogate.condition(observations, self.hyperparameters)

    def _standard_posterior(self, points: Tensor) -> tuple[Tensor, Tensor]:
        hyper = self.hyperparameters
        scaled_squares = _squared_distances(_scaled(points, hyper), _scaled(self.observations.points, hyper))
        cross = hyper.scale[:, None, None] * _matern(scaled_squares) * self.observations.known[:, None, :]  # (m, q, n)
        mean = hyper.mean[:, None] + torch.einsum("mqn,mn->mq", cross, self.weights)
        explained = torch.bmm(self.whitener, cross.mT).square_().sum(dim=1)
        variance = (hyper.scale[:, None] - explained).clamp_min(1e-12)
        return mean, variance.sqrt()


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """A fitted surrogate; ``warning`` is empty, or says what went wrong and what was used instead."""

    surrogate: Surrogate
    warning: str = ""


@counted_as_fit
def fit(
    points: FloatArray,
    outcomes: FloatArray,
    *,
    bent: bool = False,
    start: Hyperparameters | None = None,
    max_iterations: int = 60,
) -> Fit:
    """Fit one GP per column of ``outcomes``, in natural units, NaN where unknown; with ``bent`` columns or without.

    The ascent begins at ``start``, or at the priors' centres. A failing fit never raises: the GPs then keep their
    priors' hyperparameters, and ``warning`` says so.

    Shapes:
        points: (n, d) in the unit cube; n ≥ 1, repeated rows allowed.
        outcomes: (n, m).
    """
    observations = Observations.standardise(points, outcomes)
    try:
        hyperparameters = _maximise_likelihood(observations, start, bent=bent, max_iterations=max_iterations)
        return Fit(surrogate=Surrogate.condition(observations, hyperparameters))
    except (ArithmeticError, ValueError) as error:
        prior = Hyperparameters.prior(outcomes.shape[1], points.shape[1])
        # Noise of half the variance factors whatever the data are.
        cautious = replace(prior, noise=torch.full_like(prior.noise, 0.5))
        warning = f"fitting the surrogate failed ({error}); went on with its prior"
        return Fit(surrogate=Surrogate.condition(observations, cautious), warning=warning)


def log_likelihood(points: FloatArray, outcomes: FloatArray) -> FloatArray:
    """Log density (m,) of each column of ``outcomes``, in natural units, under a process at its priors' centres."""
    observations = Observations.standardise(points, outcomes)
    theta = _priors(points.shape[1], bent=False)[0].expand(outcomes.shape[1], -1)
    value, _ = negative_log_posterior(observations, theta)
    return np.asarray((-value - observations.known.sum(dim=-1) * observations.spread.log()).numpy())


def negative_log_posterior(observations: Observations, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log of marginal likelihood times priors of each output, and its gradient.

    ``theta`` (m, d + 3) holds per output the logarithms of the length scales, of the kernel's scale and of the noise,
    and the mean; in front of them d bends, where columns are bent (m, 2 d + 3). Priors count as densities of these
    columns, up to a constant.

    Returns:
        (m,), and the gradient in the shape of ``theta``.

    Source: Rasmussen, Williams, Gaussian Processes for Machine Learning, equations 5.8 and 5.9.
    """
    dim = observations.points.shape[1]
    hyper = _unpack(theta, dim)
    known = observations.known
    # 1. covariance, its factor, and the residuals' weights
    covariance, kernel, slope = _covariance(observations, hyper)
    factor = _cholesky(covariance)
    residuals = (observations.targets - hyper.mean[:, None]) * known
    weights = torch.cholesky_solve(residuals[..., None], factor)[..., 0]
    # 2. negative log marginal likelihood
    log_determinant = 2.0 * torch.diagonal(factor, dim1=-2, dim2=-1).log().sum(dim=-1)
    value = 0.5 * ((residuals * weights).sum(dim=-1) + log_determinant + known.sum(dim=-1) * math.log(2.0 * math.pi))
    # 3. its derivative by the covariance; unknown entries have none
    outer = weights[..., :, None] * weights[..., None, :]
    by_covariance = 0.5 * (torch.cholesky_inverse(factor) - outer) * known[:, :, None] * known[:, None, :]
    # 4. chain rule; Σ_ij W_ij (x_ik − x_jk)² without an (n, n, d) tensor, for symmetric W
    by_squares = by_covariance * slope
    scaled = _scaled(observations.points, hyper)
    pulls = by_squares.sum(dim=-1)[..., None] * scaled - torch.bmm(by_squares, scaled)
    gradient = torch.empty_like(theta)
    gradient[:, -3 - dim : -3] = -4.0 * (scaled * pulls).sum(dim=1)
    if theta.shape[1] > dim + 3:
        by_bend = _bend_slope(observations.points, hyper.bends) / hyper.lengths[:, None, :]
        gradient[:, :dim] = 4.0 * (by_bend * pulls).sum(dim=1)
    gradient[:, -3] = (by_covariance * kernel).sum(dim=(-2, -1))
    gradient[:, -2] = hyper.noise * torch.diagonal(by_covariance, dim1=-2, dim2=-1).sum(dim=-1)
    gradient[:, -1] = -(weights * known).sum(dim=-1)
    # 5. priors, all normal on these columns, the lengths' with a common part
    is_bent = theta.shape[1] > dim + 3
    centres, widths = _priors(dim, bent=is_bent)
    standard = (theta - centres) / widths
    pulled = standard.clone()
    if is_bent:
        pulled[:, dim : 2 * dim] -= _common_part(standard[:, dim : 2 * dim])
    return value + 0.5 * (standard * pulled).sum(dim=-1), gradient + pulled / widths


def _common_part(standard: Tensor) -> Tensor:
    """What correlation takes from each of the standardised log lengths (m, d): Σ⁻¹ z = z − k Σ z, k = t² / (1 + d t²),
    for Σ = 1 + t² 11ᵀ, by Sherman and Morrison's formula."""
    ratio = (_BENT_SHARED_WIDTH / _BENT_LENGTH_PRIOR[1]) ** 2
    common: Tensor = ratio / (1.0 + standard.shape[1] * ratio) * standard.sum(dim=-1, keepdim=True)
    return common


def _maximise_likelihood(
    observations: Observations, begin: Hyperparameters | None, *, bent: bool, max_iterations: int
) -> Hyperparameters:
    dim = observations.points.shape[1]
    n_outputs = len(observations.targets)
    lower, upper = _bounds(dim, bent=bent)
    centres = _priors(dim, bent=bent)[0].expand(n_outputs, -1) if begin is None else _packed(begin, bent=bent)
    start = torch.maximum(torch.minimum(centres, upper), lower)
    scale = 1.0 / max(float(observations.known.sum()), 1.0)

    def objective(flat: FloatArray) -> tuple[float, FloatArray]:
        theta = torch.as_tensor(flat).reshape(n_outputs, -1)
        value, gradient = negative_log_posterior(observations, theta)
        return float(value.sum()) * scale, gradient.reshape(-1).numpy() * scale

    bounds = np.stack([lower.numpy(), upper.numpy()], axis=1)
    result = minimize(
        objective,
        start.reshape(-1).numpy(),
        jac=True,
        method="L-BFGS-B",
        bounds=np.tile(bounds, (n_outputs, 1)),
        options={"maxiter": max_iterations, "ftol": 1e-7, "gtol": 1e-5, "maxcor": 20},
    )
    if not (np.isfinite(result.fun) and np.all(np.isfinite(result.x))):
        raise ArithmeticError(f"the likelihood is {result.fun}")
    return _unpack(torch.as_tensor(result.x).reshape(n_outputs, -1), dim)


def _covariance(observations: Observations, hyper: Hyperparameters) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy covariance, kernel, and the kernel's slope by the squared scaled distance, each (m, n, n)."""
    scaled = _scaled(observations.points, hyper)
    squares = _squared_distances(scaled, scaled)
    known = observations.known
    mask = hyper.scale[:, None, None] * known[:, :, None] * known[:, None, :]
    root = _ROOT_5 * squares.sqrt()
    decay = torch.exp(-root) * mask
    kernel = (1.0 + root + root.square() / 3.0) * decay
    slope = (-5.0 / 6.0) * (1.0 + root) * decay
    # An unknown point is a row of the identity: it adds nothing to determinant, residuals or predictions.
    diagonal = hyper.noise[:, None] * known + (1.0 - known)
    return kernel + torch.diag_embed(diagonal), kernel, slope


def _matern(squares: Tensor) -> Tensor:
    """Matérn 5/2 correlation of squared scaled distances, which are used up."""
    root = squares.sqrt_().mul_(_ROOT_5)
    return (1.0 + root + root.square() / 3.0).mul_(root.neg_().exp_())


def _squared_distances(left: Tensor, right: Tensor) -> Tensor:
    """(m, q, d), (m, n, d) → (m, q, n), never below 0."""
    squares = torch.baddbmm(right.square().sum(dim=-1)[:, None, :], left, right.mT, beta=1.0, alpha=-2.0)
    return squares.add_(left.square().sum(dim=-1)[..., None]).clamp_min_(0.0)


def _cholesky(covariance: Tensor) -> Tensor:
    identity = torch.eye(covariance.shape[-1], dtype=torch.float64)
    for jitter in _JITTERS:
        factor: Tensor
        factor, info = torch.linalg.cholesky_ex(covariance + jitter * identity if jitter else covariance)
        if not info.any():
            return factor
    raise ArithmeticError(f"covariance of {covariance.shape[-1]} points is not positive definite")


def _grown(log_length: float, dim: int) -> float:
    """Points lie farther apart in more dimensions, and so do those that are alike."""
    return log_length + 0.5 * math.log(dim)


def _priors(dim: int, *, bent: bool) -> tuple[Tensor, Tensor]:
    centre, width = _BENT_LENGTH_PRIOR if bent else _LENGTH_PRIOR
    priors = [_BEND_PRIOR] * (dim if bent else 0) + [(_grown(centre, dim), width)] * dim
    centres, widths = torch.tensor([*priors, _SCALE_PRIOR, _NOISE_PRIOR, _MEAN_PRIOR], dtype=torch.float64).T
    return centres, widths


def _bounds(dim: int, *, bent: bool) -> tuple[Tensor, Tensor]:
    logs = [tuple(map(math.log, pair)) for pair in (_LENGTH_BOUNDS, _SCALE_BOUNDS, _NOISE_BOUNDS)]
    pairs = [_BEND_BOUNDS] * (dim if bent else 0) + [logs[0]] * dim + [logs[1], logs[2], _MEAN_BOUNDS]
    lower, upper = torch.tensor(pairs, dtype=torch.float64).T
    return lower, upper


def _unpack(theta: Tensor, dim: int) -> Hyperparameters:
    lengths = theta[:, -3 - dim : -3].exp()
    return Hyperparameters(
        lengths=lengths,
        bends=theta[:, :dim].clone() if theta.shape[1] > dim + 3 else torch.zeros_like(lengths),
        scale=theta[:, -3].exp(),
        noise=theta[:, -2].exp(),
        mean=theta[:, -1].clone(),
    )


def bent_columns(points: Tensor, bends: Tensor) -> Tensor:
    """log(1 + (eᵇ − 1) u) / b of points (…, d) and bends that broadcast to them; almost u itself for b next to 0."""
    bends = _not_straight(bends)
    return torch.log1p(torch.expm1(bends) * points) / bends


def _packed(hyper: Hyperparameters, *, bent: bool) -> Tensor:
    """What :func:`_unpack` takes apart."""
    logs = [hyper.lengths.log(), hyper.scale.log()[:, None], hyper.noise.log()[:, None], hyper.mean[:, None]]
    return torch.cat([hyper.bends, *logs] if bent else logs, dim=1)


def _scaled(points: Tensor, hyper: Hyperparameters) -> Tensor:
    """Points (n, d) as each output's kernel sees them: bent, then divided by the length scales; (m, n, d)."""
    if not hyper.bends.any():
        return points / hyper.lengths[:, None, :]
    return bent_columns(points, hyper.bends[:, None, :]) / hyper.lengths[:, None, :]


def _bend_slope(points: Tensor, bends: Tensor) -> Tensor:
    """Derivative of bent points by their bends, (m, n, d)."""
    bends = _not_straight(bends)[:, None, :]
    growth = torch.expm1(bends) * points
    return (bends.exp() * points / (1.0 + growth) - torch.log1p(growth) / bends) / bends


def _not_straight(bends: Tensor) -> Tensor:
    return torch.where(bends.abs() < _STRAIGHT, torch.full_like(bends, _STRAIGHT), bends)
