"""The table of kernels says what the compiler does: compared with symbols of what is compiled for each core."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner
from elftools.elf.elffile import ELFFile

import cli
from mcu_agent.kinds import load_kind
from tasks.firmware import toolchain
from tasks.firmware.compiler import compile_graph, write_sources
from tasks.firmware.emit import emit_network
from tasks.firmware.emit_elementwise import EMITTED
from tasks.firmware.ir import AnyLayer, Conv2d, Plain, Window, op_name
from tasks.firmware.kernel_table import CORES, Core, Row, alone, rows, sample_layers
from tasks.firmware.kernels import geometry_of
from tasks.firmware.planner import plan_memory

M4 = load_kind("nrf52840-dk")
M33 = replace(M4, core="cortex-m33", fpu="fpv5-sp-d16")


def functions_of(assembly: str) -> set[str]:
    """The functions that a file of assembly names, with the macro that defines them or without."""
    return set(re.findall(r"\b(?:ef_\w+_s8|\w+_depthwise_\d\d)\b", assembly))


def every_operator(folder: Path) -> dict[str, set[str]]:
    """One C file with a layer of every operator, networks ``n00``, ``n01`` …; the functions of each in assembly."""
    lines, assembly = [], {}
    for number, layer in enumerate(sample_layers()):
        graph, prefix = alone(layer), f"n{number:02d}"
        sources = emit_network(graph, plan_memory(graph), prefix)
        write_sources(sources, folder)
        lines.append(f'#include "{prefix}.c"')
        texts = [text for path, text in sources.items() if path.endswith(".S")]
        assembly[op_name(layer)] = set().union(*map(functions_of, texts))
    (folder / "everything.c").write_text("\n".join(lines) + "\n")
    return assembly


def called_by_layers(folder: Path, core: Core) -> dict[str, set[str]]:
    """What each operator's layer calls outside its file, by the relocations of its section."""
    target = ["-target", "thumb-freestanding-eabi", f"-mcpu={core.cpu}"] if core.cpu else []
    command = [*toolchain._zig(), *target, *toolchain._COMMON, *toolchain._ZIG_CODE, "-I.", "-c", "everything.c"]
    toolchain._execute([*command, "-o", "everything.o"], folder)
    file = ELFFile(io.BytesIO((folder / "everything.o").read_bytes()))
    symbols, calls = file.get_section_by_name(".symtab"), {}
    for section in file.iter_sections():
        match = re.match(r"\.rela?\.text\.n\d\d_layer_00_(\w+)$", section.name)
        if match:
            used = [symbols.get_symbol(item["r_info_sym"]) for item in section.iter_relocations()]
            calls[match.group(1)] = {symbol.name for symbol in used if symbol["st_shndx"] == "SHN_UNDEF"}
    return calls


@pytest.mark.parametrize("core", CORES, ids=lambda core: core.name)
def test_a_layer_calls_assembly_on_a_core_exactly_where_the_table_says(core: Core, tmp_path: Path) -> None:
    if not core.cpu and sys.platform != "linux":
        pytest.skip("object files of this machine are not ELF")
    assembly = every_operator(tmp_path)
    called = called_by_layers(tmp_path, core)
    found = {name: "assembly" if called.get(name, set()) & functions else "C" for name, functions in assembly.items()}
    assert found == {row.operator: row.path(core) for row in rows()}


@pytest.mark.parametrize("row", [row for row in rows() if row.assembly], ids=lambda row: row.operator)
def test_the_firmware_holds_the_assembly_with_the_dsp_extension_and_none_without(row: Row) -> None:
    graph = next(alone(layer) for layer in sample_layers() if op_name(layer) == row.operator)
    files, linked = [path.replace("<prefix>", "edgefront") for path in row.assembly], {}
    for kind in (M4, M33, replace(M33, has_dsp=False)):
        compiled = compile_graph(graph, kind)
        texts = [compiled.sources[path if path in compiled.sources else f"kernels/{path}"] for path in files]
        table = ELFFile(io.BytesIO(compiled.image.elf)).get_section_by_name(".symtab")
        symbols = {symbol.name for symbol in table.iter_symbols() if symbol["st_info"]["bind"] == "STB_GLOBAL"}
        linked[kind.core, kind.has_dsp] = [bool(functions_of(text) & symbols) for text in texts]
    all_, none = [True] * len(files), [False] * len(files)
    assert linked == {("cortex-m4", True): all_, ("cortex-m33", True): all_, ("cortex-m33", False): none}


def test_every_operator_of_the_compiler_is_in_the_table() -> None:
    records = {*get_args(AnyLayer), *EMITTED} - {Plain}
    convolutions = {"dwconv2d", "gconv2d", "conv2d_add"}
    assert {row.operator for row in rows()} == {kind.__name__.lower() for kind in records} | convolutions


@pytest.mark.parametrize(
    ("window", "is_taken"),
    [
        (Window(kernel=(3, 3), stride=(3, 2)), True),
        (Window(kernel=(3, 3), stride=(1, 3)), False),
        (Window(kernel=(2, 2), dilation=(2, 2)), False),
    ],
)
def test_the_condition_of_depthwise_convolutions_is_the_one_that_decides(window: Window, is_taken: bool) -> None:
    (row,) = [row for row in rows() if row.operator == "dwconv2d"]
    assert row.condition.startswith("dilation 1, horizontal stride 1 or 2, any vertical stride;")
    layer = next(layer for layer in sample_layers() if op_name(layer) == "dwconv2d")
    assert isinstance(layer, Conv2d)
    graph = alone(replace(layer, window=window))
    assert geometry_of(graph, graph.layers[0]).is_supported is is_taken  # type: ignore[arg-type]


def test_the_command_prints_the_table_and_the_same_as_json() -> None:
    text = CliRunner().invoke(cli.main, ["kernels"]).output.splitlines()
    assert text[0].split()[:8] == ["operator", "M0+", "M3", "M4", "M7", "M33", "M33−DSP", "host"]
    (line,) = [line for line in text if line.startswith("dense")]
    assert line.split() == ["dense", "C", "C", "asm", "asm", "asm", "C", "C", "ef_dense_s8.h", "ef_dense_s8.S"]
    shown = json.loads(CliRunner().invoke(cli.main, ["kernels", "--json"]).output)
    (dense,) = [row for row in shown if row["operator"] == "dense"]
    assert [name for name, path in dense["paths"].items() if path == "assembly"] == [
        *("cortex-m4", "cortex-m7", "cortex-m33")
    ]
