"""One profile of one image on one board: load, verify, known answer, run, compare, count.

Layers are counted by the board where it can; elsewhere the image may have marks of the core's own cycle counter.

Nothing is believed: the device must report the identity of the image that was programmed, a first inference with a
known answer must be right bit for bit, and so must every one after it.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mcu_agent import mailbox, marks
from mcu_agent.boards.protocol import Board, Counts, Region
from mcu_agent.errors import BitMismatch, CyclesUnknown, FirmwareError, ImageRejected, TransferCorrupt, WrongImage
from mcu_agent.image import Image, read_image
from mcu_agent.latency import Statistics, median_index, summarise
from mcu_agent.mailbox import Mailbox, Status
from mcu_agent.meters.model import ModelMeter
from mcu_agent.meters.protocol import Meter

Bytes = npt.NDArray[np.int8]

_GLUE = "run"  # code of the run that belongs to no layer
_MARKS = "edgefront_marks"
_OUTSIDE = ("edgefront_after_run", "edgefront_ready")


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One layer of the network as the compiler laid it out. ``symbol`` is its function, empty where it has none."""

    index: int
    name: str
    op: str
    symbol: str
    output_offset: int
    output_bytes: int
    macs: int

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Layer:
        """One entry of the compiler's layer list.

        Raises:
            ImageRejected: a field is missing.
        """
        try:
            return Layer(**{name: data[name] for name in Layer.__dataclass_fields__})
        except KeyError as error:
            raise ImageRejected(f"the layer list has an entry without {error}: {dict(data)}") from error


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
class Job:
    """What to profile. ``expected`` are the outputs of the reference for ``inputs``; ``layer_outputs`` those of every
    layer for the first input, by layer index, used to name the first differing layer.

    Shapes:
        inputs: (n, input bytes), n ≥ 1. expected: (n, output bytes).
    """

    elf: bytes
    inputs: Bytes
    expected: Bytes
    layers: Sequence[Layer] = ()
    layer_outputs: Mapping[int, Bytes] | None = None
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        if self.inputs.ndim != 2 or self.expected.ndim != 2 or len(self.inputs) != len(self.expected):
            raise ValueError(f"inputs {self.inputs.shape} and expected {self.expected.shape} must be (n, bytes) each")
        if not len(self.inputs):
            raise ValueError("a profile needs at least one input")


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """What was found. ``*_source`` are ``measured``, ``emulated`` or ``estimated``.

    ``instructions`` and ``layers`` are those of the run with the median cycles and cover everything between the entry
    of ``edgefront_run`` and that of ``edgefront_after_run``; None and empty on boards that cannot count. ``glue`` is
    the part of it that belongs to no layer. On boards that cannot count, ``layers`` are there nevertheless if the image
    has marks and the core a cycle counter that moves.
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
    energy_j: float
    energy_source: str
    energy_basis: str
    layers: Sequence[LayerCounts]
    glue: Counts | None
    seconds: float


def profile(job: Job, board: Board, meter: Meter | None = None) -> Profile:
    """Profile ``job`` on ``board``, which is closed afterwards whatever happens.

    Raises:
        ImageRejected, WrongImage, BitMismatch, FirmwareHang, FirmwareFault: the image is at fault.
        BoardLost, TransferCorrupt: the rig is at fault; another attempt may succeed.
        CyclesUnknown: the outputs are right, but the board cannot say how many cycles they took.
    """
    started = time.monotonic()
    image = read_image(job.elf, board.kind)
    with opened(job, image, board) as link:
        link.check_identity()
        link.check_shapes()
        runs = link.run_all()
        return _summarise(job, board, link, runs, meter or ModelMeter(board.kind), time.monotonic() - started)


def run_outputs(elf: bytes, board: Board, inputs: Bytes, *, output_bytes: int, timeout_s: float = 60.0) -> Bytes:
    """The outputs of an image for ``inputs`` (n, input bytes), without counting: (n, ``output_bytes``)."""
    job = Job(
        elf=elf, inputs=inputs, expected=np.zeros((len(inputs), output_bytes), dtype=np.int8), timeout_s=timeout_s
    )
    with opened(job, read_image(elf, board.kind), board) as link:
        link.check_identity()
        link.check_shapes()
        return np.stack([link.run(one).output for one in inputs])


@contextmanager
def opened(job: Job, image: Image, board: Board) -> Iterator[Link]:
    """A link to ``board`` with the image loaded and waiting for commands; the board is closed at the end."""
    try:
        board.load(image)
        link = Link(job, image, board)
        link.start()
        yield link
    finally:
        board.close()


@dataclass(frozen=True, slots=True)
class Run:
    """One inference: its output (bytes,), the mailbox after it, the counts of every region, and the cycles of every
    layer by its marks; both empty where there are none."""

    output: Bytes
    report: Mailbox
    counts: Sequence[Counts]
    marked: Sequence[int] = ()


class Link:
    """The conversation with a running firmware; :func:`opened` makes one. Every wait ends at the job's deadline."""

    def __init__(self, job: Job, image: Image, board: Board) -> None:
        self.job = job
        self.image = image
        self.board = board
        self._deadline = time.monotonic() + job.timeout_s
        self._mailbox = image.address("edgefront_mailbox")
        self._code_layers = [layer for layer in job.layers if layer.symbol]

    def start(self) -> None:
        """Run to where the firmware waits for commands, then start counting."""
        regions = [self._region("edgefront_run")]
        regions += [self._region(layer.symbol) for layer in self._code_layers]
        regions += [self._region(name) for name in _OUTSIDE]
        self._run_to("edgefront_ready")
        if self.board.counter is not None:
            self.board.counter.start(regions)

    def report(self) -> Mailbox:
        """The mailbox as it is now."""
        return Mailbox.unpack(self.board.read(self._mailbox, mailbox.SIZE))

    def check_identity(self) -> None:
        """Compare what the device says it runs with what was programmed.

        Raises:
            WrongImage: it is something else.
        """
        found = self.report()
        if found.magic != mailbox.MAGIC or found.version != mailbox.VERSION:
            raise WrongImage(
                f"board {self.board.board_id}: no mailbox of version {mailbox.VERSION} at {self._mailbox:#010x} "
                f"(magic {found.magic:#010x}, version {found.version})"
            )
        if found.image_id != self.image.image_id:
            raise WrongImage(
                f"board {self.board.board_id} runs image {found.image_id.hex()[:16]}…, "
                f"programmed was {self.image.image_id.hex()[:16]}…"
            )

    def check_shapes(self) -> None:
        """Compare the input and output sizes of the device with those of the job.

        Raises:
            ImageRejected: they differ.
        """
        found, inputs, outputs = self.report(), self.job.inputs.shape[1], self.job.expected.shape[1]
        if (found.input_bytes, found.output_bytes) != (inputs, outputs):
            raise ImageRejected(
                f"the image takes {found.input_bytes} and gives {found.output_bytes} bytes; "
                f"the test vectors have {inputs} and {outputs}"
            )

    def run(self, one: Bytes) -> Run:
        """One inference of an input (bytes,).

        Raises:
            TransferCorrupt: input or output were damaged on their way (transient).
            FirmwareError: the firmware reported an error.
        """
        before, counter = self._command(one), self.board.counter
        counts: Sequence[Counts] = ()
        if self._run_to("edgefront_after_run"):
            counts = counter.read() if counter is not None else ()
            self._run_to("edgefront_ready")
        after = self.report()
        self._check_report(before, after)
        output = self.board.read(after.output_address, after.output_bytes)
        if zlib.crc32(output) != after.output_crc:
            raise TransferCorrupt(f"board {self.board.board_id}: the output's checksum is wrong; run it again")
        marked = self._marked() if counter is None and after.has_cycle_counter else ()
        return Run(np.frombuffer(output, dtype=np.int8), after, counts, marked)

    def _marked(self) -> Sequence[int]:
        """Cycles of every layer of the last run by its marks; empty for an image without them.

        Raises:
            ImageRejected: it has another number of marks than layers.
        """
        table = self.image.symbols.get(_MARKS)
        if table is None or not self.job.layers:
            return ()
        if table.size != 4 * (len(self.job.layers) + marks.EXTRA):
            raise ImageRejected(f"{_MARKS} has {table.size} bytes, which is not one mark a layer")
        return marks.cycles(self.board.read(table.address, table.size))

    def run_all(self) -> list[Run]:
        """Every input in turn, the first as the known answer.

        Raises:
            BitMismatch: an output is not the expected one; names the first differing layer.
        """
        runs = []
        for index, (one, expected) in enumerate(zip(self.job.inputs, self.job.expected, strict=True)):
            runs.append(self.run(one))
            if not np.array_equal(runs[-1].output, expected):
                raise self._mismatch(index, runs[-1].output, expected)
        return runs

    def first_differing_layer(self) -> str | None:
        """Run the first input, stopping after every layer, and name the first layer whose output is not the
        reference's; None when all agree or there is nothing to compare with.
        """
        references = self.job.layer_outputs or {}
        symbols = [layer.symbol for layer in self._code_layers]
        arena = self.image.address("edgefront_arena")
        self._command(self.job.inputs[0])
        stops = [*symbols[1:], "edgefront_after_run"]
        is_running = self._run_to(symbols[0])
        for layer, after in zip(self._code_layers, stops, strict=True):
            is_running = is_running and self._run_to(after)
            wanted = references.get(layer.index)
            if not is_running or wanted is None:
                continue
            if self.board.read(arena + layer.output_offset, layer.output_bytes) != wanted.astype(np.int8).tobytes():
                return layer.name
        return None

    def _command(self, one: Bytes) -> Mailbox:
        """Write an input and the command to run; gives the mailbox before it."""
        before, data = self.report(), one.astype(np.int8).tobytes()
        self.board.write(before.input_address, data)
        self.board.write(self._mailbox + mailbox.INPUT_CRC_OFFSET, zlib.crc32(data).to_bytes(4, "little"))
        self.board.write(self._mailbox + mailbox.COMMAND_OFFSET, mailbox.COMMAND_RUN.to_bytes(4, "little"))
        return before

    def _check_report(self, before: Mailbox, after: Mailbox) -> None:
        if after.status == Status.ERROR:
            raise FirmwareError(f"board {self.board.board_id}: the firmware reports error {after.error_code}")
        if after.status != Status.DONE or after.sequence != (before.sequence + 1) & 0xFFFFFFFF:
            raise FirmwareError(
                f"board {self.board.board_id}: after a run the status is {after.status} and the sequence number "
                f"{after.sequence}; expected {int(Status.DONE)} and {before.sequence + 1}"
            )

    def _mismatch(self, index: int, found: Bytes, expected: Bytes) -> BitMismatch:
        wrong = np.flatnonzero(found != expected)
        at = int(wrong[0])
        layer = self.first_differing_layer() if self._code_layers and self.job.layer_outputs else None
        text = (
            f"board {self.board.board_id}: input {index} gives {len(wrong)} of {len(expected)} output values that "
            f"differ from the reference, first at {at}: {found[at]} instead of {expected[at]}; "
        )
        text += f"first differing layer: {layer}" if layer else "every layer is right for the first input"
        return BitMismatch(text, layer or "", index)

    def _run_to(self, symbol: str) -> bool:
        """Run to ``symbol``; False when the firmware came back to waiting for commands without passing it."""
        address, ready = self.image.address(symbol), self.image.address("edgefront_ready")
        return self.board.run_until({address, ready}, self._deadline - time.monotonic()) == address

    def _region(self, name: str) -> Region:
        start = self.image.address(name)
        return Region(name=name, start=start, end=start + max(self.image.symbols[name].size, 2))


