"""QEMU runs the same images: the same outputs, the same number of instructions to the last one, and blocks of the same
cycles."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from mcu_agent.boards.virtual import VirtualBoard
from mcu_agent.kinds import load_kind
from mcu_agent.profiling import profile
from mcu_agent.session import Job, Layer
from tasks.firmware.compiler import compile_graph
from tasks.firmware.ir import Graph
from tasks.quant import reference
from tests.support import boards, qemu
from tests.support.graphs import small_cnn
from tests.support.networks import graphs, random_inputs

pytestmark = pytest.mark.skipif(bool(qemu.why_not()), reason=qemu.why_not() or "QEMU is there")


def test_a_hand_written_firmware_counts_the_same(tmp_path: Path) -> None:
    job = boards.make_job(kind=qemu.KIND)
    outputs, counts = qemu.run_on_qemu(job.elf, job.inputs, tmp_path)
    found = profile(job, VirtualBoard("v1", load_kind(qemu.KIND)))
    np.testing.assert_array_equal(outputs, job.expected)
    assert [one.instructions for one in counts] == [found.instructions] * len(job.inputs)
    assert {one.cycles for one in counts} == {found.cycles.median}


def test_a_layer_alone_counts_the_same_in_instructions_and_cycles(tmp_path: Path) -> None:
    kind, graph = load_kind(qemu.KIND), small_cnn()
    compiled = compile_graph(graph, kind)
    x = random_inputs(graph, 3)[2:]
    layers = [Layer.from_json(layer) for layer in compiled.layers_json()]
    expected = reference.output_of(graph, x)
    job = Job(elf=compiled.image.elf, inputs=x.reshape(1, -1), expected=expected, layers=layers)
    found = profile(job, VirtualBoard("v1", kind))
    for layer, counted in zip(layers, found.layers, strict=True):
        span = qemu.layer_span(job.elf, layer.symbol)
        outputs, (counts,) = qemu.run_on_qemu(job.elf, job.inputs, tmp_path, span)
        np.testing.assert_array_equal(outputs, expected)
        assert (counts.instructions, counts.cycles) == (counted.instructions, counted.cycles), layer.name


@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],  # shrinking would start compiler and emulator hundreds of times
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
@given(graph=graphs())
def test_random_networks_count_the_same_and_give_the_same(graph: Graph, tmp_path: Path) -> None:
    kind = load_kind(qemu.KIND)
    compiled = compile_graph(graph, kind)
    x = random_inputs(graph, 2)
    job = Job(
        elf=compiled.image.elf,
        inputs=x.reshape(2, -1),
        expected=reference.output_of(graph, x).reshape(2, -1),
        layers=[Layer.from_json(layer) for layer in compiled.layers_json()],
    )
    outputs, counts = qemu.run_on_qemu(job.elf, job.inputs, tmp_path)
    np.testing.assert_array_equal(outputs, job.expected)
    for index, count in enumerate(counts):
        one = slice(index, index + 1)
        alone = dataclasses.replace(job, inputs=job.inputs[one], expected=job.expected[one])
        found = profile(alone, VirtualBoard("v1", kind))
        assert (found.instructions, found.cycles.median) == (count.instructions, count.cycles)
