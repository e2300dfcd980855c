"""From a PyTorch module straight to ONNX, for the operators that the compiler knows.

PyTorch's own exporter handles anything but takes a second a network (and four the first time), longer than everything
else the gate does; this takes milliseconds. What it does not know it refuses with ``NotTraceable``, and
:mod:`tasks.quant.export` then asks PyTorch's.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional

from tasks.quant.writer import CallHandler, Handlers, LayerHandler, NotTraceable, Writer, shape_of

_BATCH_SIZE = object()  # stands for ``x.size(0)`` and ``x.shape[0]``
_SHAPE = object()  # stands for ``x.shape``

_CONVS = (nn.Conv1d, nn.Conv2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def trace_onnx(module: nn.Module, example: Tensor) -> onnx.ModelProto:
    """The network in evaluation mode as a float ONNX model with a free batch size.

    Shapes: example (n, C, L), (n, C, H, W) or (n, k).

    Raises:
        NotTraceable: an operator or a use of one is not known here.
    """
    try:
        traced = fx.symbolic_trace(module.eval())
        with torch.no_grad():
            ShapeProp(traced).propagate(example)
    except Exception as error:  # tracing runs the user's code, which may do anything
        raise NotTraceable(f"cannot be traced: {error}") from error
    return Writer(traced, HANDLERS).model(example)


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _each(value: Any, n: int) -> list[int]:
    """One number a spatial dimension."""
    values = list(value) if isinstance(value, tuple | list) else [value] * n
    if len(values) != n or not all(isinstance(item, int) for item in values):
        raise NotTraceable(f"{value!r} is not {n} whole numbers")
    return values


def _array(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array


def _conv(writer: Writer, node: fx.Node, layer: nn.Module) -> str:
    assert isinstance(layer, _CONVS)
    if layer.padding_mode != "zeros":
        raise NotTraceable(f"convolution with padding mode {layer.padding_mode}")
    n = len(layer.kernel_size)
    if isinstance(layer.padding, str):
        spans = [
            d * (k - 1) if layer.padding == "same" else 0
            for d, k in zip(layer.dilation, layer.kernel_size, strict=True)
        ]
        pads = [span // 2 for span in spans] + [span - span // 2 for span in spans]
    else:
        pads = _each(layer.padding, n) * 2
    weight, bias, source = _folded(writer, node, layer)
    name = source.name
    inputs = [writer.read(node.args[0]), writer.weight(f"{name}.weight", weight), writer.weight(f"{name}.bias", bias)]
    result = writer.write(
        "Conv",
        source,
        inputs,
        kernel_shape=list(layer.kernel_size),
        strides=list(layer.stride),
        dilations=list(layer.dilation),
        pads=pads,
        group=layer.groups,
    )
    writer.values[source] = result
    return result


def _linear(writer: Writer, node: fx.Node, layer: nn.Module) -> str:
    assert isinstance(layer, nn.Linear)
    if len(shape_of(node.args[0])) != 2:
        raise NotTraceable(f"dense layer on inputs of shape {shape_of(node.args[0])}")
    weight, bias, source = _folded(writer, node, layer)
    name = source.name
    inputs = [writer.read(node.args[0]), writer.weight(f"{name}.weight", weight), writer.weight(f"{name}.bias", bias)]
    result = writer.write("Gemm", source, inputs, transB=1)
    writer.values[source] = result
    return result


def _folded(
    writer: Writer, node: fx.Node, layer: nn.Conv1d | nn.Conv2d | nn.Linear
) -> tuple[NDArray[Any], NDArray[Any], fx.Node]:
    """Weights and bias of a layer with the batch norm after it folded in, and the node that gives the result."""
    weight = _array(layer.weight).astype(np.float64)
    bias = np.zeros(len(weight)) if layer.bias is None else _array(layer.bias).astype(np.float64)
    users = list(node.users)
    last = node
    if (
        len(users) == 1
        and users[0].op == "call_module"
        and isinstance(norm := writer.modules[str(users[0].target)], _NORMS)
    ):
        scale, offset = _norm_factors(norm)
        weight = weight * scale.reshape(-1, *([1] * (weight.ndim - 1)))
        bias = bias * scale + offset
        last = users[0]
        writer.folded.add(last)
    return weight.astype(np.float32), bias.astype(np.float32), last


def _norm_factors(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Batch norm as ``scale * x + offset``, each (C,)."""
    if norm.running_mean is None or norm.running_var is None:
        raise NotTraceable("batch norm without running statistics")
    mean, variance = _array(norm.running_mean).astype(np.float64), _array(norm.running_var).astype(np.float64)
    gain = np.ones_like(mean) if norm.weight is None else _array(norm.weight).astype(np.float64)
    shift = np.zeros_like(mean) if norm.bias is None else _array(norm.bias).astype(np.float64)
    scale = gain / np.sqrt(variance + norm.eps)
    return scale, shift - mean * scale