def _summarise(job: Job, board: Board, link: Link, runs: list[Run], meter: Meter, seconds: float) -> Profile:
    cycles, counts = _cycles(board, runs)
    statistics = summarise(cycles)
    median_run = median_index(cycles)
    median = counts[median_run] if counts else ()
    source = "emulated" if board.is_emulated else "measured"
    energy = meter.read(statistics.median)
    last = runs[-1].report
    names = [layer for layer in job.layers if layer.symbol]
    inside = median[: len(names) + 1]
    return Profile(
        board_id=board.board_id,
        kind=board.kind.name,
        emulator=board.emulator,
        image_id=link.image.image_id.hex(),
        clock_hz=board.kind.clock_hz,
        supply_v=board.kind.supply_v,
        meter=meter.name,
        n_runs=len(runs),
        outputs=np.stack([run.output for run in runs]),
        stack_reserved_bytes=last.stack_reserved_bytes,
        stack_used_bytes=last.stack_used_bytes,
        instructions=sum(item.instructions for item in inside) if inside else None,
        cycles=statistics,
        cycles_source=source,
        latency_s=statistics.median / board.kind.clock_hz,
        energy_j=energy.energy_j,
        energy_source="measured" if energy.is_measured else "estimated",
        energy_basis=energy.basis,
        layers=_counted(names, inside[1:], source) if inside else _marked(job.layers, runs[median_run].marked, source),
        glue=inside[0] if inside else None,
        seconds=seconds,
    )


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


def _cycles(board: Board, runs: list[Run]) -> tuple[list[float], list[Sequence[Counts]]]:
    """Cycles of each run, and the counts of each run by region where the board counts."""
    if board.counter is None:
        if not runs[-1].report.has_cycle_counter:
            raise CyclesUnknown(
                f"board {board.board_id}: the outputs are right, but how many cycles a {board.kind.core} takes is not "
                f"known: the device has no live cycle counter, and {board.emulator or 'nothing else'} counts none"
            )
        return [run.report.cycles for run in runs], []
    outside = len(_OUTSIDE)
    counts = [run.counts for run in runs]
    return [sum(item.cycles for item in one[:-outside]) for one in counts], counts
