"""The networks of the zoo as firmware: by both compilers, on the virtual board and on QEMU, and as C on this machine,
they give the integer reference's outputs, bit for bit."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from bench import zoo
from mcu_agent.kinds import BoardKind, load_kind
from tasks.compile import profile_compiled, random_inputs
from tasks.firmware.compiler import Compiled, compile_graph
from tasks.firmware.host import HostNetwork
from tasks.firmware.ir import Graph
from tasks.firmware.lower import lower
from tasks.firmware.onnx_import import import_onnx
from tasks.quant import reference
from tests.support import qemu
from tests.support.bundles import run_counted
from tests.support.compilers import COMPILERS, require

pytestmark = pytest.mark.xdist_group("zoo")

N_INPUTS, SEED = 2, 3


@lru_cache
def graph_of(name: str) -> Graph:
    return lower(import_onnx(zoo.quantised(name)))


def kind_of(name: str) -> BoardKind:
    """QEMU has a machine for the small ones; the others need more memory than that has."""
    return qemu.NETDUINO.kind if name in zoo.SMALL else load_kind("nucleo-l4r5zi")


@lru_cache
def compiled(name: str, compiler: str) -> Compiled:
    return compile_graph(graph_of(name), kind_of(name), compiler=compiler)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_network_runs_bit_exact_and_multiplies_as_often_as_in_pytorch(name: str, compiler: str) -> None:
    require(compiler)
    made = compiled(name, compiler)
    assert made.macs == zoo.count_macs(zoo.made(name), zoo.ZOO[name].input_shape)
    found = profile_compiled(made, kind_of(name), n_inputs=N_INPUTS, seed=SEED)  # raises where an output differs
    np.testing.assert_array_equal(found.outputs, reference.output_of(made.graph, random_inputs(made, N_INPUTS, SEED)))
    assert len(np.unique(found.outputs)) > 1
    assert [layer.index for layer in found.layers] == list(range(len(made.graph.layers)))


@pytest.mark.parametrize("name", zoo.ZOO)
def test_the_host_gives_the_references_bytes(name: str) -> None:
    made = compiled(name, "zig")
    x = random_inputs(made, N_INPUTS, SEED)
    found = HostNetwork(made.sources, made.graph, made.plan).run(x)
    np.testing.assert_array_equal(found, reference.output_of(made.graph, x).reshape(N_INPUTS, -1))


@pytest.mark.skipif(bool(qemu.why_not()), reason=qemu.why_not() or "QEMU is there")
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("name", zoo.SMALL)
def test_qemu_gives_the_same_after_as_many_instructions(name: str, compiler: str, tmp_path: Path) -> None:
    require(compiler)
    made = compiled(name, compiler)
    x = random_inputs(made, N_INPUTS, SEED)
    rows = x.reshape(N_INPUTS, -1)
    outputs, counts = qemu.run_on_qemu(made.image.elf, rows, tmp_path)
    np.testing.assert_array_equal(outputs, reference.output_of(made.graph, x).reshape(N_INPUTS, -1))
    _, instructions = run_counted(made.image.elf, kind_of(name), rows)
    assert [one.instructions for one in counts] == instructions
