"""Marks of the cycle counter around each layer, from the generated C to the table of layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from unicorn import UC_HOOK_MEM_READ, Uc

import cli
from bench import zoo
from mcu_agent import marks
from mcu_agent.boards.virtual import VirtualBoard
from mcu_agent.errors import CyclesUnknown, ImageRejected
from mcu_agent.image import Image
from mcu_agent.kinds import load_kind
from mcu_agent.profiling import profile
from mcu_agent.session import Job, Layer
from orchestrator.records import Source
from tasks.compile import measure, profile_compiled, random_inputs
from tasks.firmware.compiler import Compiled, compile_network
from tasks.firmware.host import HostNetwork
from tasks.quant import reference

KIND = load_kind("nrf52840-dk")
DWT_CYCCNT = 0xE0001004


class CountingBoard(VirtualBoard):
    """A core whose cycle counter moves by what ``steps`` say at each reading, over and over, and whose probe counts
    nothing: like a real board, seen from a session."""

    is_emulated = False
    emulator = ""

    def __init__(self, steps: Sequence[int] = (100,)) -> None:
        super().__init__("counting", KIND)
        self.steps, self.n_readings, self.now = steps, 0, 0

    def load(self, image: Image) -> None:
        super().load(image)
        self.counter = None
        emulator, _, _ = self._powered()
        emulator.hook_add(UC_HOOK_MEM_READ, self._tick, begin=DWT_CYCCNT, end=DWT_CYCCNT + 3)

    def _tick(self, emulator: Uc, access: int, address: int, size: int, value: int, user: Any) -> None:
        self.now = (self.now + self.steps[self.n_readings % len(self.steps)]) % 2**32
        self.n_readings += 1
        emulator.mem_write(address, self.now.to_bytes(4, "little"))


@pytest.fixture(scope="module")
def marked() -> Compiled:
    return compile_network(zoo.quantised("mlp"), KIND, has_markers=True)


@pytest.fixture(scope="module")
def plain() -> Compiled:
    return compile_network(zoo.quantised("mlp"), KIND)


def test_without_markers_not_a_byte_of_the_sources_differs(plain: Compiled, marked: Compiled) -> None:
    assert not [path for path, text in plain.sources.items() if "mark" in path.lower() or "EF_MARK" in text]
    differing = {path for path, text in marked.sources.items() if plain.sources.get(path) != text}
    assert differing == {"edgefront.c", "kernels/ef_marks.h", "board/image_id.c"}


def test_a_moving_counter_gives_each_layer_its_measured_cycles(marked: Compiled) -> None:
    n_layers = len(marked.graph.layers)
    # A run reads the counter before it, for n + 2 marks and after it; starting the counter reads it twice.
    run = [1000, 7, 7, *(7 + 100 * (i + 1) for i in range(n_layers)), 50]
    board = CountingBoard([1, 1, *run])
    found = profile_compiled(marked, KIND, n_inputs=1, board=board)
    assert [layer.cycles for layer in found.layers] == [100 * (i + 1) for i in range(n_layers)]
    assert {layer.source for layer in found.layers} == {"measured"}
    assert {layer.instructions for layer in found.layers} == {None}
    assert found.cycles.median == sum(run[1:])
    assert board.n_readings == 2 + len(run)


def test_the_report_of_a_moving_counter_says_measured_and_counts_no_instructions(marked: Compiled) -> None:
    report = measure("mlp", marked, KIND, board=CountingBoard())
    assert all(layer.source == "measured" and layer.cycles == 0 for layer in report.layers)  # each as long as a mark
    assert report.totals["cycles"].source is Source.MEASURED
    assert "wait states" not in report.totals["latency"].note
    assert "instructions" not in report.totals
    assert report.to_json()["layers"][0]["instructions"] is None


def test_a_dead_counter_leaves_layers_to_the_boards_own_counting(marked: Compiled) -> None:
    found = profile_compiled(marked, KIND, n_inputs=1)
    assert {layer.source for layer in found.layers} == {"emulated"}
    assert all(layer.cycles > 0 and layer.instructions for layer in found.layers)
    assert found.cycles_source == "emulated"


def test_a_dead_counter_on_a_board_that_counts_nothing_is_no_measurement(marked: Compiled) -> None:
    with pytest.raises(CyclesUnknown, match="no live cycle counter"):
        profile_compiled(marked, KIND, n_inputs=1, board=CountingBoard([0]))


def test_an_image_without_marks_gives_no_layers_on_a_board_that_counts_nothing(plain: Compiled) -> None:
    found = profile_compiled(plain, KIND, n_inputs=1, board=CountingBoard())
    assert list(found.layers) == []
    assert found.cycles.median == 100


def test_an_image_with_marks_for_another_number_of_layers_is_refused(marked: Compiled) -> None:
    inputs = random_inputs(marked, 1, 0)
    layers = [Layer.from_json(item) for item in marked.layers_json()]
    outputs = reference.output_of(marked.graph, inputs)
    job = Job(elf=marked.image.elf, inputs=inputs.reshape(1, -1), expected=outputs, layers=layers[:-1])
    with pytest.raises(ImageRejected, match="edgefront_marks"):
        profile(job, CountingBoard())


def test_outputs_with_markers_are_the_same_on_this_machine(marked: Compiled) -> None:
    inputs = random_inputs(marked, 4, 1)
    found = HostNetwork(marked.sources, marked.graph, marked.plan).run(inputs)
    assert np.array_equal(found, reference.output_of(marked.graph, inputs))


def table(*readings: int) -> bytes:
    return b"".join((reading % 2**32).to_bytes(4, "little") for reading in readings)


def test_a_mark_costs_nothing_and_the_counter_may_come_round() -> None:
    assert marks.cycles(table(-20, -15, 985, 1000)) == [995, 10]
    assert marks.cycles(table(0, 5, 8)) == [0]  # shorter than a mark: never below nothing


@pytest.mark.parametrize("data", [b"", table(1, 2), table(1, 2, 3)[:-1]])
def test_a_table_that_cannot_hold_a_layer_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="whole words"):
        marks.cycles(data)


def test_the_command_writes_marks_when_asked(tmp_path: Path) -> None:
    model, folder = tmp_path / "m.onnx", tmp_path / "out"
    model.write_bytes(zoo.quantised("mlp"))
    arguments = ["compile", str(model), "--board", KIND.name, "--out", str(folder), "--markers"]
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 0, result.output
    assert "EF_MARK(edgefront_marks, 0);" in (folder / "edgefront.c").read_text()
    assert "emulated, at 64 MHz and zero wait states" in result.output


def test_marks_take_a_word_a_layer_and_two_more_of_ram(plain: Compiled, marked: Compiled) -> None:
    extra = 4 * (len(plain.graph.layers) + 2)
    assert extra <= marked.image.ram.static_bytes - plain.image.ram.static_bytes < extra + 8
    assert replace(marked.image.ram, static_bytes=0) == replace(plain.image.ram, static_bytes=0)
