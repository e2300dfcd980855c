"""One profile of one image on one board: known answers first, then latency, then energy.

The first pass over the inputs holds every output against the reference. Where the board counts exactly that is the
latency, too; where the core's own counter is read, inputs are repeated until there are enough readings. Energy comes
from windows that a recorder cuts by the board's trigger pin, or else from a model.

Layers are counted by the board where it can; elsewhere the image may have marks of the core's own cycle counter.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from mcu_agent.boards.protocol import Board, Counts
from mcu_agent.energy import WindowPlan, measure_energy
from mcu_agent.errors import CyclesUnknown, WrongClock
from mcu_agent.image import read_image
from mcu_agent.latency import Statistics, median_index, summarise
from mcu_agent.meters.model import ModelMeter
from mcu_agent.meters.protocol import EnergyReading, Recorder
from mcu_agent.session import OUTSIDE, Bytes, Job, Layer, Link, Run, opened, temperature_c

CLOCK_TOLERANCE = 0.005
ENERGY_S = 300.0  # for the energy windows: ten of ten seconds with a slow meter, and some of them twice
_QUIET_SHARE = 0.9  # of a window's expected time, in which the debugger leaves the core alone


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How much is measured. ``readings`` of the core's cycle counter after ``warm_up`` ones, where it is read at all,
    for at most ``latency_s`` seconds; ``windows`` is the plan of the energy windows, where there is a recorder."""

    readings: int = 31
    warm_up: int = 1
    latency_s: float = 10.0
    windows: WindowPlan = field(default_factory=WindowPlan)


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerCounts:
    """What one layer costs in the median run. ``instructions`` is None where only the core's own counter was read;
    ``source`` is ``measured`` or ``emulated``."""

    index: int
    name: str
    op: str
    macs: int
    instructions: int | None
    cycles: int
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Phases:
    """Seconds spent on programming (``flash_s``), on known answers and latency (``run_s``), on energy (``measure_s``),
    and in all."""

    flash_s: float
    run_s: float
    measure_s: float
    total_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """What was found. ``cycles_source`` is ``measured`` or ``emulated``.

    ``instructions`` and ``layers`` are those of the run with the median cycles and cover everything between the entry
    of ``edgefront_run`` and that of ``edgefront_after_run``; None and empty on boards that cannot count. ``glue`` is
    the part of it that belongs to no layer. On boards that cannot count, ``layers`` are there nevertheless if the image
    has marks and the core a cycle counter that moves.

    ``clock_hz`` is the core clock that the firmware reports to have set up, or the catalogue's where it does not know;
    ``temperature_c`` that of the part, None where it cannot tell.
    """

    board_id: str
    kind: str
    emulator: str
    image_id: str
    clock_hz: int
    supply_v: float
    meter: str
    n_runs: int
    outputs: Bytes
    stack_reserved_bytes: int
    stack_used_bytes: int
    instructions: int | None
    cycles: Statistics
    cycles_source: str
    latency_s: float
    energy: EnergyReading
    temperature_c: float | None
    layers: Sequence[LayerCounts]
    glue: Counts | None
    phases: Phases

    @property
    def energy_source(self) -> str:
        """``measured`` or ``estimated``."""
        return "measured" if self.energy.is_measured else "estimated"


def profile(job: Job, board: Board, recorder: Recorder | None = None, plan: Plan | None = None) -> Profile:
    """Profile ``job`` on ``board``; board and recorder are closed afterwards whatever happens. Without a recorder the
    energy is estimated.

    Raises:
        ImageRejected, WrongImage, BitMismatch, FirmwareHang, FirmwareFault: the image is at fault.
        BoardLost, TransferCorrupt, WrongClock, MeterError: the rig is at fault; another attempt may succeed.
        CyclesUnknown: the outputs are those expected, but the board cannot say how many cycles they took.
    """
    started = time.monotonic()
    plan = plan or Plan()
    image = read_image(job.elf, board.kind)
    with _recording(recorder), opened(job, image, board) as link:
        flashed = time.monotonic()
        link.check_identity()
        link.check_shapes()
        runs = link.run_all()
        readings = _readings(link, runs, plan)
        cycles, counts = _cycles(board, readings)
        statistics = summarise(cycles)
        clock_hz = _clock_hz(link)
        ran = time.monotonic()
        energy = _energy(link, recorder, plan.windows, statistics.median, clock_hz)
        ended = time.monotonic()
        phases = Phases(flash_s=flashed - started, run_s=ran - flashed, measure_s=ended - ran, total_s=ended - started)
        last, middle = link.report(), median_index(cycles)
        median = counts[middle] if counts else ()
        source = "emulated" if board.is_emulated else "measured"
        return Profile(
            board_id=board.board_id,
            kind=board.kind.name,
            emulator=board.emulator,
            image_id=image.image_id.hex(),
            clock_hz=clock_hz,
            supply_v=_supply_v(board, recorder),
            meter=recorder.name if recorder is not None else ModelMeter.name,
            n_runs=len(readings),
            outputs=np.stack([run.output for run in runs]),
            stack_reserved_bytes=last.stack_reserved_bytes,
            stack_used_bytes=last.stack_used_bytes,
            instructions=_instructions(job, median),
            cycles=statistics,
            cycles_source=source,
            latency_s=statistics.median / clock_hz,
            energy=energy,
            temperature_c=None if board.is_emulated else temperature_c(last),
            layers=_layers(job, median, readings[middle], source),
            glue=median[0] if median else None,
            phases=phases,
        )


