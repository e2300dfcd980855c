"""From a graph to an image: sizes to the byte, the same bytes every time, what does not fit."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from mcu_agent import mailbox
from mcu_agent.boards.virtual import VirtualBoard
from mcu_agent.kinds import PLAIN_CORES, BoardKind, kinds, load_kind
from mcu_agent.session import run_outputs
from tasks.firmware import toolchain
from tasks.firmware.compiler import Compiled, compile_graph
from tasks.firmware.errors import DoesNotFit, ToolchainError, ToolchainInterrupted
from tasks.firmware.host import HostNetwork
from tasks.quant import reference
from tests.support.compilers import COMPILERS, require
from tests.support.graphs import small_cnn
from tests.support.networks import random_inputs


@pytest.fixture(scope="module")
def kind() -> BoardKind:
    return load_kind("nrf52840-dk")


@pytest.fixture(scope="module")
def compiled(kind: BoardKind) -> Compiled:
    return compile_graph(small_cnn(), kind)


def symbols(elf: bytes) -> dict[str, int]:
    table = ELFFile(io.BytesIO(elf)).get_section_by_name(".symtab")
    return {symbol.name: symbol["st_value"] for symbol in table.iter_symbols()}


def test_the_same_graph_gives_the_same_image(compiled: Compiled, kind: BoardKind) -> None:
    again = compile_graph(small_cnn(), kind)
    assert again.image.elf == compiled.image.elf
    assert again.sources == compiled.sources


def test_rom_is_counted_whole_and_in_parts(compiled: Compiled) -> None:
    rom = compiled.image.rom
    # weights 6·2·9 + 6·9 + 5·6 bytes; bias and multiplier words 2·(6 + 6 + 5), 1 for the mean; records of 11, 8, 5 and
    # 10 words
    assert rom.weights_bytes == (108 + 54 + 30) + 4 * (2 * 17 + 1) + 4 * (11 + 8 + 5 + 10)
    assert rom.total_bytes == rom.weights_bytes + rom.code_bytes + rom.runtime_bytes
    assert 500 < rom.code_bytes < 4000
    assert 800 < rom.runtime_bytes < 2048  # start-up, harness and the kind's port


def test_ram_holds_arena_mailbox_and_stack(compiled: Compiled) -> None:
    ram = compiled.image.ram
    # The convolution's output, its columns of 18 taps (5 words, 32 bytes each), four lines of their bytes; and of its
    # image two channels of 8 rows, of which the output covers all but what is still to be read.
    assert ram.arena_bytes == compiled.plan.arena_bytes == compiled.plan.lower_bound_bytes
    assert 8 * 8 * 6 + 5 * 32 + 4 * 5 * 4 <= ram.arena_bytes < 8 * 8 * 2 + 8 * 8 * 6 + 5 * 32 + 4 * 5 * 4
    assert 0 <= ram.static_bytes - ram.arena_bytes - mailbox.SIZE < 8
    assert ram.total_bytes == ram.static_bytes + ram.stack_reserved_bytes


def test_the_stack_lies_at_the_bottom_of_ram(compiled: Compiled, kind: BoardKind) -> None:
    found = symbols(compiled.image.elf)
    assert found["__edgefront_stack_bottom"] == kind.ram_origin
    assert found["__edgefront_stack_top"] - kind.ram_origin == compiled.image.ram.stack_reserved_bytes


def test_every_layer_is_a_function_of_its_own(compiled: Compiled) -> None:
    found = symbols(compiled.image.elf)
    layers = compiled.layers_json()
    assert [layer["op"] for layer in layers] == ["conv2d", "dwconv2d", "avgpool", "dense"]
    assert all(layer["symbol"] in found for layer in layers)
    assert layers[0]["macs"] == 8 * 8 * 6 * 2 * 9
    assert layers[1]["output_shape"] == [4, 4, 6]


def test_flops_are_two_a_mac_and_one_an_element(compiled: Compiled) -> None:
    macs = 8 * 8 * 6 * 18 + 4 * 4 * 6 * 9 + 5 * 6
    assert compiled.macs == macs
    assert compiled.flops == 2 * macs + 6 * 16  # the mean reads 16 elements a channel


def test_sizes_depend_on_shapes_and_on_whether_bounds_cut_into_the_bytes(compiled: Compiled, kind: BoardKind) -> None:
    for seed, zero_point in ((1, 0), (2, -100), (3, 127)):  # relu ends above the lowest byte: bounds cut
        other = compile_graph(small_cnn(seed, zero_point=zero_point), kind)
        assert (other.image.rom, other.image.ram) == (compiled.image.rom, compiled.image.ram)
    plain, again = (compile_graph(small_cnn(seed, zero_point=-128), kind).image for seed in (0, 4))
    assert (plain.rom, plain.ram) == (again.rom, again.ram)
    assert plain.rom.code_bytes < compiled.image.rom.code_bytes


def test_an_image_fits_to_the_byte(compiled: Compiled, kind: BoardKind) -> None:
    rom, ram = compiled.image.rom.total_bytes, compiled.image.ram.total_bytes
    exact = compile_graph(small_cnn(), replace(kind, flash_bytes=rom, ram_bytes=ram))
    assert exact.image.rom == compiled.image.rom
    with pytest.raises(DoesNotFit) as caught:
        compile_graph(small_cnn(), replace(kind, flash_bytes=rom - 1, ram_bytes=ram - 5))
    assert caught.value.overflows == {"FLASH": (rom, rom - 1), "RAM": (ram, ram - 5)}
    assert "(1 over)" in str(caught.value) and "(5 over)" in str(caught.value)


def test_a_region_that_fits_is_no_overflow(compiled: Compiled, kind: BoardKind) -> None:
    with pytest.raises(DoesNotFit) as caught:
        compile_graph(small_cnn(), replace(kind, ram_bytes=800))
    assert (caught.value.region, caught.value.available_bytes) == ("RAM", 800)
    assert caught.value.needed_bytes == compiled.image.ram.total_bytes
    assert list(caught.value.overflows) == ["RAM"]


@pytest.mark.parametrize("name", sorted(kinds()))
@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_image_runs_on_every_board_kind(name: str, compiler: str) -> None:
    require(compiler)
    kind = load_kind(name)
    graph = small_cnn()
    image = compile_graph(graph, kind, compiler=compiler).image
    x = random_inputs(graph, 3)
    outputs = run_outputs(image.elf, VirtualBoard("virtual", kind), x.reshape(3, -1), output_bytes=5)
    assert np.array_equal(outputs, reference.output_of(graph, x))


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("has_dsp", [True, False])
def test_a_cortex_m33_gets_the_assembly_where_it_has_the_dsp_extension(
    kind: BoardKind, has_dsp: bool, compiler: str
) -> None:
    require(compiler)
    m33 = replace(kind, name="m33", core="cortex-m33", fpu="fpv5-sp-d16", has_dsp=has_dsp)
    found = symbols(compile_graph(small_cnn(), m33, compiler=compiler).image.elf)
    assert ("ef_quad_tail_wide_s8" in found) == has_dsp


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("core", PLAIN_CORES)
def test_cores_without_dsp_extension_run_the_portable_kernels(kind: BoardKind, core: str, compiler: str) -> None:
    require(compiler)
    graph, plain = small_cnn(), replace(kind, name=core, core=core, fpu="", has_dsp=False)
    image = compile_graph(graph, plain, compiler=compiler).image
    x = random_inputs(graph, 3)
    outputs = run_outputs(image.elf, VirtualBoard("virtual", plain), x.reshape(3, -1), output_bytes=5)
    assert np.array_equal(outputs, reference.output_of(graph, x).reshape(3, -1))


def test_the_host_gives_every_layer(compiled: Compiled) -> None:
    network = HostNetwork(compiled.sources, compiled.graph, compiled.plan)
    x = random_inputs(compiled.graph, 4)
    expected = reference.run(compiled.graph, x)
    assert np.array_equal(network.run(x), expected["y"].reshape(4, -1))
    assert reference.first_difference(
        compiled.graph, {name: rows[:1] for name, rows in expected.items()}, network.layer_outputs(x[0])
    ) is None  # fmt: skip


def test_the_host_refuses_samples_of_another_size(compiled: Compiled) -> None:
    network = HostNetwork(compiled.sources, compiled.graph, compiled.plan)
    with pytest.raises(ValueError, match="a sample has 3 bytes, the network takes 128"):
        network.run(np.zeros((2, 3), np.int8))


def test_a_compiler_that_takes_too_long_may_be_tried_again(monkeypatch: pytest.MonkeyPatch, kind: BoardKind) -> None:
    monkeypatch.setattr(toolchain, "TIMEOUT_S", 0.001)
    with pytest.raises(ToolchainInterrupted, match=r"more than 0.001 s"):
        compile_graph(small_cnn(), kind)


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, kind: BoardKind) -> None:
    monkeypatch.setattr(toolchain, "gcc_path", lambda: None)
    toolchain.gcc_version.cache_clear()
    with pytest.raises(ToolchainError, match="arm-none-eabi-gcc is not on the path"):
        compile_graph(small_cnn(), kind, compiler="gcc")


def test_the_cache_moves_aside_where_home_is_read_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder can be made below a file
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    toolchain.cache_folder.cache_clear()
    try:
        assert toolchain.cache_folder().parent == tmp_path
    finally:
        toolchain.cache_folder.cache_clear()


_UNDEFINED = """
import sys, tempfile
from pathlib import Path
import numpy as np
from tasks.firmware import toolchain
from tasks.firmware.compiler import compile_graph
from tasks.firmware.emit import emit_network
from tasks.firmware.host import HostNetwork
from tasks.firmware.planner import plan_memory
from tests.support.graphs import small_cnn
from tests.support.networks import random_inputs