def _norm(writer: Writer, node: fx.Node, layer: nn.Module) -> str:
    """A batch norm that no layer could take in becomes a 1x1 depthwise convolution."""
    assert isinstance(layer, _NORMS)
    n = len(shape_of(node)) - 2
    if n < 1:
        raise NotTraceable("batch norm on vectors that follows no dense layer")
    scale, offset = _norm_factors(layer)
    weight = writer.weight(f"{node.name}.weight", scale.reshape(-1, 1, *([1] * n)).astype(np.float32))
    bias = writer.weight(f"{node.name}.bias", offset.astype(np.float32))
    inputs = [writer.read(node.args[0]), weight, bias]
    return writer.write("Conv", node, inputs, kernel_shape=[1] * n, group=len(scale))


def _relu(writer: Writer, node: fx.Node, layer: nn.Module | None = None) -> str:
    return writer.write("Relu", node, [writer.read(node.args[0])])


def _clip(writer: Writer, node: fx.Node, low: float, high: float) -> str:
    bounds = [writer.weight(f"{node.name}.{key}", np.float32(value)) for key, value in (("low", low), ("high", high))]  # type: ignore[arg-type]
    return writer.write("Clip", node, [writer.read(node.args[0]), *bounds])


def _relu6(writer: Writer, node: fx.Node, layer: nn.Module | None = None) -> str:
    return _clip(writer, node, 0.0, 6.0)


def _hardtanh(writer: Writer, node: fx.Node, layer: nn.Module) -> str:
    assert isinstance(layer, nn.Hardtanh)
    return _clip(writer, node, float(layer.min_val), float(layer.max_val))


def _same(writer: Writer, node: fx.Node, layer: nn.Module | None = None) -> str:
    """Dropout and identity do nothing in evaluation mode."""
    return writer.read(node.args[0])


def _max_pool_layer(writer: Writer, node: fx.Node, layer: nn.Module) -> str:
    assert isinstance(layer, nn.MaxPool1d | nn.MaxPool2d)
    if layer.return_indices:
        raise NotTraceable("max pooling that gives indices")
    how = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)
    return _max_pool(writer, node, *how)


def _max_pool_call(writer: Writer, node: fx.Node) -> str:
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    defaults = (None, None, 0, 1, False)
    return _max_pool(
        writer,
        node,
        *(_argument(node, i + 1, name, d) for i, (name, d) in enumerate(zip(names, defaults, strict=True))),
    )


def _max_pool(writer: Writer, node: fx.Node, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: Any) -> str:
    n = len(shape_of(node)) - 2
    if any(item != 1 for item in _each(dilation, n)):
        raise NotTraceable("dilated max pooling")
    sizes = {"kernel_shape": _each(kernel, n), "strides": _each(stride or kernel, n), "pads": _each(padding, n) * 2}
    return writer.write("MaxPool", node, [writer.read(node.args[0])], **sizes, ceil_mode=int(bool(ceil)))


def _average_pool_layer(writer: Writer, node: fx.Node, layer: nn.Module) -> str:
    assert isinstance(layer, nn.AvgPool1d | nn.AvgPool2d)
    if getattr(layer, "divisor_override", None) is not None:
        raise NotTraceable("average pooling with its own divisor")
    how = (layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode, layer.count_include_pad)
    return _average_pool(writer, node, *how)


def _average_pool_call(writer: Writer, node: fx.Node) -> str:
    if _argument(node, 6, "divisor_override") is not None:
        raise NotTraceable("average pooling with its own divisor")
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
    defaults = (None, None, 0, False, True)
    return _average_pool(
        writer,
        node,
        *(_argument(node, i + 1, name, d) for i, (name, d) in enumerate(zip(names, defaults, strict=True))),
    )


def _average_pool(writer: Writer, node: fx.Node, kernel: Any, stride: Any, padding: Any, ceil: Any, pad: Any) -> str:
    n = len(shape_of(node)) - 2
    sizes = {"kernel_shape": _each(kernel, n), "strides": _each(stride or kernel, n), "pads": _each(padding, n) * 2}
    flags = {"ceil_mode": int(bool(ceil)), "count_include_pad": int(bool(pad))}
    return writer.write("AveragePool", node, [writer.read(node.args[0])], **sizes, **flags)


def _global_pool(writer: Writer, node: fx.Node, layer: nn.Module | None = None) -> str:
    size: Any = layer.output_size if layer is not None else _argument(node, 1, "output_size")
    if any(item != 1 for item in (size if isinstance(size, tuple | list) else (size,))):
        raise NotTraceable(f"adaptive pooling to {size}")
    return writer.write("GlobalAveragePool", node, [writer.read(node.args[0])])


