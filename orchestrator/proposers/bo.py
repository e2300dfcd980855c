"""What the methods built on BoTorch share: the search for an acquisition function's best.

Candidates are discrete where parameters are: an acquisition
function sees the candidate a point decodes to, and its gradient goes straight through the rounding.

Shapes: n points told, q points asked, d columns, m objectives.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from botorch.acquisition import AcquisitionFunction
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.exceptions.warnings import BotorchWarning, OptimizationWarning
from botorch.generation.gen import gen_candidates_scipy
from botorch.sampling.normal import SobolQMCNormalSampler
from gpytorch.utils.warnings import NumericalWarning
from torch import Tensor

from orchestrator.arrays import FloatArray
from orchestrator.proposers.front import pareto_set
from orchestrator.proposers.models import model_of
from orchestrator.proposers.nearby import moved
from orchestrator.proposers.protocol import History
from orchestrator.proposers.untried import Tried
from orchestrator.space import SearchSpace
from orchestrator.threads import one_thread

# Steps of one ascent of the acquisition function.
_ASCENT_STEPS = 60
# Points scored at once without gradients.
_BLOCK = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Ascent:
    """How an acquisition function is maximised: ``pool`` random candidates and as many near the front are scored, and
    from the best ``restarts`` a gradient ascent starts. Outcomes have ``draws`` from the posterior; with ``bent`` 1
    the processes bend their columns, with 0 they do not."""

    pool: int = 256
    restarts: int = 4
    draws: int = 128
    bent: int = 1

    def __post_init__(self) -> None:
        for name in ("pool", "restarts", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, allowed are whole numbers from 1")
        check_bent(self.bent)

    def propose(
        self,
        space: SearchSpace,
        history: History,
        pending: FloatArray,
        rng: np.random.Generator,
        acquisition: Callable[[], AcquisitionFunction],
    ) -> FloatArray:
        """The new candidate (d,) with the largest ``acquisition``, which is asked for once something feasible is known;
        before that the margin is improved, and with nothing told a random candidate is taken."""
        if not len(history):
            return np.asarray(Tried(space, pending).draw(1, rng)[0])
        with careful(rng):
            if not history.feasible.any():
                return self._towards_feasible(space, history, pending, rng)
            return self._best_untried(acquisition(), space, history, pending, rng)

    def _best_untried(
        self,
        acquisition: AcquisitionFunction,
        space: SearchSpace,
        history: History,
        pending: FloatArray,
        rng: np.random.Generator,
    ) -> FloatArray:
        """The best of the pool and the ends of all ascents."""
        tried = Tried(space, history.points, pending)
        of_candidates = Snapped(acquisition, space)
        near = moved(space, pareto_set(history), self.pool, rng)
        pool = torch.as_tensor(np.concatenate([tried.draw(self.pool, rng), near]))
        with torch.no_grad():
            worth = torch.cat([of_candidates(block[:, None, :]) for block in torch.split(pool, _BLOCK)])
        starts = pool[worth.nan_to_num(-torch.inf).topk(min(self.restarts, len(pool))).indices]
        ends, end_worth = gen_candidates_scipy(
            starts[:, None, :], of_candidates, 0.0, 1.0, options={"maxiter": _ASCENT_STEPS}
        )
        points = torch.cat([ends[:, 0, :].detach(), pool]).numpy()
        values = torch.cat([end_worth.detach().reshape(-1), worth]).nan_to_num(-torch.inf).numpy()
        proposal = tried.first_untried(points[np.argsort(-values, kind="stable")])
        return proposal if proposal is not None else np.asarray(tried.draw(1, rng)[0])

    def _towards_feasible(
        self, space: SearchSpace, history: History, pending: FloatArray, rng: np.random.Generator
    ) -> FloatArray:
        """While nothing feasible is known: the candidate with the largest expected improvement of the margin."""
        margins = -np.clip(history.margins, -1.0, 1.0)[:, None]
        acquisition = qLogNoisyExpectedImprovement(
            model=model_of(history.points, margins, is_bent=bool(self.bent)),
            X_baseline=torch.as_tensor(history.points),
            sampler=sampler_of(64, rng),
            X_pending=pending_tensor(pending),
            prune_baseline=True,
        )
        return self._best_untried(acquisition, space, history, pending, rng)


def check_bent(bent: int) -> None:
    """Refuse anything but 0 and 1."""
    if bent not in (0, 1):
        raise ValueError(f"bent is {bent}, allowed are 0 and 1")


@contextmanager
def careful(rng: np.random.Generator) -> Iterator[None]:
    """One thread, PyTorch's random numbers from ``rng``, and no warnings of BoTorch about what is handled here.

    They are recorded and dropped: BoTorch insists on showing some, whatever filters say.
    """
    with one_thread(), torch.random.fork_rng(devices=[]), warnings.catch_warnings(record=True):
        torch.manual_seed(int(rng.integers(2**63)))
        for category in (BotorchWarning, NumericalWarning, OptimizationWarning, RuntimeWarning):
            warnings.simplefilter("ignore", category=category)
        # Below GPyTorch's batches of outputs; nobody here has a say in it.
        warnings.filterwarnings("ignore", message="Sparse invariant checks")
        yield


class Snapped(AcquisitionFunction):  # type: ignore[misc]  # BoTorch is untyped
    """An acquisition function of candidates: what a point decodes to, with the gradient of the point itself."""

    def __init__(self, inner: AcquisitionFunction, space: SearchSpace) -> None:
        super().__init__(model=inner.model)
        self.inner = inner
        self.space = space

    def forward(self, X: Tensor) -> Tensor:
        """(b, 1, d) → (b,)"""
        snapped = torch.as_tensor(self.space.snap(X.detach().reshape(-1, X.shape[-1]).numpy())).reshape(X.shape)
        value: Tensor = self.inner(X + (snapped - X).detach())
        return value


def sampler_of(draws: int, rng: np.random.Generator) -> SobolQMCNormalSampler:
    """Fixed normal draws from a scrambled Sobol sequence."""
    return SobolQMCNormalSampler(torch.Size([draws]), seed=int(rng.integers(2**31)))


def pending_tensor(pending: FloatArray) -> Tensor | None:
    return torch.as_tensor(pending) if len(pending) else None
