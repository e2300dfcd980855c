"""A board for tests that keeps to the contract of the real ones without running code.

It holds memory, walks through the firmware's marker symbols in the right order, computes outputs with a Python
function, reports cycles through the mailbox as hardware does, and misbehaves on request.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, replace

from mcu_agent.boards.protocol import Counter
from mcu_agent.errors import BoardLost, FaultSite, FirmwareFault, FirmwareHang, ImageRejected, OutOfTime
from mcu_agent.image import Image
from mcu_agent.kinds import BoardKind
from mcu_agent.mailbox import (
    COMMAND_RUN,
    COMMAND_WINDOW,
    LONGEST_IDLE_MS,
    MAGIC,
    NO_TEMPERATURE,
    SIZE,
    VERSION,
    Mailbox,
    Status,
)

LayerFunction = Callable[[bytes], Sequence[bytes]]


@dataclass(frozen=True, kw_only=True, slots=True)
class FakeNetwork:
    """What the fake firmware computes: ``run`` gives the output of every layer for an input, the last being the
    network's; ``layers`` are (symbol, offset in the arena) in the same order. ``cycles`` are those of an inference;
    ``temperature_c`` None: the part has no thermometer; ``clock_hz`` None: it runs at its kind's clock.
    """

    run: LayerFunction
    layers: Sequence[tuple[str, int]]
    input_bytes: int
    output_bytes: int
    cycles: int = 1000
    stack_used_bytes: int = 200
    temperature_c: float | None = 23.5
    clock_hz: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Script:
    """How the board misbehaves. ``hang_at`` and ``fault_at`` name the symbol it never gets past; ``lost_after`` is the
    number of operations after which the probe is gone; ``wrong_layer`` the index of the first layer with a wrong byte.
    """

    hang_at: str = ""
    fault_at: str = ""
    lost_after: int | None = None
    wrong_image_id: bool = False
    wrong_layer: int | None = None
    corrupt_transfer: bool = False
    reports_error: int = 0


class FakeBoard:
    """See :class:`mcu_agent.boards.protocol.Board`."""

    is_emulated = False
    emulator = ""

    def __init__(self, board_id: str, kind: BoardKind, network: FakeNetwork, script: Script | None = None) -> None:
        self.board_id = board_id
        self.kind = kind
        self.counter: Counter | None = None
        self.is_powered = False
        self._network = network
        self._script = script or Script()
        self._operations = 0
        self._memory = bytearray()
        self._image: Image | None = None
        self._steps: Iterator[str] = iter(())

    def load(self, image: Image) -> None:
        """Programme the image; every byte of RAM is arbitrary afterwards."""
        self._operate()
        self._memory = bytearray(b"\xa5" * self.kind.ram_bytes)
        self._image, self.is_powered = image, True
        self._steps = self._firmware(image)

    def run_until(self, addresses: Collection[int], timeout_s: float, quiet_s: float = 0.0) -> int:
        """Walk to the next of ``addresses``."""
        self._operate()
        image = self._powered()
        if timeout_s <= 0:
            raise OutOfTime("the time for this job was used up")
        for symbol in self._steps:
            if symbol == self._script.hang_at:
                raise FirmwareHang(f"the firmware did not reach its next stop, in {symbol}", symbol)
            if symbol == self._script.fault_at:
                pc = image.address(symbol)
                raise FirmwareFault(f"the core faulted at {symbol}", FaultSite(address=None, pc=pc, symbol=symbol))
            if symbol in image.symbols and image.address(symbol) in addresses:
                return image.address(symbol)
        raise FirmwareHang("the firmware idles and never reaches the wanted address")

    def read(self, address: int, size: int) -> bytes:
        """Bytes of RAM, damaged if the script says so."""
        self._operate()
        image, at = self._powered(), self._offset(address, size)
        data = bytes(self._memory[at : at + size])
        if self._script.corrupt_transfer and address != image.address("edgefront_mailbox"):
            return data[:-1] + bytes([data[-1] ^ 0x80])
        return data

    def write(self, address: int, data: bytes) -> None:
        """Write into RAM."""
        self._operate()
        self._powered()
        at = self._offset(address, len(data))
        self._memory[at : at + len(data)] = data

    def close(self) -> None:
        """Switch the board off."""
        self.is_powered = False
        self.counter = None

    def _operate(self) -> None:
        self._operations += 1
        if self._script.lost_after is not None and self._operations > self._script.lost_after:
            raise BoardLost(self.board_id, "the probe does not answer; check its cable")

    def _powered(self) -> Image:
        if not self.is_powered or self._image is None:
            raise BoardLost(self.board_id, "it has no power; load an image first")
        return self._image

    def _offset(self, address: int, size: int) -> int:
        if address < self.kind.ram_origin or address + size > self.kind.ram_end:
            raise ImageRejected(f"{size} bytes at {address:#010x} lie outside the RAM of {self.kind.name}")
        return address - self.kind.ram_origin

    def _firmware(self, image: Image) -> Iterator[str]:
        """The symbols the program counter comes past, with what happens between them."""
        yield "Reset_Handler"
        base = self._offset(image.address("edgefront_mailbox"), SIZE)
        # Input and output lie at the top of the RAM, as far as possible from what the image placed there.
        output_address = self.kind.ram_end - self._network.output_bytes
        input_address = output_address - self._network.input_bytes
        box = self._first_mailbox(image, input_address, output_address)
        self._memory[base : base + SIZE] = box.pack()
        idle = 0
        while idle < 1000:
            yield "edgefront_ready"
            box = Mailbox.unpack(bytes(self._memory[base : base + SIZE]))
            if not box.command:
                idle += 1
                continue
            idle = 0
            yield from self._obey(image, base, box)

    def _obey(self, image: Image, base: int, box: Mailbox) -> Iterator[str]:
        """A run, or a window: its inferences are all the same, so the firmware walks through one of them."""
        start = self._offset(box.input_address, box.input_bytes)
        data = bytes(self._memory[start : start + box.input_bytes])
        error = self._script.reports_error or _refusal(box, data)
        if error:
            box = replace(box, command=0, status=Status.ERROR, error_code=error)
            self._memory[base : base + SIZE] = box.pack()
            return
        output = yield from self._infer(image, data)
        at = self._offset(box.output_address, box.output_bytes)
        self._memory[at : at + box.output_bytes] = output
        after = replace(box, command=0, status=Status.DONE, sequence=box.sequence + 1)
        after = replace(after, output_crc=zlib.crc32(output), stack_used_bytes=self._network.stack_used_bytes)
        if box.command == COMMAND_RUN:
            after = replace(after, cycles=self._network.cycles)
        else:
            after = replace(after, window_cycles=box.repeats * self._network.cycles, keeps_input=1)
        self._memory[base : base + SIZE] = after.pack()

    def _infer(self, image: Image, data: bytes) -> Generator[str, None, bytes]:
        yield "edgefront_run"
        output = b""
        for index, ((symbol, offset), value) in enumerate(
            zip(self._network.layers, self._network.run(data), strict=True)
        ):
            yield symbol
            is_wrong = self._script.wrong_layer is not None and index >= self._script.wrong_layer
            output = bytes([value[0] ^ 1]) + value[1:] if is_wrong else value
            at = self._offset(image.address("edgefront_arena"), 0) + offset
            self._memory[at : at + len(output)] = output
        yield "edgefront_after_run"
        return output

    def _first_mailbox(self, image: Image, input_address: int, output_address: int) -> Mailbox:
        return Mailbox(
            magic=MAGIC,
            version=VERSION,
            image_id=bytes(32) if self._script.wrong_image_id else image.image_id,
            command=0,
            status=Status.READY,
            error_code=0,
            input_address=input_address,
            input_bytes=self._network.input_bytes,
            output_address=output_address,
            output_bytes=self._network.output_bytes,
            input_crc=0,
            output_crc=0,
            sequence=0,
            has_cycle_counter=1,
            cycles=0,
            stack_reserved_bytes=1024,
            stack_used_bytes=0,
            repeats=0,
            idle_ms=0,
            window_cycles=0,
            clock_hz=self.kind.clock_hz if self._network.clock_hz is None else self._network.clock_hz,
            temperature_mdeg=_millidegrees(self._network.temperature_c),
            keeps_input=0,
        )


def _refusal(box: Mailbox, data: bytes) -> int:
    """The error code of a command that the firmware does not obey; 0 when it does."""
    if box.command not in (COMMAND_RUN, COMMAND_WINDOW):
        return 1
    if zlib.crc32(data) != box.input_crc:
        return 2
    is_window = box.command == COMMAND_WINDOW
    return 3 if is_window and (not box.repeats or box.idle_ms > LONGEST_IDLE_MS) else 0


def _millidegrees(temperature_c: float | None) -> int:
    return NO_TEMPERATURE if temperature_c is None else round(1000 * temperature_c)
