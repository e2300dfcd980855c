"""Real data: networks trained on scikit-learn's digits lose little by becoming integers.

``python tests/integration/test_accuracy_on_digits.py`` prints what docs/firmware.md quotes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from mcu_agent.boards.virtual import VirtualBoard
from mcu_agent.kinds import load_kind
from mcu_agent.session import run_outputs
from orchestrator.studyfile import Dataset, Network, Training
from tasks.firmware.compiler import compile_network
from tasks.firmware.host import HostNetwork
from tasks.nn.datasets import load_dataset
from tasks.nn.families import build_network
from tasks.nn.fit import TensorData, calibration_inputs, error_of, fit, reproducible
from tasks.quant import reference
from tasks.quant.quantise import quantise

KIND = load_kind("nrf52840-dk")
MOST_POINTS_LOST = 1.5
ON_BOARD = 20  # samples that run on the emulated board too
FAMILIES = {"resnet2d": {"width": 6}, "dscnn": {"width": 12}, "mlp": {"width": 32}}


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracies:
    """Per cent of the ``n_samples`` test samples."""

    real: float
    integer: float
    n_samples: int


def measure(family: str, seed: int) -> Accuracies:
    """Train for a few epochs, quantise, compile, and run the held-out samples through both networks."""
    data = load_dataset(Dataset(source="digits"), 0)
    with reproducible(seed, 1):
        module = build_network(Network(family=family), FAMILIES[family], data.input_shape, data.n_classes, seed)
        training = Training(epochs=8, learning_rate=0.01)
        fit(module, TensorData.of(data, torch.device("cpu")), training, seed=seed)
    _, model = quantise(module, calibration_inputs(data, 128, seed))
    compiled = compile_network(model, KIND)
    x = reference.quantise_input(data.test.x, compiled.graph.input_tensor)
    outputs = HostNetwork(compiled.sources, compiled.graph, compiled.plan).run(x)
    first = x[:ON_BOARD].reshape(ON_BOARD, -1)
    on_board = run_outputs(compiled.image.elf, VirtualBoard("v1", KIND), first, output_bytes=data.n_classes)
    np.testing.assert_array_equal(on_board, outputs[:ON_BOARD])
    n_right = int((outputs.argmax(axis=1) == data.test.y).sum())
    n = len(data.test)
    return Accuracies(real=100 * (1 - error_of(module, data.test)), integer=100 * n_right / n, n_samples=n)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_integer_network_is_nearly_as_right_as_the_float_network(family: str) -> None:
    found = measure(family, seed=0)
    assert found.real > 85  # it has learnt something that could be lost
    assert found.integer >= found.real - MOST_POINTS_LOST


if __name__ == "__main__":
    for name in FAMILIES:
        for seed in range(5):
            found = measure(name, seed)
            print(f"{name}, seed {seed}: {found.real:.2f} % float, {found.integer:.2f} % integer")  # noqa: T201
