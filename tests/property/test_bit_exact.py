"""The integer reference, the C on this machine and the firmware on the emulated board give the same bytes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mcu_agent.boards.virtual import VirtualBoard
from mcu_agent.kinds import load_kind
from mcu_agent.session import run_outputs
from tasks.firmware.emit import emit_network
from tasks.firmware.host import build_library, run_batch
from tasks.firmware.ir import Graph
from tasks.firmware.planner import plan_memory
from tasks.quant import reference
from tests.support.networks import board_bundle, graphs, random_inputs

BATCH, BATCHES = 20, 10  # 200 networks, 20 behind one start of the compiler
SAMPLES = 6


@pytest.mark.slow
@settings(
    max_examples=BATCHES,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # shrinking would start the compiler hundreds of times
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
@given(st.lists(graphs(), min_size=BATCH, max_size=BATCH))
def test_reference_host_and_board_agree_on_random_networks(networks: list[Graph]) -> None:
    inputs = [random_inputs(graph, SAMPLES) for graph in networks]
    expected = [reference.output_of(graph, x) for graph, x in zip(networks, inputs, strict=True)]
    for graph, x, wanted, on_host in zip(networks, inputs, expected, _on_host(networks, inputs), strict=True):
        np.testing.assert_array_equal(on_host, wanted, err_msg=f"host: {_describe(graph)} {x.shape}")
    for graph, wanted, on_board in zip(networks, expected, _on_board(networks, inputs), strict=True):
        np.testing.assert_array_equal(on_board, wanted[-2:], err_msg=f"board: {_describe(graph)}")


def _on_host(networks: list[Graph], inputs: list[np.ndarray]) -> list[np.ndarray]:
    named = [(f"net{i}", emit_network(graph, plan_memory(graph), f"net{i}")) for i, graph in enumerate(networks)]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        library = build_library(named, Path(folder))
        return [
            run_batch(library, f"net{i}", x, graph.input_tensor.n_bytes, graph.output_tensor.n_bytes)
            for i, (graph, x) in enumerate(zip(networks, inputs, strict=True))
        ]


def _on_board(networks: list[Graph], inputs: list[np.ndarray]) -> list[np.ndarray]:
    """The last two samples of each network; the first ones saturate nearly everything."""
    kind = load_kind("nrf52840-dk")
    elf, n_inputs, n_outputs = board_bundle(networks, kind)
    frames = np.zeros((len(networks), 2, n_inputs), np.int8)
    for index, x in enumerate(inputs):
        frames[index, :, 0] = index
        frames[index, :, 1 : 1 + x[0].size] = x[-2:].reshape(2, -1)
    board = VirtualBoard("virtual", kind)
    outputs = run_outputs(elf, board, frames.reshape(-1, n_inputs), output_bytes=n_outputs)
    sizes = [graph.output_tensor.n_bytes for graph in networks]
    return [rows[:, :size] for rows, size in zip(outputs.reshape(len(networks), 2, -1), sizes, strict=True)]


def _describe(graph: Graph) -> str:
    return "; ".join(repr(layer) for layer in graph.layers)
