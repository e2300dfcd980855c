"""Every operator alone over random shapes, windows, bounds and left shifts: the reference, the C on this machine and
the firmware by both compilers give the same bytes."""

from __future__ import annotations

import tempfile
from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from mcu_agent.kinds import load_kind
from tasks.firmware.emit import emit_network
from tasks.firmware.host import build_library, run_batch
from tasks.firmware.ir import AnyLayer, Conv2d, Dense, Graph, Int8Array, op_name
from tasks.firmware.kernels import geometry_of, is_wide
from tasks.firmware.planner import plan_memory
from tasks.quant import reference
from tests.support.bundles import bundle
from tests.support.compilers import COMPILERS, require
from tests.support.layers import KINDS, layers
from tests.support.networks import drawn, random_inputs

pytestmark = pytest.mark.xdist_group("every operator")

SAMPLES = 4
COUNTS = {"conv2d": 14, "depthwise": 18}  # their kernels have the most paths


@lru_cache
def graphs() -> tuple[Graph, ...]:
    return tuple(graph for kind in KINDS for graph in drawn(layers(kind), COUNTS.get(kind, 4)))


@lru_cache
def inputs() -> list[Int8Array]:
    return [random_inputs(graph, SAMPLES) for graph in graphs()]


def compare(where: str, outputs: list[Int8Array]) -> None:
    for graph, x, found in zip(graphs(), inputs(), outputs, strict=True):
        expected = reference.output_of(graph, x).reshape(SAMPLES, -1)
        np.testing.assert_array_equal(found, expected, err_msg=f"{where}: {graph.layers}")


def test_the_host_gives_the_references_bytes() -> None:
    named = [(f"net{i}", emit_network(graph, plan_memory(graph), f"net{i}")) for i, graph in enumerate(graphs())]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        library = build_library(named, Path(folder))
        found = [
            run_batch(library, f"net{i}", x, graph.input_tensor.n_bytes, graph.output_tensor.n_bytes)
            for i, (graph, x) in enumerate(zip(graphs(), inputs(), strict=True))
        ]
    compare("host", found)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_cortex_m4_gives_the_references_bytes(compiler: str) -> None:
    require(compiler)
    compare(compiler, bundle(graphs(), load_kind("nucleo-l4r5zi"), compiler).on_unicorn(inputs()).outputs)


def test_the_layers_take_every_path_of_the_kernels() -> None:
    """So that the tests above do not pass by drawing simple layers only."""
    matrices = [layer for layer in all_layers() if isinstance(layer, Conv2d | Dense)]
    dense = [layer for layer in matrices if isinstance(layer, Dense)]
    whole = [layer for layer in matrices if isinstance(layer, Conv2d) and layer.groups == 1]
    for group in (dense, whole):
        assert {layer.weights[0].size % 4 for layer in group} == {0, 1, 2, 3}
        assert {is_wide(layer) for layer in group} == {True, False}
        assert {len(layer.weights) % 2 for layer in group} == {0, 1}
        assert any(layer.left_shift > 0 for layer in group)
    names = Counter(op_name(layer) for layer in all_layers())
    assert min(names.values()) >= 4
    assert set(names) == {
        "conv2d", "dwconv2d", "gconv2d", "dense", "add", "mul", "lookup", "concat", "pad", "softmax", "maxpool",
        "avgpool", "rescale",
    }  # fmt: skip


def test_depthwise_windows_are_of_every_shape_with_code_of_their_own_and_without() -> None:
    pairs = [(graph, layer) for graph in graphs() for layer in graph.layers if op_name(layer) == "dwconv2d"]
    windows = [layer.window for _, layer in pairs if isinstance(layer, Conv2d)]
    assert {(5, 5), (3, 3)} <= {window.kernel for window in windows}
    assert any(window.kernel[0] == 1 for window in windows)
    assert any(window.kernel[1] == 1 for window in windows)
    assert {window.stride[1] for window in windows} == {1, 2, 3}
    assert any(window.dilation != (1, 1) for window in windows)
    supported = [geometry_of(graph, layer).is_supported for graph, layer in pairs if isinstance(layer, Conv2d)]
    assert min(Counter(supported).values()) >= 4
    assert len(set(supported)) == 2


def all_layers() -> list[AnyLayer]:
    return [layer for graph in graphs() for layer in graph.layers]
