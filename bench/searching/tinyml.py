"""A made-up TinyML problem that costs nothing to evaluate: a small residual network for 32×32 colour images.

Its ROM, RAM and FLOPs are counted exactly, layer by layer, as an int8 network without operator fusion needs them. Its
error is invented: a smooth, plausible response with interactions, not fitted to any data, plus noise. So it shows how
well methods search spaces of this kind, and says nothing about networks.

The network: a stem convolution, three stages of residual blocks (a stage may be empty but the first; stages after the
first start with stride 2), global average pooling and a dense layer. A block is two convolutions of one of three
kinds, and a 1×1 convolution on its shortcut where the shape changes. Pruning removes the same share of all channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from bench.searching.problem import Problem
from orchestrator.records import Params
from orchestrator.studyfile import CategoricalParameter, FloatParameter, IntParameter, Parameter

CLASSES = 10
NOISE = 0.006

# Bytes beside the weights: an int32 bias, an int32 multiplier and a shift for each output channel; program; stack.
_ROM_PER_CHANNEL = 9
_ROM_PROGRAM = 12_000
_RAM_STACK = 2_048

_OBJECTIVES = ("error", "rom", "ram", "flops")
_LIMITS = (1.0, 128.0 * 1024, 32.0 * 1024, 5.0e7)
# Just below the smallest network of the space and the least error of the model.
_FLOORS = (0.08, 12_000.0, 3_000.0, 19_000.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A convolution (or the dense layer, on a 1×1 image); ``live`` are the elements that must be in memory with it:
    input, output and whatever a later layer still needs."""

    inputs: int
    outputs: int
    kernel: int
    size: int
    live: int
    is_depthwise: bool = False

    @property
    def weights(self) -> int:
        return self.kernel**2 * self.outputs * (1 if self.is_depthwise else self.inputs)

    @property
    def macs(self) -> int:
        return self.weights * self.size**2


class Shape(NamedTuple):
    """All of a candidate that its network depends on, after pruning; stages in threes."""

    channels: tuple[int, int, int]
    blocks: tuple[int, int, int]
    kernel: int
    block: str
    resolution: int


class _Counts(NamedTuple):
    weights: int
    macs: int
    rom: int
    ram: int


def parameters() -> dict[str, Parameter]:
    """The 12 parameters of the space."""
    return {
        "network.width": IntParameter(type="int", low=4, high=48, log=True),
        "network.blocks1": IntParameter(type="int", low=1, high=3),
        "network.blocks2": IntParameter(type="int", low=0, high=3),
        "network.blocks3": IntParameter(type="int", low=0, high=3),
        "network.growth": FloatParameter(type="float", low=1.0, high=2.0),
        "network.kernel": CategoricalParameter(type="categorical", choices=(3, 5)),
        "network.block": CategoricalParameter(type="categorical", choices=("full", "separable", "bottleneck")),
        "network.resolution": IntParameter(type="int", low=16, high=32, step=4),
        "compression.sparsity": FloatParameter(type="float", low=0.0, high=0.9),
        "training.learning_rate": FloatParameter(type="float", low=1e-4, high=1e-1, log=True),
        "training.epochs": IntParameter(type="int", low=10, high=100, log=True),
        "training.weight_decay": FloatParameter(type="float", low=1e-6, high=1e-2, log=True),
    }


def layers(shape: Shape) -> list[Layer]:
    """The pruned network, from the image to the classes."""
    size, channels = shape.resolution, shape.channels[0]
    found = [_layer(3, channels, shape.kernel, before=size, after=size)]
    for stage, (blocks, outputs) in enumerate(zip(shape.blocks, shape.channels, strict=True)):
        for index in range(blocks):
            before = size
            if stage > 0 and index == 0:
                size = (size + 1) // 2
            found += _block(shape.block, channels, outputs, shape.kernel, before, size)
            channels = outputs
    return [*found, Layer(inputs=channels, outputs=CLASSES, kernel=1, size=1, live=channels + CLASSES)]


def cost(params: Params) -> dict[str, float]:
    """ROM and RAM in bytes, and FLOPs (two a multiply-accumulate), exactly."""
    counts = _counted(_shape(params))
    return {"rom": float(counts.rom), "ram": float(counts.ram), "flops": 2.0 * counts.macs}


def error(params: Params) -> float:
    """The invented error without noise, in (0.05, 0.9)."""
    shape = _shape(params)
    counts, blocks = _counted(shape), sum(shape.blocks)
    weights, macs = math.log10(counts.weights), math.log10(counts.macs)
    total = (
        # Larger networks are better, with falling returns: in weights, in arithmetic, in depth, in resolution.
        0.035
        + 0.55 * math.exp(-1.25 * (weights - 2.7))
        + 0.30 * math.exp(-1.10 * (macs - 4.3))
        + 0.10 * math.exp(-0.45 * blocks)
        + 0.10 * ((32 - shape.resolution) / 16) ** 1.3
        + _training_loss(params, weights)
        + _pruning_loss(params)
        + {"full": 0.0, "separable": 0.012, "bottleneck": 0.02}[shape.block]
    )
    return 0.05 + 0.85 * (1.0 - math.exp(-total / 0.85))


