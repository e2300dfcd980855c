"""Static int8 quantisation: ranges from calibration inputs, then quantise/dequantise pairs around every operator.

Weights are symmetric int8 with one scale an output channel, activations asymmetric int8 with one scale a tensor, biases
int32 in the scale of the accumulator. Activation functions disappear into the range of the operator before them: a
range that starts at zero clips like ReLU.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from torch import nn

from tasks.errors import Defect
from tasks.quant.export import export_onnx, run_onnx
from tasks.quant.writer import INPUT

FloatArray = NDArray[np.float32]
Range = tuple[float, float]

# The share of each activation tensor's values that its range covers; the rest saturates. See docs/decisions.
COVERAGE = 0.9999
EXPORT_SAMPLES = 8
OPERATORS = (
    "Conv",
    "Gemm",
    "MatMul",
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Concat",
    "Pad",
    "Relu",
    "Clip",
    "Elu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Sigmoid",
    "Tanh",
    "MaxPool",
    "GlobalMaxPool",
    "ReduceMax",
    "AveragePool",
    "GlobalAveragePool",
    "ReduceMean",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
)


def quantise(module: nn.Module, calibration: FloatArray) -> tuple[bytes, bytes]:
    """The network as a float ONNX model and as an int8 one.

    Shapes: calibration (n, C, …) with n ≥ 2, normalised inputs; a hundred give good ranges.

    Returns:
        ``(onnx_float, onnx_qdq)``, serialised.

    Raises:
        Defect: the network cannot be exported, or its activations are not finite.
    """
    model = export_onnx(module, calibration[:EXPORT_SAMPLES])
    return model.SerializeToString(), quantise_onnx(model, calibration).SerializeToString()


def quantise_onnx(model: onnx.ModelProto, calibration: FloatArray) -> onnx.ModelProto:
    """An int8 QDQ model from a float one; ``model`` is left as it is."""
    ranges = calibrate(model, calibration)
    data = {name: TensorData(lowest=_scalar(low), highest=_scalar(high)) for name, (low, high) in ranges.items()}
    quantizer = QDQQuantizer(
        copy.deepcopy(model),
        True,  # one weight scale an output channel
        False,  # all eight bits
        QuantType.QInt8,
        QuantType.QInt8,
        TensorsData(CalibrationMethod.MinMax, data),
        [],
        [],
        list(OPERATORS),
        {"ActivationSymmetric": False, "WeightSymmetric": True, "ForceQuantizeNoInputCheck": True},
    )
    quantizer.quantize_model()
    quantised: onnx.ModelProto = quantizer.model.model
    return quantised


def calibrate(model: onnx.ModelProto, calibration: FloatArray) -> dict[str, Range]:
    """The range (low, high) of every activation tensor, 0 included: the middle ``COVERAGE`` of its values.

    Raises:
        Defect: a tensor holds values that are not finite.
    """
    names = [name for node in model.graph.node for name in node.output]
    values = run_onnx(_with_all_outputs(model, names), calibration)
    ranges = {INPUT: _range_of(calibration)}
    for name, tensor in zip(names, values, strict=True):
        if not np.isfinite(tensor).all():
            raise Defect(
                "not_finite", f"the output {name!r} of the network's graph is not finite on calibration inputs"
            )
        if tensor.dtype == np.float32:
            ranges[name] = _range_of(tensor)
    return ranges


def _with_all_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    augmented = copy.deepcopy(model)
    del augmented.graph.output[:]
    augmented.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return augmented


def _range_of(values: FloatArray) -> Range:
    tail = (1.0 - COVERAGE) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return min(float(low), 0.0), max(float(high), 0.0)


def _scalar(value: float) -> NDArray[np.float32]:
    return np.array(value, dtype=np.float32)


def quantisation_summary(model: bytes) -> Mapping[str, int]:
    """How many nodes of each kind the int8 model has, for notes."""
    counts: dict[str, int] = {}
    for node in onnx.load_model_from_string(model).graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts
