"""ONNX → firmware: the passes in their order, and the image they end in."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template
from typing import Any

from mcu_agent.image import KIND_SECTION
from mcu_agent.kinds import BoardKind
from tasks.firmware.emit import Optimise, banner, count_flops, count_macs, emit_network
from tasks.firmware.errors import DoesNotFit, ToolchainError
from tasks.firmware.image import REGION_SPAN, FirmwareImage, measure
from tasks.firmware.ir import Graph, layer_symbol, op_name
from tasks.firmware.lower import lower
from tasks.firmware.onnx_import import import_onnx
from tasks.firmware.planner import Plan, plan_memory
from tasks.firmware.stream import stream
from tasks.firmware.toolchain import gcc_version, link_firmware, zig_version

PREFIX = "edgefront"
STACK_BYTES = 768  # over twice what the kernels were seen to use, exception frame included; an overflow faults
_OVERFLOW = "overflowed"
_HARNESS = ("harness.c", "mailbox.h", "port.h", "startup.c")


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """A network as graph, memory plan, C sources (path → text, harness included) and linked image. ``extra_macs`` of
    its multiply-accumulates are there to make the arena smaller by ``saved_bytes``."""

    graph: Graph
    plan: Plan
    sources: dict[str, str]
    image: FirmwareImage
    optimise: Optimise = "speed"
    extra_macs: int = 0
    saved_bytes: int = 0

    @property
    def macs(self) -> int:
        return sum(count_macs(self.graph, layer) for layer in self.graph.layers)

    @property
    def flops(self) -> int:
        return sum(count_flops(self.graph, layer) for layer in self.graph.layers)

    def layers_json(self) -> list[dict[str, Any]]:
        """What an agent needs to look at the layers of a running image."""
        return [
            {
                "index": index,
                "name": layer.name,
                "op": op_name(layer),
                "symbol": layer_symbol(PREFIX, index, layer),
                "output_offset": self.plan.offsets[layer.output],
                "output_bytes": self.graph.tensors[layer.output].n_bytes,
                "output_shape": list(self.graph.tensors[layer.output].shape),
                "macs": count_macs(self.graph, layer),
            }
            for index, layer in enumerate(self.graph.layers)
        ]


def compile_network(
    onnx_qdq: bytes,
    kind: BoardKind,
    *,
    compiler: str = "zig",
    optimise: Optimise = "speed",
    extra_macs: float = 0.0,
    has_markers: bool = False,
) -> Compiled:
    """Compile a QDQ int8 model for a board kind, with ``"zig"`` or ``"gcc"``, for ``"speed"`` or ``"size"``.
    ``extra_macs``: the share of more multiply-accumulates that may be spent on a smaller arena
    (:mod:`tasks.firmware.stream`). ``has_markers``: each layer is surrounded by marks of the cycle counter, at the
    symbol ``edgefront_marks``.

    Raises:
        ValueError: ``extra_macs`` is negative.
        Unsupported: the model holds what cannot be compiled.
        AccumulatorOverflow: a layer's sums could leave 32 bits.
        DoesNotFit: the image is larger than the board, with exact bytes a region.
        ToolchainError: the C compiler is missing or failed.
    """
    streamed = stream(lower(import_onnx(onnx_qdq)), extra_macs)
    made = compile_graph(streamed.graph, kind, compiler=compiler, optimise=optimise, has_markers=has_markers)
    return replace(made, extra_macs=streamed.extra_macs, saved_bytes=streamed.saved_bytes)


def compile_graph(
    graph: Graph,
    kind: BoardKind,
    *,
    compiler: str = "zig",
    optimise: Optimise = "speed",
    has_markers: bool = False,
) -> Compiled:
    """The passes after lowering; arguments and errors as of :func:`compile_network`."""
    plan = plan_memory(graph)
    network = emit_network(graph, plan, PREFIX, optimise, has_markers=has_markers)
    sources = {**network, **_board_files(graph, kind)}
    name = zig_version() if compiler == "zig" else gcc_version()
    image_id = _image_id(sources, kind, name)
    sources["board/image_id.c"] = _image_id_file(graph, kind, image_id)
    sources = dict(sorted(sources.items()))
    elf = link_sources(sources, kind, compiler=compiler)
    rom, ram = measure(elf, kind)
    image = FirmwareImage(elf=elf, image_id=image_id, rom=rom, ram=ram, compiler=name, board_kind=kind.name)
    return Compiled(graph=graph, plan=plan, sources=sources, image=image, optimise=optimise)


def write_sources(sources: Mapping[str, str], folder: Path) -> list[str]:
    """Write files under ``folder``; gives back those to compile or assemble."""
    for path, text in sources.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8", newline="\n")
    return [path for path in sources if path.endswith((".c", ".S"))]


def _board_files(graph: Graph, kind: BoardKind) -> dict[str, str]:
    folder = resources.files("tasks.firmware") / "csrc" / "board"
    files = {f"board/{name}": (folder / name).read_text("utf-8") for name in _HARNESS}
    template = (folder / "link.ld.in").read_text("utf-8")
    linked = {"link.ld": _linker_script(template, graph, kind, (kind.flash_bytes, kind.ram_bytes))}
    return files | _port_files(folder / "ports", graph, kind) | linked


def _port_files(folder: Traversable, graph: Graph, kind: BoardKind) -> dict[str, str]:
    """The port's file, the headers it shares with others, and what it must know of the board."""
    port = (folder / f"{kind.port or 'none'}.c").read_text("utf-8")
    headers = [entry for entry in folder.iterdir() if entry.name.endswith(".h") and f'"{entry.name}"' in port]
    shared = {f"board/{entry.name}": entry.read_text("utf-8") for entry in headers}
    return {"board/port.c": port, "board/kind.h": _kind_header(graph, kind)} | shared


