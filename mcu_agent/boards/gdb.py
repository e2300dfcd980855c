"""A board behind a GDB server: pyOCD's, OpenOCD's, SEGGER's for J-Link, QEMU's."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Collection
from functools import partial

from mcu_agent.boards.debug import check_readable, check_writable, holds, run_to, start_at_reset, vectors, verify
from mcu_agent.boards.gdb_protocol import REPLY_TIMEOUT_S, Connection
from mcu_agent.boards.gdb_remote import SERVERS, GdbRemote
from mcu_agent.boards.protocol import Counter
from mcu_agent.errors import BoardLost, InventoryError
from mcu_agent.image import Image
from mcu_agent.kinds import BoardKind

_CONNECT_TIMEOUT_S = 5.0
_UNIX = "unix:"
_GUARD_BYTES = 4096


class GdbBoard:
    """See :class:`mcu_agent.boards.protocol.Board`.

    ``connection`` is ``host:port``, or ``unix:`` and the path of a socket; ``server`` one of
    :data:`mcu_agent.boards.gdb_remote.SERVERS`, or empty to ask it; whether it is QEMU is asked in
    any case. With ``connect``, which gives a connected socket, ``connection`` is but its name in messages. Flash that
    holds the image already is not programmed again, because it wears; ``loads_skipped`` counts how often.

    Raises:
        InventoryError: ``connection`` or ``server`` is not as above.
    """

    counter: Counter | None = None

    def __init__(
        self,
        board_id: str,
        kind: BoardKind,
        connection: str,
        *,
        server: str = "",
        reply_timeout_s: float = REPLY_TIMEOUT_S,
        connect: Callable[[], socket.socket] | None = None,
    ) -> None:
        if server and server not in SERVERS:
            raise InventoryError(f"board {board_id}: server is {server!r}; allowed: {', '.join(SERVERS)}")
        self.board_id = board_id
        self.kind = kind
        self.is_emulated = server == "qemu"
        self.emulator = "QEMU" if self.is_emulated else ""
        self.loads_skipped = 0
        self._name = connection
        self._reply_timeout_s = reply_timeout_s
        self._connect_socket = connect or partial(_connect, _address(board_id, connection))
        self._server = server
        self._link: tuple[Connection, GdbRemote] | None = None
        self._image: Image | None = None
        self._halted_at: int | None = None

    def load(self, image: Image) -> None:
        """Programme the image unless the flash holds it, verify it, and halt at the reset handler.

        Raises:
            BoardLost: the server does not answer (transient).
            ProgrammingFailed, VerifyFailed: the flash does not take the image (transient).
            ImageRejected: the vector table does not point into RAM and flash.
            InventoryError: the server is QEMU, and the rack file does not say so.
        """
        vectors(image, self.kind)
        self.close()
        remote = self._attach()
        try:
            remote.reset()
            if holds(image, remote.read, remote.has):
                self.loads_skipped += 1
            else:
                remote.program(image.segments)
                remote.reset()
                for segment in image.segments:
                    if not remote.has(segment):
                        verify(self.board_id, segment, remote.read(segment.address, len(segment.data)))
            start_at_reset(remote, image, self.kind)
            if self.is_emulated:  # some of QEMU's machines have memory below the RAM, where a stack would go on
                remote.watch_writes(self.kind.ram_origin - _GUARD_BYTES, _GUARD_BYTES)
        except BaseException:
            self.close()
            raise
        self._image, self._halted_at = image, None

    def run_until(self, addresses: Collection[int], timeout_s: float, quiet_s: float = 0.0) -> int:
        """Run to the first of ``addresses``. Nothing is sent while the core runs, whatever ``quiet_s``; what the server
        itself asks its probe meanwhile is the server's choice."""
        remote, image = self._powered()
        self._halted_at = run_to(
            remote,
            image,
            self.kind,
            addresses,
            timeout_s,
            quiet_s,
            is_transient=not self.is_emulated,
            halted_at=self._halted_at,
        )
        return self._halted_at

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes of the device's memory."""
        remote, _ = self._powered()
        check_readable(self.kind, address, size)
        return remote.read(address, size)

    def write(self, address: int, data: bytes) -> None:
        """Write into the device's RAM."""
        remote, _ = self._powered()
        check_writable(self.kind, address, len(data))
        remote.write(address, data)

    def close(self) -> None:
        """Take the breakpoints away and leave the core halted; the server stays."""
        link, self._link, self._image = self._link, None, None
        if link is None:
            return
        connection, remote = link
        with contextlib.suppress(Exception):  # the server may be gone, which is why we are closing
            remote.set_breakpoints(frozenset())
        connection.close()

    def _attach(self) -> GdbRemote:
        connection = Connection(self._open(), self.board_id, self._name, self._reply_timeout_s)
        try:
            remote = GdbRemote(connection, self.board_id, self._server)
        except BaseException:
            connection.close()
            raise
        self._link = connection, remote
        if not self.is_emulated and (
            remote.server == "qemu" or _is_qemu(remote)
        ):  # asked after the lease has noted what the board is
            self.close()
            raise InventoryError(
                f'board {self.board_id}: the GDB server at {self._name} is QEMU; write server = "qemu" into the rack '
                "file, so that nothing it says is taken for a measurement"
            )
        return remote

    def _open(self) -> socket.socket:
        try:
            return self._connect_socket()
        except OSError as error:
            raise BoardLost(
                self.board_id,
                f"no GDB server at {self._name} ({error}); start it, as in docs/boards.md, and see that nobody else is "
                "connected to it",
            ) from error

    def _powered(self) -> tuple[GdbRemote, Image]:
        if self._link is None or self._image is None:
            raise BoardLost(self.board_id, "it has no power; load an image first")
        return self._link[1], self._image


def _is_qemu(remote: GdbRemote) -> bool:
    """Whether a server that goes by another name is QEMU; one that refuses to be asked is not."""
    try:
        return remote.says_it_is("qemu")
    except BoardLost:
        return False


def _address(board_id: str, connection: str) -> tuple[str, int] | str:
    """Host and port, or the path of a Unix socket."""
    if connection.startswith(_UNIX) and len(connection) > len(_UNIX):
        return connection.removeprefix(_UNIX)
    host, colon, port = connection.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InventoryError(
            f"board {board_id}: connection is {connection!r}; allowed: host:port, as in localhost:3333, or unix:PATH"
        )
    return host.strip("[]"), int(port)


def _connect(address: tuple[str, int] | str) -> socket.socket:
    if isinstance(address, tuple):
        connection = socket.create_connection(address, timeout=_CONNECT_TIMEOUT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # packets are small, and each is waited for
        return connection
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_CONNECT_TIMEOUT_S)
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection
