"""QEMU as a second opinion on the emulated board: driven through the GDB protocol, counted by a plugin."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from mcu_agent import mailbox
from mcu_agent.boards.blockcounter import cache_folder
from mcu_agent.boards.protocol import Counts
from mcu_agent.boards.thumb import TAKEN_PENALTY, block_cost
from mcu_agent.image import Image, built_for, read_image, without_peripherals
from mcu_agent.kinds import PLAIN_CORES, BoardKind, load_kind
from mcu_agent.mailbox import Mailbox, Status
from tests.support.boards import SOURCES

KIND = "nucleo-f446re"  # its memory lies where that of the machine netduinoplus2 lies, which has more flash
_KIB, _MIB = 1 << 10, 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A machine of QEMU, and a board kind with its core and memory; clock and energy are another board's and mean
    nothing."""

    name: str
    kind: BoardKind


def _machine(name: str, core: str, fpu: str, flash: tuple[int, int], ram: tuple[int, int]) -> Machine:
    """``flash`` and ``ram``: origin and bytes, from QEMU's source (``hw/arm``)."""
    kind = replace(
        load_kind(KIND), name=f"qemu-{name}", description=f"QEMU's machine {name}", mcu=name, core=core, fpu=fpu,
        has_dsp=core not in PLAIN_CORES, flash_origin=flash[0], flash_bytes=flash[1], ram_origin=ram[0],
        ram_bytes=ram[1], ram_bank="the block at ram_origin", datasheet="QEMU", port="", trigger_pin="",
        pyocd_target="", pack="", qemu_machine=name,
    )  # fmt: skip
    return Machine(name=name, kind=kind)


# On the FPGA boards (mps2) both memories are RAM to QEMU; the AN505 starts in the secure world, at its secure alias.
_SSRAM = ((0x00000000, 4 * _MIB), (0x20000000, 4 * _MIB))
NETDUINO = _machine("netduinoplus2", "cortex-m4", "fpv4-sp-d16", (0x08000000, _MIB), (0x20000000, 128 * _KIB))
MACHINES = (
    NETDUINO,
    _machine("mps2-an386", "cortex-m4", "fpv4-sp-d16", *_SSRAM),
    _machine("mps2-an500", "cortex-m7", "fpv5-d16", *_SSRAM),
    _machine("mps2-an505", "cortex-m33", "fpv5-sp-d16", (0x10000000, 4 * _MIB), (0x38000000, 2 * _MIB)),
    _machine("mps2-an385", "cortex-m3", "", *_SSRAM),
    _machine("microbit", "cortex-m0plus", "", (0x00000000, 256 * _KIB), (0x20000000, 16 * _KIB)),
)
TIMEOUT_S = 60.0
_PACKET_BYTES = 1024  # of memory; QEMU takes packets of 4096 characters


@dataclass(frozen=True, slots=True)
class Span:
    """What is counted: from each entry of ``start`` to the next of ``end``, both addresses of basic blocks."""

    start: int
    end: int


def run_on_qemu(
    elf: bytes, inputs: np.ndarray, folder: Path, span: Span | None = None, machine: Machine = NETDUINO
) -> tuple[np.ndarray, list[Counts]]:
    """Outputs (n, bytes) for int8 inputs (n, bytes), and the counts of every run: by default of the whole network,
    between the entries of ``edgefront_run`` and ``edgefront_after_run``. The image is linked for ``machine.kind``, or
    for another kind whose memory lies where the machine's does.

    Instructions are QEMU's; cycles are those of the virtual board's cost table over QEMU's blocks.
    """
    image = _image(elf, machine)
    path, blocks = folder / "image.elf", folder / "blocks.txt"
    path.write_bytes(elf)
    span = span or Span(image.address("edgefront_run"), image.address("edgefront_after_run"))
    plugin = f"{_plugin(str(folder))},start={span.start:#x},end={span.end:#x},out={blocks}"
    base = image.address("edgefront_mailbox")
    outputs = []
    with _qemu(machine, path, plugin, folder) as gdb:
        _switch_peripherals_off(gdb, image)
        box = _mailbox_when(gdb, base, lambda box: box.magic == mailbox.MAGIC)
        for n_runs, one in enumerate(inputs, 1):
            data = one.astype(np.int8).tobytes()
            gdb.write(box.input_address, data)
            gdb.write(base + mailbox.INPUT_CRC_OFFSET, zlib.crc32(data).to_bytes(4, "little"))
            gdb.write(base + mailbox.COMMAND_OFFSET, mailbox.COMMAND_RUN.to_bytes(4, "little"))
            box = _mailbox_when(gdb, base, lambda box, n=n_runs: box.sequence == n and box.status == Status.DONE)
            if box.stack_used_bytes >= box.stack_reserved_bytes:  # some machines have memory below the stack
                raise AssertionError(f"{machine.name}: all {box.stack_reserved_bytes} bytes of the stack were used")
            outputs.append(np.frombuffer(gdb.read(box.output_address, box.output_bytes), dtype=np.int8))
    return np.stack(outputs), _counts(blocks.read_text(), image)


