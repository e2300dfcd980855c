"""ONNX with QuantizeLinear/DequantizeLinear pairs → the quantised network.

Real-valued nodes between a DequantizeLinear and the next QuantizeLinear form one layer. Relu and Clip before that
QuantizeLinear narrow the layer's output range, which is exact because rounding is monotone; anywhere else they become a
rescaling of their own.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from tasks.firmware.errors import FirmwareError, Unsupported
from tasks.firmware.ir import INT8_MAX, INT8_MIN, Tensor
from tasks.firmware.onnx_elementwise import requantised
from tasks.firmware.onnx_ops import HANDLERS, REMEDIES, takes_padding_in
from tasks.firmware.onnx_values import (
    NO_PADS,
    Activation,
    AnyValue,
    Call,
    Constant,
    Dims,
    Pending,
    QuantisedConstant,
    RealInput,
    physical_shape,
)
from tasks.firmware.quantised import AnyNode, MaximumPool, Padding, QuantisedNetwork

_RESHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
# These stay what they are when all their inputs are constants.
_NEVER_FOLDED = ("Constant", "DequantizeLinear", "QuantizeLinear")
# These leave the padding of their input to whoever reads their output.
_CARRY_PADS = ("DequantizeLinear", "Dropout", "Identity", "Pad", "QuantizeLinear")


def import_onnx(data: bytes) -> QuantisedNetwork:
    """Read a QDQ int8 model with one input and one output.

    Raises:
        Unsupported: an operator, or a use of one, that cannot be compiled; names the node and what would work.
        FirmwareError: ``data`` is no ONNX model.
    """
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf raises classes of its own, by implementation
        raise FirmwareError(f"the bytes are no ONNX model: {error}") from error
    opsets = {item.domain: item.version for item in model.opset_import}
    importer = _Importer(model.graph, opsets)
    return importer.finish(hashlib.sha256(data).hexdigest())


class _Importer:
    """Walks the graph once, in its topological order; ``values`` is what is known of each name so far."""

    def __init__(self, graph: Any, opsets: dict[str, int]) -> None:
        self.graph = graph
        self.opsets = opsets
        self.values: dict[str, AnyValue] = {
            item.name: Constant(array=numpy_helper.to_array(item)) for item in graph.initializer
        }
        self.tensors: dict[str, Tensor] = {}
        self.nodes: list[AnyNode] = []
        self.input_name = ""
        self._add_input()
        for number, node in _sorted_nodes(graph, set(self.values)):
            self._visit(node, node.name or f"{node.op_type}_{number}")

    def finish(self, digest: str) -> QuantisedNetwork:
        outputs = [item.name for item in self.graph.output]
        value = self.values.get(outputs[0]) if len(outputs) == 1 else None
        if isinstance(value, Pending) and value.operator == "Softmax":
            raise Unsupported(
                operator=value.operator,
                node=value.node,
                reason="its output is not quantised",
                remedy="leave it out: the largest class stays the same",
            )
        if isinstance(value, Activation):
            value = self._padded(value, "graph", outputs[0])
        if not isinstance(value, Activation) or value.is_flat:
            raise Unsupported(
                operator="graph",
                node=", ".join(outputs),
                reason="the network must have one output, quantised, a vector or an image",
                remedy="end it with QuantizeLinear, and leave out what follows the last layer",
            )
        output = value.tensor.name
        nodes = _reachable(self.nodes, output)
        if not nodes:
            raise Unsupported(
                operator="graph", node=output, reason="it has no layer", remedy="give it at least one layer"
            )
        used = {self.input_name, *(name for node in nodes for name in (*node.inputs, node.output))}
        tensors = {name: tensor for name, tensor in self.tensors.items() if name in used}
        return QuantisedNetwork(
            tensors=tensors, nodes=tuple(nodes), input=self.input_name, output=output, digest=digest
        )

    def _add_input(self) -> None:
        inputs = [item for item in self.graph.input if item.name not in self.values]
        if len(inputs) != 1:
            names = ", ".join(item.name for item in inputs)
            raise Unsupported(
                operator="graph", node=names, reason=f"it has {len(inputs)} inputs", remedy="use one input"
            )
        shape = inputs[0].type.tensor_type.shape.dim
        dims = tuple(int(dim.dim_value) for dim in shape)
        if not 2 <= len(dims) <= 4 or min(dims[1:]) < 1:
            raise Unsupported(
                operator="graph",
                node=inputs[0].name,
                reason=f"the network's input has shape ({', '.join(_dim_text(dim) for dim in shape)})",
                remedy="use a fixed shape (N, C), (N, C, L) or (N, C, H, W)",
            )
        self.values[inputs[0].name] = RealInput(dims=dims[1:])

    def _visit(self, node: Any, name: str) -> None:
        inputs = tuple(self._lookup(key, node, name) for key in node.input)
        attributes = {item.name: _attribute(item) for item in node.attribute}
        if node.op_type not in _CARRY_PADS:
            inputs = tuple(self._readable(value, node.op_type, name, attributes) for value in inputs)
        call = Call(operator=node.op_type, name=name, inputs=inputs, output=node.output[0], attributes=attributes)
        self.values[call.output] = self._folded(call, node) or self._value(call)

    def _folded(self, call: Call, node: Any) -> Constant | None:
        """What ``node`` makes of constants alone: exporters leave shapes and amounts of padding to be worked out."""
        constants = {
            key: value.array for key, value in zip(node.input, call.inputs, strict=True) if isinstance(value, Constant)
        }
        if node.op_type in _NEVER_FOLDED or not constants or set(constants) != set(filter(None, node.input)):
            return None
        try:
            results = ReferenceEvaluator(node, opsets=self.opsets).run(None, constants)
        except Exception as error:  # a node may be of any kind, and onnx raises many kinds of error
            raise call.refuse(
                f"it cannot be worked out from its constants ({error})", "store its result as an initialiser"
            ) from error
        return Constant(array=np.asarray(results[0]))

    def _lookup(self, key: str, node: Any, name: str) -> AnyValue | None:
        if not key:
            return None
        if key not in self.values:
            raise Unsupported(
                operator=node.op_type,
                node=name,
                reason=f"its input {key!r} is unknown",
                remedy="check the model (onnx.checker)",
            )
        return self.values[key]

    def _value(self, call: Call) -> AnyValue:
        if call.operator == "QuantizeLinear":
            return self._quantise(call)
        if call.operator == "DequantizeLinear":
            return _dequantise(call)
        if call.operator in _RESHAPES:
            return _reshape(call)
        if call.operator not in HANDLERS:
            known = ", ".join(sorted([*HANDLERS, *_RESHAPES]))
            raise call.refuse("it cannot be compiled", REMEDIES.get(call.operator, f"these can: {known}"))
        return HANDLERS[call.operator](call)

    def _quantise(self, call: Call) -> AnyValue:
        scale, zero_point = _scalar_quantisation(call)
        value = call.inputs[0]
        if isinstance(value, RealInput):
            if self.input_name:
                raise call.refuse("the input is quantised twice", "quantise the input once")
            self.input_name = call.output
            tensor = self._tensor(call.output, physical_shape(value.dims), scale, zero_point)
            return Activation(tensor=tensor, dims=value.dims, is_real=False)
        if isinstance(value, Constant) and value.array.size == 1:
            return _quantised_number(call, float(value.array.ravel()[0]), scale, zero_point)
        if isinstance(value, (Constant, QuantisedConstant)):
            raise call.refuse("it quantises a constant", "store the constant as integers behind a DequantizeLinear")
        if isinstance(value, Activation):
            if (value.tensor.scale, value.tensor.zero_point) == (scale, zero_point):
                return Activation(
                    tensor=value.tensor, dims=value.dims, is_real=False, is_flat=value.is_flat, pads=value.pads
                )
            padded = self._padded(value, call.operator, call.name)
            value = requantised(replace(call, inputs=(padded, *call.inputs[1:])))
        if value is None:
            raise call.refuse("its input is missing", "fix the model")
        return self._layer(call.output, value, scale, zero_point)

    def _readable(
        self, value: AnyValue | None, operator: str, node: str, attributes: dict[str, Any]
    ) -> AnyValue | None:
        """``value`` without padding that its reader cannot take in."""
        if not isinstance(value, Activation) or value.pads == NO_PADS:
            return value
        is_never_negative = value.tensor.zero_point == INT8_MIN or any(
            made.output == value.tensor.name and made.bounds.low >= 0 for made in self.nodes
        )
        if takes_padding_in(operator, attributes, value.pads, is_never_negative=is_never_negative):
            return value
        return self._padded(value, operator, node)

    def _padded(self, value: Activation, operator: str, node: str) -> Activation:
        """``value`` with its padding in a tensor of its own, for those who cannot read past an edge."""
        if value.pads == NO_PADS:
            return value
        source, pads = value.tensor, value.pads
        if source.shape != physical_shape(value.dims):
            raise Unsupported(
                operator=operator,
                node=node,
                reason=f"it reads a padded {value.dims}, which lies in memory as {source.shape}",
                remedy="pad before reshaping",
            )
        name = f"{source.name}/padded_{pads.top}_{pads.left}_{pads.bottom}_{pads.right}"
        height, width, channels = source.shape
        shape = (height + pads.top + pads.bottom, width + pads.left + pads.right, channels)
        if name not in self.tensors:
            self._tensor(name, shape, source.scale, source.zero_point)
            self.nodes.append(Padding(name=node, inputs=(source.name,), output=name, pads=pads))
        dims = (value.dims[0], shape[1]) if len(value.dims) == 2 else (value.dims[0], *shape[:2])
        return Activation(tensor=self.tensors[name], dims=dims, is_real=value.is_real)

    def _layer(self, output: str, pending: Pending, scale: float, zero_point: int) -> Activation:
        tensor = self._tensor(output, pending.physical, scale, zero_point)
        made = pending.make(tensor, pending.bounds)
        for node in made[:-1]:  # a pool whose rescaling follows: its output keeps the input's scale
            assert isinstance(node, MaximumPool)
            source = self.tensors[node.inputs[0]]
            self._tensor(node.output, pending.physical, source.scale, source.zero_point)
        self.nodes += made
        return Activation(tensor=tensor, dims=pending.dims, is_real=False, is_flat=pending.is_flat)

    def _tensor(self, name: str, shape: tuple[int, int, int], scale: float, zero_point: int) -> Tensor:
        self.tensors[name] = Tensor(name=name, shape=shape, scale=scale, zero_point=zero_point)
        return self.tensors[name]


def _dim_text(dim: Any) -> str:
    return dim.dim_param or str(dim.dim_value)


def _sorted_nodes(graph: Any, known: set[str]) -> list[tuple[int, Any]]:
    """The nodes with their numbers, each after those it depends on: quantisation pairs as soon as they can run, the
    others in the file's order (which decides how much lives at once). Quantisers append their pairs at the end.

    What depends on an unknown name, or on itself, comes last.
    """
    nodes = list(graph.node)
    producer = {name: number for number, node in enumerate(nodes) for name in node.output}
    waits = [{producer[name] for name in node.input if name in producer and name not in known} for node in nodes]
    users: dict[int, list[int]] = {}
    for number, needed in enumerate(waits):
        for other in needed:
            users.setdefault(other, []).append(number)
    heap = [(_rank(nodes[number]), number) for number, needed in enumerate(waits) if not needed]
    heapq.heapify(heap)
    order: list[int] = []
    while heap:
        _, number = heapq.heappop(heap)
        order.append(number)
        for user in users.get(number, []):
            waits[user].discard(number)
            if not waits[user]:
                heapq.heappush(heap, (_rank(nodes[user]), user))
    rest = sorted(set(range(len(nodes))) - set(order))
    return [(number, nodes[number]) for number in [*order, *rest]]


def _rank(node: Any) -> int:
    return 0 if node.op_type in ("QuantizeLinear", "DequantizeLinear") else 1


def _attribute(item: Any) -> Any:
    value = onnx.helper.get_attribute_value(item)
    if isinstance(value, bytes):
        return value.decode()
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _scalar_quantisation(call: Call) -> tuple[float, int]:
    """Scale and int8 zero point of an activation; uint8 is taken as int8 moved by 128."""
    scale = call.constant(1)
    zero_point = call.optional_constant(2)
    if scale.size != 1:
        raise call.refuse("the activation has several scales", "quantise activations per tensor")
    offset, is_unsigned = 0, True  # ONNX: without a zero point the type is uint8
    if zero_point is not None:
        offset, is_unsigned = int(zero_point.ravel()[0]), zero_point.dtype == np.uint8
        if zero_point.dtype not in (np.int8, np.uint8):
            raise call.refuse(f"its type is {zero_point.dtype}", "quantise activations to int8")
    value = float(scale.ravel()[0])
    if not (value > 0 and math.isfinite(value)):
        raise call.refuse(f"its scale is {value}", "calibrate again: a scale must be a positive number")
    return value, offset - 128 if is_unsigned else offset


def _quantised_number(call: Call, number: float, scale: float, zero_point: int) -> Constant:
    """A single real constant as the byte that ONNX makes of it: rounded half to even, saturated."""
    is_signed = len(call.inputs) > 2 and call.constant(2).dtype == np.int8
    byte = float(np.clip(np.rint(np.float32(number) / np.float32(scale)) + zero_point, INT8_MIN, INT8_MAX))
    return Constant(array=np.array(byte, np.int8) if is_signed else np.array(byte - INT8_MIN, np.uint8))


def _dequantised_number(call: Call, integer: NDArray[Any], zero_point: NDArray[Any] | None) -> NDArray[np.float64]:
    offset = 0.0 if zero_point is None else float(zero_point.ravel()[0])
    return (integer.astype(np.float64) - offset) * float(call.constant(1).ravel()[0])


def _dequantise(call: Call) -> AnyValue:
    value = call.inputs[0]
    if isinstance(value, Activation):
        if _scalar_quantisation(call) != (value.tensor.scale, value.tensor.zero_point):
            raise call.refuse(
                "its scale differs from the one the tensor was quantised with", "use the same pair for both"
            )
        return Activation(tensor=value.tensor, dims=value.dims, is_real=True, is_flat=value.is_flat, pads=value.pads)
    if not isinstance(value, Constant) or value.array.dtype not in (np.int8, np.uint8, np.int32):
        raise call.refuse("its input is neither an int8 activation nor an integer constant", "use a QDQ int8 model")
    zero_point: NDArray[Any] | None = call.optional_constant(2)
    if value.array.dtype == np.uint8 or (zero_point is not None and np.any(zero_point != 0)):
        if value.array.size == 1:
            return Constant(array=_dequantised_number(call, value.array, zero_point))
        raise call.refuse("its weights have a zero point", "quantise weights symmetrically (int8, zero point 0)")
    scales = np.asarray(call.constant(1), np.float64).ravel()
    axis = int(call.attributes.get("axis", 1)) % max(value.array.ndim, 1)
    return QuantisedConstant(integers=value.array.astype(np.int64), scales=scales, axis=axis)


def _reshape(call: Call) -> AnyValue:
    """A new view of the same bytes: pixels stay pixels, or everything becomes one vector."""
    value = call.inputs[0]
    if isinstance(value, RealInput):  # nothing is in memory yet
        return RealInput(dims=_new_dims(call, value.dims))
    if not isinstance(value, (Activation, Pending)):
        value = call.activation()
    dims = _new_dims(call, value.dims)
    is_flat = False
    if len(dims) == 1:
        is_flat = value.is_flat or math.prod(value.dims[1:]) > 1
        is_flat = is_flat and value.dims[0] > 1  # one channel: C, H, W and H, W, C are the same order
    else:
        same_pixels = dims[0] == value.dims[0] and _without_ones(dims[1:]) == _without_ones(value.dims[1:])
        if value.is_flat or not same_pixels or len(dims) > 3:
            raise call.refuse(
                f"it turns shape {value.dims} into {dims}", "flatten to a vector, or keep channels and pixels"
            )
    if isinstance(value, Pending):
        return replace(value, dims=dims, is_flat=is_flat, mapped=None)
    return Activation(tensor=value.tensor, dims=dims, is_real=value.is_real, is_flat=is_flat)


def _new_dims(call: Call, dims: Dims) -> Dims:
    """Dimensions after the reshape, without the batch."""
    if call.operator == "Flatten":
        if int(call.attributes.get("axis", 1)) != 1:
            raise call.refuse("its axis is not 1", "flatten everything but the batch")
        return (math.prod(dims),)
    axes = call.optional_constant(1)
    listed = [int(axis) for axis in (call.attributes.get("axes", []) if axes is None else axes.ravel())]
    if call.operator == "Reshape":
        return _reshaped(call, dims, listed)
    full = [1, *dims]  # the batch stands at index 0
    if call.operator == "Squeeze":
        wanted = {axis % len(full) for axis in listed} or {i for i, size in enumerate(full) if size == 1 and i > 0}
        return tuple(size for i, size in enumerate(full) if i not in wanted)[1:]
    places = {axis % (len(full) + len(listed)) for axis in listed}
    rest = iter(full)
    return tuple(1 if i in places else next(rest) for i in range(len(full) + len(listed)))[1:]


def _reshaped(call: Call, dims: Dims, shape: list[int]) -> Dims:
    sizes = [dims[i - 1] if size == 0 and 0 < i <= len(dims) else size for i, size in enumerate(shape)][1:]
    known = math.prod(size for size in sizes if size != -1)
    sizes = [math.prod(dims) // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != math.prod(dims):
        raise call.refuse(f"it turns shape {dims} into {shape}", "keep the batch as the first axis")
    return tuple(sizes)


def _without_ones(dims: Dims) -> Dims:
    return tuple(size for size in dims if size != 1)


def _reachable(nodes: list[AnyNode], output: str) -> list[AnyNode]:
    """The nodes ``output`` depends on, in their order."""
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if node.output in wanted:
            wanted |= set(node.inputs)
            kept.append(node)
    return kept[::-1]
