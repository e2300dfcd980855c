"""Networks to measure the compiler with: the shapes of MLPerf Tiny, and small ones of the families people use.

Weights are random, from a seed; nothing here has been trained. Batch norms get gains and shifts of their own and the
statistics that random inputs have there, so that activations keep a sensible range from the first layer to the last.
Strided convolutions pad on both sides alike, where the published models pad more at the end: sizes and
multiply-accumulates are theirs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.nn.families import ConvUnit, Plan, ResidualBlock, SeparableBlock
from tasks.quant.quantise import quantise

CALIBRATION_INPUTS = 16
_PLAN_2D, _PLAN_1D = Plan(2, "relu"), Plan(1, "relu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """``build`` gives the module with PyTorch's initial weights; ``input_shape`` (C, …) without the batch."""

    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]


def made(name: str, seed: int = 0) -> nn.Module:
    """The network called ``name`` in evaluation mode; ``seed`` alone fixes its numbers. The global random state is
    left as it was.

    Raises:
        KeyError: there is no such network.
    """
    network = ZOO[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = network.build()
        _spread_norms(module)
        x = torch.from_numpy(random_inputs(network.input_shape, CALIBRATION_INPUTS, seed))
        with torch.no_grad():
            module.train()(x)
    return module.eval()


def quantised(name: str, seed: int = 0) -> bytes:
    """The network as a QDQ int8 ONNX model, by the project's exporter and quantiser."""
    return quantise(made(name, seed), random_inputs(ZOO[name].input_shape, CALIBRATION_INPUTS, seed))[1]


def random_inputs(shape: tuple[int, ...], n: int, seed: int) -> NDArray[np.float32]:
    """(n, *shape), standard normal."""
    return np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)


def _spread_norms(module: nn.Module) -> None:
    """Gains and shifts as training might leave them; the next forward pass sets the running statistics alone."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0.0, 0.3)
            layer.momentum = None  # the mean over all passes, and there is one


# The four networks of MLPerf Tiny


def _resnet8() -> nn.Module:
    plan = _PLAN_2D
    return _chain(
        stem=ConvUnit(3, 16, 3, plan),
        stage1=ResidualBlock(16, 16, 3, 1, plan),
        stage2=ResidualBlock(16, 32, 3, 2, plan),
        stage3=ResidualBlock(32, 64, 3, 2, plan),
        **_classifier(plan, 64, 10),
    )


def _ds_cnn() -> nn.Module:
    stem = _chain(
        conv=nn.Conv2d(1, 64, (10, 4), stride=2, padding=(5, 1), bias=False), norm=nn.BatchNorm2d(64), act=nn.ReLU()
    )
    blocks = {f"block{number}": SeparableBlock(64, 64, 3, 1, _PLAN_2D) for number in range(1, 5)}
    return _chain(stem=stem, **blocks, **_classifier(_PLAN_2D, 64, 12))


_MOBILENET_V1 = (
    (8, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2),
    *[(128, 128, 1)] * 5, (128, 256, 2), (256, 256, 1),
)  # fmt: skip


def _mobilenet_v1_025() -> nn.Module:
    blocks = {
        f"block{number}": SeparableBlock(n_in, n_out, 3, stride, _PLAN_2D)
        for number, (n_in, n_out, stride) in enumerate(_MOBILENET_V1, 1)
    }
    return _chain(stem=ConvUnit(3, 8, 3, _PLAN_2D, stride=2), **blocks, **_classifier(_PLAN_2D, 256, 2))


def _autoencoder() -> nn.Module:
    sizes = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128)
    hidden = {
        f"dense{number}": _chain(linear=nn.Linear(n_in, n_out), norm=nn.BatchNorm1d(n_out), act=nn.ReLU())
        for number, (n_in, n_out) in enumerate(pairwise(sizes), 1)
    }
    return _chain(**hidden, output=nn.Linear(sizes[-1], sizes[0]))


def _chain(**layers: nn.Module) -> nn.Sequential:
    """Layers one after the other, by name: reports show the names."""
    return nn.Sequential(OrderedDict(layers))


def _classifier(plan: Plan, n_in: int, n_classes: int) -> dict[str, nn.Module]:
    return {"pool": plan.global_pool(1), "flatten": nn.Flatten(), "head": nn.Linear(n_in, n_classes)}


# Small networks of known families


class InvertedResidual(nn.Module):
    """MobileNetV2's block: widen 1x1, depthwise, narrow 1x1 without activation; added to its input where it can be."""

    def __init__(self, plan: Plan, n_in: int, n_out: int, stride: int, factor: int = 4) -> None:
        super().__init__()
        wide = factor * n_in
        self.widen = ConvUnit(n_in, wide, 1, plan)
        self.depthwise = ConvUnit(wide, wide, 3, plan, stride=stride, groups=wide)
        self.narrow = ConvUnit(wide, n_out, 1, plan, activation=False)
        self.is_residual = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.narrow(self.depthwise(self.widen(x)))
        return x + out if self.is_residual else out


