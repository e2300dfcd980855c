"""Small QDQ models, written node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper


class QdqModel:
    """Every activation passes a QuantizeLinear/DequantizeLinear pair right after the node that makes it."""

    def __init__(self, dims: Sequence[int], scale: float = 0.05, zero_point: int = 3, dtype: type = np.int8) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.dims = [1, *dims]
        self.dtype = dtype
        self.count = 0
        self.last = self.quantised("input", scale, zero_point)

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """A node without quantisation behind it; gives its output's name."""
        self.count += 1
        name = f"{operator.lower()}_{self.count}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def quantised(self, name: str, scale: float = 0.1, zero_point: int = 0) -> str:
        pair = [self.constant(np.array(scale, np.float32)), self.constant(np.array(zero_point, self.dtype))]
        self.last = self.node("DequantizeLinear", [self.node("QuantizeLinear", [name, *pair]), *pair])
        return self.last

    def weights(self, integers: np.ndarray, scales: Sequence[float] | float, axis: int = 0) -> str:
        inputs = [self.constant(integers.astype(np.int8)), self.constant(np.array(scales, np.float32))]
        attributes = {"axis": axis} if np.ndim(scales) else {}
        return self.node("DequantizeLinear", inputs, **attributes)

    def serialised(self, output: str | None = None) -> bytes:
        result = output or self.last
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, self.dims)],
            [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        return model.SerializeToString()


def run_float(model: bytes, x: np.ndarray) -> np.ndarray:
    """What ONNX Runtime makes of a model, one sample at a time, without its graph optimisations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options)
    return np.concatenate([session.run(None, {"input": x[i : i + 1]})[0] for i in range(len(x))])
