"""What the example studies' networks cost on a board, from the smallest to the largest of their spaces.

    python bench/examples.py [--board nrf52840-dk] [--json]

Weights are random from a fixed seed. ROM and RAM are exact; cycles are emulated, at zero wait states. Runs from a
checkout only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mcu_agent.errors import UnknownKind  # noqa: E402
from mcu_agent.kinds import load_kind  # noqa: E402
from tasks.compile import profile_compiled  # noqa: E402
from tasks.firmware.compiler import Optimise, compile_network  # noqa: E402
from tests.support.example_networks import CORNERS, SHAPES, example_network  # noqa: E402

AIMS: tuple[Optimise, ...] = get_args(Optimise)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One network, compiled for ``optimise``."""

    example: str
    corner: str
    optimise: str
    layers: int
    macs: int
    rom_bytes: int
    weights_bytes: int
    code_bytes: int
    runtime_bytes: int
    ram_static_bytes: int
    cycles: float


def measure(board: str) -> list[Row]:
    """Every example's networks at both ends, for speed and for size."""
    kind, rows = load_kind(board), []
    for example, corner in ((name, end) for name in SHAPES for end in CORNERS):
        model = example_network(example, corner)
        for optimise in AIMS:
            compiled = compile_network(model, kind, optimise=optimise)
            profile = profile_compiled(compiled, kind, n_inputs=1)
            rom = compiled.image.rom
            rows.append(
                Row(
                    example=example,
                    corner=corner,
                    optimise=optimise,
                    layers=len(profile.layers),
                    macs=sum(layer.macs for layer in profile.layers),
                    rom_bytes=rom.total_bytes,
                    weights_bytes=rom.weights_bytes,
                    code_bytes=rom.code_bytes,
                    runtime_bytes=rom.runtime_bytes,
                    ram_static_bytes=compiled.image.ram.static_bytes,
                    cycles=profile.cycles.median,
                )
            )
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown, as the documentation has them."""
    lines = [
        "| network | for | layers | MACs | ROM | of it weights, code, runtime | RAM (static) | cycles a MAC |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        parts = ", ".join(f"{part / 1024:.1f}" for part in (row.weights_bytes, row.code_bytes, row.runtime_bytes))
        ram, cycles_per_mac = row.ram_static_bytes / 1024, row.cycles / row.macs
        lines.append(
            f"| {row.example}, {row.corner} | {row.optimise} | {row.layers} | {row.macs:,} "
            f"| {row.rom_bytes / 1024:.1f} KiB | {parts} | {ram:.1f} KiB | {cycles_per_mac:.2f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What the example studies' networks cost on a board.")
    parser.add_argument("--board", default="nrf52840-dk", help="board kind (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    given = parser.parse_args(arguments)
    try:
        rows = measure(given.board)
    except UnknownKind as error:
        parser.error(str(error))
    print(json.dumps({"board": given.board, "rows": [asdict(row) for row in rows]}) if given.json else table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
