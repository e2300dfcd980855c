"""Single layers to measure kernels with: shapes, goals and the figures of another library, and the graph of each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from tasks.firmware.ir import Graph, Pads, Tensor, Window
from tasks.firmware.lower import lower
from tasks.firmware.quantised import AnyNode, Convolution, FullyConnected, QuantisedNetwork

INPUT_ZERO_POINT, OUTPUT_ZERO_POINT = 11, -9
INPUT_SCALE = 0.05
_ODD = 1.6  # goal of an odd shape, times the goal of the nearest regular one


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One layer. ``input_shape`` (H, W, C); ``kernel`` None: fully connected; ``n_outputs`` channels or neurons.
    ``goal`` and ``baseline`` are instructions a MAC on a Cortex-M4; the latter CMSIS-NN's (2026-07) with GCC -O3."""

    name: str
    input_shape: tuple[int, int, int]
    n_outputs: int
    kernel: tuple[int, int] | None
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int] = (0, 0)
    is_depthwise: bool = False
    goal: float
    baseline: float | None = None

    @property
    def window(self) -> Window:
        assert self.kernel is not None
        vertical, horizontal = self.pads
        pads = Pads(top=vertical, bottom=vertical, left=horizontal, right=horizontal)
        return Window(kernel=self.kernel, stride=self.stride, pads=pads)

    @property
    def output_shape(self) -> tuple[int, int, int]:
        if self.kernel is None:
            return (1, 1, self.n_outputs)
        return (*self.window.output_size(*self.input_shape[:2]), self.n_outputs)

    @property
    def weights_shape(self) -> tuple[int, ...]:
        """(O, I) of a fully connected layer, (O, I, kH, kW) of a convolution, with the I of one group."""
        if self.kernel is None:
            return (self.n_outputs, prod(self.input_shape))
        return (self.n_outputs, 1 if self.is_depthwise else self.input_shape[2], *self.kernel)


_CONV3 = Case(
    name="conv 3x3 16->16 on 32x32 pad 1",
    input_shape=(32, 32, 16), n_outputs=16, kernel=(3, 3), pads=(1, 1), goal=1.15, baseline=2.33,
)  # fmt: skip
_CONV1 = Case(
    name="conv 1x1 32->64 on 16x16", input_shape=(16, 16, 32), n_outputs=64, kernel=(1, 1), goal=1.2, baseline=2.7
)
_DEPTHWISE3 = Case(
    name="depthwise 3x3 32 ch on 16x16 pad 1",
    input_shape=(16, 16, 32), n_outputs=32, kernel=(3, 3), pads=(1, 1), is_depthwise=True, goal=2.0, baseline=8.78,
)  # fmt: skip
_DENSE = Case(
    name="fully connected 256->10", input_shape=(1, 1, 256), n_outputs=10, kernel=None, goal=1.45, baseline=2.13
)


def _odd(nearest: Case, name: str, **changes: object) -> Case:
    goal = round(_ODD * nearest.goal, 3)
    return replace(nearest, name=name, goal=goal, baseline=None, **changes)  # type: ignore[arg-type]


CASES = (
    _CONV3,
    _CONV1,
    _DEPTHWISE3,
    _DENSE,
    _odd(_CONV3, "conv 3x3 5->7 on 11x13", input_shape=(11, 13, 5), n_outputs=7),
    _odd(_CONV3, "conv 3x3 16->16 stride 2 on 32x32", stride=(2, 2)),
    _odd(_CONV3, "1-D conv k=9 16->16 length 128", input_shape=(1, 128, 16), kernel=(1, 9), pads=(0, 4)),
    _odd(_DEPTHWISE3, "depthwise 3x3 stride 2 32 ch on 16x16", stride=(2, 2)),
    _odd(_DEPTHWISE3, "depthwise 5x5 32 ch on 16x16", kernel=(5, 5), pads=(2, 2)),
    _odd(_DEPTHWISE3, "1-D depthwise k=9 32 ch length 128", input_shape=(1, 128, 32), kernel=(1, 9), pads=(0, 4)),
    _odd(_CONV1, "pointwise 5->7 on 11x13", input_shape=(11, 13, 5), n_outputs=7),
    _odd(_CONV3, "conv 3x3 3->8 stride 2 on 96x96", input_shape=(96, 96, 3), n_outputs=8, stride=(2, 2)),
)


def graph_of(case: Case, seed: int = 0) -> Graph:
    """The layer as a network of its own: random weights and biases, a scale for every output channel, zero points that
    are not zero, and an output scale that saturates few values."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(-127, 128, size=case.weights_shape).astype(np.int8)
    scales = rng.uniform(0.002, 0.006, size=case.n_outputs)
    fan_in = weights[0].size
    # bytes spread like ±74, so sums spread by √fan_in times the product of two of them; 40 of 127 is one deviation
    output_scale = INPUT_SCALE * float(scales.mean()) * 74 * 74 * fan_in**0.5 / 40
    source = Tensor(name="x", shape=case.input_shape, scale=INPUT_SCALE, zero_point=INPUT_ZERO_POINT)
    target = Tensor(name="y", shape=case.output_shape, scale=output_scale, zero_point=OUTPUT_ZERO_POINT)
    common = {"name": "layer", "inputs": ("x",), "output": "y", "weights": weights, "scales": scales}
    bias = rng.integers(-3000, 3000, size=case.n_outputs)
    node: AnyNode
    if case.kernel is None:
        node = FullyConnected(**common, bias=bias, channels_first=False)  # type: ignore[arg-type]
    else:
        groups = case.input_shape[2] if case.is_depthwise else 1
        node = Convolution(**common, bias=bias, window=case.window, groups=groups)  # type: ignore[arg-type]
    digest = hashlib.sha256(f"{case} {seed}".encode()).hexdigest()
    return lower(
        QuantisedNetwork(tensors={"x": source, "y": target}, nodes=(node,), input="x", output="y", digest=digest)
    )
