"""Images for machines of QEMU with other cores and memory maps: the reference's bytes, from both compilers, and as many
instructions as on the virtual board with that core."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mcu_agent.image import read_image
from tasks.firmware.compiler import compile_graph, link_sources
from tasks.firmware.errors import DoesNotFit
from tasks.firmware.ir import Graph
from tasks.firmware.planner import plan_memory
from tasks.quant import reference
from tests.support import qemu
from tests.support.bundles import bundle
from tests.support.compilers import COMPILERS, require
from tests.support.graphs import separable_cnn, small_cnn
from tests.support.networks import random_inputs, random_networks

pytestmark = pytest.mark.skipif(bool(qemu.why_not()), reason=qemu.why_not() or "QEMU is there")

HARD_FAULT = 0x103  # in the mailbox: exception 3
N_RANDOM, LARGEST_ARENA = 5, 1024  # all arenas together must fit the 16 KB of the smallest machine
MACHINES = {machine.name: machine for machine in qemu.MACHINES}
AN505 = MACHINES["mps2-an505"]
MACHINES["mps2-an505 without DSP"] = replace(AN505, kind=replace(AN505.kind, has_dsp=False))


def networks() -> list[Graph]:
    small = [graph for graph in random_networks(30) if plan_memory(graph).arena_bytes <= LARGEST_ARENA]
    assert len(small) >= N_RANDOM
    return [small_cnn(), separable_cnn(), *small[:N_RANDOM]]


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("name", MACHINES)
def test_a_machine_gives_the_references_bytes_and_the_virtual_boards_instructions(
    name: str, compiler: str, tmp_path: Path
) -> None:
    require(compiler)
    machine, graphs = MACHINES[name], networks()
    made = bundle(graphs, machine.kind, compiler)
    inputs = [random_inputs(graph, 3) for graph in graphs]
    found, virtual = made.on_qemu(inputs, machine, tmp_path), made.on_unicorn(inputs)
    for graph, x, on_qemu, on_unicorn in zip(graphs, inputs, found.outputs, virtual.outputs, strict=True):
        expected = reference.output_of(graph, x).reshape(len(x), -1)
        np.testing.assert_array_equal(on_qemu, expected, err_msg=f"QEMU: {graph.layers}")
        np.testing.assert_array_equal(on_unicorn, expected, err_msg=f"Unicorn: {graph.layers}")
    assert found.instructions == virtual.instructions


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("netduinoplus2", "movs r3, #2\\n\\tldrd r1, r2, [r3]"),
        ("microbit", "movs r3, #2\\n\\tldr r1, [r3]"),
        ("microbit", ".inst.w 0xfba01203"),  # umull r1, r2, r0, r3: the Cortex-M0 has no wide multiply
    ],
)
def test_a_machine_faults_where_the_core_does(
    name: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without this the runs above would say nothing about alignment and instructions."""
    machine, graph, body = MACHINES[name], small_cnn(), "int edgefront_run(const int8_t *input, int8_t *output)\n{\n"
    sources = compile_graph(graph, machine.kind).sources
    assert sources["edgefront.c"].count(body) == 1
    wrong = f'{body}    __asm volatile("{code}" ::: "r1", "r2", "r3");\n'
    elf = link_sources({**sources, "edgefront.c": sources["edgefront.c"].replace(body, wrong)}, machine.kind)
    monkeypatch.setattr(qemu, "TIMEOUT_S", 2.0)
    with pytest.raises(TimeoutError, match=f"error_code={HARD_FAULT}"):
        qemu.run_on_qemu(elf, random_inputs(graph, 2).reshape(2, -1), tmp_path, machine=machine)


@pytest.mark.parametrize("name", MACHINES)
def test_images_are_linked_into_the_machines_memory_and_no_further(name: str) -> None:
    kind = MACHINES[name].kind
    image = read_image(compile_graph(small_cnn(), kind).image.elf, kind)  # refuses what lies outside
    assert image.address("__edgefront_stack_bottom") == kind.ram_origin
    assert image.segments[0].address == kind.flash_origin
    end = image.address("__edgefront_bss_end")
    tight = replace(kind, ram_bytes=end - kind.ram_origin - 1)
    with pytest.raises(DoesNotFit, match=r"RAM.*\(1 over\)"):
        compile_graph(small_cnn(), tight)