# Past zig's own switch, which would first build a runtime that prints; a trap ends the process instead.
checks = "shift-base,shift-exponent,signed-integer-overflow,integer-divide-by-zero,null,alignment,array-bounds"
traps = [part for kind in ("sanitize", "sanitize-trap") for part in ("-Xclang", f"-f{kind}={checks}")]
toolchain.HOST_CODE = ("-O1", "-fno-sanitize=undefined", *traps)
graph = small_cnn()
plan = plan_memory(graph)
HostNetwork(emit_network(graph, plan), graph, plan).run(random_inputs(graph, 20))
"""


def test_the_kernels_do_nothing_undefined() -> None:
    done = subprocess.run([sys.executable, "-c", _UNDEFINED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_code_for_size_is_smaller_and_computes_the_same(compiled: Compiled, kind: BoardKind) -> None:
    small = compile_graph(small_cnn(), kind, optimise="size")
    assert small.image.rom.code_bytes < 0.8 * compiled.image.rom.code_bytes
    assert small.image.rom.weights_bytes == compiled.image.rom.weights_bytes
    x = random_inputs(compiled.graph, 3)
    outputs = run_outputs(small.image.elf, VirtualBoard("virtual", kind), x.reshape(3, -1), output_bytes=5)
    assert np.array_equal(outputs, reference.output_of(compiled.graph, x))
