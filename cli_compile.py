"""The part of the command line that needs no study: a model compiled and measured, and what there are kernels for.

As in :mod:`cli`, imports stand inside the functions, so that a command does not wait for what it does not use.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import click

from cli_rack import aligned, json_option


@click.command("compile", short_help="Compile an ONNX model and measure it, without a study.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--board", required=True, help="Board kind; edgefront boards lists them.")
@click.option("--out", "folder", type=click.Path(path_type=Path), required=True, help="New or empty folder.")
@click.option("--compiler", type=click.Choice(["zig", "gcc"]), default="zig", show_default=True, help="C compiler.")
@click.option(
    "--optimise",
    type=click.Choice(["speed", "size"]),
    default="speed",
    show_default=True,
    help="What code is made for.",
)
@click.option("--extra-macs", type=click.FloatRange(0, 1), default=0.0, help="Share of more MACs to spend on less RAM.")
@click.option("--markers", is_flag=True, help="Read the core's cycle counter around each layer (edgefront_marks).")
@click.option("--force", is_flag=True, help="Write into a folder that holds something.")
@json_option
def compile_command(
    model: Path,
    board: str,
    folder: Path,
    compiler: str,
    optimise: Literal["speed", "size"],
    extra_macs: float,
    markers: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Compile MODEL, an ONNX file quantised to int8 (QDQ), and say what each layer costs.

    Writes C sources, firmware.elf, report.json and report.html into the folder. The firmware runs on the virtual board
    with random inputs; its outputs must be the integer reference's bit for bit.

    \b
    Example:
      edgefront compile network-int8.onnx --board nucleo-l4r5zi --out build
    """
    from rich.console import Console

    from mcu_agent.kinds import load_kind
    from orchestrator.report.compiled import contents
    from orchestrator.report.page import render_compiled
    from orchestrator.report.write import REPORT_FILE
    from tasks.compile import check_folder, compile_model, measure, write
    from tasks.compile_view import report_view
    from tasks.deployment import memory_map

    kind = load_kind(board)
    check_folder(folder, is_forced=force)
    compiled = compile_model(model, kind, compiler, optimise, extra_macs=extra_macs, has_markers=markers)
    report = measure(str(model), compiled, kind)
    write(compiled, report, folder)
    page = render_compiled(contents(report.to_json(), memory_map(compiled)))
    (folder / REPORT_FILE).write_text(page, encoding="utf-8")
    if as_json:
        click.echo(json.dumps(report.to_json()))
        return
    console = Console(highlight=False)
    console.print(report_view(report, console.width))
    console.print(f"written  {folder}", markup=False, soft_wrap=True)


@click.command(short_help="Say which kernel computes each operator on which core.")
@json_option
def kernels(as_json: bool) -> None:
    """List the operators and what computes them on each core: assembly for the DSP extension (asm) or portable C.

    \b
    Example:
      edgefront kernels
    """
    from tasks.firmware.kernel_table import cells, conditions, rows

    found = rows()
    if as_json:
        click.echo(json.dumps([row.to_json() for row in found]))
        return
    head, *lines = cells(found)
    short = [
        heading.replace("cortex-m", "M").replace("0plus", "0+").replace(" without DSP", "−DSP") for heading in head
    ]
    for line in [*aligned([short, *lines]), "", *conditions(found)]:
        click.echo(line)


COMMANDS = (compile_command, kernels)
