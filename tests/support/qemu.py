"""QEMU as a second opinion on the emulated board: driven through the GDB protocol, counted by a plugin."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np

from mcu_agent import mailbox
from mcu_agent.boards.blockcounter import cache_folder
from mcu_agent.image import read_image
from mcu_agent.kinds import load_kind
from mcu_agent.mailbox import Mailbox
from tests.support.boards import SOURCES

# An STM32F405: 1 MB of flash and 128 KB of RAM at the addresses of the F446.
MACHINE, KIND = "netduinoplus2", "nucleo-f446re"
TIMEOUT_S = 20.0


def run_on_qemu(elf: bytes, inputs: np.ndarray, folder: Path) -> tuple[np.ndarray, list[int]]:
    """Outputs (n, bytes) for int8 inputs (n, bytes), and the instructions of every run."""
    image = read_image(elf, load_kind(KIND))
    path, counts = folder / "image.elf", folder / "counts.txt"
    path.write_bytes(elf)
    start, end = image.address("edgefront_run"), image.address("edgefront_after_run")
    plugin = f"{_plugin(str(folder))},start={start:#x},end={end:#x},out={counts}"
    ready, base = image.address("edgefront_ready"), image.address("edgefront_mailbox")
    outputs = []
    with _qemu(path, plugin, folder) as gdb:
        gdb.run_to(ready)
        for one in inputs:
            box = Mailbox.unpack(gdb.read(base, mailbox.SIZE))
            data = one.astype(np.int8).tobytes()
            gdb.write(box.input_address, data)
            gdb.write(base + mailbox.INPUT_CRC_OFFSET, zlib.crc32(data).to_bytes(4, "little"))
            gdb.write(base + mailbox.COMMAND_OFFSET, mailbox.COMMAND_RUN.to_bytes(4, "little"))
            gdb.run_to(end)
            gdb.run_to(ready)
            outputs.append(np.frombuffer(gdb.read(box.output_address, box.output_bytes), dtype=np.int8))
    return np.stack(outputs), [int(line) for line in counts.read_text().split()]


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
def _qemu(path: Path, plugin: str, folder: Path) -> Iterator[Gdb]:
    address = folder / "gdb"
    address.unlink(missing_ok=True)
    command = ["qemu-system-arm", "-M", MACHINE, "-kernel", str(path), "-display", "none", "-monitor", "none"]
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
    """The four commands of the GDB remote protocol that this needs."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""

    def read(self, address: int, size: int) -> bytes:
        return bytes.fromhex(self._ask(f"m{address:x},{size:x}"))

    def write(self, address: int, data: bytes) -> None:
        assert self._ask(f"M{address:x},{len(data):x}:{data.hex()}") == "OK"

    def run_to(self, address: int) -> None:
        """Run to a breakpoint; one set on the instruction the core stands at is passed over first."""
        self._ask("s")
        assert self._ask(f"Z1,{address:x},2") == "OK"
        stop = self._ask("c")
        assert stop.startswith("T05"), stop
        assert self._ask(f"z1,{address:x},2") == "OK"

    def _ask(self, command: str) -> str:
        checksum = sum(command.encode()) & 0xFF
        self._connection.sendall(f"${command}#{checksum:02x}".encode())
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
