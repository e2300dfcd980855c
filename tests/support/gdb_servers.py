"""GDB servers for tests: QEMU's, pyOCD's on a fake probe, and one that answers by a script."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mcu_agent.boards.gdb_protocol import frame
from mcu_agent.kinds import BoardKind
from tests.support.emulated_part import EmulatedPart

MACHINE = "mps2-an386"  # a Cortex-M4 whose memory covers that of the nRF52 kinds


def require_qemu() -> None:
    """Skip the test where QEMU is not installed."""
    if shutil.which("qemu-system-arm") is None:
        pytest.skip("qemu-system-arm is not installed")


@contextmanager
def qemu_server(machine: str = MACHINE, path: Path | None = None) -> Iterator[str]:
    """The address of QEMU's GDB server with an empty machine: ``host:port``, or a Unix socket at ``path``.

    It listens on a socket of ours, so nobody has to wait until it does.
    """
    with _listener(path) as listener:
        command = ["qemu-system-arm", "-M", machine, "-display", "none", "-monitor", "none", "-serial", "none", "-S"]
        command += [
            "-chardev",
            f"socket,id=g,fd={listener.fileno()},server=on,wait=off,nodelay=on",
            "-gdb",
            "chardev:g",
        ]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(listener.fileno(),))
        address = f"unix:{path}" if path else f"127.0.0.1:{listener.getsockname()[1]}"
    with process:
        try:
            yield address
        finally:
            process.kill()


def _listener(path: Path | None) -> socket.socket:
    if path is None:
        return socket.create_server(("127.0.0.1", 0))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    return listener


@contextmanager
def pyocd_server(kind: BoardKind, target: str = "nrf52832") -> Iterator[str]:
    """``pyocd gdbserver`` at ``host:port``, on a fake probe wired to an emulated part."""
    from pyocd.core.session import Session
    from pyocd.gdbserver.gdbserver import GDBServer

    from tests.support.fake_probe import FakeProbe

    options = {"target_override": target, "no_config": True, "hide_programming_progress": True, "gdbserver_port": 0}
    options |= {"persist": True, "semihost_console_type": "console", "stdio_mode": "off"}
    with Session(FakeProbe(EmulatedPart(kind)), options=options) as session:
        server = GDBServer(session, core=0)
        server.start()
        try:
            yield f"127.0.0.1:{server.port}"
        finally:
            server.stop()


class ScriptedServer:
    """A GDB server on a thread of its own. ``answers`` maps the start of a command to the payload of the answer, to raw
    bytes (what a damaged line would carry), or to None for closing the connection; the longest start that fits counts.
    What no start fits is answered with nothing, as by a server that does not know it.

    It holds memory, so that reads and writes need no script; ``asked`` are the commands that came.
    """

    def __init__(self, answers: dict[bytes, bytes | bytearray | None] | None = None) -> None:
        self.asked: list[bytes] = []
        self.memory: dict[int, int] = {}
        self.answers: dict[bytes, bytes | bytearray | Callable[[], bytes] | None] = {
            b"qSupported": b"PacketSize=400;QStartNoAckMode+",
            b"?": b"T05",
            b"qRcmd,": b"OK",
            b"p19": (1 << 24).to_bytes(4, "little").hex().encode(),
            b"p": b"00000000",
            b"P": b"OK",
            b"Z": b"OK",
            b"z": b"OK",
            b"QStartNoAckMode": b"OK",
            **(answers or {}),
        }
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        buffer = b""
        while received := connection.recv(65536):
            buffer += received
            while found := re.search(rb"\x03|\$([^#]*)#..", buffer, re.DOTALL):
                buffer = buffer[found.end() :]
                command = b"\x03" if found[1] is None else found[1]
                self.asked.append(command)
                answer = self._answer(command)
                if answer is None:
                    return
                connection.sendall(bytes(answer) if isinstance(answer, bytearray) else b"+" + frame(answer))

    def _answer(self, command: bytes) -> bytes | bytearray | None:
        starts = [start for start in self.answers if command.startswith(start)]
        if starts:
            answer = self.answers[max(starts, key=len)]
            return answer() if callable(answer) else answer
        if found := re.fullmatch(rb"m([0-9a-f]+),([0-9a-f]+)", command):
            start, size = int(found[1], 16), int(found[2], 16)
            return bytes(self.memory.get(at, 0xFF) for at in range(start, start + size)).hex().encode()
        if found := re.fullmatch(rb"M([0-9a-f]+),[0-9a-f]+:([0-9a-f]*)", command):
            self.memory |= dict(enumerate(bytes.fromhex(found[2].decode()), int(found[1], 16)))
            return b"OK"
        return b""
