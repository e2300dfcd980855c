"""ONNX operators that work number by number or on channels alone: sums, products, activation functions, concatenation
and softmax."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tasks.firmware.ir import Tensor
from tasks.firmware.onnx_values import (
    Activation,
    AnyValue,
    Call,
    Constant,
    Mapped,
    Pending,
    QuantisedConstant,
    pending,
)
from tasks.firmware.quantised import (
    Addition,
    AnyNode,
    Bounds,
    Concatenation,
    Elementwise,
    FloatArray,
    Multiplication,
    RealFunction,
    Requantisation,
    SoftmaxOfChannels,
)

_Operation = Callable[[FloatArray, FloatArray], FloatArray]


def requantised(call: Call, index: int = 0, factor: float = 1.0) -> Pending:
    """The activation at input ``index`` times ``factor`` > 0, on the scale of the output."""
    source = call.activation(index)

    def make(target: Tensor, bounds: Bounds) -> list[AnyNode]:
        inputs = (source.tensor.name,)
        return [Requantisation(name=call.name, inputs=inputs, output=target.name, bounds=bounds, factor=factor)]

    mapped = Mapped(source=source, function=lambda x: x * factor)
    return pending(call, source.dims, make, like=source, mapped=mapped)


def addition(call: Call) -> AnyValue:
    special = _on_one_tensor(call, np.add, "fold the constant into the bias of the layer before (Conv, Gemm)")
    return special or _sum(call, subtracts=False)


def subtraction(call: Call) -> AnyValue:
    special = _on_one_tensor(call, np.subtract, "fold the constant into the bias of the layer before (Conv, Gemm)")
    return special or _sum(call, subtracts=True)


def multiplication(call: Call) -> AnyValue:
    for index in (0, 1):
        factor = call.scalar(index)
        if factor is not None and factor > 0 and isinstance(call.inputs[1 - index], Activation):
            return requantised(call, 1 - index, factor)
    special = _on_one_tensor(call, np.multiply, "fold the factors into the weights of the layer before")
    return special or _product(call)


def division(call: Call) -> AnyValue:
    divisor = call.scalar(1)
    if divisor is None or divisor == 0:
        raise call.refuse("its divisor is not one number other than zero", "divide by a constant number")
    if divisor > 0 and isinstance(call.inputs[0], Activation):
        return requantised(call, 0, 1 / divisor)
    return _tabulated(call, call.mapped(0).then(lambda x: x / divisor))


def _on_one_tensor(call: Call, operation: _Operation, remedy: str) -> Pending | None:
    """``operation`` as a table where only one activation takes part: with a number, or with a function of itself."""
    for index in (0, 1):
        if isinstance(call.inputs[index], (Constant, QuantisedConstant)):
            return _with_constant(call, operation, index, remedy)
    if not any(isinstance(value, Pending) for value in call.inputs):
        return None
    left, right = call.mapped(0), call.mapped(1)
    if left.source != right.source:
        index = next(index for index, value in enumerate(call.inputs) if isinstance(value, Pending))
        call.activation(index)  # refuses: two tensors need bytes each
    both = Mapped(source=left.source, function=lambda x: operation(left.function(x), right.function(x)))
    return _tabulated(call, both)


def _with_constant(call: Call, operation: _Operation, index: int, remedy: str) -> Pending:
    number = call.scalar(index)
    if number is None:
        raise call.refuse("a constant with more than one number takes part", remedy)
    constant = np.float64(number)
    function: RealFunction = (lambda x: operation(constant, x)) if index == 0 else (lambda x: operation(x, constant))  # type: ignore[arg-type]
    return _tabulated(call, call.mapped(1 - index).then(function))


def _tabulated(call: Call, mapped: Mapped) -> Pending:
    source = mapped.source

    def make(target: Tensor, bounds: Bounds) -> list[AnyNode]:
        inputs = (source.tensor.name,)
        return [Elementwise(name=call.name, inputs=inputs, output=target.name, bounds=bounds, function=mapped.function)]

    return pending(call, source.dims, make, like=source, mapped=mapped)


def _sum(call: Call, *, subtracts: bool) -> Pending:
    first, second = call.activation(0), call.activation(1)
    if first.dims != second.dims or first.is_flat != second.is_flat:
        raise call.refuse(
            f"shapes {first.dims} and {second.dims} differ", "broadcasting is not compiled; make them equal"
        )

    def make(target: Tensor, bounds: Bounds) -> list[AnyNode]:
        inputs = (first.tensor.name, second.tensor.name)
        return [Addition(name=call.name, inputs=inputs, output=target.name, bounds=bounds, subtracts=subtracts)]

    return pending(call, first.dims, make, like=first)


def _product(call: Call) -> Pending:
    first, second = call.activation(0), call.activation(1)
    large = second if _weights_channels(first, second) else first
    small = first if large is second else second
    if not _weights_channels(small, large) and (first.dims != second.dims or first.is_flat != second.is_flat):
        raise call.refuse(
            f"shapes {first.dims} and {second.dims} are neither equal nor pixels and one number a channel",
            "multiply equal shapes, or by a tensor of (N, C, 1, 1) or (N, C, 1)",
        )

    def make(target: Tensor, bounds: Bounds) -> list[AnyNode]:
        inputs = (large.tensor.name, small.tensor.name)
        return [Multiplication(name=call.name, inputs=inputs, output=target.name, bounds=bounds)]

    return pending(call, large.dims, make, like=large)


def _weights_channels(small: Activation, large: Activation) -> bool:
    """Whether ``small`` has one number for each channel of ``large``, which has more pixels."""
    rank = len(large.dims)
    return rank > 1 and small.dims == (large.dims[0], *[1] * (rank - 1)) and small.dims != large.dims


def concatenation(call: Call) -> AnyValue:
    sources = [call.activation(index) for index in range(len(call.inputs))]
    first = sources[0]
    rank = len(first.dims) + 1
    if int(call.attributes["axis"]) % rank != 1:
        raise call.refuse(f"it joins axis {call.attributes['axis']} of {rank}", "only channels (axis 1) can be joined")
    if any(source.dims[1:] != first.dims[1:] or len(source.dims) + 1 != rank or source.is_flat for source in sources):
        shapes = ", ".join(str(source.dims) for source in sources)
        raise call.refuse(f"shapes {shapes} differ in their pixels", "join images of one size, before flattening")

    def make(target: Tensor, bounds: Bounds) -> list[AnyNode]:
        inputs = tuple(source.tensor.name for source in sources)
        return [Concatenation(name=call.name, inputs=inputs, output=target.name, bounds=bounds)]

    return pending(call, (sum(source.dims[0] for source in sources), *first.dims[1:]), make)


def softmax(call: Call) -> AnyValue:
    source = call.activation()
    rank = len(source.dims) + 1
    axis = int(call.attributes.get("axis", -1))
    if axis % rank != 1 or source.is_flat:
        raise call.refuse(
            f"it runs over axis {axis} of {rank}", "only a softmax over the channels (axis 1) is compiled"
        )

    def make(target: Tensor, bounds: Bounds) -> list[AnyNode]:
        inputs = (source.tensor.name,)
        return [SoftmaxOfChannels(name=call.name, inputs=inputs, output=target.name, bounds=bounds)]

    return pending(call, source.dims, make, like=source)


def _sigmoid(x: FloatArray) -> FloatArray:
    return 0.5 + 0.5 * np.tanh(0.5 * x)  # no overflow, whatever x


def _hard_sigmoid(x: FloatArray, alpha: float, beta: float) -> FloatArray:
    return np.clip(alpha * x + beta, 0.0, 1.0)


def _hard_swish(x: FloatArray) -> FloatArray:
    return x * _hard_sigmoid(x, 1 / 6, 0.5)


def _activation_function(call: Call) -> RealFunction:
    """The real function of an ONNX activation, its attributes filled in."""
    alpha, beta = call.attributes.get("alpha"), call.attributes.get("beta")
    functions: dict[str, RealFunction] = {
        "Elu": lambda x: np.where(x < 0, (1.0 if alpha is None else alpha) * np.expm1(np.minimum(x, 0.0)), x),
        "HardSigmoid": lambda x: _hard_sigmoid(x, 0.2 if alpha is None else alpha, 0.5 if beta is None else beta),
        "HardSwish": _hard_swish,
        "LeakyRelu": lambda x: np.where(x < 0, (0.01 if alpha is None else alpha) * x, x),
        "Sigmoid": _sigmoid,
        "Tanh": np.tanh,
    }
    return functions[call.operator]


def activation_function(call: Call) -> AnyValue:
    return _tabulated(call, call.mapped().then(_activation_function(call)))


HANDLERS: dict[str, Callable[[Call], AnyValue]] = {
    "Add": addition,
    "Concat": concatenation,
    "Div": division,
    "Mul": multiplication,
    "Softmax": softmax,
    "Sub": subtraction,
    **dict.fromkeys(("Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "Sigmoid", "Tanh"), activation_function),
}