def noisy(params: Params, seed: int) -> dict[str, float]:
    """All objectives as one training would give them; the worse the network, the more its trainings differ."""
    mean = error(params)
    deviation = NOISE * (0.5 + 2.0 * mean)
    measured = mean + deviation * float(np.random.default_rng(seed).standard_normal())
    return {"error": min(max(measured, 0.02), 0.95), **cost(params)}


def tinyml() -> Problem:
    """Scored on linear limits: error 1, 128 KiB of ROM, 32 KiB of RAM, 5·10⁷ FLOPs."""
    return _problem("tinyml", is_log=False)


def tinyml_log() -> Problem:
    """The same network, scored on the logarithms."""
    return _problem("tinyml-log", is_log=True)


def _problem(name: str, *, is_log: bool) -> Problem:
    return Problem(
        name=name,
        parameters=parameters(),
        objectives=_OBJECTIVES,
        limits=_LIMITS,
        floors=_FLOORS if is_log else (),
        scale="log" if is_log else "linear",
        known=frozenset({"rom", "ram", "flops"}),
        evaluate=noisy,
        truth=lambda params: {"error": error(params), **cost(params)},
        known_values=cost,
    )


def _shape(params: Params) -> Shape:
    width, growth = float(params["network.width"]), float(params["network.growth"])
    kept = 1.0 - float(params["compression.sparsity"])
    return Shape(
        channels=(_channels(width * kept), _channels(width * growth * kept), _channels(width * growth**2 * kept)),
        blocks=(int(params["network.blocks1"]), int(params["network.blocks2"]), int(params["network.blocks3"])),
        kernel=int(params["network.kernel"]),
        block=str(params["network.block"]),
        resolution=int(params["network.resolution"]),
    )


def _channels(kept: float) -> int:
    return max(1, round(kept))


# A search asks for thousands of candidates a proposal, most of which differ in training or by a rounded channel only.
@lru_cache(maxsize=200_000)
def _counted(shape: Shape) -> _Counts:
    network = layers(shape)
    weights = sum(layer.weights for layer in network)
    channels = sum(layer.outputs for layer in network)
    return _Counts(
        weights=weights,
        macs=sum(layer.macs for layer in network),
        rom=weights + _ROM_PER_CHANNEL * channels + _ROM_PROGRAM,
        ram=max(layer.live for layer in network) + _RAM_STACK,
    )


def _layer(
    inputs: int, outputs: int, kernel: int, *, before: int, after: int, kept: int = 0, is_depthwise: bool = False
) -> Layer:
    """A layer from ``before`` to ``after`` pixels a side, while ``kept`` elements wait for a later layer."""
    live = inputs * before**2 + outputs * after**2 + kept
    return Layer(inputs=inputs, outputs=outputs, kernel=kernel, size=after, live=live, is_depthwise=is_depthwise)


def _block(kind: str, inputs: int, outputs: int, kernel: int, before: int, after: int) -> Iterator[Layer]:
    """The shortcut first, where it is a layer, then the block's own; the sum is added into the shortcut's memory."""
    kept = inputs * before**2
    shortcut = outputs * after**2 if (inputs, before) != (outputs, after) else 0
    if shortcut:
        yield _layer(inputs, outputs, 1, before=before, after=after)
    first, *others = _convolutions(kind, inputs, outputs, kernel)
    yield _layer(*first[:3], before=before, after=after, kept=shortcut, is_depthwise=first[3])
    for each in others:
        yield _layer(*each[:3], before=after, after=after, kept=shortcut or kept, is_depthwise=each[3])


def _convolutions(kind: str, inputs: int, outputs: int, kernel: int) -> list[tuple[int, int, int, bool]]:
    """Inputs, outputs, kernel, and whether depthwise; the first one has the stride."""
    if kind == "full":
        return [(inputs, outputs, kernel, False), (outputs, outputs, kernel, False)]
    if kind == "separable":
        return [(inputs, inputs, kernel, True), (inputs, outputs, 1, False), (outputs, outputs, kernel, True)]
    inner = max(1, outputs // 2)
    return [(inputs, inner, 1, False), (inner, inner, kernel, False), (inner, outputs, 1, False)]


def _training_loss(params: Params, weights: float) -> float:
    epochs = float(params["training.epochs"])
    # The best rate falls with the network's size and is a little higher in short trainings.
    best_rate = -2.0 - 0.35 * (weights - 4.0) + 0.3 * (math.log10(30.0) - math.log10(epochs))
    miss = math.log10(float(params["training.learning_rate"])) - best_rate
    # Large networks trained for long want more decay.
    best_decay = -4.5 + 0.6 * (weights - 4.0) + 0.5 * (math.log10(epochs) - math.log10(30.0))
    decay = math.log10(float(params["training.weight_decay"])) - best_decay
    unfinished = 0.16 * math.exp(-epochs / 22.0) * (1.0 + 0.35 * max(weights - 3.5, 0.0))
    return 0.45 * (1.0 - math.exp(-0.22 * miss**2)) + 0.012 * decay**2 + unfinished


def _pruning_loss(params: Params) -> float:
    """Little up to a half, then more and more; long trainings recover a part, and 5×5 kernels lose less."""
    sparsity = float(params["compression.sparsity"])
    recovery = 1.0 - 0.5 * math.log10(float(params["training.epochs"]) / 10.0)
    kernel = 0.85 if int(params["network.kernel"]) == 5 else 1.0
    return 0.30 * kernel * recovery * sparsity**3
