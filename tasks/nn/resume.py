"""The state of a training as bytes, so that another process goes on where this one was, to the bit.

What is kept: the weights and other buffers, the optimiser, the schedule, every generator that the training draws from,
and the curve so far, from which a stopping rule knows where it stands. The bytes are PyTorch's own archive, read back
with ``weights_only=True``: tensors, numbers and text, never code.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tasks.errors import Defect

_FORMAT = 1


class CheckpointUnusable(Exception):
    """What was kept cannot be gone on from: damaged, of another form, another PyTorch or another kind of device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generators:
    """States of the generators a training draws from: PyTorch's on the CPU and, on a GPU, the device's."""

    cpu: Tensor
    device: Tensor | None

    @staticmethod
    def of(device: torch.device) -> Generators:
        on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return Generators(cpu=torch.get_rng_state(), device=on_gpu)

    def restore(self, device: torch.device) -> None:
        torch.set_rng_state(self.cpu)
        if device.type == "cuda" and self.device is not None:
            torch.cuda.set_rng_state(self.device, device)


@dataclass(frozen=True, kw_only=True, slots=True)
class FitState:
    """A training after one of its epochs. ``curve`` is ``[[loss, accuracy], …]`` by epoch; ``order`` is the state of
    the generator that shuffles the batches."""

    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    schedule: Mapping[str, Any]
    order: Tensor
    generators: Generators
    curve: tuple[tuple[float, float], ...]

    @property
    def epoch(self) -> int:
        """The epochs behind it."""
        return len(self.curve)


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundState:
    """A round of pruning and fine-tuning that is over: the pruned network's weights, its curve, and the generators."""

    weights: Mapping[str, Tensor]
    generators: Generators
    curve: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a stage has come: the rounds that are over (by index; a plain training has none), and the training under
    way."""

    rounds: Mapping[int, RoundState]
    fit: FitState | None
    fit_round: int = 0


def pack(progress: Progress, device: torch.device) -> bytes:
    """The progress of a stage on ``device``, for :func:`unpack`."""
    data = {
        "format": _FORMAT,
        "torch": str(torch.__version__),
        "device": device.type,
        "rounds": {index: _round_to_plain(state) for index, state in progress.rounds.items()},
        "fit": None if progress.fit is None else _fit_to_plain(progress.fit),
        "fit_round": progress.fit_round,
    }
    buffer = io.BytesIO()
    torch.save(data, buffer)
    return buffer.getvalue()


def unpack(data: bytes, device: torch.device) -> Progress:
    """
    Raises:
        CheckpointUnusable: the bytes are not of :func:`pack`, or of another version of PyTorch or kind of device, on
            which the training would not be the same.
    """
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise CheckpointUnusable(f"it cannot be read: {' '.join(str(error).split())[:200]}") from error
    here = {"format": _FORMAT, "torch": str(torch.__version__), "device": device.type}
    other = [name for name, value in here.items() if not isinstance(found, dict) or found.get(name) != value]
    if other:
        there = {name: found.get(name) for name in other} if isinstance(found, dict) else type(found).__name__
        raise CheckpointUnusable(f"it was written with {there}; this process has {here}")
    try:
        return Progress(
            rounds={int(index): _round_from_plain(state) for index, state in found["rounds"].items()},
            fit=None if found["fit"] is None else _fit_from_plain(found["fit"]),
            fit_round=int(found["fit_round"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointUnusable(f"a field of it is missing or wrong: {error!r}") from error


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put kept weights into a module of the same shapes.

    Raises:
        Defect: they belong to another network; the checkpoint's name should have made that impossible.
    """
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise Defect("bad_checkpoint", f"a checkpoint does not fit its own network: {reason}") from error


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the module's state on the CPU, which later training does not change."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in module.state_dict().items()}


def _generators_to_plain(generators: Generators) -> dict[str, Any]:
    return {"cpu": generators.cpu, "device": generators.device}


def _generators_from_plain(data: Mapping[str, Any]) -> Generators:
    return Generators(cpu=_tensor(data["cpu"]), device=None if data["device"] is None else _tensor(data["device"]))


def _fit_to_plain(state: FitState) -> dict[str, Any]:
    return {
        "weights": dict(state.weights),
        "optimizer": dict(state.optimizer),
        "schedule": dict(state.schedule),
        "order": state.order,
        "generators": _generators_to_plain(state.generators),
        "curve": [list(point) for point in state.curve],
    }


def _fit_from_plain(data: Mapping[str, Any]) -> FitState:
    return FitState(
        weights=dict(data["weights"]),
        optimizer=dict(data["optimizer"]),
        schedule=dict(data["schedule"]),
        order=_tensor(data["order"]),
        generators=_generators_from_plain(data["generators"]),
        curve=_curve(data["curve"]),
    )


def _round_to_plain(state: RoundState) -> dict[str, Any]:
    return {
        "weights": dict(state.weights),
        "generators": _generators_to_plain(state.generators),
        "curve": [list(point) for point in state.curve],
    }


def _round_from_plain(data: Mapping[str, Any]) -> RoundState:
    return RoundState(
        weights=dict(data["weights"]),
        generators=_generators_from_plain(data["generators"]),
        curve=_curve(data["curve"]),
    )


def _curve(data: Any) -> tuple[tuple[float, float], ...]:
    return tuple((float(loss), float(accuracy)) for loss, accuracy in data)


def _tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{type(value).__name__} in place of a tensor")
    return value
