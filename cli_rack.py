"""The part of the command line that deals with boards: racks, agents, measurements.

As in :mod:`cli`, imports stand inside the functions, so that a command does not wait for what it does not use.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mcu_agent.pool import Pool


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """The option ``--json`` of a command that can print for scripts."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")(function)


def rack_choice(function: Callable[..., Any]) -> Callable[..., Any]:
    """The option ``--rack`` of a command that can do without."""
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


def rack_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """The option ``--rack`` of a command that needs one."""
    file = click.Path(path_type=Path, dir_okay=False)
    return click.option(
        "--rack",
        type=file,
        required=True,
        envvar="EDGEFRONT_RACK",
        help="Rack file (TOML) with the boards of this host; default: $EDGEFRONT_RACK.",
    )(function)


@click.group(invoke_without_command=True, short_help="List board kinds, or the boards of a rack.")
@click.option(
    "--rack",
    type=click.Path(path_type=Path, dir_okay=False),
    help="List the boards of this rack file; for --watch, default: $EDGEFRONT_RACK.",
)
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
    if watch and rack is None and (given := os.environ.get("EDGEFRONT_RACK")):
        rack = Path(given)
    if watch and (as_json or rack is None):
        raise click.UsageError("--watch shows the boards of --rack FILE, for people")
    if watch and rack is not None:
        _watch_boards(rack)
        return
    rows = _board_kinds() if rack is None else _rack_boards(rack)
    if as_json:
        click.echo(json.dumps(rows))
        return
    from mcu_agent.rack_view import for_people

    for line in aligned(_cells(_readable(rows) if rack is None else for_people(rows))):
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
        try:
            to.write_text(rack_text(found), encoding="utf-8")
        except OSError as error:
            raise click.UsageError(f"--to: {to} cannot be written: {error.strerror}; choose another place") from error
        click.echo(f"{to}: written; check its entries, then: edgefront rack check --rack {to}", err=as_json)


@rack.command(short_help="Test boards with a known image.")
@click.argument("board", nargs=-1)
@rack_option
@click.option("--wait", type=click.FloatRange(0), default=60.0, show_default=True, help="Seconds to wait for a board.")
@json_option
def check(board: tuple[str, ...], rack: Path, wait: float, as_json: bool) -> None:
    """Run the self-test of each BOARD, of all without one: flash a known image, compare its identity, its answers bit
    by bit, its stack and its cycles, and look at what the meter reads. A board that fails is quarantined, one that
    passes no longer, unless a person has taken it out of use. Ends with 1 if one fails or cannot be tested.

    \b
    Example:
      edgefront rack check --rack rack.toml
    """
    from mcu_agent.rack_view import check_row, checked

    rows = checked(_pool(rack), board, wait)
    if as_json:
        click.echo(json.dumps(rows))
    else:
        for line in aligned(_cells([check_row(row) for row in rows])):
            click.echo(line)
    if not all(row["ok"] for row in rows):
        sys.exit(1)


@rack.command("check-meter", short_help="Hold a meter against its reference resistor.")
@click.argument("board")
@rack_option
def check_meter(board: str, rack: Path) -> None:
    """Read the resistor that BOARD's meter entry names (known_load_ohms), wired in place of the board. Ends with 1 if
    the meter reads another current than it must, within 5 %.

    \b
    Example:
      edgefront rack check-meter bench-1 --rack rack.toml
    """
    from mcu_agent.measuring import read_known_load

    click.echo(read_known_load(_pool(rack), board))


@rack.command(short_help="Fit estimates of a board kind to a real board.")
@click.argument("board")
@rack_option
@click.option("--to", type=click.Path(path_type=Path, dir_okay=False), help="File; default: calibration-BOARD.json.")
@click.option(
    "--wait", type=click.FloatRange(0), default=60.0, show_default=True, help="Seconds to wait for the board."
)
@json_option
def calibrate(board: str, rack: Path, to: Path | None, wait: float, as_json: bool) -> None:
    """Run the known image of BOARD's kind on it and fit the factor between emulated and measured cycles, layer by
    layer, and the energy of a cycle where the board has a meter. A study file names the result: profiling.calibration.

    \b
    Example:
      edgefront rack calibrate bench-1 --rack rack.toml --to bench-1.json
    """
    from mcu_agent.calibrate import calibrate_on
    from mcu_agent.calibration import save_calibration

    found = calibrate_on(_pool(rack), board, wait_s=wait)
    path = to or Path(f"calibration-{board}.json")
    save_calibration(found, path)
    click.echo(json.dumps(found.to_json()) if as_json else f"{found.basis}\n{found.energy_text}\nwritten to {path}")


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


def _board_kinds() -> list[dict[str, Any]]:
    from mcu_agent.kinds import kinds

    names = ("name", "mcu", "core", "clock_hz", "flash_bytes", "ram_bytes", "nj_per_cycle", "description")
    return [{name: getattr(kind, name) for name in names} for kind in kinds().values()]


def _rack_boards(rack: Path) -> list[dict[str, Any]]:
    from mcu_agent.rack_view import status_row

    return [status_row(status) for status in _pool(rack).statuses()]


def _watch_boards(rack: Path) -> None:
    """Show the boards of a rack, again every second, until interrupted."""
    import threading

    pool = _pool(rack)
    try:
        while True:
            click.clear()
            for line in _shown(pool):
                click.echo(line)
            threading.Event().wait(1.0)
    except KeyboardInterrupt:
        return


