"""The networks of the zoo as firmware: on the virtual board they give the integer reference's outputs, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from bench import zoo
from mcu_agent.kinds import load_kind
from tasks.compile import profile_compiled, random_inputs
from tasks.firmware.compiler import compile_network
from tasks.quant import reference

NAMES = [name for name in zoo.ZOO if not name.startswith("mobilenet-v3")]


@pytest.mark.parametrize("name", NAMES)
def test_a_network_runs_bit_exact_and_multiplies_as_often_as_in_pytorch(name: str) -> None:
    kind = load_kind("nucleo-l4r5zi")
    compiled = compile_network(zoo.quantised(name), kind)
    assert compiled.macs == zoo.count_macs(zoo.made(name), zoo.ZOO[name].input_shape)
    found = profile_compiled(compiled, kind, n_inputs=2, seed=3)  # raises where an output differs
    np.testing.assert_array_equal(found.outputs, reference.output_of(compiled.graph, random_inputs(compiled, 2, 3)))
    assert len(np.unique(found.outputs)) > 1
    assert [layer.index for layer in found.layers] == list(range(len(compiled.graph.layers)))