def _mean(writer: Writer, node: fx.Node) -> str:
    """The mean over all of space is a global average pool."""
    rank = len(shape_of(node.args[0]))
    axes = _argument(node, 1, "dim")
    axes = [axes] if isinstance(axes, int) else list(axes or [])
    if sorted(axis % rank for axis in axes) != list(range(2, rank)) or rank < 3:
        raise NotTraceable(f"mean over {axes}")
    if _argument(node, 2, "keepdim", False):
        return writer.write("GlobalAveragePool", node, [writer.read(node.args[0])])
    pooled = f"{node.name}_pooled"
    writer.nodes.append(helper.make_node("GlobalAveragePool", [writer.read(node.args[0])], [pooled], name=pooled))
    return writer.write("Flatten", node, [pooled], axis=1)


def _add(writer: Writer, node: fx.Node) -> str:
    left, right = node.args[0], _argument(node, 1, "other")
    if shape_of(left) != shape_of(right) or node.kwargs.get("alpha", 1) != 1:
        raise NotTraceable("addition of different shapes")
    return writer.write("Add", node, [writer.read(left), writer.read(right)])


def _flatten_layer(writer: Writer, node: fx.Node, layer: nn.Module) -> str:
    assert isinstance(layer, nn.Flatten)
    return _flatten(writer, node, layer.start_dim, layer.end_dim)


def _flatten_call(writer: Writer, node: fx.Node) -> str:
    return _flatten(writer, node, _argument(node, 1, "start_dim", 0), _argument(node, 2, "end_dim", -1))


def _flatten(writer: Writer, node: fx.Node, start: int, end: int) -> str:
    if start != 1 or end not in (-1, len(shape_of(node.args[0])) - 1):
        raise NotTraceable(f"flatten from {start} to {end}")
    return writer.write("Flatten", node, [writer.read(node.args[0])], axis=1)


def _reshape(writer: Writer, node: fx.Node) -> str:
    """``x.view(x.size(0), -1)`` is a flatten; no other reshape is known here."""
    sizes = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], tuple | list) else node.args[1:]
    rest = math.prod(shape_of(node.args[0])[1:])
    is_flatten = (
        len(sizes) == 2
        and isinstance(sizes[0], fx.Node)
        and writer.values.get(sizes[0]) is _BATCH_SIZE
        and sizes[1] in (-1, rest)
    )
    if not is_flatten:
        raise NotTraceable("reshape other than to (n, -1)")
    return writer.write("Flatten", node, [writer.read(node.args[0])], axis=1)


def _size(writer: Writer, node: fx.Node) -> object:
    axis = _argument(node, 1, "dim")
    if axis not in (None, 0):
        raise NotTraceable(f"size of axis {axis}")
    return _SHAPE if axis is None else _BATCH_SIZE


def _get_attribute(writer: Writer, node: fx.Node) -> object:
    if node.args[1] != "shape":
        raise NotTraceable(f"attribute {node.args[1]}")
    return _SHAPE


def _get_item(writer: Writer, node: fx.Node) -> object:
    if not isinstance(node.args[0], fx.Node) or writer.values.get(node.args[0]) is not _SHAPE or node.args[1] != 0:
        raise NotTraceable("indexing")
    return _BATCH_SIZE


_LAYERS: tuple[tuple[tuple[type[nn.Module], ...], LayerHandler], ...] = (
    (_CONVS, _conv),
    (_NORMS, _norm),
    ((nn.Linear,), _linear),
    ((nn.ReLU,), _relu),
    ((nn.ReLU6,), _relu6),
    ((nn.Hardtanh,), _hardtanh),
    ((nn.MaxPool1d, nn.MaxPool2d), _max_pool_layer),
    ((nn.AvgPool1d, nn.AvgPool2d), _average_pool_layer),
    ((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d), _global_pool),
    ((nn.Flatten,), _flatten_layer),
    ((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d), _same),
)
_FUNCTIONS: Mapping[Any, CallHandler] = {
    operator.add: _add,
    operator.iadd: _add,
    torch.add: _add,
    torch.relu: _relu,
    functional.relu: _relu,
    functional.relu6: _relu6,
    functional.dropout: _same,
    functional.max_pool1d: _max_pool_call,
    functional.max_pool2d: _max_pool_call,
    functional.avg_pool1d: _average_pool_call,
    functional.avg_pool2d: _average_pool_call,
    functional.adaptive_avg_pool1d: _global_pool,
    functional.adaptive_avg_pool2d: _global_pool,
    torch.mean: _mean,
    torch.flatten: _flatten_call,
    torch.reshape: _reshape,
    getattr: _get_attribute,
    operator.getitem: _get_item,
}
_METHODS: Mapping[Any, CallHandler] = {
    "add": _add,
    "relu": _relu,
    "mean": _mean,
    "flatten": _flatten_call,
    "view": _reshape,
    "reshape": _reshape,
    "size": _size,
    "contiguous": _same,
}
HANDLERS = Handlers(_LAYERS, _FUNCTIONS, _METHODS)
