"""The conversation with an image on a board: load, verify, run, compare.

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
from mcu_agent.errors import BitMismatch, FirmwareError, ImageRejected, TransferCorrupt, WrongImage
from mcu_agent.image import Image, read_image
from mcu_agent.mailbox import Mailbox, Status

Bytes = npt.NDArray[np.int8]

_MARKS = "edgefront_marks"
OUTSIDE = ("edgefront_after_run", "edgefront_ready")


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Inferences one after another, with the trigger pin high and the probe silent, as an energy meter needs them.

    ``cycles`` are those of all of them, without what lies between: the device's own count or, on an emulator, its
    model's; 0 where nothing counts. Where ``keeps_input`` is False, there was no room for a copy of the input, only the
    first inference had it, and ``output`` (bytes,), the last one's, says nothing. ``temperature_c`` is taken after it.
    """

    repeats: int
    cycles: int
    keeps_input: bool
    temperature_c: float | None
    output: Bytes


class Link:
    """The conversation with a running firmware; :func:`opened` makes one. Every wait ends at the job's deadline."""

    def __init__(self, job: Job, image: Image, board: Board) -> None:
        self.job = job
        self.image = image
        self.board = board
        self._deadline = time.monotonic() + job.timeout_s
        self._mailbox = image.address("edgefront_mailbox")
        self._code_layers = [layer for layer in job.layers if layer.symbol]
        self._last = job.inputs[0]

    def start(self) -> None:
        """Run to where the firmware waits for commands, then start counting."""
        regions = [self._region("edgefront_run")]
        regions += [self._region(layer.symbol) for layer in self._code_layers]
        regions += [self._region(name) for name in OUTSIDE]
        self._run_to("edgefront_ready")
        if self.board.counter is not None:
            self.board.counter.start(regions)

    def allow(self, seconds: float) -> None:
        """Wait for so long from now on, if the job's deadline is sooner."""
        self._deadline = max(self._deadline, time.monotonic() + seconds)

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
        after, output = self._finished(before)
        marked = self._marked() if counter is None and after.has_cycle_counter else ()
        return Run(output, after, counts, marked)

    def window(self, repeats: int, idle_ms: int, *, quiet_s: float) -> Window:
        """``repeats`` inferences of the last input (the job's first before any was run) between two sleeps of
        ``idle_ms`` milliseconds; the probe keeps quiet for ``quiet_s`` seconds.

        Raises:
            ValueError: ``repeats`` is not 1 to 2**32 - 1, or ``idle_ms`` not 0 to 60,000.
            TransferCorrupt, FirmwareError: as :meth:`run`.
        """
        if not 1 <= repeats < 2**32 or not 0 <= idle_ms <= mailbox.LONGEST_IDLE_MS:
            raise ValueError(
                f"a window of {repeats} repeats and {idle_ms} ms of idling: at least 1 repeat, below 2**32, and 0 to "
                f"{mailbox.LONGEST_IDLE_MS} ms are allowed"
            )
        self._write_word(mailbox.REPEATS_OFFSET, repeats)
        self._write_word(mailbox.IDLE_MS_OFFSET, idle_ms)
        before, counter = self._command(self._last, mailbox.COMMAND_WINDOW), self.board.counter
        remaining = self._deadline - time.monotonic()
        self.board.run_until({self.image.address("edgefront_ready")}, remaining, quiet_s)
        after, output = self._finished(before)
        counts = counter.read() if counter is not None else ()
        return Window(
            repeats=repeats,
            cycles=sum(one.cycles for one in counts[: -len(OUTSIDE)]) if counts else after.window_cycles,
            keeps_input=bool(after.keeps_input),
            temperature_c=temperature_c(after),
            output=output,
        )

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
        return [self.run_known(index) for index in range(len(self.job.inputs))]

    def run_known(self, index: int) -> Run:
        """One inference of the job's input ``index``, held against the reference.

        Raises:
            BitMismatch: as :meth:`run_all`.
        """
        found, expected = self.run(self.job.inputs[index]), self.job.expected[index]
        if not np.array_equal(found.output, expected):
            raise self._mismatch(index, found.output, expected)
        return found

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

    def _command(self, one: Bytes, command: int = mailbox.COMMAND_RUN) -> Mailbox:
        """Write an input and a command; gives the mailbox before it."""
        before, data = self.report(), one.astype(np.int8).tobytes()
        self._last = one
        self.board.write(before.input_address, data)
        self._write_word(mailbox.INPUT_CRC_OFFSET, zlib.crc32(data))
        self._write_word(mailbox.COMMAND_OFFSET, command)
        return before

    def _write_word(self, offset: int, value: int) -> None:
        self.board.write(self._mailbox + offset, value.to_bytes(4, "little"))

    def _finished(self, before: Mailbox) -> tuple[Mailbox, Bytes]:
        """The mailbox after a command, and the output."""
        after = self.report()
        self._check_report(before, after)
        output = self.board.read(after.output_address, after.output_bytes)
        if zlib.crc32(output) != after.output_crc:
            raise TransferCorrupt(f"board {self.board.board_id}: the output's checksum is wrong; run it again")
        return after, np.frombuffer(output, dtype=np.int8)

    def _check_report(self, before: Mailbox, after: Mailbox) -> None:
        if after.status == Status.ERROR:
            if after.error_code == mailbox.ERROR_CRC:
                raise TransferCorrupt(f"board {self.board.board_id}: the input arrived damaged; run it again")
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
        if layer:
            text += f"first differing layer: {layer}"
        elif self._code_layers and self.job.layer_outputs:
            text += "every layer is right for the first input"
        else:
            text += "there are no outputs of layers to compare with"
        return BitMismatch(text, layer or "", index)

    def _run_to(self, symbol: str) -> bool:
        """Run to ``symbol``; False when the firmware came back to waiting for commands without passing it."""
        address, ready = self.image.address(symbol), self.image.address("edgefront_ready")
        return self.board.run_until({address, ready}, self._deadline - time.monotonic()) == address

    def _region(self, name: str) -> Region:
        start = self.image.address(name)
        return Region(name=name, start=start, end=start + max(self.image.symbols[name].size, 2))


def temperature_c(report: Mailbox) -> float | None:
    """Degrees Celsius as the device reports them; None where it cannot tell."""
    return report.temperature_mdeg / 1000 if report.temperature_mdeg != mailbox.NO_TEMPERATURE else None
