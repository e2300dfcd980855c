"""Several networks behind one firmware, run on either emulator: one start of a compiler for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mcu_agent.boards.virtual import EmulatedCounter, VirtualBoard
from mcu_agent.image import Image, read_image
from mcu_agent.kinds import BoardKind
from mcu_agent.session import Job, opened
from tasks.firmware.ir import Graph, Int8Array
from tests.support import qemu
from tests.support.networks import board_bundle


@dataclass(frozen=True, kw_only=True, slots=True)
class Ran:
    """``outputs``: of every network for each of its samples, (samples, bytes); ``instructions``: of every run, all
    samples of the first network first."""

    outputs: list[Int8Array]
    instructions: list[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """The firmware of ``graphs`` and how to talk to it; see :func:`tests.support.networks.board_bundle`."""

    graphs: tuple[Graph, ...]
    kind: BoardKind
    elf: bytes
    n_inputs: int
    n_outputs: int

    def on_unicorn(self, inputs: Sequence[Int8Array]) -> Ran:
        """Run ``inputs``, for every network (samples, H, W, C), on the virtual board."""
        return self._ran(inputs, *run_counted(self.elf, self.kind, self.frames(inputs)))

    def on_qemu(self, inputs: Sequence[Int8Array], machine: qemu.Machine, folder: Path) -> Ran:
        """The same on a machine of QEMU with the memory of ``kind``; ``folder`` for its files."""
        outputs, counts = qemu.run_on_qemu(self.elf, self.frames(inputs), folder, machine=machine)
        return self._ran(inputs, outputs, [one.instructions for one in counts])

    def frames(self, inputs: Sequence[Int8Array]) -> Int8Array:
        """What the firmware takes for them, (all samples, bytes)."""
        frames = []
        for index, x in enumerate(inputs):
            rows = np.zeros((len(x), self.n_inputs), np.int8)
            rows[:, 0] = index
            rows[:, 1 : 1 + x[0].size] = x.reshape(len(x), -1)
            frames.append(rows)
        return np.concatenate(frames)

    def _ran(self, inputs: Sequence[Int8Array], outputs: Int8Array, instructions: list[int]) -> Ran:
        ends = np.cumsum([len(x) for x in inputs])[:-1]
        parts = [
            rows[:, : graph.output_tensor.n_bytes]
            for graph, rows in zip(self.graphs, np.split(outputs, ends), strict=True)
        ]
        return Ran(outputs=parts, instructions=instructions)


def bundle(graphs: Sequence[Graph], kind: BoardKind, compiler: str = "zig") -> Bundle:
    """At most 127 networks, which all have to fit."""
    elf, n_inputs, n_outputs = board_bundle(graphs, kind, compiler)
    return Bundle(graphs=tuple(graphs), kind=kind, elf=elf, n_inputs=n_inputs, n_outputs=n_outputs)


def run_counted(elf: bytes, kind: BoardKind, inputs: Int8Array) -> tuple[Int8Array, list[int]]:
    """Outputs (n, bytes) and instructions of each run on the virtual board for ``inputs`` (n, bytes)."""
    job = Job(elf=elf, inputs=inputs, expected=np.zeros((len(inputs), 0), np.int8))
    with opened(job, read_image(elf, kind), _CountingBoard("virtual", kind)) as link:
        link.check_identity()
        runs = [link.run(one) for one in inputs]
    return np.stack([run.output for run in runs]), [run.counts[0].instructions for run in runs]


class _CountingBoard(VirtualBoard):
    """A virtual board that counts instructions for every core. Its cycles are those of a Cortex-M4."""

    def load(self, image: Image) -> None:
        super().load(image)
        emulator, blocks, _ = self._powered()
        self.counter = EmulatedCounter(emulator, blocks, replace(self.kind, core="cortex-m4"))