_COLOURS = {"idle": "green", "leased": "cyan", "suspect": "yellow", "stuck": "red", "quarantined": "red"}


def _shown(pool: Pool) -> list[str]:
    """The boards as lines of the terminal's width, each in the colour of its state."""
    import shutil

    from mcu_agent.rack_view import for_people, status_row

    width = shutil.get_terminal_size().columns
    rows = for_people([status_row(status) for status in pool.statuses()])
    heading, *lines = [line[:width] for line in aligned(_cells(rows))]
    coloured = [click.style(line, fg=_COLOURS[row["state"]]) for row, line in zip(rows, lines, strict=True)]
    return [heading, *coloured, "", f"{pool.n_waiting()} waiting for a board; Ctrl-C ends this"]


def _readable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from orchestrator.quantities import rounded

    def text(name: str, value: Any) -> Any:
        if name.endswith("_bytes"):
            return rounded(value, "byte")
        return f"{value / 1e6:g} MHz" if name.endswith("_hz") else value

    return [{name: text(name, value) for name, value in row.items()} for row in rows]


@click.command(short_help="Offer the boards of a rack to a lab.")
@rack_option
@click.option("--name", default="", help="Name in logs, on the screen and in reports; default: the rack file's.")
@click.option(
    "--metrics-port", type=click.IntRange(0, 65535), help="Port of /metrics; default: the rack file's, or any free one."
)
@click.option("--metrics-address", help="Interface of /metrics; default: the rack file's, or 127.0.0.1.")
def agent(rack: Path, name: str, metrics_port: int | None, metrics_address: str | None) -> None:
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


def check_rack_for(kinds: Sequence[str], *, is_inline: bool = False) -> None:
    """Look at the rack file of EDGEFRONT_RACK before a study begins, not when its first trial comes to a board. Where a
    broker is named, the boards are an agent's, and so is the rack file.

    Raises:
        InventoryError: it is missing or wrong, or has no board of one of ``kinds``.
    """
    from mcu_agent.errors import InventoryError
    from mcu_agent.rack import load_rack

    path = os.environ.get("EDGEFRONT_RACK")
    if not path or (os.environ.get("EDGEFRONT_BROKER_URL") and not is_inline):
        return
    try:
        known = load_rack(Path(path)).board_kinds()
    except InventoryError as error:
        raise InventoryError(f"EDGEFRONT_RACK: {error}\nwithout the variable, virtual boards are used") from error
    if missing := [kind for kind in kinds if kind not in known]:
        raise InventoryError(
            f"EDGEFRONT_RACK: {path} has no board of kind {', '.join(missing)}, which the study is for; it has "
            f"{', '.join(known)}. Without the variable, virtual boards are used"
        )


# ------------------------------------------------------------------------------------------------------------- measure


@click.command(short_help="Measure one image on one board, without a study.")
@click.argument("image", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--board", required=True, help="Id of a board; or a board kind: any of --rack, else a virtual one.")
@rack_choice
@click.option("--vectors", type=click.Path(path_type=Path, dir_okay=False), help="Known answers (npz).")
@click.option("--calibration", type=click.Path(path_type=Path, dir_okay=False), help="Estimate with this calibration.")
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
    calibration: Path | None,
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
    from mcu_agent.calibration import estimates, load_calibration
    from mcu_agent.errors import CyclesUnknown, ImageRejected, InventoryError
    from mcu_agent.measure import find_known_answers, read_elf, to_json
    from mcu_agent.measure_view import estimate_lines, lines
    from mcu_agent.measuring import Request, measure_on

    elf, known = read_elf(image), find_known_answers(image, vectors)
    fitted = load_calibration(calibration) if calibration is not None else None
    request = Request(elf=elf, known=known, samples=samples, timeout_s=timeout, wait_s=wait)
    try:
        found = measure_on(_rack_with(board, rack), board, request)
    except ImageRejected as error:
        raise InventoryError(f"{image}: {error}") from error
    except CyclesUnknown as error:  # all that such an emulator is for has been done: every output was compared
        checked = (
            f"the outputs are right, by {known.file}" if known else "the outputs were not checked against anything"
        )
        text = f"{error}; {checked}"
        click.echo(json.dumps({"cycles": None, "found": text}) if as_json else text)
        return
    estimate = estimates(fitted, found.kind, found.cycles.median, is_emulated=bool(found.emulator)) if fitted else None
    if as_json:
        click.echo(json.dumps({**to_json(found), "estimate": estimate, "known_answers": known.file if known else None}))
        return
    click.echo("\n".join([*lines(found, known.file if known else ""), *estimate_lines(estimate)]))


def _rack_with(board: str, path: Path | None) -> Any:
    """The rack that ``board`` is looked for in: the file's that was given, else a virtual board where it names a kind,
    else that of rack.toml.

    Raises:
        InventoryError: neither is there; says what to do.
    """
    from mcu_agent.errors import InventoryError
    from mcu_agent.kinds import kinds
    from mcu_agent.rack import load_rack, virtual_rack

    if path is not None:
        return load_rack(path)
    default = Path("rack.toml")
    found = load_rack(default) if default.exists() else None
    if board in kinds() and (found is None or all(one.board_id != board for one in found.boards)):
        return virtual_rack(board, 1)  # a real board is only taken where it, or its rack, was named
    if found is None:
        raise InventoryError(
            f"--board {board}: no board kind of this name, and no rack file to look for a board in; give --rack FILE, "
            f"or one of {', '.join(kinds())}"
        )
    return found