def _kind_header(graph: Graph, kind: BoardKind) -> str:
    port, pin = kind.trigger
    return (
        f"/* {banner(graph)} Board kind {kind.name}. */\n#ifndef EDGEFRONT_KIND_H\n#define EDGEFRONT_KIND_H\n\n"
        f"/** {kind.trigger_pin or 'No trigger pin'}; ports are numbered from 0. */\n"
        f"#define EDGEFRONT_TRIGGER_PORT {port}u\n#define EDGEFRONT_TRIGGER_PIN {pin}u\n\n#endif\n"
    )


def _linker_script(template: str, graph: Graph, kind: BoardKind, lengths: tuple[int, int]) -> str:
    return Template(template).substitute(
        header=f"{banner(graph)} Board kind {kind.name}.",
        flash_origin=f"0x{kind.flash_origin:08X}",
        flash_length=f"0x{lengths[0]:X}",
        ram_origin=f"0x{kind.ram_origin:08X}",
        ram_length=f"0x{lengths[1]:X}",
        stack_bytes=STACK_BYTES,
    )


def _image_id(sources: Mapping[str, str], kind: BoardKind, compiler: str) -> bytes:
    text = json.dumps([dict(sorted(sources.items())), kind.name, kind.core, kind.fpu, compiler])
    return hashlib.sha256(text.encode()).digest()


def _image_id_file(graph: Graph, kind: BoardKind, image_id: bytes) -> str:
    """What the image says of itself. The kind's name stands in the ELF file alone, in a section that is not loaded, for
    which C has no words."""
    rows = [", ".join(f"0x{byte:02X}" for byte in image_id[i : i + 8]) for i in range(0, 32, 8)]
    body = ",\n    ".join(rows)
    return (
        f'/* {banner(graph)} */\n#include "mailbox.h"\n\n'
        f"const uint8_t edgefront_image_id[32] = {{\n    {body},\n}};\n\n"
        "const uint32_t edgefront_has_peripherals = 1;\n\n"
        f'__asm(".pushsection {KIND_SECTION},\\"\\",%progbits\\n\\t.asciz \\"{kind.name}\\"\\n\\t.popsection");\n'
    )


def link_sources(sources: Mapping[str, str], kind: BoardKind, *, compiler: str = "zig") -> bytes:
    """The ELF file of sources that hold a ``link.ld``.

    Raises:
        DoesNotFit, ToolchainError: as :func:`compile_network`.
    """
    with tempfile.TemporaryDirectory(prefix="edgefront-build-") as name:
        folder = Path(name)
        c_files = write_sources(sources, folder)
        try:
            return link_firmware(folder, c_files, kind, compiler)
        except ToolchainError as error:
            if _OVERFLOW not in str(error):
                raise
            raise _overflow(sources, kind, compiler, folder, c_files) from error


def _overflow(
    sources: Mapping[str, str], kind: BoardKind, compiler: str, folder: Path, c_files: list[str]
) -> DoesNotFit:
    """Link once more without limits and count: the linker's own figures stop at its first overflowing section."""
    lengths = (f"0x{kind.flash_bytes:X}", f"0x{kind.ram_bytes:X}")
    script = sources["link.ld"]
    for length in lengths:
        script = script.replace(f"LENGTH = {length}\n", f"LENGTH = 0x{REGION_SPAN:X}\n")
    (folder / "link.ld").write_text(script, encoding="utf-8", newline="\n")
    rom, ram = measure(link_firmware(folder, c_files, kind, compiler), kind)
    return DoesNotFit({"FLASH": (rom.total_bytes, kind.flash_bytes), "RAM": (ram.total_bytes, kind.ram_bytes)})
