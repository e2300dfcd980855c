"""The part of the command line that deals with boards: racks, agents, measurements.

As in :mod:`cli`, imports stand inside the functions, so that a command does not wait for what it does not use.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """The option ``--json`` of a command that can print for scripts."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")(function)


def rack_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """The option ``--rack`` of a command that works on boards of a rack file."""
    return click.option(
        "--rack",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar="EDGEFRONT_RACK",
        help="Rack file; default: $EDGEFRONT_RACK, or rack.toml where there is one.",
    )(function)


def aligned(rows: list[list[str]]) -> list[str]:
    """Rows of cells as lines whose columns stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


@click.command(short_help="List board kinds, or the boards of a rack.")
@click.option("--rack", type=click.Path(path_type=Path, dir_okay=False), help="List the boards of this rack file.")
@json_option
def boards(rack: Path | None, as_json: bool) -> None:
    """List the board kinds a study can name, or the boards of a rack and what they are doing.

    \b
    Example:
      edgefront boards
      edgefront boards --rack rack.toml
    """
    rows = _board_kinds() if rack is None else _rack_boards(rack)
    if as_json:
        click.echo(json.dumps(rows))
        return
    for line in aligned(
        [
            [_HEADINGS.get(name, name) for name in rows[0]],
            *[[str(value) for value in row.values()] for row in _readable(rows)],
        ]
    ):
        click.echo(line)


_HEADINGS = {"clock_hz": "clock", "flash_bytes": "flash", "ram_bytes": "RAM", "nj_per_cycle": "nJ a cycle"}


def _board_kinds() -> list[dict[str, Any]]:
    from mcu_agent.kinds import kinds

    names = ("name", "mcu", "core", "clock_hz", "flash_bytes", "ram_bytes", "nj_per_cycle", "description")
    return [{name: getattr(kind, name) for name in names} for kind in kinds().values()]


def _rack_boards(rack: Path) -> list[dict[str, Any]]:
    from mcu_agent.pool import Pool, lock_folder
    from mcu_agent.rack import load_rack

    return [
        {
            "board": status.board.board_id,
            "kind": status.board.kind,
            "driver": status.board.driver,
            "state": status.state.value,
            "detail": status.detail,
        }
        for status in Pool(load_rack(rack), lock_folder()).statuses()
    ]


def _readable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from orchestrator.quantities import rounded

    def text(name: str, value: Any) -> Any:
        if name.endswith("_bytes"):
            return rounded(value, "byte")
        return f"{value / 1e6:g} MHz" if name.endswith("_hz") else value

    return [{name: text(name, value) for name, value in row.items()} for row in rows]


@click.command(short_help="Offer the boards of a rack to a lab.")
@click.option(
    "--rack",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Rack file (TOML) with the boards of this host.",
)
@click.option("--name", default="", help="Name in logs, on the screen and in reports; default: the host's.")
@click.option("--metrics-port", type=click.IntRange(0, 65535), default=0, help="Port of /metrics; 0: any free one.")
@click.option("--metrics-address", default="127.0.0.1", show_default=True, help="Interface of /metrics.")
def agent(rack: Path, name: str, metrics_port: int, metrics_address: str) -> None:
    """Offer the boards of a rack to the studies of the broker at EDGEFRONT_BROKER_URL until told to stop.

    \b
    Example of a rack file:
      [[board]]
      id = "bench"
      kind = "nrf52840-dk"
      driver = "virtual"
      count = 2

    \b
    Example:
      EDGEFRONT_BROKER_URL=redis://lab:6379/0 edgefront agent --rack rack.toml
    """
    from tasks.agent import AgentOptions, run_agent

    options = AgentOptions(rack=rack, name=name, metrics_port=metrics_port, metrics_address=metrics_address)
    sys.exit(run_agent(options, announce=click.echo))


# ------------------------------------------------------------------------------------------------------------- measure


@click.command(short_help="Measure one image on one board, without a study.")
@click.argument("image", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--board", required=True, help="Id of a board of the rack; or a board kind: a virtual one.")
@rack_option
@click.option("--vectors", type=click.Path(path_type=Path, dir_okay=False), help="Known answers (npz).")
@click.option("--samples", type=click.IntRange(1, 10_000), default=32, show_default=True, help="Known answers to run.")
@click.option(
    "--timeout", type=click.FloatRange(1, 3600), default=120, show_default=True, help="Seconds for all of it."
)
@click.option("--wait", type=click.FloatRange(0, 86400), default=60, show_default=True, help="Seconds to wait for it.")
@json_option
def measure(
    image: Path,
    board: str,
    rack: Path | None,
    vectors: Path | None,
    samples: int,
    timeout: float,
    wait: float,
    as_json: bool,
) -> None:
    """Program IMAGE (an ELF file of edgefront compile or export) into a board, check its outputs and measure it.

    Known answers are taken from vectors.npz beside the image, or from an exported project's test folder.

    \b
    Example:
      edgefront measure build/firmware.elf --board nrf52840-dk
      edgefront measure build/firmware.elf --board bench-1 --rack rack.toml
    """
    from mcu_agent.errors import ImageRejected, InventoryError
    from mcu_agent.measure import find_known_answers, read_elf, to_json
    from mcu_agent.measure_view import lines
    from mcu_agent.measuring import Request, measure_on

    elf, known = read_elf(image), find_known_answers(image, vectors)
    request = Request(elf=elf, known=known, samples=samples, timeout_s=timeout, wait_s=wait)
    try:
        found = measure_on(_rack_with(board, rack), board, request)
    except ImageRejected as error:
        raise InventoryError(f"{image}: {error}") from error
    if as_json:
        click.echo(json.dumps({**to_json(found), "known_answers": known.file if known else None}))
        return
    click.echo("\n".join(lines(found, known.file if known else "")))


def _rack_with(board: str, path: Path | None) -> Any:
    """The rack that ``board`` is looked for in: the file's, or a virtual board where it names a kind.

    Raises:
        InventoryError: neither is there; says what to do.
    """
    from mcu_agent.errors import InventoryError
    from mcu_agent.kinds import kinds
    from mcu_agent.rack import load_rack, virtual_rack

    default = Path("rack.toml")
    path = path or (default if default.exists() else None)
    if path is None and board in kinds():
        return virtual_rack(board, 1)
    if path is None:
        raise InventoryError(
            f"--board {board}: no board kind of this name, and no rack file to look for a board in; give --rack FILE, "
            f"or one of {', '.join(kinds())}"
        )
    return load_rack(path)
