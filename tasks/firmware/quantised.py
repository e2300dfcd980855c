"""The quantised network as an ONNX file states it: integer weights beside real scales, before lowering.

The importer writes these records, ``tasks.firmware.lower`` turns them into integer layers. Keeping the two apart lets
the importer speak of scales only and the lowering of rounding only.

Shapes: tensors (H, W, C); convolution weights (O, I, kH, kW) as in ONNX, dense weights (O, I).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.firmware.ir import Int8Array, Pads, Tensor, Window

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
RealFunction = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """Real range a fused relu or clip leaves."""

    low: float = -np.inf
    high: float = np.inf

    def intersect(self, other: Bounds) -> Bounds:
        """First ``self``, then ``other``: clip(clip(x, self), other)."""
        low = min(max(self.low, other.low), other.high)
        return Bounds(low=low, high=max(min(self.high, other.high), low))


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """``name`` is the ONNX node's; ``inputs`` and ``output`` name tensors."""

    name: str
    inputs: tuple[str, ...]
    output: str
    bounds: Bounds = Bounds()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Convolution(Node):
    """``scales`` (O,) are the weights'; ``bias`` (O,) is in units of input scale × weight scale."""

    window: Window
    groups: int
    weights: Int8Array
    scales: FloatArray
    bias: IntArray


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FullyConnected(Node):
    """``channels_first``: the weights' inputs are ordered C, H, W (the input was flattened from that order)."""

    weights: Int8Array
    scales: FloatArray
    bias: IntArray
    channels_first: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Addition(Node):
    """``subtracts``: the second input is taken from the first."""

    subtracts: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Requantisation(Node):
    """The input's reals times ``factor``, which is above 0."""

    factor: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Multiplication(Node):
    """One input may be a vector (1, 1, C) that multiplies each pixel of the other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Elementwise(Node):
    """``function`` maps reals to reals, each by itself, for arrays of any shape."""

    function: RealFunction


@dataclass(frozen=True, kw_only=True, slots=True)
class Concatenation(Node):
    """The channels of two or more inputs behind each other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Padding(Node):
    """Real zeros around the image; the output has the input's scale and zero point."""

    pads: Pads


@dataclass(frozen=True, kw_only=True, slots=True)
class SoftmaxOfChannels(Node):
    """Softmax over the channels of each pixel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MaximumPool(Node):
    window: Window


@dataclass(frozen=True, kw_only=True, slots=True)
class AveragePool(Node):
    window: Window
    count_padding: bool


AnyNode = (
    Convolution
    | FullyConnected
    | Addition
    | Requantisation
    | MaximumPool
    | AveragePool
    | Multiplication
    | Elementwise
    | Concatenation
    | Padding
    | SoftmaxOfChannels
)


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantisedNetwork:
    """Nodes in an executable order."""

    tensors: dict[str, Tensor]
    nodes: tuple[AnyNode, ...]
    input: str
    output: str
    digest: str
