"""The part of the command line about one machine: a lab's worker on it, and what is installed there.

As in :mod:`cli`, imports stand inside the functions, so that a command does not wait for what it does not use.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from cli_rack import json_option
from cli_study import studies_option
from orchestrator.errors import UsageError


@click.command(short_help="Serve queues of a lab's broker.")
@click.option("--queues", required=True, help="Comma-separated: build, train, board.KIND.")
@click.option("--concurrency", type=click.IntRange(min=1), default=1, show_default=True, help="Tasks at once.")
@click.option("--name", default="", help="Name in logs and on the screen; default: the host's.")
@click.option("--gpus", default="", metavar="0,1|all", help="One process on each of these GPUs of nvidia-smi.")
@click.option("--memory-limit", default="", metavar="8GiB", help="Resident memory of a task; more ends it.")
@click.option("--time-limit", default="", metavar="2h", help="Time of a task, where the study allows more.")
@click.option(
    "--drain",
    type=click.Choice(["finish", "handover"]),
    default="finish",
    show_default=True,
    help="On SIGTERM: finish tasks for a while, or hand them over at once.",
)
@click.option("--drain-limit", default="60 s", show_default=True, help="How long tasks may finish before they are.")
@click.option("--metrics-port", type=click.IntRange(0, 65535), help="Serve /metrics there; 0: any free port.")
@click.option("--metrics-address", default="127.0.0.1", show_default=True, help="Interface of /metrics.")
def worker(
    queues: str,
    memory_limit: str,
    time_limit: str,
    drain: str,
    drain_limit: str,
    **given: Any,
) -> None:
    """Serve queues of the broker at EDGEFRONT_BROKER_URL until told to stop.

    The study's artifacts must be reachable under the same path or URL as on the orchestrator's host. A training keeps
    its state beside them, so that another worker goes on where this one was when it left or died.

    \b
    Examples:
      EDGEFRONT_BROKER_URL=redis://lab:6379/0 edgefront worker --queues train --gpus 0,1
      EDGEFRONT_BROKER_URL=redis://lab:6379/0 edgefront worker --queues build,train --memory-limit 8GiB
    """
    from tasks.crew import CrewOptions, run_crew

    options = CrewOptions(
        queues=tuple(parse_queues(queues)),
        memory_limit_bytes=parse_limit("--memory-limit", memory_limit, "byte"),
        time_limit_s=parse_limit("--time-limit", time_limit, "s"),
        finish_s=parse_limit("--drain-limit", drain_limit, "s"),
        is_handed_over=drain == "handover",
        **given,
    )
    sys.exit(run_crew(options, announce=click.echo))


def parse_limit(option: str, text: str, unit: str) -> float:
    """``"8GiB"`` → bytes, ``"2h"`` → seconds; nothing → 0, which is no limit.

    Raises:
        UsageError: it is no such quantity above 0.
    """
    from orchestrator.studyfile import parse_quantity

    if not text:
        return 0.0
    try:
        return float(parse_quantity(text, unit))
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def parse_queues(text: str) -> list[str]:
    """``"build,board.nrf52840-dk"`` → the list.

    Raises:
        UsageError: an unknown queue.
        UnknownKind: an unknown board kind.
    """
    from mcu_agent.kinds import load_kind

    queues = [queue.strip() for queue in text.split(",") if queue.strip()]
    for queue in queues:
        head, _, kind = queue.partition(".")
        if head == "board" and kind:
            load_kind(kind)
        elif queue not in ("build", "train"):
            raise UsageError(f"--queues: found {queue!r}; allowed are build, train and board.KIND")
    if not queues:
        raise UsageError("--queues: none given; allowed are build, train and board.KIND")
    return queues


@click.command(short_help="Say what is installed and what is missing.")
@json_option
@studies_option
def doctor(as_json: bool, studies: Path) -> None:
    """Say what is installed, what is missing and how to get it. Exit code 1: something required is missing.

    \b
    Example:
      edgefront doctor
    """
    from orchestrator.doctor import examine

    findings = examine(studies)
    if as_json:
        click.echo(json.dumps([finding.to_json() for finding in findings]))
    else:
        for finding in findings:
            mark = "ok  " if finding.is_ok else ("MISS" if finding.is_required else "-   ")
            remedy = "" if finding.is_ok else f"  → {finding.remedy}"
            click.echo(f"{mark}  {finding.name:<18} {finding.found or 'not found':<28} {finding.purpose}{remedy}")
    if any(finding.is_required and not finding.is_ok for finding in findings):
        sys.exit(1)


COMMANDS = (worker, doctor)
