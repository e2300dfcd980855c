"""The part of the command line that deals with boards: racks, agents, measurements.

As in :mod:`cli`, imports stand inside the functions, so that a command does not wait for what it does not use.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

    from mcu_agent.pool import BoardStatus, Pool
    from mcu_agent.rack import RackBoard


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """The option ``--json`` of a command that can print for scripts."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")(function)


def aligned(rows: list[list[str]]) -> list[str]:
    """Rows of cells as lines whose columns stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def rack_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """The option ``--rack`` of a command that needs one."""
    file = click.Path(path_type=Path, dir_okay=False)
    return click.option("--rack", type=file, required=True, help="Rack file (TOML) with the boards of this host.")(
        function
    )


@click.group(invoke_without_command=True, short_help="List board kinds, or the boards of a rack.")
@click.option("--rack", type=click.Path(path_type=Path, dir_okay=False), help="List the boards of this rack file.")
@click.option("--watch", is_flag=True, help="Keep showing what they are doing, until Ctrl-C.")
@json_option
@click.pass_context
def boards(context: click.Context, rack: Path | None, watch: bool, as_json: bool) -> None:
    """List the board kinds a study can name, or the boards of a rack and what they are doing.

    A board is idle, leased (to whom, since when), stuck (its holder does not come back), suspect (being looked into) or
    quarantined (why, since when).

    \b
    Example:
      edgefront boards
      edgefront boards --rack rack.toml --watch
    """
    if context.invoked_subcommand is not None:
        return
    if watch and (as_json or rack is None):
        raise click.UsageError("--watch shows the boards of --rack FILE, for people")
    if watch and rack is not None:
        _watch_boards(rack)
        return
    rows = _board_kinds() if rack is None else _rack_boards(rack)
    if as_json:
        click.echo(json.dumps(rows))
        return
    for line in aligned(_cells(_readable(rows) if rack is None else _for_people(rows))):
        click.echo(line)


@boards.command(short_help="Take a board out of use.")
@click.argument("board")
@rack_option
@click.option("--reason", required=True, help="Why; shown to everybody who asks for the board.")
def quarantine(board: str, rack: Path, reason: str) -> None:
    """Take a board out of use until `edgefront boards release` puts it back. A lease under way is not disturbed.

    \b
    Example:
      edgefront boards quarantine bench-2 --rack rack.toml --reason "new wires"
    """
    import getpass

    _pool(rack).quarantine(board, reason, by=getpass.getuser())
    click.echo(f"{board} is out of use: {reason}")


@boards.command(short_help="Put a board back into use.")
@click.argument("board")
@rack_option
def release(board: str, rack: Path) -> None:
    """Put a board back into use, whoever took it out.

    \b
    Example:
      edgefront boards release bench-2 --rack rack.toml
    """
    _pool(rack).put_back(board)
    click.echo(f"{board} is in use again")


@click.group()
def rack() -> None:
    """Set up and test the boards of this host."""


@rack.command(short_help="List what is plugged in; write a rack file.")
@click.option("--to", type=click.Path(path_type=Path, dir_okay=False), help="Write a rack file to start from.")
@click.option("--force", is_flag=True, help="Replace the file.")
@json_option
def discover(to: Path | None, force: bool, as_json: bool) -> None:
    """List the debug probes, serial ports, power meters and GDB servers of this host, and write a rack file of them.

    What cannot be known – the kind of a board whose probe does not say, which board a meter supplies – is commented
    out.

    \b
    Example:
      edgefront rack discover --to rack.toml
    """
    from mcu_agent.discover import discover as look
    from mcu_agent.discover import rack_text

    if to is not None and to.exists() and not force:
        raise click.UsageError(f"--to: {to} exists already; choose another name, or give --force to replace it")
    found = look()
    rows = found.rows()
    if as_json:
        click.echo(json.dumps(rows))
    elif rows:
        for line in aligned(_cells(rows)):
            click.echo(line)
    else:
        click.echo("Nothing is plugged in that is known: no probe, serial port, meter or GDB server.")
    if to is not None:
        to.write_text(rack_text(found), encoding="utf-8")
        click.echo(f"{to}: written; check its entries, then: edgefront rack check --rack {to}", err=as_json)


@rack.command(short_help="Test boards with a known image.")
@click.argument("board", nargs=-1)
@rack_option
@click.option("--wait", type=click.FloatRange(0), default=60.0, show_default=True, help="Seconds to wait for a board.")
@json_option
def check(board: tuple[str, ...], rack: Path, wait: float, as_json: bool) -> None:
    """Run the self-test of each BOARD, of all without one: flash a known image, compare its identity, its answers bit
    by bit, its stack and its cycles, and look at what the meter reads. A board that passes is no longer quarantined,
    one that fails is. Ends with 1 if one fails or cannot be tested.

    \b
    Example:
      edgefront rack check --rack rack.toml
    """
    rows = _checked(_pool(rack), board, wait)
    if as_json:
        click.echo(json.dumps(rows))
    else:
        for line in aligned(_cells([_check_row(row) for row in rows])):
            click.echo(line)
    if not all(row["ok"] for row in rows):
        sys.exit(1)


_HEADINGS = {
    "clock_hz": "clock",
    "flash_bytes": "flash",
    "ram_bytes": "RAM",
    "nj_per_cycle": "nJ a cycle",
    "self_test": "self-test",
}


def _cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    return [[_HEADINGS.get(name, name) for name in rows[0]], *[[str(value) for value in row.values()] for row in rows]]


def _pool(rack: Path) -> Pool:
    from mcu_agent.pool import Pool, lock_folder
    from mcu_agent.rack import load_rack

    return Pool(load_rack(rack), lock_folder())


def _checked(pool: Pool, names: tuple[str, ...], wait_s: float) -> list[dict[str, Any]]:
    """The self-tests of boards, side by side."""
    from concurrent.futures import ThreadPoolExecutor

    from mcu_agent.errors import NoBoardFree
    from mcu_agent.recovery import check_board
    from mcu_agent.selftest import NoKnownImage

    entries = [pool.rack.board(name) for name in names] if names else list(pool.rack.boards)

    def one(entry: RackBoard) -> dict[str, Any]:
        try:
            report = check_board(pool, entry.board_id, "self-test", wait_s=wait_s)
            return {**report.to_json(), "quarantine": pool.record(entry.board_id).quarantine}
        except (NoBoardFree, NoKnownImage) as error:
            fields = {"board": entry.board_id, "kind": entry.kind, "driver": entry.driver}
            return {
                **fields,
                "ok": False,
                "reason": error.reason,
                "fault": str(error),
                "checks": {},
                "seconds": 0.0,
                "quarantine": pool.record(entry.board_id).quarantine,
            }

    with ThreadPoolExecutor(min(len(entries), _CHECKS_AT_ONCE)) as executor:
        return list(executor.map(one, entries))


_CHECKS_AT_ONCE = 8


def _check_row(row: dict[str, Any]) -> dict[str, Any]:
    def found(name: str) -> str:
        check = row["checks"].get(name, {"ok": None, "found": ""})
        return "FAILS" if check["ok"] is False else check["found"] or "-"

    fields = {name: row[name] for name in ("board", "kind", "driver")}
    columns = {name: found(name) for name in ("image", "answer", "cycles", "meter")}
    stays_out = f"ok, but out of use: {row['quarantine']}" if row["quarantine"] else "ok"
    return {**fields, **columns, "seconds": f"{row['seconds']:.1f}", "result": row["fault"] or stays_out}


def _board_kinds() -> list[dict[str, Any]]:
    from mcu_agent.kinds import kinds

    names = ("name", "mcu", "core", "clock_hz", "flash_bytes", "ram_bytes", "nj_per_cycle", "description")
    return [{name: getattr(kind, name) for name in names} for kind in kinds().values()]


def _rack_boards(rack: Path) -> list[dict[str, Any]]:
    return [_status_row(status) for status in _pool(rack).statuses()]


def _status_row(status: BoardStatus) -> dict[str, Any]:
    """Times in seconds since the epoch, null where there is none."""
    record = status.record
    return {
        "board": status.board.board_id,
        "kind": status.board.kind,
        "driver": status.board.driver,
        "state": status.state.value,
        "since": status.since or None,
        "detail": status.detail,
        "self_test": {"at": record.tested_at, "ok": not record.test, "found": record.test}
        if record.tested_at
        else None,
    }


def _for_people(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    import time

    now = time.time()

    def test(found: dict[str, Any] | None) -> str:
        return f"{'passed' if found['ok'] else 'failed'} {_ago(found['at'], now)}" if found else "never"

    return [
        {**row, "since": _ago(row["since"], now) if row["since"] else "", "self_test": test(row["self_test"])}
        for row in rows
    ]


def _ago(then: float, now: float) -> str:
    seconds = max(now - then, 0.0)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _watch_boards(rack: Path) -> None:
    """Show the boards of a rack, again every second, until interrupted."""
    import threading

    from rich.live import Live

    pool = _pool(rack)
    try:
        with Live(_board_table(pool), auto_refresh=False) as live:
            while not threading.Event().wait(1.0):
                live.update(_board_table(pool), refresh=True)
    except KeyboardInterrupt:
        return


_COLOURS = {"idle": "green", "leased": "cyan", "suspect": "yellow", "stuck": "red", "quarantined": "red"}


def _board_table(pool: Pool) -> Table:
    from rich.table import Table
    from rich.text import Text

    rows = _for_people([_status_row(status) for status in pool.statuses()])
    heading, *lines = _cells(rows)
    table = Table(*heading, caption=f"{pool.n_waiting()} waiting for a board")
    for row, line in zip(rows, lines, strict=True):
        table.add_row(*[Text(cell) for cell in line], style=_COLOURS[row["state"]])
    return table


def _readable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from orchestrator.quantities import rounded

    def text(name: str, value: Any) -> Any:
        if name.endswith("_bytes"):
            return rounded(value, "byte")
        return f"{value / 1e6:g} MHz" if name.endswith("_hz") else value

    return [{name: text(name, value) for name, value in row.items()} for row in rows]


@click.command(short_help="Offer the boards of a rack to a lab.")
@rack_option
@click.option("--name", default="agent", show_default=True, help="Name in logs and on the screen.")
def agent(rack: Path, name: str) -> None:
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
    from mcu_agent.rack import load_rack
    from tasks.messages import BOARD_QUEUE
    from tasks.profile import RACK_VARIABLE
    from tasks.workers import run_worker

    inventory = load_rack(rack)
    os.environ[RACK_VARIABLE] = str(rack.absolute())
    queues = [f"{BOARD_QUEUE}.{kind}" for kind in inventory.board_kinds()]
    sys.exit(run_worker(queues, len(inventory.boards), name=name, announce=click.echo))
