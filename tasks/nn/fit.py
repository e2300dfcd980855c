"""Training and fine-tuning, the same result for the same seed and number of threads.

Training sets of small networks are small: the whole set is one tensor, and batches are rows picked by a permutation.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.records import Violation
from orchestrator.studyfile import Training
from tasks.errors import Defect, Infeasible
from tasks.nn.resume import FitState, Generators, load_weights, weights_of
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
# Is given, after an epoch, what makes the training's state; calls it where the state is to be kept.
OnState = Callable[[Callable[[], FitState]], None]


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


def described(device: torch.device) -> str:
    """``cpu``, or a GPU with its name: ``cuda (NVIDIA H200)``."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


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
    on_state: OnState = lambda make: None,
    start: FitState | None = None,
    warm_up: bool = True,
) -> list[Epoch]:
    """Train ``module`` in place over ``training.epochs`` epochs and leave it in evaluation mode.

    The learning rate rises over the first twentieth of the steps (unless ``warm_up`` is off), then falls as a half
    cosine to zero. Module and data must be on one device; call inside :func:`reproducible`. With ``start`` it goes on
    from there, and all that follows is the same to the bit; ``on_epoch`` hears of the epochs still to come only.

    Raises:
        Infeasible: training diverged; the violation names the epoch.
    """
    run = _Run.begin(module, data, training, seed=seed, warm_up=warm_up)
    if start is not None:
        run.restore(start)
    while len(run.curve) < training.epochs:
        run.train_epoch()
        on_epoch(run.curve[-1])
        if len(run.curve) < training.epochs:
            on_state(run.state)
    module.eval()
    return run.curve


@dataclass(kw_only=True)
class _Run:
    """A training under way: all that changes from step to step."""

    module: nn.Module
    data: TensorData
    training: Training
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    order: torch.Generator
    batch_size: int
    n_batches: int
    curve: list[Epoch] = field(default_factory=list)

    @staticmethod
    def begin(module: nn.Module, data: TensorData, training: Training, *, seed: int, warm_up: bool) -> _Run:
        n = len(data.train_y)
        batch_size = min(training.batch_size, n)
        # A last batch of one sample would break batch norm, so what is left over joins another epoch's permutation.
        n_batches = max(1, n // batch_size)
        optimizer = _optimizer(module, training)
        factor = _learning_rate_factor(training.epochs * n_batches, has_warm_up=warm_up)
        return _Run(
            module=module,
            data=data,
            training=training,
            optimizer=optimizer,
            schedule=torch.optim.lr_scheduler.LambdaLR(optimizer, factor),
            order=torch.Generator().manual_seed(seed),
            batch_size=batch_size,
            n_batches=n_batches,
        )

    @property
    def device(self) -> torch.device:
        return self.data.train_x.device

    def train_epoch(self) -> None:
        n, data = len(self.data.train_y), self.data
        order = torch.randperm(n, generator=self.order)[: self.n_batches * self.batch_size].to(self.device)
        self.module.train()
        total = torch.zeros((), device=self.device)
        for rows in torch.split(order, self.batch_size):
            total += self.step(rows)
        mean_loss, epoch = float(total) / self.n_batches, len(self.curve) + 1
        _check_divergence(mean_loss, epoch, _n_classes(data))
        accuracy = accuracy_of(self.module, data.validation_x, data.validation_y)
        self.curve.append(Epoch(epoch=epoch, epochs=self.training.epochs, loss=mean_loss, accuracy=accuracy))

    def step(self, rows: Tensor) -> Tensor:
        """One batch; returns its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.module(self.data.train_x[rows])
        labels, smoothing = self.data.train_y[rows], self.training.label_smoothing
        loss = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()

    def state(self) -> FitState:
        return FitState(
            weights=weights_of(self.module),
            optimizer=self.optimizer.state_dict(),
            schedule=self.schedule.state_dict(),
            order=self.order.get_state(),
            generators=Generators.of(self.device),
            curve=tuple((epoch.loss, epoch.accuracy) for epoch in self.curve),
        )

    def restore(self, state: FitState) -> None:
        load_weights(self.module, state.weights)
        self.optimizer.load_state_dict(dict(state.optimizer))
        self.schedule.load_state_dict(dict(state.schedule))
        self.order.set_state(state.order)
        state.generators.restore(self.device)
        self.curve = epochs_of(state.curve, self.training.epochs)


def epochs_of(curve: Sequence[tuple[float, float]], epochs: int) -> list[Epoch]:
    """The first epochs of a training of ``epochs``, from their loss and accuracy."""
    return [
        Epoch(epoch=number, epochs=epochs, loss=loss, accuracy=accuracy)
        for number, (loss, accuracy) in enumerate(curve, start=1)
    ]


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
