"""BoTorch models of a history, with hyperparameters from the fit that the default search uses.

BoTorch's own fit takes a second for four objectives and 150 trials and has then seldom converged; the batched fit in
``orchestrator.surrogate`` reaches a larger likelihood in a tenth of that. So all methods on BoTorch get the same, well
fitted processes, and what is compared between methods is what they do with them.

BoTorch maximises, so models are of negated outcomes.

Shapes: n points told, d columns, k modelled outputs.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from botorch.models import ModelListGP, SingleTaskGP
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ConstantMean
from torch import Tensor

from orchestrator.arrays import FloatArray
from orchestrator.surrogate import Hyperparameters, bent_columns, fit

_log = logging.getLogger(__name__)

# Below what the fit allows, so that BoTorch never changes a noise it is given.
_LEAST_NOISE = 1e-9


class BentMatern(MaternKernel):  # type: ignore[misc]  # GPyTorch is untyped
    """Matérn 5/2 over columns bent as ``orchestrator.surrogate`` bends them; ``bends`` are (…, 1, d)."""

    def __init__(self, bends: Tensor, **kwargs: Any) -> None:
        super().__init__(nu=2.5, ard_num_dims=bends.shape[-1], **kwargs)
        self.register_buffer("bends", bends)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        if not self.bends.any():
            straight: Tensor = super().forward(x1, x2, diag=diag, **params)
            return straight
        covariance: Tensor = super().forward(
            bent_columns(x1, self.bends), bent_columns(x2, self.bends), diag=diag, **params
        )
        return covariance


def model_of(points: FloatArray, columns: FloatArray, *, is_bent: bool) -> SingleTaskGP | ModelListGP:
    """One Gaussian process per column (n, k) that is to be maximised: one batch where all is known, else each of the
    rows where its column is. ``is_bent`` lets every process bend its columns, as in the default search."""
    fitted = fit(points, columns, bent=is_bent)
    if fitted.warning:
        _log.warning("%s", fitted.warning)
    hyper, known = fitted.surrogate.hyperparameters, np.isfinite(columns)
    if known.all():
        return _model(points, columns, hyper, slice(None))
    parts = zip(columns.T, known.T, strict=True)
    return ModelListGP(
        *[_model(points[rows], column[rows, None], hyper, slice(j, j + 1)) for j, (column, rows) in enumerate(parts)]
    )


def length_scales(model: SingleTaskGP | ModelListGP) -> FloatArray:
    """Of every output and column, (k, d)."""
    parts = model.models if isinstance(model, ModelListGP) else [model]
    scales = [part.covar_module.base_kernel.lengthscale.detach().numpy() for part in parts]
    return np.concatenate([item.reshape(-1, item.shape[-1]) for item in scales])


def _model(points: FloatArray, columns: FloatArray, hyper: Hyperparameters, part: slice) -> SingleTaskGP:
    """BoTorch's model of ``columns`` (n, k), whose hyperparameters are those at ``part``."""
    n, k = columns.shape
    batch = torch.Size([k]) if k > 1 else torch.Size()
    # BoTorch standardises by the unbiased deviation, the fit by the other.
    shrink = (n - 1) / n if n > 1 else 1.0
    kernel = ScaleKernel(BentMatern(hyper.bends[part].reshape(*batch, 1, -1), batch_shape=batch), batch_shape=batch)
    likelihood = GaussianLikelihood(batch_shape=batch, noise_constraint=GreaterThan(_LEAST_NOISE))
    mean = ConstantMean(batch_shape=batch)
    model = SingleTaskGP(
        torch.as_tensor(points),
        torch.as_tensor(columns),
        likelihood=likelihood,
        covar_module=kernel,
        mean_module=mean,
    ).to(torch.float64)
    kernel.base_kernel.lengthscale = hyper.lengths[part].reshape(*batch, 1, -1)
    kernel.outputscale = (hyper.scale[part] * shrink).reshape(batch)
    likelihood.noise = (hyper.noise[part] * shrink).reshape(*batch, 1)
    with torch.no_grad():
        mean.constant.copy_((hyper.mean[part] * shrink**0.5).reshape(batch))
    return model.requires_grad_(False).eval()
