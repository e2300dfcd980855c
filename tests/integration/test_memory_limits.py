"""Kernels on the emulated board touch nothing that is not their layer's, and run where memory ends at its last byte."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from mcu_agent.boards.virtual import VirtualBoard
from mcu_agent.image import Image, read_image
from mcu_agent.kinds import load_kind
from mcu_agent.session import run_outputs
from tasks.firmware.compiler import compile_graph, link_sources
from tasks.firmware.ir import Graph
from tasks.quant import reference
from tests.support import watched
from tests.support.bundles import bundle
from tests.support.compilers import COMPILERS, require
from tests.support.graphs import separable_cnn, small_cnn
from tests.support.layers import KINDS, layers
from tests.support.networks import drawn, random_inputs, random_networks

KIND = load_kind("nucleo-l4r5zi")
PAGE = 4096  # the emulator maps whole pages
GRAPHS = {"small_cnn": small_cnn(), "separable_cnn": separable_cnn()}


@lru_cache
def every_operator() -> tuple[Graph, ...]:
    return tuple(graph for kind in KINDS for graph in drawn(layers(kind), 3))


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("which", ["operators", "networks"])
def test_layers_touch_only_their_own_tensors_scratch_and_tables(which: str, compiler: str) -> None:
    require(compiler)
    graphs = every_operator() if which == "operators" else random_networks(20)
    board = watched.watch(bundle(graphs, KIND, compiler), [random_inputs(graph, 3)[2:] for graph in graphs])
    assert board.violations == []
    assert board.n_accesses > 100_000


@pytest.mark.parametrize(("position", "what"), [(0, "reads"), (-1, "writes")])
def test_a_touch_too_far_is_noticed(monkeypatch: pytest.MonkeyPatch, position: int, what: str) -> None:
    """Buffers are declared one word shorter than they are."""

    def shortened(*arguments: object) -> list[tuple[int, int]]:
        spans = touched(*arguments)  # type: ignore[arg-type]
        spans[position] = (spans[position][0], spans[position][1] - 4)
        return spans

    touched = watched.touched
    monkeypatch.setattr(watched, "touched", shortened)
    board = watched.watch(bundle([small_cnn()], KIND), [random_inputs(small_cnn(), 2)])
    assert any(what in text for text in board.violations)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("name", GRAPHS)
def test_a_network_runs_with_its_arena_and_weights_at_the_very_end_of_memory(name: str, compiler: str) -> None:
    require(compiler)
    graph = GRAPHS[name]
    made = compile_graph(graph, KIND, compiler=compiler)
    rom, ram = made.image.rom.total_bytes, made.image.ram.total_bytes
    tight = replace(KIND, flash_bytes=-(-rom // PAGE) * PAGE, ram_bytes=-(-ram // PAGE) * PAGE)
    script = compile_graph(graph, tight, compiler=compiler).sources["link.ld"]
    script = _shifted(script, "*(.rodata .rodata.*)", tight.flash_bytes - rom)
    script = _shifted(
        script, "*(.bss .bss.* COMMON)", (tight.ram_bytes - ram) // 8 * 8
    )  # the arena starts at a multiple of 8
    elf = link_sources({**made.sources, "link.ld": script}, tight, compiler=compiler)
    image = read_image(elf, tight)
    assert 0 <= tight.flash_end - _end(image, "edgefront_layer_") < 4
    assert 0 <= tight.ram_end - _end(image, "edgefront_arena") < 8
    x = random_inputs(graph, 4)
    outputs = run_outputs(elf, VirtualBoard("v1", tight), x.reshape(4, -1), output_bytes=graph.output_tensor.n_bytes)
    np.testing.assert_array_equal(outputs, reference.output_of(graph, x).reshape(4, -1))


def _shifted(script: str, contents: str, n_bytes: int) -> str:
    assert script.count(contents) == 1
    return script.replace(contents, f". += {n_bytes};\n        {contents}")


def _end(image: Image, prefix: str) -> int:
    """First address after the last object whose name starts so."""
    return max(s.address + s.size for s in image.symbols.values() if s.name.startswith(prefix) and not s.is_function)