class SqueezeExcite(nn.Module):
    """Each channel times a gate between 0 and 1, computed from all channels' means."""

    def __init__(self, plan: Plan, n_channels: int) -> None:
        super().__init__()
        n_squeezed = max(1, n_channels // 4)
        self.pool = plan.global_pool(1)
        self.squeeze, self.excite = plan.conv(n_channels, n_squeezed, 1), plan.conv(n_squeezed, n_channels, 1)
        self.act, self.gate = nn.ReLU(), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.excite(self.act(self.squeeze(self.pool(x)))))


class HardSwishBlock(nn.Module):
    """MobileNetV3's block: an inverted residual with hard swish, and squeeze-and-excite before it narrows."""

    def __init__(self, plan: Plan, n_in: int, n_out: int, stride: int, factor: int = 4) -> None:
        super().__init__()
        wide = factor * n_in
        self.widen = ConvUnit(n_in, wide, 1, plan, activation=False)
        self.depthwise = ConvUnit(wide, wide, 5, plan, stride=stride, groups=wide, activation=False)
        self.act1, self.act2 = nn.Hardswish(), nn.Hardswish()
        self.attention = SqueezeExcite(plan, wide)
        self.narrow = ConvUnit(wide, n_out, 1, plan, activation=False)
        self.is_residual = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        wide = self.act2(self.depthwise(self.act1(self.widen(x))))
        out: Tensor = self.narrow(self.attention(wide))
        return x + out if self.is_residual else out


_BOTTLENECKS = ((8, 8, 1), (8, 12, 2), (12, 12, 1), (12, 16, 2))


def _mobilenet_like(block: Callable[..., nn.Module], dimensions: int, activation: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        plan = Plan(dimensions, activation)
        blocks = {f"block{i}": block(plan, *how) for i, how in enumerate(_BOTTLENECKS, 1)}
        return _chain(stem=ConvUnit(3, 8, 3, plan, stride=2), **blocks, **_classifier(plan, 16, 5))

    return build


def _resnet18_1d() -> nn.Module:
    widths = (8, 8, 16, 24, 32)
    plan = _PLAN_1D
    stages = {
        f"stage{number}": _chain(
            first=ResidualBlock(n_in, n_out, 3, 1 if number == 1 else 2, plan),
            second=ResidualBlock(n_out, n_out, 3, 1, plan),
        )
        for number, (n_in, n_out) in enumerate(pairwise(widths), 1)
    }
    stem = ConvUnit(3, widths[0], 7, plan, stride=2)
    return _chain(stem=stem, halve=nn.MaxPool1d(3, 2, 1), **stages, **_classifier(plan, widths[-1], 6))


def _mlp() -> nn.Module:
    first = _chain(linear=nn.Linear(48, 32), act=nn.ReLU())
    second = _chain(linear=nn.Linear(32, 16), act=nn.ReLU())
    return _chain(flatten=nn.Flatten(), dense1=first, dense2=second, head=nn.Linear(16, 4))


MLPERF_TINY: Mapping[str, Network] = {
    "resnet-8": Network(build=_resnet8, input_shape=(3, 32, 32)),
    "ds-cnn": Network(build=_ds_cnn, input_shape=(1, 49, 10)),
    "mobilenet-v1-0.25": Network(build=_mobilenet_v1_025, input_shape=(3, 96, 96)),
    "autoencoder": Network(build=_autoencoder, input_shape=(640,)),
}
SMALL: Mapping[str, Network] = {
    "mobilenet-v2-2d": Network(build=_mobilenet_like(InvertedResidual, 2, "relu6"), input_shape=(3, 24, 24)),
    "mobilenet-v2-1d": Network(build=_mobilenet_like(InvertedResidual, 1, "relu6"), input_shape=(3, 64)),
    "mobilenet-v3-2d": Network(build=_mobilenet_like(HardSwishBlock, 2, "relu"), input_shape=(3, 24, 24)),
    "mobilenet-v3-1d": Network(build=_mobilenet_like(HardSwishBlock, 1, "relu"), input_shape=(3, 64)),
    "resnet-18-1d": Network(build=_resnet18_1d, input_shape=(3, 128)),
    "mlp": Network(build=_mlp, input_shape=(3, 4, 4)),
}
ZOO: Mapping[str, Network] = {**MLPERF_TINY, **SMALL}


def count_macs(module: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one inference, counted in PyTorch: outputs times the weights that each of them sees."""
    total = 0

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear)
        total += output[0].numel() * prod(layer.weight.shape[1:])

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        module(torch.zeros(1, *input_shape))
    for hook in hooks:
        hook.remove()
    return total
