"""The report of ``edgefront compile`` as rich shows it: a table of the layers, then the totals with their sources."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

from orchestrator.quantities import show
from orchestrator.records import Source
from tasks.compile import LayerReport, Report

_GAP = 2
_SHORTEST_NAME, _LONGEST_NAME = 8, 32


@dataclass(frozen=True, slots=True)
class _Column:
    """``rank``: columns of the highest rank go first where the terminal is too narrow; 0 always stays."""

    title: str
    cell: Callable[[LayerReport], str]
    rank: int = 0
    is_text: bool = False


def _ratio(layer: LayerReport) -> str:
    ratio = layer.instructions_per_mac
    return "–" if ratio is None else f"{ratio:.2f}"


_NAME = "name"
_COLUMNS = (
    _Column("#", lambda layer: str(layer.index)),
    _Column(_NAME, lambda layer: layer.name, is_text=True),
    _Column("operator", lambda layer: layer.op, rank=2, is_text=True),
    _Column("in", lambda layer: "asm" if layer.path == "assembly" else layer.path, rank=7, is_text=True),
    _Column("output", lambda layer: "×".join(map(str, layer.output_shape)), rank=5),
    _Column("MACs", lambda layer: show(layer.macs, "1"), rank=3),
    _Column("instr.", lambda layer: "–" if layer.instructions is None else show(layer.instructions, "1"), rank=6),
    _Column("instr./MAC", _ratio),
    _Column("cycles", lambda layer: show(layer.cycles, "1")),
    _Column("RAM", lambda layer: f"{layer.live_bytes:,}", rank=4),
    _Column("code", lambda layer: f"{layer.rom.code_bytes:,}", rank=1),
    _Column("weights", lambda layer: f"{layer.rom.weights_bytes:,}", rank=1),
)


def report_view(report: Report, width: int) -> Group:
    """Everything within ``width`` columns: where they do not suffice names are cut, then columns left out."""
    head = Text(f"{report.model} on {report.board} ({report.core}), {report.compiler}", style="bold")
    source = report.totals["cycles"].source.value
    by = f"{source} ({report.emulator})" if report.emulator else source
    exact = f"code for {report.optimise}; bytes and MACs exact; instructions and cycles {by}"
    note = f"{exact}; RAM: activations alive during the layer"
    return Group(head, _table(report, width), Text(note, style="dim"), Text(), *_total_lines(report))


def _table(report: Report, width: int) -> Table:
    columns = list(_COLUMNS)
    while _needed(columns, report) > width and max(column.rank for column in columns):
        last = max(column.rank for column in columns)
        columns = [column for column in columns if column.rank != last]
    room = width - _needed(columns, report) + _SHORTEST_NAME
    table = Table(box=None, padding=(0, _GAP, 0, 0), header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(column.title, justify="left" if column.is_text else "right", no_wrap=True)
    for layer in report.layers:
        cells = (column.cell(layer) for column in columns)
        named = zip(columns, cells, strict=True)
        table.add_row(*(Text(_shortened(text, room) if column.title == _NAME else text) for column, text in named))
    return table


def _needed(columns: list[_Column], report: Report) -> int:
    """The width of the table with the shortest names."""
    widths = [
        _SHORTEST_NAME
        if column.title == _NAME
        else max(cell_len(column.title), *(cell_len(column.cell(layer)) for layer in report.layers))
        for column in columns
    ]
    return sum(widths) + _GAP * len(columns)


def _shortened(name: str, room: int) -> str:
    """The end of a name: exporters write the path to a node first."""
    limit = max(_SHORTEST_NAME, min(room, _LONGEST_NAME))
    return name if cell_len(name) <= limit else "…" + name[-(limit - 1) :]


def _total_lines(report: Report) -> list[Text]:
    amounts = {name: value.amount for name, value in report.totals.items()}
    largest = report.layers[report.largest_layer]
    rom = f"weights {amounts['weights']:,} + code {amounts['code']:,} + runtime {amounts['runtime']:,}"
    arena = (
        f"lower bound {amounts['arena_lower_bound']:,}, set by layer {largest.index} ({_shortened(largest.name, 24)})"
    )
    streamed = f"{amounts['arena_saved']:,} bytes less, for {amounts['extra_macs']:,} MACs computed twice"
    source = report.totals["cycles"].source
    waits, bound = ("zero wait states", ": a lower bound") if source is Source.EMULATED else ("", "")
    stack = f"used ({source.value}) of {amounts['stack_reserved']:,} reserved"
    per_mac = f"{amounts['cycles'] / max(amounts['macs'], 1):.2f} a MAC"
    cycles = f"{source.value}{waits and f', {waits}'}{bound}; {per_mac}"
    clock = f"{source.value}, at {report.clock_hz / 1e6:g} MHz{waits and f' and {waits}'}{bound}"
    ram = f"static {amounts['ram_static']:,} + stack used ({source.value}) {amounts['stack_used']:,}"
    same = f"with the integer reference, {report.n_inputs} random inputs (seed {report.seed})"
    rows = (
        ("ROM", f"{amounts['rom']:,} bytes", rom),
        ("arena", f"{amounts['arena']:,} bytes", arena),
        *([("", "", streamed)] if amounts["arena_saved"] else []),
        ("RAM", f"{amounts['ram']:,} bytes", ram),
        ("stack", f"{amounts['stack_used']:,} bytes", stack),
        ("cycles", f"{amounts['cycles']:,.0f}", cycles),
        ("latency", show(amounts["latency"], "s"), clock),
        ("outputs", "bit-exact", same),
    )
    width = max(len(amount) for _, amount, _ in rows)
    return [
        Text.assemble((f"{name:<9}", "dim"), (f"{amount:<{width}}", "bold"), f"  {rest}") for name, amount, rest in rows
    ]
