"""The kernel benchmark: its layers, what it counts, and what it does where something is missing."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import numpy as np
import pytest

from bench import kernels
from bench.kernels import Chosen, NetworkRow, Row, layer_row, network_row
from bench.layers import CASES, graph_of
from tasks.firmware.emit import count_macs
from tasks.firmware.errors import ToolchainError
from tasks.quant import reference
from tests.support import qemu

SMALL = next(case for case in CASES if case.name == "pointwise 5->7 on 11x13")
ROW_KEYS = ["layer", "core", "compiler", "emulator", "macs", "instructions", "cycles", "rom_bytes", "scratch_bytes"]
NETWORK_KEYS = {
    "name", "macs", "cycles", "arena_bytes", "arena_lower_bound_bytes", "weights_bytes", "code_bytes", "runtime_bytes",
    "stack_bytes", "compile_s",
}  # fmt: skip


@pytest.fixture(scope="module")
def row() -> Row:
    return layer_row(SMALL, "cortex-m4", "zig", "unicorn")


@pytest.fixture(scope="module")
def network() -> NetworkRow:
    return network_row("mlp", "cortex-m4", "zig")


def test_layers_multiply_as_often_as_their_names_say() -> None:
    macs = {case.name: count_macs(graph, graph.layers[0]) for case in CASES for graph in [graph_of(case)]}
    assert list(macs.values()) == [
        32 * 32 * 16 * 9 * 16,
        16 * 16 * 64 * 32,
        16 * 16 * 32 * 9,
        256 * 10,
        11 * 13 * 7 * 9 * 5,
        16 * 16 * 16 * 9 * 16,
        128 * 16 * 9 * 16,
        8 * 8 * 32 * 9,
        16 * 16 * 32 * 25,
        128 * 32 * 9,
        11 * 13 * 7 * 5,
        48 * 48 * 8 * 9 * 3,
    ]


def test_goals_of_other_shapes_follow_the_nearest_of_the_four() -> None:
    goals = [case.goal for case in CASES]
    assert goals[:4] == [1.15, 1.2, 2.0, 1.45]
    np.testing.assert_allclose(goals[4:], [1.84, 1.84, 1.84, 3.2, 3.2, 3.2, 1.92, 1.84])
    assert [case.baseline for case in CASES[:4]] == [2.33, 2.7, 8.78, 2.13]
    assert all(case.baseline is None for case in CASES[4:])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_outputs_of_a_layer_use_their_range_and_no_zero_point_is_zero(case) -> None:  # type: ignore[no-untyped-def]
    graph = graph_of(case)
    assert all(tensor.zero_point != 0 for tensor in graph.tensors.values())
    x = np.random.default_rng(1).integers(-128, 128, (4, *graph.input_tensor.shape)).astype(np.int8)
    outputs = reference.output_of(graph, x).astype(int)
    assert np.mean(abs(outputs) >= 127) < 0.1
    assert 15 < outputs.std() < 70


def test_a_layer_is_counted_without_the_run_function_around_it(row: Row) -> None:
    assert row.macs == 11 * 13 * 5 * 7
    assert row.instructions > row.macs
    assert row.cycles > row.instructions
    assert 7 * 5 + 2 * 4 * 7 < row.rom_bytes < 4096
    assert row.scratch_bytes >= 0


@pytest.mark.skipif(bool(qemu.why_not()), reason=qemu.why_not() or "QEMU is there")
def test_qemu_counts_a_layer_the_same(row: Row) -> None:
    assert layer_row(SMALL, "cortex-m4", "zig", "qemu") == replace(row, emulator="qemu")


def test_other_outputs_than_the_references_stop_the_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(elf: bytes, inputs: np.ndarray, *_: object) -> tuple[np.ndarray, list[object]]:
        return np.zeros((len(inputs), 11 * 13 * 7), np.int8), []

    monkeypatch.setattr(qemu, "run_on_qemu", wrong)
    with pytest.raises(kernels.WrongOutputs, match="'layer'"):
        layer_row(SMALL, "cortex-m4", "zig", "qemu")


def test_the_json_has_the_fields_that_scripts_read(row: Row, network: NetworkRow) -> None:
    found = json.loads(json.dumps(kernels.json_object([row], [network])))
    assert list(found) == ["rows", "networks"]
    assert list(found["rows"][0]) == ROW_KEYS
    assert set(found["networks"][0]) == NETWORK_KEYS | {"core", "compiler", "emulator", "instructions"}


def test_a_network_is_counted_as_a_whole(network: NetworkRow) -> None:
    assert network.macs == 48 * 32 + 32 * 16 + 16 * 4
    assert network.cycles > network.instructions > network.macs
    assert network.arena_bytes >= network.arena_lower_bound_bytes >= 48 + 32
    assert 0 < network.stack_bytes < 4096
    assert network.compile_s > 0


def test_the_text_marks_what_is_over_its_goal(row: Row, network: NetworkRow) -> None:
    case = CASES[0]
    over = replace(row, layer=case.name, macs=1000, instructions=1151, cycles=1500)
    within = replace(over, instructions=1150)
    lines = kernels.text([over, within], []).splitlines()
    assert [("*" in line) for line in lines[1:3]] == [True, False]
    assert "2.33" in lines[1]
    fits = {"macs": 100, "cycles": 145, "arena_bytes": 102, "arena_lower_bound_bytes": 100, "runtime_bytes": 2048}
    good = replace(network, name="resnet-8", stack_bytes=1024, compile_s=5.0, **fits)  # type: ignore[arg-type]
    bad = replace(good, cycles=146, arena_bytes=103, runtime_bytes=2049, stack_bytes=1025, compile_s=5.1)
    lines = kernels.text([], [good, bad]).splitlines()
    assert [line.count("*") for line in lines[1:3]] == [0, 5]
    note = " ".join(lines[-3:])
    assert "on an emulated core" in note and "Calibration factor" in note


def test_what_is_not_installed_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "gcc_path", lambda: None)
    monkeypatch.setattr(qemu, "why_not", lambda: "qemu-system-arm is not installed")
    found = dict(kernels.missing("cortex-m4", ("gcc", "zig"), ("unicorn", "qemu")))
    assert found == {"gcc": "arm-none-eabi-gcc is not on the path", "qemu": "qemu-system-arm is not installed"}
    assert dict(kernels.missing("cortex-m4", ("zig",), ("unicorn",))) == {}
    assert "Cortex-M4" in dict(kernels.missing("cortex-m7", ("zig",), ("qemu",)))["qemu"]


def test_a_layer_whose_code_does_not_compile_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch, row: Row) -> None:
    def layer(case: object, core: str, compiler: str, emulator: str) -> Row:
        if compiler == "gcc":
            raise ToolchainError("the compiler failed (1):\nIn file included\nx.h:3: error: no")
        return row

    monkeypatch.setattr(kernels, "layer_row", layer)
    chosen = Chosen(core="cortex-m4", compilers=("gcc", "zig"), emulators=("unicorn",), cases=(SMALL,), networks=())
    said: list[str] = []
    rows, networks = kernels.measure(chosen, said.append)
    assert (rows, networks, chosen.n_rows) == ([row], [], 2)
    assert said == [f"left out: {SMALL.name}, gcc: x.h:3: error: no"]


def test_unknown_names_are_refused_with_those_allowed() -> None:
    assert kernels.some_of(("gcc", "zig"))("zig,gcc") == ("zig", "gcc")
    with pytest.raises(argparse.ArgumentTypeError, match="found clang; allowed are gcc, zig"):
        kernels.some_of(("gcc", "zig"))("gcc,clang")
