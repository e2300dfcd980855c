"""What the importer knows about each name of an ONNX graph while it walks over the nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.firmware.errors import Unsupported
from tasks.firmware.ir import Pads, Tensor
from tasks.firmware.quantised import AnyNode, Bounds, FloatArray, RealFunction

Dims = tuple[int, ...]
NO_PADS, NO_BOUNDS = Pads(), Bounds()


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant:
    """An initialiser, or a constant computed from one."""

    array: NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantisedConstant:
    """Integers behind a DequantizeLinear; ``scales`` has one element, or one for each index along ``axis``."""

    integers: NDArray[np.int64]
    scales: FloatArray
    axis: int

    @property
    def reals(self) -> FloatArray:
        if self.scales.size == 1:
            return self.integers * self.scales.reshape(())
        shape = [1] * self.integers.ndim
        shape[self.axis] = -1
        return self.integers * self.scales.reshape(shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class RealInput:
    """The graph's real-valued input before its QuantizeLinear; ``dims`` without the batch, channels first."""

    dims: Dims


@dataclass(frozen=True, kw_only=True, slots=True)
class Activation:
    """A tensor of the network as one node sees it. ``dims``: without the batch, channels first; ``is_real``: behind a
    DequantizeLinear; ``is_flat``: flattened from more than one pixel, so that its order is C, H, W and not ours;
    ``pads``: zeros that a Pad node put around it."""

    tensor: Tensor
    dims: Dims
    is_real: bool
    is_flat: bool = False
    pads: Pads = NO_PADS


@dataclass(frozen=True, kw_only=True, slots=True)
class Mapped:
    """A real tensor that is ``function`` of each number of ``source`` by itself."""

    source: Activation
    function: RealFunction

    def then(self, outer: RealFunction) -> Mapped:
        inner = self.function
        return Mapped(source=self.source, function=lambda x: outer(inner(x)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Pending:
    """A real result that waits for its QuantizeLinear; ``make`` gives the nodes once the output's tensor is known.
    ``physical`` is the (H, W, C) shape of that tensor; ``mapped``: what it is of one activation before the bounds, if
    it depends on each number alone."""

    operator: str
    node: str
    dims: Dims
    physical: tuple[int, int, int]
    make: Callable[[Tensor, Bounds], list[AnyNode]]
    bounds: Bounds = NO_BOUNDS
    is_flat: bool = False
    mapped: Mapped | None = None

    def clipped(self, bounds: Bounds) -> Pending:
        return replace(self, bounds=self.bounds.intersect(bounds))


AnyValue = Constant | QuantisedConstant | RealInput | Activation | Pending


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One ONNX node with its inputs looked up; absent optional inputs are ``None``."""

    operator: str
    name: str
    inputs: tuple[AnyValue | None, ...]
    output: str
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def refuse(self, reason: str, remedy: str) -> Unsupported:
        return Unsupported(operator=self.operator, node=self.name, reason=reason, remedy=remedy)

    def activation(self, index: int = 0) -> Activation:
        """The int8 activation behind input ``index``.

        Raises:
            Unsupported: that input is a constant, missing, or was never quantised.
        """
        value = self.inputs[index] if index < len(self.inputs) else None
        if isinstance(value, Activation) and value.is_real:
            return value
        if isinstance(value, Pending):
            raise self.refuse(
                f"input {index} comes from {value.operator} {value.node!r} without being quantised",
                "put a QuantizeLinear and a DequantizeLinear between the two",
            )
        raise self.refuse(
            f"input {index} is no quantised activation", "only activations behind DequantizeLinear can be compiled"
        )

    def constant(self, index: int) -> NDArray[Any]:
        """The constant at input ``index``, as reals if it is quantised.

        Raises:
            Unsupported: that input is computed by the network.
        """
        value = self.inputs[index]
        if isinstance(value, QuantisedConstant):
            return value.reals
        if isinstance(value, Constant):
            return value.array
        raise self.refuse(f"input {index} is not constant", "make it an initialiser of the graph")

    def scalar(self, index: int) -> float | None:
        """The constant at input ``index`` if it is a single number."""
        value = self.inputs[index]
        if not isinstance(value, (Constant, QuantisedConstant)):
            return None
        array = self.constant(index)
        return float(array.ravel()[0]) if array.size == 1 else None

    def mapped(self, index: int = 0) -> Mapped:
        """What input ``index`` is of one quantised activation, number by number.

        Raises:
            Unsupported: it is no function of one activation, or was never quantised.
        """
        value = self.inputs[index]
        if isinstance(value, Pending) and value.mapped is not None:
            bounds = value.bounds
            return value.mapped.then(lambda x: np.clip(x, bounds.low, bounds.high))
        return Mapped(source=self.activation(index), function=lambda x: x)

    def optional_constant(self, index: int) -> NDArray[Any] | None:
        if index >= len(self.inputs) or self.inputs[index] is None:
            return None
        return self.constant(index)


def pending(
    call: Call,
    dims: Dims,
    make: Callable[[Tensor, Bounds], list[AnyNode]],
    *,
    like: Activation | None = None,
    mapped: Mapped | None = None,
) -> Pending:
    """The result of ``call``; ``like``: it has the bytes of that activation in the same order."""
    return Pending(
        operator=call.operator,
        node=call.name,
        dims=dims,
        physical=like.tensor.shape if like else physical_shape(dims),
        make=make,
        is_flat=bool(like and like.is_flat),
        mapped=mapped,
    )


def physical_shape(dims: Dims) -> tuple[int, int, int]:
    """(H, W, C) of channels-first ``dims``: (C,), (C, L) or (C, H, W).

    Raises:
        ValueError: there are more than three.
    """
    if len(dims) == 1:
        return (1, 1, dims[0])
    if len(dims) == 2:
        return (1, dims[1], dims[0])
    if len(dims) == 3:
        return (dims[1], dims[2], dims[0])
    raise ValueError(f"a tensor of {len(dims)} dimensions beside the batch")
