"""The networks that the compiler is measured with: their sizes by hand, their numbers, and that they compile."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from bench import zoo
from tasks.firmware.ir import INT8_MAX, INT8_MIN
from tasks.firmware.lower import lower
from tasks.firmware.onnx_import import import_onnx
from tasks.firmware.planner import plan_memory
from tasks.quant import reference

# MobileNetV3 needs operators that the importer does not know.
COMPILED = [name for name in zoo.ZOO if not name.startswith("mobilenet-v3")]

# Outputs x weights that each of them sees, layer by layer, as the published architectures have them.
_RESNET_8 = (
    32 * 32 * 16 * (3 * 9)
    + 2 * 32 * 32 * 16 * (16 * 9)
    + 16 * 16 * 32 * (16 * 9 + 32 * 9 + 16)
    + 8 * 8 * 64 * (32 * 9 + 64 * 9 + 32)
    + 64 * 10
)
_DS_CNN = 25 * 5 * 64 * (10 * 4) + 4 * 25 * 5 * 64 * (9 + 64) + 64 * 12
_MOBILENET = (
    48 * 48 * (8 * 27 + 8 * 9 + 8 * 16)
    + 24 * 24 * (16 * 9 + 16 * 32 + 32 * 9 + 32 * 32)
    + 12 * 12 * (32 * 9 + 32 * 64 + 64 * 9 + 64 * 64)
    + 6 * 6 * (64 * 9 + 64 * 128 + 5 * (128 * 9 + 128 * 128))
    + 3 * 3 * (128 * 9 + 128 * 256 + 256 * 9 + 256 * 256)
    + 256 * 2
)
_AUTOENCODER = 2 * 640 * 128 + 6 * 128 * 128 + 2 * 128 * 8
BY_HAND = {
    "resnet-8": _RESNET_8,
    "ds-cnn": _DS_CNN,
    "mobilenet-v1-0.25": _MOBILENET,
    "autoencoder": _AUTOENCODER,
    "mlp": 48 * 32 + 32 * 16 + 16 * 4,
}


@pytest.mark.parametrize(("name", "macs"), BY_HAND.items())
def test_networks_multiply_as_often_as_their_published_shapes(name: str, macs: int) -> None:
    assert zoo.count_macs(zoo.made(name), zoo.ZOO[name].input_shape) == macs


def test_sizes_derived_by_hand_are_those_that_are_published() -> None:
    assert [round(BY_HAND[name] / 1e6, 2) for name in zoo.MLPERF_TINY] == [12.5, 2.66, 7.49, 0.26]


def test_a_seed_fixes_a_network_and_another_seed_gives_another() -> None:
    state = torch.random.get_rng_state()
    first, again, other = zoo.made("mlp"), zoo.made("mlp"), zoo.made("mlp", seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


@pytest.mark.parametrize("name", zoo.ZOO)
def test_batch_norms_have_settled_and_activations_keep_their_range(name: str) -> None:
    module, network = zoo.made(name), zoo.ZOO[name]
    norms = [layer for layer in module.modules() if isinstance(layer, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d)]
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.running_mean.abs().max() > 0.001
        assert (norm.running_var - 1).abs().max() > 0.1
        assert norm.weight.std() > 0.1
    with torch.no_grad():
        outputs = module(torch.from_numpy(zoo.random_inputs(network.input_shape, 8, seed=5)))
    assert 0.01 < float(outputs.std()) < 100


@pytest.mark.parametrize("name", COMPILED)
def test_networks_become_integer_graphs_that_use_their_bytes(name: str) -> None:
    data = zoo.quantised(name)
    graph = lower(import_onnx(data))
    plan = plan_memory(graph)
    assert plan.arena_bytes >= plan.lower_bound_bytes > 0
    shape = (2, *graph.input_tensor.shape)
    outputs = reference.run(graph, np.random.default_rng(0).integers(-128, 128, shape).astype(np.int8))
    for found in outputs.values():
        assert len(np.unique(found)) > 2  # neither stuck at the zero point nor at both ends
        assert np.mean((found == INT8_MIN) | (found == INT8_MAX)) < 0.9
    assert onnx.load_model_from_string(data).graph.input[0].name == "input"
