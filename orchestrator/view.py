"""A running study on a terminal: a live picture where there is one, plain lines otherwise, JSON lines for scripts.

Each view is an event sink. None of them prints by itself: they write to the console or function they are given.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.boards import base
from orchestrator.ports import EventSink
from orchestrator.progress import FINAL_STAGE, Progress, TrialProgress
from orchestrator.quantities import elapsed, show
from orchestrator.records import Event

_BLOCKS = "▁▂▃▄▅▆▇█"
_STAGE_MARKS = {"done": "[green]●[/]", "now": "[yellow]◉[/]", "queued": "[dim yellow]○[/]", "ahead": "[dim]·[/]"}
_ENDING_STYLES = {"complete": "green", "infeasible": "yellow", "stopped": "blue", "fault": "red"}
_FRAMES_PER_SECOND = 4
# The terminal writes ^C at the cursor, behind the picture; in the last column it would go on to the next line, and the
# picture be drawn one line too low.
_ECHO_COLUMNS = 3
_WIDE = 100  # columns from which on there is room for why a trial is infeasible


class FanOut:
    """Hands each event to several sinks, in order."""

    def __init__(self, *sinks: EventSink) -> None:
        self._sinks = sinks

    def emit(self, event: Event) -> None:
        for sink in self._sinks:
            sink.emit(event)


class JsonLines:
    """One JSON object an event: ``{"event": name, "time": UTC stamp, …fields}``."""

    def __init__(self, write: Callable[[str], None], now_iso: Callable[[], str]) -> None:
        self._write = write
        self._now_iso = now_iso

    def emit(self, event: Event) -> None:
        self._write(json.dumps({"event": event.name, "time": self._now_iso(), **event.fields}, default=str))


class PlainLines:
    """One line for each trial that ends and each fault; for logs and pipes."""

    def __init__(self, progress: Progress, objectives: Mapping[str, str], write: Callable[[str], None]) -> None:
        """``objectives`` maps the study's objectives to their units; ``progress`` must see each event first."""
        self._progress = progress
        self._objectives = objectives
        self._write = write

    def emit(self, event: Event) -> None:
        line = self._line(event)
        if line:
            self._write(line)

    def _line(self, event: Event) -> str:
        fields = event.fields
        if event.name == "study_started":
            return f"study {fields.get('name', '')}: {fields.get('budget', 0)} trials"
        if event.name == "study_resumed":
            return f"going on after {fields.get('told', 0)} trials that were already told"
        if event.name == "fault":
            return (
                f"  fault in trial {fields['trial']} at {fields['stage']}"
                f" (attempt {fields.get('attempt', 1)}): {fields['reason']}"
            )
        if event.name == "trial_ended":
            return self._ended_line(fields)
        return ""

    def _ended_line(self, fields: Mapping[str, Any]) -> str:
        progress = self._progress
        trial = progress.ended[-1]
        what = f"{trial.state}: {trial.reason}"
        if trial.state == "complete":
            what = f"complete: {values_text(trial.values, self._objectives)}"
        elif trial.state == "stopped":
            what = trial.reason  # begins with the word itself
        left = progress.seconds_left()
        ahead = f"  {elapsed(left)} left" if left else ""
        return f"[{progress.told}/{progress.budget}] trial {trial.number} {what}{ahead}"


class LiveView:
    """The live picture; a context manager, because it takes over the terminal while it is open."""

    def __init__(
        self,
        progress: Progress,
        objectives: Mapping[str, str],
        stages: Sequence[str],
        console: Console,
        monotonic: Callable[[], float],
    ) -> None:
        self._screen = StudyScreen(progress, objectives, stages, monotonic)
        self._live = Live(self._screen, console=console, refresh_per_second=_FRAMES_PER_SECOND)

    def __enter__(self) -> LiveView:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def emit(self, event: Event) -> None:
        """The picture is drawn from the progress a few times a second; faults are left standing above it."""
        if event.name == "fault":
            fields = event.fields
            self._live.console.print(
                Text(f"fault in trial {fields['trial']} at {fields['stage']}: {fields['reason']}", style="red")
            )


