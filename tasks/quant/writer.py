"""Writing a traced PyTorch graph as an ONNX model, node by node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

INPUT, OUTPUT = "input", "output"
OPSET = 20
IR_VERSION = 10


class NotTraceable(Exception):
    """The network does something that is not known here."""


LayerHandler = Callable[["Writer", fx.Node, nn.Module], str]
CallHandler = Callable[["Writer", fx.Node], Any]


@dataclass(frozen=True, slots=True)
class Handlers:
    """What writes which operator: layers by class (the first match counts), functions, and methods by name."""

    layers: Sequence[tuple[tuple[type[nn.Module], ...], LayerHandler]]
    functions: Mapping[Any, CallHandler]
    methods: Mapping[Any, CallHandler]


class Writer:
    """Turns the nodes of a traced module into ONNX nodes, one after the other."""

    def __init__(self, traced: fx.GraphModule, handlers: Handlers) -> None:
        self.handlers = handlers
        self.modules = dict(traced.named_modules())
        self.graph = traced.graph
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.values: dict[fx.Node, Any] = {}
        self.folded: set[fx.Node] = set()

    def model(self, example: Tensor) -> onnx.ModelProto:
        result: fx.Node | None = None
        for node in self.graph.nodes:
            if node.op == "output":
                result = node.args[0]
            elif node not in self.folded:
                self.values[node] = self._convert(node)
        if not isinstance(result, fx.Node) or not isinstance(self.values[result], str):
            raise NotTraceable("the network's output is not one tensor")
        self._name_output(self.values[result])
        inputs = [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["n", *example.shape[1:]])]
        outputs = [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", *shape_of(result)[1:]])]
        graph = helper.make_graph(self.nodes, "network", inputs, outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        try:
            onnx.checker.check_model(model)
        except onnx.checker.ValidationError as error:
            raise NotTraceable(f"no valid ONNX graph: {error}") from error
        return onnx.shape_inference.infer_shapes(model)

    def _name_output(self, name: str) -> None:
        for node in self.nodes:
            node.input[:] = [OUTPUT if item == name else item for item in node.input]
            node.output[:] = [OUTPUT if item == name else item for item in node.output]

    def _convert(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            if self.values:
                raise NotTraceable("the network has more than one input")
            return INPUT
        if node.op == "call_module":
            layer = self.modules[str(node.target)]
            for kinds, write in self.handlers.layers:
                if isinstance(layer, kinds):
                    return write(self, node, layer)
            raise NotTraceable(f"layer {type(layer).__name__}")
        table = {"call_function": self.handlers.functions, "call_method": self.handlers.methods}.get(node.op, {})
        if node.target not in table:
            raise NotTraceable(f"{node.op} {node.target}")
        return table[node.target](self, node)

    def read(self, node: Any) -> str:
        """The name of the tensor that ``node`` gives."""
        name = self.values.get(node) if isinstance(node, fx.Node) else None
        if not isinstance(name, str):
            raise NotTraceable(f"{node} is no tensor computed by the network")
        return name

    def weight(self, name: str, tensor: NDArray[Any]) -> str:
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(tensor), name))
        return name

    def write(self, op: str, node: fx.Node, inputs: Sequence[str], **attributes: Any) -> str:
        """Add one ONNX node, named like the traced one; gives the name of its output."""
        given = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(helper.make_node(op, list(inputs), [node.name], name=f"{node.name}_{op.lower()}", **given))
        return node.name


def shape_of(node: Any) -> tuple[int, ...]:
    meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    if meta is None or not hasattr(meta, "shape"):
        raise NotTraceable(f"{node} is no tensor")
    return tuple(meta.shape)