@contextmanager
def _recording(recorder: Recorder | None) -> Iterator[None]:
    """The recorder open: where it is the board's supply, it has to be on before the board is programmed."""
    if recorder is None:
        yield
        return
    try:
        recorder.open()
        yield
    finally:
        recorder.close()


def _readings(link: Link, first: Sequence[Run], plan: Plan) -> Sequence[Run]:
    """The runs that latency is taken from: those of the first pass where they were counted exactly, else enough after
    the warm-up, each with its output held against the first one for its input."""
    if link.board.counter is not None or not first[-1].report.has_cycle_counter:
        return first
    runs, until = list(first), time.monotonic() + plan.latency_s
    while len(runs) < plan.readings + plan.warm_up and time.monotonic() < until:
        index = len(runs) % len(link.job.inputs)
        runs.append(link.run_known(index))
    return runs[plan.warm_up :] if len(runs) > plan.warm_up else runs


def _clock_hz(link: Link) -> int:
    """The core clock in effect.

    Raises:
        WrongClock: it is not the catalogue's: a crystal that does not start, a board set up for another clock.
    """
    wanted, found = link.board.kind.clock_hz, link.report().clock_hz
    if found and abs(found - wanted) > CLOCK_TOLERANCE * wanted:
        raise WrongClock(
            f"board {link.board.board_id}: the core runs at {found / 1e6:g} MHz, the board kind {link.board.kind.name} "
            f"at {wanted / 1e6:g} MHz; check the board's crystal, supply voltage and solder bridges"
        )
    return found or wanted


def _energy(link: Link, recorder: Recorder | None, windows: WindowPlan, cycles: float, clock_hz: int) -> EnergyReading:
    """Measured over windows where there is a recorder, else the model's."""
    kind = link.board.kind
    if recorder is None:
        return ModelMeter(kind).read(cycles)
    link.allow(ENERGY_S)
    run_window = partial(_window, link, cycles / clock_hz)
    supply_v = _supply_v(link.board, recorder)
    return measure_energy(recorder, run_window, windows, cycles=cycles, clock_hz=clock_hz, supply_v=supply_v)


def _supply_v(board: Board, recorder: Recorder | None) -> float:
    """The voltage the board runs at by the rack file, or else by the catalogue."""
    given = recorder.supply_v if recorder is not None else None
    return board.kind.supply_v if given is None else given


def _window(link: Link, latency_s: float, repeats: int, idle_ms: int) -> int:
    """One window on the board; gives its cycles."""
    expected_s = repeats * latency_s + 2e-3 * idle_ms
    return link.window(repeats, idle_ms, quiet_s=_QUIET_SHARE * expected_s).cycles


def _instructions(job: Job, counts: Sequence[Counts]) -> int | None:
    inside = counts[: len(_with_code(job)) + 1]
    return sum(item.instructions for item in inside) if inside else None


def _layers(job: Job, counts: Sequence[Counts], run: Run, source: str) -> list[LayerCounts]:
    names = _with_code(job)
    if counts:
        return _counted(names, counts[1 : len(names) + 1], source)
    return _marked(job.layers, run.marked, source)


def _with_code(job: Job) -> list[Layer]:
    return [layer for layer in job.layers if layer.symbol]


def _counted(layers: Sequence[Layer], counts: Sequence[Counts], source: str) -> list[LayerCounts]:
    pairs = zip(layers, counts, strict=True)
    return [_layer_counts(layer, item.instructions, item.cycles, source) for layer, item in pairs]


def _marked(layers: Sequence[Layer], marked: Sequence[int], source: str) -> list[LayerCounts]:
    pairs = zip(layers, marked, strict=True) if marked else ()
    return [_layer_counts(layer, None, cycles, source) for layer, cycles in pairs]


def _layer_counts(layer: Layer, instructions: int | None, cycles: int, source: str) -> LayerCounts:
    return LayerCounts(
        index=layer.index,
        name=layer.name,
        op=layer.op,
        macs=layer.macs,
        instructions=instructions,
        cycles=cycles,
        source=source,
    )


def _cycles(board: Board, runs: Sequence[Run]) -> tuple[list[float], list[Sequence[Counts]]]:
    """Cycles of each run, and the counts of each run by region where the board counts."""
    if board.counter is None:
        if not runs[-1].report.has_cycle_counter:
            raise CyclesUnknown(
                f"board {board.board_id}: the outputs are those expected, but how many cycles a {board.kind.core} "
                f"takes is not known: the device has no live cycle counter, and {board.emulator or 'nothing else'} "
                "counts none"
            )
        return [run.report.cycles for run in runs], []
    outside = len(OUTSIDE)
    counts = [run.counts for run in runs]
    return [sum(item.cycles for item in one[:-outside]) for one in counts], counts
