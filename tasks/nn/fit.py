"""Training and fine-tuning, the same result for the same seed and number of threads.

Training sets of small networks are small: the whole set is one tensor, and batches are rows picked by a permutation.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.records import Violation
from orchestrator.studyfile import Training
from tasks.errors import Defect, Infeasible
from tasks.nn.samples import DataSplit, Samples

EVALUATION_BATCH = 1024
# A mean loss this many times above that of guessing is called divergence: no later epoch has been seen to recover.
DIVERGED_FACTOR = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """One epoch's figures: mean training loss (nats) and share of validation samples classified rightly."""

    epoch: int
    epochs: int
    loss: float
    accuracy: float


OnEpoch = Callable[[Epoch], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorData:
    """Data as tensors on the device. Shapes: x (n, …), y (n,)."""

    train_x: Tensor
    train_y: Tensor
    validation_x: Tensor
    validation_y: Tensor

    @staticmethod
    def of(data: DataSplit, device: torch.device) -> TensorData:
        """Copies, since the arrays are read-only."""
        return TensorData(
            train_x=torch.tensor(data.train.x, device=device),
            train_y=torch.tensor(data.train.y, device=device),
            validation_x=torch.tensor(data.validation.x, device=device),
            validation_y=torch.tensor(data.validation.y, device=device),
        )


def choose_device(name: str) -> torch.device:
    """The device named in the study: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or ``auto`` for the fastest there is.

    Raises:
        Defect: there is no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        text = f"training.device {name!r} cannot be used here: {reason}; use cpu, auto or a device this machine has"
        raise Defect("bad_device", text) from error
    return device


@contextlib.contextmanager
def reproducible(seed: int, threads: int) -> Iterator[None]:
    """Everything random inside depends on ``seed`` only; random state and number of threads are put back after."""
    threads_before = torch.get_num_threads()
    was_strict = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        # Some layers of a user's network may have no deterministic form on a GPU: they train all the same.
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(was_strict)
            torch.set_num_threads(threads_before)


def fit(
    module: nn.Module,
    data: TensorData,
    training: Training,
    *,
    seed: int,
    on_epoch: OnEpoch = lambda epoch: None,
    warm_up: bool = True,
) -> list[Epoch]:
    """Train ``module`` in place over ``training.epochs`` epochs and leave it in evaluation mode.

    The learning rate rises over the first twentieth of the steps (unless ``warm_up`` is off), then falls as a half
    cosine to zero. Module and data must be on one device; call inside :func:`reproducible`.

    Raises:
        Infeasible: training diverged; the violation names the epoch.
    """
    n = len(data.train_y)
    batch_size = min(training.batch_size, n)
    # A last batch of one sample would break batch norm, so what is left over joins another epoch's permutation.
    n_batches = max(1, n // batch_size)
    optimizer = _optimizer(module, training)
    n_steps = training.epochs * n_batches
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _learning_rate_factor(n_steps, has_warm_up=warm_up))
    rng = torch.Generator().manual_seed(seed)
    curve = []
    for epoch in range(1, training.epochs + 1):
        order = torch.randperm(n, generator=rng)[: n_batches * batch_size].to(data.train_x.device)
        module.train()
        total = torch.zeros((), device=data.train_x.device)
        for rows in torch.split(order, batch_size):
            optimizer.zero_grad(set_to_none=True)
            logits = module(data.train_x[rows])
            loss = functional.cross_entropy(logits, data.train_y[rows], label_smoothing=training.label_smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.detach()
        mean_loss = float(total) / n_batches
        _check_divergence(mean_loss, epoch, _n_classes(data))
        accuracy = accuracy_of(module, data.validation_x, data.validation_y)
        curve.append(Epoch(epoch=epoch, epochs=training.epochs, loss=mean_loss, accuracy=accuracy))
        on_epoch(curve[-1])
    module.eval()
    return curve


def _optimizer(module: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Weight decay acts on weights only, never on biases and the scales of batch norm."""
    weights = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    # One call for all parameters: a tenth of the time of a small network's step.
    is_fused = all(p.device.type in ("cpu", "cuda") for p in module.parameters())
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=training.learning_rate, momentum=0.9, nesterov=True, fused=is_fused)
    return torch.optim.AdamW(groups, lr=training.learning_rate, fused=is_fused)


def _learning_rate_factor(n_steps: int, *, has_warm_up: bool) -> Callable[[int], float]:
    n_warm = max(1, n_steps // 20) if has_warm_up else 0

    def factor(step: int) -> float:
        if step < n_warm:
            return (step + 1) / (n_warm + 1)
        return 0.5 * (1.0 + math.cos(math.pi * (step - n_warm) / max(1, n_steps - n_warm)))

    return factor


def _n_classes(data: TensorData) -> int:
    return int(data.train_y.max()) + 1


def _check_divergence(loss: float, epoch: int, n_classes: int) -> None:
    """Raises Infeasible where the loss is not finite or far above that of guessing."""
    limit = DIVERGED_FACTOR * math.log(n_classes)
    if loss <= limit:
        return
    amount = loss if math.isfinite(loss) else limit * DIVERGED_FACTOR
    message = f"training diverged at epoch {epoch}: the mean loss is {loss:.4g}, more than {limit:.4g}"
    raise Infeasible(Violation(quantity="loss", amount=amount, limit=limit, unit="1", message=message))


@torch.no_grad()
def logits_of(module: nn.Module, x: Tensor) -> Tensor:
    """Outputs (n, k) in evaluation mode, in batches."""
    module.eval()
    return torch.cat([module(part) for part in torch.split(x, EVALUATION_BATCH)])


def accuracy_of(module: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of x (n, …) classified as y (n,)."""
    return float((logits_of(module, x).argmax(dim=1) == y).float().mean())


def error_of(module: nn.Module, samples: Samples) -> float:
    """Share of samples classified wrongly, counted on the processor the module is on."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    x, y = torch.tensor(samples.x, device=device), torch.tensor(samples.y, device=device)
    n_wrong = int((logits_of(module, x).argmax(dim=1) != y).sum())
    return n_wrong / len(samples)


def calibration_inputs(data: DataSplit, n: int, seed: int) -> NDArray[np.float32]:
    """``n`` training inputs (fewer if there are not so many), drawn without repetition, every class in its share."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(data.train))
    # A sort by class keeps the random order within it; even steps through it then take each class in its share.
    by_class = order[np.argsort(data.train.y[order], kind="stable")]
    n = min(n, len(by_class))
    rows = by_class[np.linspace(0, len(by_class) - 1, n).round().astype(np.int64)]
    return np.ascontiguousarray(data.train.x[rows])
