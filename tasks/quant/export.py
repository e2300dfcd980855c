"""A PyTorch module as a float ONNX model, batch norm folded into the convolutions before it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn

from tasks.errors import Defect
from tasks.quant.tracing import trace_onnx
from tasks.quant.writer import INPUT, OPSET, OUTPUT, NotTraceable

FloatArray = NDArray[np.float32]

# Largest difference between the exported network's outputs and the module's, as a share of the largest output.
TOLERANCE = 1e-3


def export_onnx(module: nn.Module, x: FloatArray) -> onnx.ModelProto:
    """The network in evaluation mode, with a free batch size; input and output are called ``input`` and ``output``.

    The quick way of :mod:`tasks.quant.tracing` is taken where it knows the network, PyTorch's exporter elsewhere.
    Either way the outputs for ``x`` are compared with the module's.

    Shapes: x (n, …) with n ≥ 2.

    Raises:
        Defect: the network cannot be exported, or its outputs are not finite.
    """
    example = torch.tensor(x, dtype=torch.float32)
    with torch.no_grad():
        expected = module.eval()(example).numpy()
    if not np.isfinite(expected).all():
        raise Defect("not_finite", "the network's outputs are not finite; its training has gone wrong unnoticed")
    with contextlib.suppress(NotTraceable):
        model = trace_onnx(module, example)
        if agrees(model, x, expected):
            return model
    model = _torch_onnx(module, example)
    if not agrees(model, x, expected):
        raise Defect("cannot_export", "the exported network computes something else than the PyTorch module")
    return model


def agrees(model: onnx.ModelProto, x: FloatArray, expected: FloatArray) -> bool:
    """Whether the model's outputs for x (n, …) are ``expected`` (n, k), up to float rounding."""
    largest = max(float(np.abs(expected).max()), 1e-6)
    return float(np.abs(run_onnx(model, x)[0] - expected).max()) <= TOLERANCE * largest


def run_onnx(model: onnx.ModelProto | bytes, x: FloatArray) -> list[FloatArray]:
    """All outputs of an ONNX model for inputs x (n, …)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    data = model if isinstance(model, bytes) else model.SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    outputs: list[FloatArray] = session.run(None, {INPUT: np.ascontiguousarray(x, dtype=np.float32)})
    return outputs


def _torch_onnx(module: nn.Module, example: Tensor) -> onnx.ModelProto:
    """PyTorch's own exporter."""
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                external_data=False,
                verbose=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=dynamic,
            )
    except Exception as error:  # the module may be the user's; the exporter raises many kinds of error
        cause: BaseException = error
        while cause.__cause__ is not None:  # the exporter wraps what happened in advice about itself
            cause = cause.__cause__
        reason = " ".join([type(cause).__name__, *str(cause).strip().splitlines()[:1]])
        text = f"PyTorch cannot export the network to ONNX: {reason}. Its way must not depend on the values of x"
        raise Defect("cannot_export", text) from error
    assert program is not None
    return norms_as_convolutions(program.model_proto)


def norms_as_convolutions(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` (changed in place) with each batch norm over space that is left in it as a 1x1 depthwise convolution.

    The compiler knows no batch norm: one that follows a convolution is folded into it, and this is for the others.
    """
    weights = {item.name: numpy_helper.to_array(item).astype(np.float64) for item in model.graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(model).graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*inferred.value_info, *inferred.output)}
    for index, node in enumerate(model.graph.node):
        rank = ranks.get(node.output[0], 0)
        if node.op_type != "BatchNormalization" or rank < 3 or not set(node.input[1:]) <= set(weights):
            continue
        gain, shift, mean, variance = (weights[name] for name in node.input[1:])
        epsilon = next((item.f for item in node.attribute if item.name == "epsilon"), 1e-5)
        scale = gain / np.sqrt(variance + epsilon)
        arrays = {"weight": scale.reshape(-1, 1, *[1] * (rank - 2)), "bias": shift - mean * scale}
        names = [f"{node.output[0]}.{key}" for key in arrays]
        for name, array in zip(names, arrays.values(), strict=True):
            model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
        conv = helper.make_node("Conv", [node.input[0], *names], [node.output[0]], name=node.name, group=len(scale))
        model.graph.node[index].CopyFrom(conv)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints and logs what is of no use to the user here (missing torchvision, its own deprecations)."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