def _image(elf: bytes, machine: Machine) -> Image:
    """The image, checked against the machine's memory whatever board kind it was built for."""
    with_any_name = replace(machine.kind, name=built_for(elf) or machine.kind.name)
    return without_peripherals(read_image(elf, with_any_name))


def _switch_peripherals_off(gdb: Gdb, image: Image) -> None:
    """QEMU has loaded the file as it is; what :func:`without_peripherals` changed follows."""
    symbol = image.symbols.get("edgefront_has_peripherals")
    if symbol is not None:
        gdb.write(symbol.address, _code(image, symbol.address, 4))


def _mailbox_when(gdb: Gdb, base: int, is_there: Callable[[Mailbox], bool]) -> Mailbox:
    """Run until the mailbox is as it shall be.

    It is looked at now and then: a breakpoint makes each instruction on its page a block of its own, and a watchpoint
    repeats parts of blocks that write beside it.

    Raises:
        TimeoutError: it is not, in time.
    """
    deadline, wait_s = time.monotonic() + TIMEOUT_S, 0.002
    while time.monotonic() < deadline:
        box = Mailbox.unpack(gdb.read(base, mailbox.SIZE))
        if is_there(box):
            return box
        gdb.run_for(wait_s)
        wait_s = min(2 * wait_s, 0.1)
    raise TimeoutError(f"the firmware is not done after {TIMEOUT_S:g} s on QEMU; its mailbox: {box}")


def layer_span(elf: bytes, symbol: str) -> Span:
    """From the entry of a layer's function to its return to ``edgefront_run``, which calls it once.

    Raises:
        ValueError: ``edgefront_run`` does not call it once.
    """
    image = _image(elf, NETDUINO)
    run, target = image.symbols["edgefront_run"], image.address(symbol)
    code = _code(image, run.address, run.size)
    places = [at for at in range(0, len(code) - 3, 2) if _call_target(code[at : at + 4], run.address + at) == target]
    if len(places) != 1:
        raise ValueError(f"edgefront_run calls {symbol} {len(places)} times, expected once")
    return Span(target, run.address + places[0] + 4)


def _call_target(code: bytes, address: int) -> int | None:
    """Where a BL at ``address`` leads (Armv7-M ARM, A7.7.18, encoding T1); None for other instructions."""
    first, second = (int.from_bytes(code[at : at + 2], "little") for at in (0, 2))
    if first & 0xF800 != 0xF000 or second & 0xD000 != 0xD000:
        return None
    sign, j1, j2 = first >> 10 & 1, second >> 13 & 1, second >> 11 & 1
    offset = (1 ^ j1 ^ sign) << 23 | (1 ^ j2 ^ sign) << 22 | (first & 0x3FF) << 12 | (second & 0x7FF) << 1
    return address + 4 + offset - (sign << 24)


def _code(image: Image, address: int, size: int) -> bytes:
    for segment in image.segments:
        at = address - segment.address
        if at >= 0 and at + size <= len(segment.data):
            return segment.data[at : at + size]
    raise ValueError(f"no segment holds {size} bytes at {address:#x}")


