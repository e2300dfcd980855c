"""A device as calibration sees one: an emulated core whose cycle counter lives, and counts faster by a known factor."""

from __future__ import annotations

from collections.abc import Callable

from unicorn import UC_HOOK_MEM_READ, Uc

from mcu_agent.boards.protocol import Counter
from mcu_agent.boards.thumb import TAKEN_PENALTY, block_cost
from mcu_agent.boards.virtual import VirtualBoard
from mcu_agent.image import Image
from mcu_agent.kinds import BoardKind

_CYCCNT = 0xE0001004


class SlowBoard(VirtualBoard):
    """Not emulated, as far as it says: no counting by regions, and a core counter that gives ``factor`` cycles for each
    emulated one, and ``wait()`` more between two readings: what one factor cannot explain."""

    is_emulated = False
    emulator = ""

    def __init__(self, board_id: str, kind: BoardKind, factor: float, wait: Callable[[], float] = lambda: 0.0) -> None:
        super().__init__(board_id, kind)
        self._factor = factor
        self._wait = wait
        self._waited = 0.0
        self._n_readings = 0
        self._costs: dict[tuple[int, int], int] = {}

    def load(self, image: Image) -> None:
        """As on any virtual board, with the counter switched over."""
        super().load(image)
        self.counter: Counter | None = None  # type: ignore[assignment]
        emulator, _, _ = self._powered()
        emulator.hook_add(UC_HOOK_MEM_READ, self._on_reading, begin=_CYCCNT, end=_CYCCNT + 3)

    def _on_reading(self, emulator: Uc, access: int, address: int, size: int, value: int, user: object) -> None:
        self._n_readings += 1  # blocks are counted whole, and two readings in one must differ all the same
        self._waited += self._wait()
        cycles = int(self._factor * self._emulated_cycles(emulator) + self._waited) + self._n_readings
        emulator.mem_write(_CYCCNT, (cycles % 2**32).to_bytes(4, "little"))

    def _emulated_cycles(self, emulator: Uc) -> int:
        _, blocks, _ = self._powered()
        total = 0
        for entry in blocks.entries():
            key = (int(entry["address"]), int(entry["size"]))
            if key not in self._costs:
                self._costs[key] = block_cost(bytes(emulator.mem_read(*key))).cycles
            total += self._costs[key] * int(entry["count"]) + TAKEN_PENALTY * int(entry["taken"])
        return total
