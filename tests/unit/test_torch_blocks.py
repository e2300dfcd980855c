"""Blocks of known networks, exported and quantised as users do, against ONNX Runtime on the same quantised model.

Where the two differ it is by rounding: an exact half goes up here and to the even neighbour there (averages over two or
four pixels on the scale of their input have many), and ONNX Runtime works in float32.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor, nn
from torch.nn import functional

from tasks.firmware.ir import Graph, op_name
from tasks.firmware.lower import lower
from tasks.firmware.onnx_import import import_onnx
from tasks.quant import reference
from tasks.quant.export import export_onnx
from tasks.quant.quantise import quantise_onnx
from tests.support.qdq import run_float


class SqueezeExcite(nn.Module):
    """Channels weighed by a function of their means."""

    def __init__(self, channels: int, conv: type[nn.Module], pool: type[nn.Module]) -> None:
        super().__init__()
        self.pool = pool(1)
        self.less, self.more = conv(channels, 4, 1), conv(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * functional.hardsigmoid(self.more(torch.relu(self.less(self.pool(x)))))


class DenseSqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.less, self.more = nn.Linear(channels, 4), nn.Linear(4, channels)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.sigmoid(self.more(torch.relu(self.less(x.mean((2, 3))))))
        return weights[:, :, None, None] * x


class Residual(nn.Module):
    def __init__(self, *body: nn.Module, after: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.after = nn.Sequential(*body), after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.after(x + self.body(x))
        return result


class HandMadeHardSwish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * functional.relu6(x + 3) / 6


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([functional.leaky_relu(self.left(x), 0.1), functional.elu(self.right(x)), x], 1)


def mobilenet_v3(swish: type[nn.Module]) -> nn.Module:
    block = Residual(
        nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), swish(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), swish(),
        SqueezeExcite(16, nn.Conv2d, nn.AdaptiveAvgPool2d), nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8),
    )  # fmt: skip
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), swish(), block)


def mobilenet_v3_signal() -> nn.Module:
    block = Residual(
        nn.Conv1d(8, 16, 1), nn.Hardswish(), nn.Conv1d(16, 16, 3, padding=1, groups=16), nn.Hardswish(),
        SqueezeExcite(16, nn.Conv1d, nn.AdaptiveAvgPool1d), nn.Conv1d(16, 8, 1),
    )  # fmt: skip
    return nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), nn.Hardswish(), block)


def resnet() -> nn.Module:
    body = (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Residual(*body, after=nn.ReLU()))


def inverted_residual() -> nn.Module:
    body = (nn.Conv2d(8, 24, 1), nn.ReLU6(), nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.ReLU6())
    return nn.Sequential(nn.Conv2d(3, 8, 3), Residual(*body, nn.Conv2d(24, 8, 1)))


def autoencoder() -> nn.Module:
    sizes = [192, 32, 8, 32]
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(32, 192))


def dense_squeeze_excite() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), DenseSqueezeExcite(8))


def joined() -> nn.Module:
    return nn.Sequential(Joined(), nn.Conv2d(13, 4, 1))


IMAGE, SIGNAL = (3, 8, 8), (3, 30)
BLOCKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {
    "mobilenet v3": (lambda: mobilenet_v3(nn.Hardswish), IMAGE, {"lookup", "mul", "dwconv2d", "avgpool"}),
    "mobilenet v3 by hand": (lambda: mobilenet_v3(HandMadeHardSwish), IMAGE, {"lookup", "mul", "dwconv2d", "avgpool"}),
    "mobilenet v3, 1-D": (mobilenet_v3_signal, SIGNAL, {"lookup", "mul", "dwconv2d", "avgpool"}),
    "dense squeeze-excite": (dense_squeeze_excite, IMAGE, {"dense", "lookup", "mul"}),
    "resnet": (resnet, IMAGE, {"conv2d_add"}),
    "inverted residual": (inverted_residual, IMAGE, {"conv2d_add", "dwconv2d"}),
    "autoencoder": (autoencoder, IMAGE, {"dense"}),
    "joined": (joined, IMAGE, {"lookup", "concat"}),
}


class Calibration(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, x: np.ndarray) -> None:
        self.samples = iter(x)

    def get_next(self) -> dict[str, np.ndarray] | None:
        sample = next(self.samples, None)
        return None if sample is None else {"input": sample[np.newaxis]}


@pytest.fixture
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def exported(module: nn.Module, shape: tuple[int, ...]) -> tuple[onnx.ModelProto, np.ndarray]:
    """The float model with seeded weights, and samples."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        if name.endswith("bias") or parameter.dim() > 1:
            bound = 1.7 * parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1
            parameter.data = (torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound
    x = np.random.default_rng(0).normal(size=(96, *shape)).astype(np.float32) * 2
    return export_onnx(module, x[:8]), x


def steps_apart(model: bytes, x: np.ndarray) -> tuple[Graph, np.ndarray]:
    """The compiled network, and how far its outputs lie from ONNX Runtime's, in steps of the output."""
    graph = lower(import_onnx(model))
    ours = reference.output_of(graph, reference.quantise_input(x, graph.input_tensor))
    reals = run_float(model, x)
    theirs = np.moveaxis(reals, 1, -1).reshape(len(x), -1)
    return graph, np.abs(ours - (theirs / graph.output_tensor.scale + graph.output_tensor.zero_point))


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_quantised_by_onnxruntime_agrees_with_it(name: str, tmp_path: Path, quiet: None) -> None:
    build, shape, operators = BLOCKS[name]
    model, x = exported(build(), shape)
    onnx.save(model, tmp_path / "float.onnx")
    quantize_static(
        tmp_path / "float.onnx", tmp_path / "int8.onnx", Calibration(x[:64]), quant_format=QuantFormat.QDQ,
        per_channel=True, activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    graph, steps = steps_apart((tmp_path / "int8.onnx").read_bytes(), x[64:])
    assert operators <= {op_name(layer) for layer in graph.layers}
    assert steps.mean() < 0.01 and steps.max() < 2.01


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_quantised_by_us_agrees_with_onnxruntime(name: str) -> None:
    build, shape, operators = BLOCKS[name]
    model, x = exported(build(), shape)
    graph, steps = steps_apart(quantise_onnx(model, x[:64]).SerializeToString(), x[64:])
    assert operators <= {op_name(layer) for layer in graph.layers}
    assert steps.mean() < 0.01 and steps.max() < 2.01