def _counts(text: str, image: Image) -> list[Counts]:
    """The plugin's file, run by run."""
    found, instructions, cycles = [], 0, 0
    for line in text.splitlines():
        if line == "end":
            found.append(Counts(instructions=instructions, cycles=cycles))
            instructions = cycles = 0
            continue
        address, size, n_instructions, runs, taken = map(int, line.split()[1:])
        instructions += n_instructions * runs
        cycles += block_cost(_code(image, address, size)).cycles * runs + TAKEN_PENALTY * taken
    return found


@lru_cache
def why_not() -> str:
    """Why QEMU cannot be used here; empty when it can."""
    if shutil.which("qemu-system-arm") is None:
        return "qemu-system-arm is not installed"
    found = subprocess.run(["qemu-system-arm", "-plugin", "help"], capture_output=True, text=True, check=False)
    if "invalid option" in found.stderr:
        return "this qemu-system-arm was built without plugins"
    return "" if sys.platform == "linux" else "the plugin is built for Linux only"


@lru_cache
def _plugin(folder: str) -> Path:
    path = Path(folder) / "qemu_count.so"
    command = [sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", "-O2", "-fno-sanitize=undefined"]
    command += ["-o", str(path), str(SOURCES / "qemu_count.c")]
    environment = {"ZIG_GLOBAL_CACHE_DIR": str(cache_folder() / "zig"), **os.environ}
    subprocess.run(command, check=True, capture_output=True, timeout=120, env=environment)
    return path


@contextmanager
def _qemu(machine: Machine, path: Path, plugin: str, folder: Path) -> Iterator[Gdb]:
    address = folder / "gdb"
    address.unlink(missing_ok=True)
    command = ["qemu-system-arm", "-M", machine.name, "-kernel", str(path), "-display", "none", "-monitor", "none"]
    command += ["-serial", "none", "-S", "-chardev", f"socket,id=g,path={address},server=on,wait=off"]
    command += ["-gdb", "chardev:g", "-plugin", plugin]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with process:
        try:
            with _connect(address, process) as connection:
                yield Gdb(connection)
        finally:
            process.kill()


def _connect(address: Path, process: subprocess.Popen[bytes]) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(TIMEOUT_S)
    while process.poll() is None:
        try:
            connection.connect(str(address))
        except (FileNotFoundError, ConnectionRefusedError):
            continue
        return connection
    connection.close()
    text = process.stdout.read().decode() if process.stdout else ""
    raise RuntimeError(f"qemu-system-arm ended with {process.returncode}: {text}")


class Gdb:
    """The few commands of the GDB remote protocol that this needs."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""

    def read(self, address: int, size: int) -> bytes:
        parts = [(at, min(_PACKET_BYTES, size - at)) for at in range(0, size, _PACKET_BYTES)]
        return b"".join(bytes.fromhex(self._ask(f"m{address + at:x},{length:x}")) for at, length in parts)

    def write(self, address: int, data: bytes) -> None:
        for at in range(0, len(data), _PACKET_BYTES):
            part = data[at : at + _PACKET_BYTES]
            assert self._ask(f"M{address + at:x},{len(part):x}:{part.hex()}") == "OK"

    def run_for(self, seconds: float) -> None:
        """Let the core run for that long, then halt it."""
        self._send("c")
        time.sleep(seconds)
        self._connection.sendall(b"\x03")
        stop = self._answer("c")
        assert stop.startswith("T02"), stop

    def _ask(self, command: str) -> str:
        self._send(command)
        return self._answer(command)

    def _send(self, command: str) -> None:
        checksum = sum(command.encode()) & 0xFF
        self._connection.sendall(f"${command}#{checksum:02x}".encode())

    def _answer(self, command: str) -> str:
        while b"#" not in self._buffer or len(self._buffer) < self._buffer.index(b"#") + 3:
            received = self._connection.recv(65536)
            if not received:
                raise RuntimeError(f"QEMU closed the connection at {command!r}")
            self._buffer += received
        end = self._buffer.index(b"#")
        answer = self._buffer[self._buffer.index(b"$") + 1 : end]
        self._buffer = self._buffer[end + 3 :]
        self._connection.sendall(b"+")
        return answer.decode()
