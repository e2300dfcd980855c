"""The typed network the compiler works on: integer layers over int8 tensors in NHWC order.

Nothing here is real-valued but the scales kept for the ends (what an input byte means) and for people. What a layer
computes from these numbers is defined by ``tasks.quant.reference``; ``docs/units-and-signs.md`` has rounding and signs.

Shapes: tensors (H, W, C) without the batch; a vector is (1, 1, C), a 1-D signal (1, L, C).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

Int8Array = NDArray[np.int8]
Int32Array = NDArray[np.int32]
UInt32Array = NDArray[np.uint32]
Shape = tuple[int, int, int]

INT8_MIN, INT8_MAX = -128, 127
N_BYTES = 256  # values a byte can take, the length of every table over bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """An activation: ``real = scale * (q - zero_point)``. One with a ``parent`` is rows of that tensor, from
    ``first_row`` on: the same bytes."""

    name: str
    shape: Shape
    scale: float
    zero_point: int
    parent: str = ""
    first_row: int = 0

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise ValueError(f"tensor {self.name!r} has an empty shape {self.shape}")
        if not INT8_MIN <= self.zero_point <= INT8_MAX or not self.scale > 0:
            raise ValueError(
                f"tensor {self.name!r}: scale {self.scale}, zero point {self.zero_point} are no int8 affine pair"
            )

    @property
    def n_bytes(self) -> int:
        return prod(self.shape)

    @property
    def owner(self) -> str:
        """The tensor that has the bytes."""
        return self.parent or self.name


@dataclass(frozen=True, kw_only=True, slots=True)
class Clamp:
    """The range of the output bytes; a fused relu or clip narrows it."""

    low: int = INT8_MIN
    high: int = INT8_MAX

    def __post_init__(self) -> None:
        if not INT8_MIN <= self.low <= self.high <= INT8_MAX:
            raise ValueError(f"clamp {self.low}..{self.high} is no int8 range")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pads:
    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A sliding window: (vertical, horizontal) pairs and the padding around the input."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: Pads = Pads()

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the output; a value below 1 means that the window is larger than the padded input."""
        reach_y = self.dilation[0] * (self.kernel[0] - 1) + 1
        reach_x = self.dilation[1] * (self.kernel[1] - 1) + 1
        return (
            (height + self.pads.top + self.pads.bottom - reach_y) // self.stride[0] + 1,
            (width + self.pads.left + self.pads.right - reach_x) // self.stride[1] + 1,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """What every layer has; ``inputs`` and ``output`` name tensors of the graph."""

    name: str
    inputs: tuple[str, ...]
    output: str
    clamp: Clamp = Clamp()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Conv2d(Layer):
    """``weights`` (O, kH, kW, I) with I input channels a group; ``bias`` and ``multipliers`` (O,).

    With an ``addition``, the second input is added to what the convolution gives, which stays a tensor of the graph
    with a scale and never lies in memory as a whole: the bytes are those of two layers."""

    window: Window
    groups: int
    weights: Int8Array
    bias: Int32Array
    multipliers: Int32Array
    left_shift: int
    addition: Add | None = None

    @property
    def result(self) -> str:
        """The tensor that the convolution itself gives."""
        return self.output if self.addition is None else self.addition.inputs[0]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dense(Layer):
    """``weights`` (O, I) over the input's bytes in NHWC order."""

    weights: Int8Array
    bias: Int32Array
    multipliers: Int32Array
    left_shift: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Add(Layer):
    """Sum of two tensors, each with its own multiplier; rounded once. A negative multiplier subtracts."""

    multipliers: tuple[int, int]
    left_shift: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Rescale(Layer):
    """The same reals under another scale; also a relu or clip that no layer before it could take in."""

    multiplier: int
    left_shift: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MaxPool(Layer):
    """Largest byte of the window; padding never wins. Scale and zero point pass through."""

    window: Window


@dataclass(frozen=True, kw_only=True, slots=True)
class AvgPool(Layer):
    """Mean of the window; padding adds zero. One multiplier: every window counts all its elements. As many as the
    window has elements: padding does not count, ``multipliers[n - 1]`` is for a window with ``n`` elements inside."""

    window: Window
    multipliers: tuple[int, ...]
    left_shift: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Plain(Layer):
    """A layer without weights or window. What is done with one is looked up by its class: how it computes in
    ``quant.reference.PLAIN``, how it becomes C in ``emit_elementwise.EMITTED``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mul(Plain):
    """Product of two tensors; rounded once. The second has the shape of the first, or is a vector (1, 1, C) that
    multiplies every pixel."""

    multiplier: int
    left_shift: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lookup(Plain):
    """A function of single bytes: ``table`` (256,) has the output of byte ``q`` at ``q + 128``, the clamp included."""

    table: Int8Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Concat(Plain):
    """The inputs' channels behind each other, each input brought to the output's scale with one rounding."""

    multipliers: tuple[int, ...]
    left_shifts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pad(Plain):
    """Real zeros around the image, that is bytes of the zero point. Scale and zero point pass through."""

    pads: Pads


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Softmax(Plain):
    """Softmax over the channels of each pixel. ``exponents`` (256,) has e to the minus ``d`` input steps at ``d``, in
    units small enough that the sum of all channels fits 32 bits; ``output_scale`` is in units of 2**-32."""

    exponents: UInt32Array
    output_scale: int


AnyLayer = Conv2d | Dense | Add | Rescale | MaxPool | AvgPool | Plain


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """A network in execution order. ``digest`` is the SHA-256 (hex) of the ONNX file it came from."""

    tensors: dict[str, Tensor]
    layers: tuple[AnyLayer, ...]
    input: str
    output: str
    digest: str

    @property
    def input_tensor(self) -> Tensor:
        return self.tensors[self.input]

    @property
    def output_tensor(self) -> Tensor:
        return self.tensors[self.output]


def op_name(layer: AnyLayer) -> str:
    """The word used in symbols: the record's name in small letters; of convolutions in groups, ``dwconv2d`` where every
    output channel sees the input channel of the same number, ``gconv2d`` the others; ``conv2d_add`` with an addition.
    """
    if isinstance(layer, Conv2d) and layer.groups > 1:
        return "dwconv2d" if layer.weights.shape[3] == 1 and len(layer.weights) == layer.groups else "gconv2d"
    if isinstance(layer, Conv2d) and layer.addition is not None:
        return "conv2d_add"
    return type(layer).__name__.lower()


def layer_symbol(prefix: str, index: int, layer: AnyLayer) -> str:
    """The C function of a layer: ``edgefront_layer_03_conv2d``."""
    return f"{prefix}_layer_{index:02d}_{op_name(layer)}"
