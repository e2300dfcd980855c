"""A virtual board that looks at every access of a layer: the DSP kernels are assembly, which no sanitiser sees."""

from __future__ import annotations

import re
from collections.abc import Sequence

from unicorn import UC_HOOK_CODE, UC_HOOK_MEM_READ, UC_HOOK_MEM_WRITE, UC_MEM_WRITE, Uc

from mcu_agent.boards.virtual import VirtualBoard
from mcu_agent.image import Image
from mcu_agent.kinds import BoardKind
from mcu_agent.session import run_outputs
from tasks.firmware.ir import Graph, Int8Array, layer_symbol
from tasks.firmware.planner import plan_memory
from tests.support.bundles import Bundle
from tests.support.sanitised import touched

_LAYER = re.compile(r"net\d+_layer_\d+_[a-z0-9]+")
_WORD = 4
Span = tuple[int, int]  # first address, first address after it


class WatchedBoard(VirtualBoard):
    """Runs a bundle of ``graphs`` and notes in ``violations`` each access that a layer may not make.

    A layer may write its output and its scratch, and on the stack. It may read these, its inputs (in words that begin
    inside them: buffers are aligned to words), its own tables, and what lies in functions: literals.
    """

    def __init__(self, kind: BoardKind, graphs: Sequence[Graph]) -> None:
        super().__init__("watched", kind)
        self.violations: list[str] = []
        self.n_accesses = 0
        self._graphs = graphs
        self._layer = ""
        self._reads: dict[str, list[Span]] = {}
        self._writes: dict[str, list[Span]] = {}

    def load(self, image: Image) -> None:
        super().load(image)
        emulator, _, _ = self._powered()
        for index, graph in enumerate(self._graphs):
            self._watch_network(emulator, image, f"net{index}", graph)
        after = image.address("edgefront_after_run")
        emulator.hook_add(UC_HOOK_CODE, self._enter, "", after, after)
        emulator.hook_add(UC_HOOK_MEM_READ | UC_HOOK_MEM_WRITE, self._access)

    def _watch_network(self, emulator: Uc, image: Image, prefix: str, graph: Graph) -> None:
        plan, arena = plan_memory(graph), image.address(f"{prefix}_arena")
        stack = (self.kind.ram_origin, image.address("__edgefront_stack_top"))
        outside = image.symbols["buffer_out"]  # where the run copies the output to, after the last layer
        copy = (outside.address, outside.address + outside.size)
        literals = [(s.address, s.address + s.size) for s in image.symbols.values() if s.is_function]
        for index, layer in enumerate(graph.layers):
            symbol = layer_symbol(prefix, index, layer)
            spans = [(arena + start, arena + start + n_bytes) for start, n_bytes in touched(graph, plan, index, layer)]
            tables = [
                (s.address, s.address + s.size)
                for s in image.symbols.values()
                if not s.is_function and (match := _LAYER.match(s.name)) and match.group() == symbol
            ]
            words = [(start, -(-end // _WORD) * _WORD) for start, end in spans]
            self._reads[symbol] = [stack, *words, *tables, *literals]
            copied = [copy] if index == len(graph.layers) - 1 else []
            self._writes[symbol] = [stack, *spans[len(layer.inputs) :], *copied]
            entry = image.address(symbol)
            emulator.hook_add(UC_HOOK_CODE, self._enter, symbol, entry, entry)

    def _enter(self, _uc: Uc, _address: int, _size: int, symbol: str) -> None:
        self._layer = symbol

    def _access(self, _uc: Uc, access: int, address: int, size: int, _value: int, _user: object) -> None:
        if not self._layer:
            return
        self.n_accesses += 1
        spans = (self._writes if access == UC_MEM_WRITE else self._reads)[self._layer]
        if not any(start <= address and address + size <= end for start, end in spans):
            what = "writes" if access == UC_MEM_WRITE else "reads"
            self.violations.append(f"{self._layer} {what} {size} bytes at {address:#010x}")


def watch(made: Bundle, inputs: Sequence[Int8Array]) -> WatchedBoard:
    """The board after a run of every network of the bundle on its inputs (samples, H, W, C)."""
    board = WatchedBoard(made.kind, made.graphs)
    run_outputs(made.elf, board, made.frames(inputs), output_bytes=made.n_outputs)
    return board
