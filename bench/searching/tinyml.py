"""A made-up TinyML problem that costs nothing to evaluate: a small residual network for 32×32 colour images.

Its ROM, RAM and FLOPs are counted exactly, layer by layer, as an int8 network without operator fusion needs them. Its
error is invented: a smooth, plausible response with interactions, not fitted to any data, plus noise. So it shows how
well methods search spaces of this kind, and says nothing about networks.

The network: a stem convolution, three stages of residual blocks (a stage may be empty but the first; stages after the
first start with stride 2), global average pooling and a dense layer. A block is two convolutions of one of three
kinds, and a 1×1 convolution on its shortcut where the shape changes. Pruning removes the same share of all channels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from bench.searching.problem import Problem
from orchestrator.arrays import FloatArray, ParamArray
from orchestrator.records import Params
from orchestrator.studyfile import CategoricalParameter, FloatParameter, IntParameter, Parameter

Numbers = Any
"""A whole number, or an array of them, one a candidate."""

CLASSES = 10
BLOCKS = ("full", "separable", "bottleneck")
_FULL, _SEPARABLE, _ = range(3)
_MOST_BLOCKS = 3
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
    """A convolution (or the dense layer, on a 1×1 image) of one candidate or, with arrays (q,), of many. ``live`` are
    the elements that must be in memory with it: input, output and whatever a later layer still needs. ``count`` is 0
    in candidates that do not have the layer."""

    inputs: Numbers
    outputs: Numbers
    kernel: Numbers
    size: Numbers
    live: Numbers
    is_depthwise: Numbers = False
    count: Numbers = 1

    @property
    def weights(self) -> Numbers:
        return self.count * self.kernel**2 * self.outputs * np.where(self.is_depthwise, 1, self.inputs)

    @property
    def macs(self) -> Numbers:
        return self.weights * self.size**2


class Shape(NamedTuple):
    """All of a candidate that its network depends on, after pruning; stages in threes. ``block`` is its index in
    ``BLOCKS``; numbers are those of one candidate, or arrays (q,) of many."""

    channels: tuple[Numbers, Numbers, Numbers]
    blocks: tuple[Numbers, Numbers, Numbers]
    kernel: Numbers
    block: Numbers
    resolution: Numbers


class _Counts(NamedTuple):
    weights: Numbers
    macs: Numbers
    rom: Numbers
    ram: Numbers


def parameters() -> dict[str, Parameter]:
    """The 12 parameters of the space."""
    return {
        "network.width": IntParameter(type="int", low=4, high=48, log=True),
        "network.blocks1": IntParameter(type="int", low=1, high=3),
        "network.blocks2": IntParameter(type="int", low=0, high=3),
        "network.blocks3": IntParameter(type="int", low=0, high=3),
        "network.growth": FloatParameter(type="float", low=1.0, high=2.0),
        "network.kernel": CategoricalParameter(type="categorical", choices=(3, 5)),
        "network.block": CategoricalParameter(type="categorical", choices=BLOCKS),
        "network.resolution": IntParameter(type="int", low=16, high=32, step=4),
        "compression.sparsity": FloatParameter(type="float", low=0.0, high=0.9),
        "training.learning_rate": FloatParameter(type="float", low=1e-4, high=1e-1, log=True),
        "training.epochs": IntParameter(type="int", low=10, high=100, log=True),
        "training.weight_decay": FloatParameter(type="float", low=1e-6, high=1e-2, log=True),
    }


def layers(shape: Shape) -> list[Layer]:
    """The pruned network, from the image to the classes, with every layer that a network of the space can have."""
    size, channels = shape.resolution, shape.channels[0]
    found = [_layer(3, channels, shape.kernel, before=size, after=size)]
    for stage, (blocks, outputs) in enumerate(zip(shape.blocks, shape.channels, strict=True)):
        for index in range(_MOST_BLOCKS):
            is_there = np.less(index, blocks)
            before = size
            if stage > 0 and index == 0:
                size = np.where(is_there, (size + 1) // 2, size)
            parts = _block(shape.block, channels, outputs, shape.kernel, before, size)
            found += [replace(layer, count=layer.count * is_there, live=layer.live * is_there) for layer in parts]
            channels = np.where(is_there, outputs, channels)
    return [*found, Layer(inputs=channels, outputs=CLASSES, kernel=1, size=1, live=channels + CLASSES)]


def cost(params: Params) -> dict[str, float]:
    """ROM and RAM in bytes, and FLOPs (two a multiply-accumulate), exactly."""
    counts = _counted_once(_shape(params))
    return {"rom": float(counts.rom), "ram": float(counts.ram), "flops": 2.0 * float(counts.macs)}


def costs(params: Mapping[str, ParamArray]) -> dict[str, FloatArray]:
    """:func:`cost` of many candidates, each parameter and each result (q,)."""
    width = np.asarray(params["network.width"], dtype=np.float64)
    growth = np.asarray(params["network.growth"], dtype=np.float64)
    kept = 1.0 - np.asarray(params["compression.sparsity"], dtype=np.float64)
    kinds = np.asarray(params["network.block"])
    counts = _counted(
        Shape(
            channels=tuple(_channels(width * growth**stage * kept) for stage in range(3)),  # type: ignore[arg-type]
            blocks=(params["network.blocks1"], params["network.blocks2"], params["network.blocks3"]),
            kernel=params["network.kernel"],
            block=np.select([kinds == name for name in BLOCKS], range(len(BLOCKS))),
            resolution=params["network.resolution"],
        )
    )
    amounts = {"rom": counts.rom, "ram": counts.ram, "flops": 2.0 * counts.macs}
    return {name: np.asarray(amount, dtype=np.float64) for name, amount in amounts.items()}


def error(params: Params) -> float:
    """The invented error without noise, in (0.05, 0.9)."""
    shape = _shape(params)
    counts, blocks = _counted_once(shape), sum(shape.blocks)
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
        + (0.0, 0.012, 0.02)[shape.block]
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
        known_columns=costs,
    )


def _shape(params: Params) -> Shape:
    width, growth = float(params["network.width"]), float(params["network.growth"])
    kept = 1.0 - float(params["compression.sparsity"])
    return Shape(
        channels=tuple(int(_channels(width * growth**stage * kept)) for stage in range(3)),  # type: ignore[arg-type]
        blocks=(int(params["network.blocks1"]), int(params["network.blocks2"]), int(params["network.blocks3"])),
        kernel=int(params["network.kernel"]),
        block=BLOCKS.index(str(params["network.block"])),
        resolution=int(params["network.resolution"]),
    )


def _channels(kept: Numbers) -> Numbers:
    return np.maximum(1, np.round(kept)).astype(np.int64)


def _counted(shape: Shape) -> _Counts:
    network = layers(shape)
    weights = sum(layer.weights for layer in network)
    channels = sum(layer.count * layer.outputs for layer in network)
    return _Counts(
        weights=weights,
        macs=sum(layer.macs for layer in network),
        rom=weights + _ROM_PER_CHANNEL * channels + _ROM_PROGRAM,
        ram=functools.reduce(np.maximum, [layer.live for layer in network]) + _RAM_STACK,
    )


# An evolutionary run asks for the same shape again and again, with another training.
_counted_once = functools.lru_cache(maxsize=200_000)(_counted)


def _layer(
    inputs: Numbers,
    outputs: Numbers,
    kernel: Numbers,
    *,
    before: Numbers,
    after: Numbers,
    kept: Numbers = 0,
    is_depthwise: Numbers = False,
) -> Layer:
    """A layer from ``before`` to ``after`` pixels a side, while ``kept`` elements wait for a later layer."""
    live = inputs * before**2 + outputs * after**2 + kept
    return Layer(inputs=inputs, outputs=outputs, kernel=kernel, size=after, live=live, is_depthwise=is_depthwise)


def _block(
    kind: Numbers, inputs: Numbers, outputs: Numbers, kernel: Numbers, before: Numbers, after: Numbers
) -> Iterator[Layer]:
    """The shortcut first, where it is a layer, then the block's own; the sum is added into the shortcut's memory."""
    is_changed = (np.not_equal(inputs, outputs)) | (np.not_equal(before, after))
    shortcut = np.where(is_changed, outputs * after**2, 0)
    through = _layer(inputs, outputs, 1, before=before, after=after)
    yield replace(through, count=is_changed, live=through.live * is_changed)
    kept = np.where(is_changed, shortcut, inputs * before**2)
    for index, (entering, leaving, side, is_depthwise, is_there) in enumerate(
        _convolutions(kind, inputs, outputs, kernel)
    ):
        waiting, size = (kept, after) if index else (shortcut, before)
        layer = _layer(entering, leaving, side, before=size, after=after, kept=waiting, is_depthwise=is_depthwise)
        yield replace(layer, count=is_there, live=layer.live * is_there)


def _convolutions(
    kind: Numbers, inputs: Numbers, outputs: Numbers, kernel: Numbers
) -> list[tuple[Numbers, Numbers, Numbers, Numbers, Numbers]]:
    """Inputs, outputs, kernel, whether depthwise, and whether it is there; the first one has the stride."""
    is_full, is_separable = np.equal(kind, _FULL), np.equal(kind, _SEPARABLE)
    inner = np.maximum(1, outputs // 2)

    def by_kind(full: Numbers, separable: Numbers, bottleneck: Numbers) -> Numbers:
        return np.where(is_full, full, np.where(is_separable, separable, bottleneck))

    return [
        (inputs, by_kind(outputs, inputs, inner), by_kind(kernel, kernel, 1), is_separable, True),
        (by_kind(outputs, inputs, inner), by_kind(outputs, outputs, inner), by_kind(kernel, 1, kernel), False, True),
        (by_kind(outputs, outputs, inner), outputs, by_kind(1, kernel, 1), is_separable, ~is_full),
    ]


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
