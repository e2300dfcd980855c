"""The integer reference, the C on this machine and the firmware on emulated boards give the same bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mcu_agent.kinds import load_kind
from tasks.firmware.emit import emit_network
from tasks.firmware.host import build_library, run_batch
from tasks.firmware.ir import Graph, Int8Array
from tasks.firmware.planner import plan_memory
from tasks.quant import reference
from tests.support import qemu
from tests.support.bundles import Bundle, bundle
from tests.support.compilers import COMPILERS, require
from tests.support.networks import graphs, random_inputs, random_networks

BATCH, BATCHES = 20, 10  # 200 networks, 20 behind one start of the compiler
SAMPLES, ON_BOARD = 6, 2  # the last samples run on the board; the first ones saturate nearly everything


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
    found = bundle(networks, load_kind("nrf52840-dk")).on_unicorn([x[-ON_BOARD:] for x in inputs])
    _compare("board", networks, found.outputs, [wanted[-ON_BOARD:] for wanted in expected])


@pytest.mark.xdist_group("random networks")
@pytest.mark.parametrize("compiler", COMPILERS)
def test_both_compilers_give_the_references_bytes_on_the_virtual_board(compiler: str) -> None:
    require(compiler)
    networks, inputs = random_networks(BATCH), _inputs()
    found = _bundle(compiler).on_unicorn(inputs)
    _compare(compiler, networks, found.outputs, _expected())
    assert len({rows.tobytes() for rows in found.outputs}) > BATCH // 2


@pytest.mark.xdist_group("random networks")
@pytest.mark.skipif(bool(qemu.why_not()), reason=qemu.why_not() or "QEMU is there")
@pytest.mark.parametrize("compiler", COMPILERS)
def test_qemu_gives_the_same_bytes_after_as_many_instructions(compiler: str, tmp_path: Path) -> None:
    require(compiler)
    networks, inputs, made = random_networks(BATCH), _inputs(), _bundle(compiler)
    found = made.on_qemu(inputs, qemu.NETDUINO, tmp_path)
    _compare(f"{compiler} on QEMU", networks, found.outputs, _expected())
    assert found.instructions == made.on_unicorn(inputs).instructions


@lru_cache
def _bundle(compiler: str) -> Bundle:
    return bundle(random_networks(BATCH), qemu.NETDUINO.kind, compiler)


def _inputs() -> list[Int8Array]:
    return [random_inputs(graph, SAMPLES)[-ON_BOARD:] for graph in random_networks(BATCH)]


def _expected() -> list[Int8Array]:
    return [reference.output_of(graph, x) for graph, x in zip(random_networks(BATCH), _inputs(), strict=True)]


def _on_host(networks: list[Graph], inputs: list[np.ndarray]) -> list[np.ndarray]:
    named = [(f"net{i}", emit_network(graph, plan_memory(graph), f"net{i}")) for i, graph in enumerate(networks)]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        library = build_library(named, Path(folder))
        return [
            run_batch(library, f"net{i}", x, graph.input_tensor.n_bytes, graph.output_tensor.n_bytes)
            for i, (graph, x) in enumerate(zip(networks, inputs, strict=True))
        ]


def _compare(where: str, networks: Sequence[Graph], found: list[Int8Array], expected: list[Int8Array]) -> None:
    for graph, outputs, wanted in zip(networks, found, expected, strict=True):
        np.testing.assert_array_equal(outputs, wanted.reshape(outputs.shape), err_msg=f"{where}: {_describe(graph)}")


def _describe(graph: Graph) -> str:
    return "; ".join(repr(layer) for layer in graph.layers)
