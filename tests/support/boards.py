"""Hand-written firmware for tests of the agent, compiled once a test process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from mcu_agent.boards.blockcounter import cache_folder
from mcu_agent.boards.fake import FakeNetwork
from mcu_agent.kinds import BoardKind, load_kind
from mcu_agent.session import Job, Layer

SOURCES = Path(__file__).parent / "board_firmware"
STACK_BYTES = 1024
N = 16

_LINKER_SCRIPT = """
ENTRY(Reset_Handler)
MEMORY {{
  FLASH (rx) : ORIGIN = {flash_origin:#x}, LENGTH = {flash_bytes}
  RAM (rwx)  : ORIGIN = {ram_origin:#x}, LENGTH = {ram_bytes}
}}
SECTIONS {{
  .text : {{ KEEP(*(.vectors)) *(.text*) *(.rodata*) . = ALIGN(4); }} > FLASH
  __data_load = LOADADDR(.data);
  .stack (NOLOAD) : {{
    __edgefront_stack_bottom = .; . += {stack_bytes}; __edgefront_stack_top = .;
  }} > RAM
  .data : {{ __data_start = .; *(.data*) . = ALIGN(4); __data_end = .; }} > RAM AT > FLASH
  .bss (NOLOAD) : {{ __bss_start = .; *(.bss*) *(COMMON) . = ALIGN(4); __bss_end = .; }} > RAM
  /DISCARD/ : {{ *(.ARM.exidx*) *(.ARM.attributes) }}
}}
"""


@lru_cache
def firmware(kind_name: str = "nrf52-dk", source: str = "firmware.c") -> bytes:
    """The ELF file of ``source`` for a board kind."""
    kind = load_kind(kind_name)
    with tempfile.TemporaryDirectory() as folder:
        script, built = Path(folder) / "link.ld", Path(folder) / "image.elf"
        script.write_text(_LINKER_SCRIPT.format(stack_bytes=STACK_BYTES, **_memory(kind)))
        flags = "-target thumb-freestanding-eabihf -mcpu=cortex_m4+vfp4d16sp -O2 -fomit-frame-pointer -nostdlib"
        command = [sys.executable, "-m", "ziglang", "cc", *flags.split(), "-fno-sanitize=undefined", "-fno-builtin"]
        command += [
            "-Wl,-e,Reset_Handler",
            "-Wl,--no-gc-sections",
            f"-Wl,-T,{script}",
            "-o",
            str(built),
            str(SOURCES / source),
        ]
        environment = {"ZIG_GLOBAL_CACHE_DIR": str(cache_folder() / "zig"), **os.environ}
        subprocess.run(command, check=True, capture_output=True, timeout=120, env=environment)
        return built.read_bytes()


def _memory(kind: BoardKind) -> dict[str, int]:
    return {name: getattr(kind, name) for name in ("flash_origin", "flash_bytes", "ram_origin", "ram_bytes")}


LAYERS = [
    {
        "index": 0,
        "name": "double",
        "op": "double",
        "symbol": "edgefront_layer_00_double",
        "output_offset": 0,
        "output_bytes": N,
        "output_shape": [1, 1, N],
        "macs": N,
    },
    {
        "index": 1,
        "name": "add",
        "op": "add",
        "symbol": "edgefront_layer_01_add",
        "output_offset": N,
        "output_bytes": N,
        "output_shape": [1, 1, N],
        "macs": 0,
    },
]


def inputs(n: int = 4, first_byte: int = 0) -> np.ndarray:
    """(n, 16) int8 inputs; the first byte chooses how the firmware misbehaves."""
    values = np.arange(n * N, dtype=np.int64).reshape(n, N) % 100 - 50
    values[:, 0] = first_byte
    return values.astype(np.int8)


def layer_outputs(x: np.ndarray) -> list[np.ndarray]:
    """What the two layers of the firmware give for inputs (n, 16), as (n, 16) each."""
    doubled = (2 * x.astype(np.int64)).astype(np.int8)
    return [doubled, (doubled.astype(np.int64) + 1).astype(np.int8)]


def fake_network(clock_hz: int | None = None) -> FakeNetwork:
    """What the firmware computes, for a fake board."""

    def run(data: bytes) -> list[bytes]:
        return [layer[0].tobytes() for layer in layer_outputs(np.frombuffer(data, dtype=np.int8)[None])]

    places = [(str(layer["symbol"]), int(str(layer["output_offset"]))) for layer in LAYERS]
    return FakeNetwork(run=run, layers=places, input_bytes=N, output_bytes=N, clock_hz=clock_hz)


def make_job(first_byte: int = 0, n: int = 4, timeout_s: float = 5.0, kind: str = "nrf52-dk") -> Job:
    """A profile of the firmware whose references are right; ``first_byte`` chooses how it misbehaves."""
    x = inputs(n, first_byte)
    outputs = layer_outputs(x)
    return Job(
        elf=firmware(kind),
        inputs=x,
        expected=outputs[1],
        layers=[Layer.from_json(layer) for layer in LAYERS],
        layer_outputs={index: output[0] for index, output in enumerate(outputs)},
        timeout_s=timeout_s,
    )
