"""One function an ONNX operator: the call in, the value of its output out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tasks.firmware import onnx_elementwise
from tasks.firmware.ir import Int8Array, Pads, Tensor, Window
from tasks.firmware.onnx_values import (
    Activation,
    AnyValue,
    Call,
    Constant,
    Dims,
    Pending,
    QuantisedConstant,
    pending,
    physical_shape,
)
from tasks.firmware.quantised import (
    AnyNode,
    AveragePool,
    Bounds,
    Convolution,
    FloatArray,
    FullyConnected,
    IntArray,
    MaximumPool,
    Requantisation,
)

Handler = Callable[[Call], AnyValue]


def convolution(call: Call) -> AnyValue:
    source = call.activation()
    rank = len(source.dims) - 1
    if rank not in (1, 2) or source.is_flat:
        raise call.refuse(f"its input has shape {source.dims}", "1-D and 2-D convolutions can be compiled")
    weights, scales = _weights(call, axis=0)
    if rank == 1:
        weights = weights[:, :, np.newaxis, :]
    groups = int(call.attributes.get("group", 1))
    channels = source.dims[0]
    if weights.shape[1] * groups != channels or len(weights) % groups:
        raise call.refuse(
            f"weights {weights.shape} with {groups} groups do not match {channels} channels", "fix the model"
        )
    window = _window(call, source, weights.shape[2:])
    height, width, _ = physical_shape(source.dims)
    dims = _spatial_dims(call, rank, len(weights), window.output_size(height, width))
    bias = _bias(call, len(weights), source.tensor.scale * scales)

    def make(target: Tensor, bounds: Bounds) -> list[AnyNode]:
        return [
            Convolution(
                name=call.name,
                inputs=(source.tensor.name,),
                output=target.name,
                bounds=bounds,
                window=window,
                groups=groups,
                weights=weights,
                scales=scales,
                bias=bias,
            )
        ]

    return pending(call, dims, make)


def gemm(call: Call) -> AnyValue:
    if (
        call.attributes.get("alpha", 1.0) != 1.0
        or call.attributes.get("beta", 1.0) != 1.0
        or call.attributes.get("transA")
    ):
        raise call.refuse("alpha, beta or transA is not the default", "fold the factors into the weights")
    transposed = bool(call.attributes.get("transB", 0))
    weights, scales = _weights(call, axis=0 if transposed else 1)
    return _fully_connected(call, weights if transposed else weights.T, scales)


def matmul(call: Call) -> AnyValue:
    weights, scales = _weights(call, axis=1)
    return _fully_connected(call, weights.T, scales)


def _fully_connected(call: Call, weights: Int8Array, scales: FloatArray) -> Pending:
    source = call.activation()
    if len(source.dims) != 1 or weights.ndim != 2 or weights.shape[1] != source.dims[0]:
        raise call.refuse(f"weights {weights.shape} do not match an input of {source.dims}", "flatten the input first")
    bias = _bias(call, len(weights), source.tensor.scale * scales)

    def make(target: Tensor, bounds: Bounds) -> list[AnyNode]:
        return [
            FullyConnected(
                name=call.name,
                inputs=(source.tensor.name,),
                output=target.name,
                bounds=bounds,
                weights=np.ascontiguousarray(weights),
                scales=scales,
                bias=bias,
                channels_first=source.is_flat,
            )
        ]

    return pending(call, (len(weights),), make)


def clip(call: Call) -> AnyValue:
    low, high = call.optional_constant(1), call.optional_constant(2)
    low_value = float(call.attributes.get("min", -np.inf) if low is None else low)
    high_value = float(call.attributes.get("max", np.inf) if high is None else high)
    if low_value > high_value:
        raise call.refuse(f"its minimum {low_value} is above its maximum {high_value}", "exchange them")
    return _bounded(call, Bounds(low=low_value, high=high_value))


def relu(call: Call) -> AnyValue:
    return _bounded(call, Bounds(low=0.0))


def _bounded(call: Call, bounds: Bounds) -> AnyValue:
    value = call.inputs[0]
    return value.clipped(bounds) if isinstance(value, Pending) else onnx_elementwise.requantised(call).clipped(bounds)


def max_pool(call: Call) -> AnyValue:
    source = call.activation()
    window = _pool_window(call, source)
    height, width, channels = physical_shape(source.dims)
    dims = _spatial_dims(call, len(source.dims) - 1, channels, window.output_size(height, width))
    return pending(call, dims, _maximum(call, source, window))


def global_max_pool(call: Call) -> AnyValue:
    source = call.activation()
    ones = (1,) * (len(source.dims) - 1)
    return pending(call, (source.dims[0], *ones), _maximum(call, source, _whole_window(call, source)))


def reduce_max(call: Call) -> AnyValue:
    source = call.activation()
    dims = _reduced_dims(call, source)
    return pending(call, dims, _maximum(call, source, _whole_window(call, source)))


def _maximum(call: Call, source: Activation, window: Window) -> Callable[[Tensor, Bounds], list[AnyNode]]:
    def make(target: Tensor, bounds: Bounds) -> list[AnyNode]:
        inputs = (source.tensor.name,)
        if (target.scale, target.zero_point) == (source.tensor.scale, source.tensor.zero_point):
            return [MaximumPool(name=call.name, inputs=inputs, output=target.name, bounds=bounds, window=window)]
        return [
            MaximumPool(name=call.name, inputs=inputs, output=f"{target.name}/pooled", window=window),
            Requantisation(name=call.name, inputs=(f"{target.name}/pooled",), output=target.name, bounds=bounds),
        ]

    return make


def average_pool(call: Call) -> AnyValue:
    source = call.activation()
    window = _pool_window(call, source)
    pads = window.pads
    counts = bool(call.attributes.get("count_include_pad", 0)) or pads == source.pads
    height, width, channels = physical_shape(source.dims)
    dims = _spatial_dims(call, len(source.dims) - 1, channels, window.output_size(height, width))
    return pending(call, dims, _average(call, source, window, counts_padding=counts))


def global_average_pool(call: Call) -> AnyValue:
    source = call.activation()
    ones = (1,) * (len(source.dims) - 1)
    return pending(call, (source.dims[0], *ones), _average_all(call, source))


def reduce_mean(call: Call) -> AnyValue:
    source = call.activation()
    dims = _reduced_dims(call, source)
    return pending(call, dims, _average_all(call, source))


def _reduced_dims(call: Call, source: Activation) -> Dims:
    """Dimensions after a reduction over all spatial axes."""
    axes = call.optional_constant(1)
    given = call.attributes.get("axes", []) if axes is None else axes.ravel().tolist()
    rank = len(source.dims) + 1
    if sorted(int(axis) % rank for axis in given) != list(range(2, rank)) or rank == 2:
        word = "mean" if call.operator == "ReduceMean" else "maximum"
        raise call.refuse(
            f"it reduces axes {list(given)} of {rank}", f"only the {word} over all spatial axes is compiled"
        )
    ones = (1,) * (rank - 2) if call.attributes.get("keepdims", 1) else ()
    return (source.dims[0], *ones)


def _average_all(call: Call, source: Activation) -> Callable[[Tensor, Bounds], list[AnyNode]]:
    return _average(call, source, _whole_window(call, source), counts_padding=True)


def _whole_window(call: Call, source: Activation) -> Window:
    if len(source.dims) < 2 or source.is_flat:
        raise call.refuse(f"its input has shape {source.dims}", "reduce pixels before flattening")
    height, width, _ = physical_shape(source.dims)
    return Window(kernel=(height, width))


def _average(
    call: Call, source: Activation, window: Window, *, counts_padding: bool
) -> Callable[[Tensor, Bounds], list[AnyNode]]:
    def make(target: Tensor, bounds: Bounds) -> list[AnyNode]:
        return [
            AveragePool(
                name=call.name,
                inputs=(source.tensor.name,),
                output=target.name,
                bounds=bounds,
                window=window,
                count_padding=counts_padding,
            )
        ]

    return make


def pad(call: Call) -> AnyValue:
    source = call.activation()
    amounts = call.optional_constant(1)
    fill = call.optional_constant(2)
    if str(call.attributes.get("mode", "constant")) != "constant" or (fill is not None and np.any(fill != 0)):
        raise call.refuse("it pads with something other than zeros", "pad with zeros")
    if amounts is None or call.optional_constant(3) is not None or len(source.dims) < 2 or source.is_flat:
        raise call.refuse("its form is not known", "pad pixels by constant amounts for all axes")
    before, after = np.split(amounts.astype(int).ravel(), 2)
    if before[:2].any() or after[:2].any() or min(before.min(), after.min()) < 0:
        raise call.refuse("it pads the batch or the channels, or crops", "pad pixels only")
    new = _pads(before[2:].tolist(), after[2:].tolist())
    return Activation(tensor=source.tensor, dims=source.dims, is_real=True, pads=_sum_pads(source.pads, new))


def takes_padding_in(operator: str, attributes: Mapping[str, Any], pads: Pads, *, is_never_negative: bool) -> bool:
    """Whether a layer reads an input with ``pads`` zeros around it as if it had a padding of its own.

    An average does where it counts the padding; a maximum where no number is below zero, so that a zero never wins.
    """
    if operator == "Conv":
        return True
    own = [int(amount) for amount in attributes.get("pads", [0])]
    if operator == "AveragePool":
        fits = not any(own) or bool(attributes.get("count_include_pad", 0))
    else:
        fits = operator == "MaxPool" and is_never_negative and not any(own)
    if not fits or attributes.get("ceil_mode", 0) or str(attributes.get("auto_pad", "NOTSET")) != "NOTSET":
        return False
    reach_y, reach_x = _reach(Window(kernel=_pair(attributes["kernel_shape"])))
    most = max(own)
    return max(pads.top, pads.bottom) + most < reach_y and max(pads.left, pads.right) + most < reach_x


def passed(call: Call) -> AnyValue:
    """Identity and Dropout."""
    value = call.inputs[0]
    if value is None:
        raise call.refuse("its input is missing", "fix the model")
    return value


def constant(call: Call) -> AnyValue:
    value = call.attributes.get("value")
    if not isinstance(value, np.ndarray):
        raise call.refuse("it holds no tensor", "use a constant with a tensor value")
    return Constant(array=value)


def _weights(call: Call, axis: int) -> tuple[Int8Array, FloatArray]:
    """int8 weights and one scale for each of their outputs, which lie along ``axis``."""
    value = call.inputs[1]
    if not isinstance(value, QuantisedConstant):
        raise call.refuse("its weights are no int8 constant", "quantise the weights (QDQ, per channel, symmetric)")
    integers, n_outputs = value.integers, value.integers.shape[axis]
    if value.scales.size not in (1, n_outputs) or (value.scales.size > 1 and value.axis != axis):
        raise call.refuse(f"its weights are scaled along axis {value.axis}", f"scale them along axis {axis}")
    if integers.min() < -128 or integers.max() > 127:
        raise call.refuse("its weights are wider than int8", "quantise the weights to int8 with zero point 0")
    return integers.astype(np.int8), np.broadcast_to(value.scales.ravel(), (n_outputs,)).astype(np.float64)


def _bias(call: Call, n_outputs: int, scales: FloatArray) -> IntArray:
    """The bias in units of ``scales``. Integers already in those units are taken as they are: reals would lose bits."""
    if len(call.inputs) < 3 or call.inputs[2] is None:
        return np.zeros(n_outputs, np.int64)
    value = call.inputs[2]
    if isinstance(value, QuantisedConstant) and np.allclose(value.scales.ravel(), scales, rtol=1e-5, atol=0):
        return np.broadcast_to(value.integers.ravel(), (n_outputs,)).astype(np.int64)
    reals = np.broadcast_to(np.asarray(call.constant(2), np.float64).ravel(), (n_outputs,))
    return np.floor(reals / scales + 0.5).astype(np.int64)


def _window(call: Call, source: Activation, kernel: tuple[int, ...]) -> Window:
    """The window of a convolution or pool, a 1-D one lying along the width."""
    rank = len(source.dims) - 1
    strides = _pair(call.attributes.get("strides", [1] * rank))
    dilations = _pair(call.attributes.get("dilations", [1] * rank))
    sizes = kernel if len(kernel) == 2 else (1, kernel[0])
    height, width, _ = physical_shape(source.dims)
    mode = str(call.attributes.get("auto_pad", "NOTSET"))
    given = call.attributes.get("pads", [0] * 2 * rank)
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        vertical = _same(height, sizes[0], strides[0], dilations[0], mode)
        horizontal = _same(width, sizes[1], strides[1], dilations[1], mode)
        pads = Pads(top=vertical[0], bottom=vertical[1], left=horizontal[0], right=horizontal[1])
    else:
        pads = _pads(list(given[:rank]), list(given[rank:]))
    if min(pads.top, pads.left, pads.bottom, pads.right) < 0:
        raise call.refuse(f"its padding {list(given)} is negative", "crop before the layer")
    return Window(
        kernel=(int(sizes[0]), int(sizes[1])), stride=strides, dilation=dilations, pads=_sum_pads(pads, source.pads)
    )


def _pool_window(call: Call, source: Activation) -> Window:
    if source.is_flat or len(source.dims) < 2:
        raise call.refuse(f"its input has shape {source.dims}", "pool pixels, before flattening")
    window = _window(call, source, tuple(call.attributes["kernel_shape"]))
    if call.attributes.get("ceil_mode", 0):
        window = _ceiled(call, source, window)
    pads, (reach_y, reach_x) = window.pads, _reach(window)
    if max(pads.top, pads.bottom) >= reach_y or max(pads.left, pads.right) >= reach_x:
        raise call.refuse("a window would hold nothing but padding", "use less padding than the window is wide")
    return window


def _ceiled(call: Call, source: Activation, window: Window) -> Window:
    """``ceil_mode`` as more padding at the end, which a maximum ignores."""
    height, width, _ = physical_shape(source.dims)
    reach, pads = _reach(window), window.pads
    bottom = _ceil_pad(height, reach[0], window.stride[0], pads.top, pads.bottom)
    right = _ceil_pad(width, reach[1], window.stride[1], pads.left, pads.right)
    wider = Pads(top=pads.top, left=pads.left, bottom=max(bottom, pads.bottom), right=max(right, pads.right))
    if wider != pads and call.operator != "MaxPool":
        raise call.refuse(
            "ceil_mode lets windows reach past the padded input", "set ceil_mode to 0 or choose sizes that divide"
        )
    return Window(kernel=window.kernel, stride=window.stride, dilation=window.dilation, pads=wider)


def _ceil_pad(size: int, reach: int, stride: int, before: int, after: int) -> int:
    count = math.ceil((size + before + after - reach) / stride) + 1
    if (count - 1) * stride >= size + before:  # a window may not start in the padding at the end
        count -= 1
    return (count - 1) * stride + reach - size - before


def _reach(window: Window) -> tuple[int, int]:
    return (
        window.dilation[0] * (window.kernel[0] - 1) + 1,
        window.dilation[1] * (window.kernel[1] - 1) + 1,
    )


def _same(size: int, kernel: int, stride: int, dilation: int, mode: str) -> tuple[int, int]:
    total = max((math.ceil(size / stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    less, more = total // 2, total - total // 2
    return (less, more) if mode == "SAME_UPPER" else (more, less)


def _pair(values: Any) -> tuple[int, int]:
    numbers = [int(value) for value in values]
    return (1, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])


def _pads(before: list[int], after: list[int]) -> Pads:
    if len(before) == 1:
        before, after = [0, *before], [0, *after]
    return Pads(top=before[0], left=before[1], bottom=after[0], right=after[1])


def _sum_pads(first: Pads, second: Pads) -> Pads:
    return Pads(
        top=first.top + second.top,
        left=first.left + second.left,
        bottom=first.bottom + second.bottom,
        right=first.right + second.right,
    )


def _spatial_dims(call: Call, rank: int, channels: int, size: tuple[int, int]) -> Dims:
    if min(size) < 1:
        raise call.refuse(
            "its window is larger than its padded input", "use a smaller kernel or fewer strides before it"
        )
    return (channels, size[1]) if rank == 1 else (channels, *size)


HANDLERS: dict[str, Handler] = {
    **onnx_elementwise.HANDLERS,
    "AveragePool": average_pool,
    "Clip": clip,
    "Constant": constant,
    "Conv": convolution,
    "Dropout": passed,
    "Gemm": gemm,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "Identity": passed,
    "MatMul": matmul,
    "MaxPool": max_pool,
    "Pad": pad,
    "ReduceMax": reduce_max,
    "ReduceMean": reduce_mean,
    "Relu": relu,
}

REMEDIES = {
    "BatchNormalization": "fold it into the layer before it, before quantising "
    "(torch.nn.utils.fusion: fuse_conv_bn_eval, fuse_linear_bn_eval)",
    "GroupNormalization": "use batch normalisation, which folds into the layer before it",
    "LayerNormalization": "use batch normalisation, which folds into the layer before it",
    "InstanceNormalization": "use batch normalisation, which folds into the layer before it",
    "LogSoftmax": "leave it out: the largest class stays the same",
    "PRelu": "use a leaky relu, whose slope is one number",
    "Pow": "multiply the tensor by itself",
    "Transpose": "keep the channels first",
}