class StudyScreen:
    """What :class:`LiveView` draws; a rich renderable over a :class:`~orchestrator.progress.Progress`."""

    def __init__(
        self,
        progress: Progress,
        objectives: Mapping[str, str],
        stages: Sequence[str],
        monotonic: Callable[[], float],
    ) -> None:
        self._progress = progress
        self._objectives = objectives
        self._stages = tuple(stages)
        self._monotonic = monotonic

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with self._progress.lock:
            width = max(20, options.max_width - _ECHO_COLUMNS)
            room = max(3, (options.height or console.height) - 14 - len(self._progress.running))
            yield Panel(
                Group(self._headline(), Text(), self._running(width), Text(), self._ended(min(room, 10), width)),
                title=f"[bold]edgefront[/] {self._progress.name}",
                border_style="cyan",
                width=width,
            )

    def _headline(self) -> Table:
        progress = self._progress
        left = progress.seconds_left()
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(ratio=1)
        table.add_column(justify="right")
        table.add_row(
            ProgressBar(total=max(progress.budget, 1), completed=progress.told, complete_style="cyan"),
            Text(f"{progress.told}/{progress.budget} trials · {elapsed(progress.elapsed_s())}", style="bold").append(
                f" · {elapsed(left)} left" if left is not None else "", style="not bold"
            ),
        )
        best = show(progress.best_error, "1", "error") if progress.best_error is not None else "–"
        endings = " · ".join(f"{count} {ending}" for ending, count in sorted(progress.endings.items())) or "none ended"
        table.add_row(
            Text.assemble(
                ("hypervolume ", "dim"),
                (f"{progress.hypervolume:.4f} ", "bold cyan"),
                (sparkline(progress.hypervolumes, 30), "cyan"),
            ),
            Text.assemble(
                ("front ", "dim"), (str(progress.front_size), "bold"), (" · best error ", "dim"), (best, "bold")
            ),
        )
        table.add_row(Text(endings, style="dim"), Text(self._lab_text(), style="dim"))
        return table

    def _lab_text(self) -> str:
        waiting = {queue: depth for queue, depth in self._progress.queues.items() if depth}
        queues = ", ".join(f"{queue} {depth}" for queue, depth in sorted(waiting.items()))
        boards = ", ".join(f"{count} {state}" for state, count in sorted(self._progress.boards.items()))
        return " · ".join(part for part in (queues and f"waiting: {queues}", boards and f"boards: {boards}") if part)

    def _running(self, width: int) -> Table:
        table = Table(box=None, padding=_padding(width), expand=True, header_style="dim")
        for title in ("trial", "stages", "now", "doing", "for", "worker"):
            table.add_column(title, no_wrap=True, ratio=2 if title == "doing" else None)
        for trial in self._progress.running.values():
            table.add_row(
                str(trial.number),
                self._way(trial),
                trial.stage or "proposed",
                _doing(trial),
                elapsed(self._monotonic() - trial.since_s),
                trial.worker or "–",
            )
        if not self._progress.running:
            table.add_row("–", "", "nothing under way", "", "", "")
        return table

    def _way(self, trial: TrialProgress) -> str:
        stage = base(trial.stage)  # boards that measure side by side are one step
        at = self._stages.index(stage) if stage in self._stages else -1
        if trial.stage == FINAL_STAGE:
            at = len(self._stages)
        marks = []
        for index in range(len(self._stages)):
            if index == at:
                marks.append(_STAGE_MARKS["now" if trial.state == "running" else "queued"])
            else:
                marks.append(_STAGE_MARKS["done" if index < at else "ahead"])
        return " ".join(marks)

    def _ended(self, room: int, width: int) -> Table:
        has_reasons = width >= _WIDE
        table = Table(box=None, padding=_padding(width), expand=has_reasons, header_style="dim")
        table.add_column("ended", no_wrap=True)
        table.add_column("", no_wrap=True)
        for name in self._objectives:
            table.add_column(name, justify="right", no_wrap=True)
        if has_reasons:
            table.add_column("", ratio=1, no_wrap=True, overflow="ellipsis")
        for trial in list(self._progress.ended)[-room:][::-1]:
            cells = [
                show(trial.values.get(name, math.nan), unit, name) if trial.values else ""
                for name, unit in self._objectives.items()
            ]
            style = _ENDING_STYLES.get(trial.state, "")
            reasons = [Text(trial.reason, style="dim")] if has_reasons else []
            table.add_row(str(trial.number), Text(trial.state, style=style), *cells, *reasons)
        return table


def _padding(width: int) -> tuple[int, int]:
    return (0, 2) if width >= _WIDE else (0, 1)


def _doing(trial: TrialProgress) -> str:
    again = f" (attempt {trial.attempt})" if trial.attempt > 1 else ""
    if trial.state == "queued":
        return f"waiting for a worker{again}"
    if trial.epochs:
        accuracy = f", accuracy {100 * trial.accuracy:.1f} %" if trial.accuracy is not None else ""
        return f"epoch {trial.epoch}/{trial.epochs}{accuracy}{again}"
    return f"running{again}" if trial.state == "running" else ""


def values_text(values: Mapping[str, float], objectives: Mapping[str, str]) -> str:
    """``error 3.10 %  rom 24.1 KiB …``; objectives without a value are left out."""
    return "  ".join(f"{name} {show(values[name], unit, name)}" for name, unit in objectives.items() if name in values)


def sparkline(values: Sequence[float], width: int) -> str:
    """The values as at most ``width`` block characters, from the lowest to the highest; empty for no values."""
    if not values:
        return ""
    step = math.ceil(len(values) / width)
    kept = values[::-1][::step][::-1]
    low, high = min(kept), max(kept)
    if high == low:
        return (_BLOCKS[-1] if high > 0 else _BLOCKS[0]) * len(kept)
    scale = len(_BLOCKS) / (high - low)
    return "".join(_BLOCKS[min(len(_BLOCKS) - 1, int(scale * (value - low)))] for value in kept)
