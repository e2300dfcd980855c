"""Between the service and the process of a study: JSON lines both ways over a socket pair.

Either side learns at once when the other is gone. Sending never waits: a thread writes, and should the other side not
read, what is too much is dropped, oldest first. Down go ``limit``, ``pause``, ``stop``, ``edits`` and, every second,
``beat``; up go the study's events and, last of all, ``ended``.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections import deque
from collections.abc import Callable

from orchestrator.records import Event

_MOST_WAITING = 10_000


class Leash:
    """One end. ``on_event`` is called from a thread of its own for each event that comes, ``on_end`` once when the
    other side is gone or sends what is no event."""

    def __init__(
        self, connection: socket.socket, on_event: Callable[[Event], None], on_end: Callable[[], None] = lambda: None
    ) -> None:
        self._socket = connection
        self._on_event = on_event
        self._on_end = on_end
        self._waiting: deque[bytes] = deque(maxlen=_MOST_WAITING)
        self._changed = threading.Condition()
        self._is_closing = False
        self._reader = threading.Thread(target=self._read, name="leash-reader", daemon=True)
        self._writer = threading.Thread(target=self._write, name="leash-writer", daemon=True)
        self._reader.start()
        self._writer.start()

    def send(self, event: Event) -> None:
        """Never waits and never raises."""
        data = json.dumps({"name": event.name, "fields": event.fields}, default=str).encode() + b"\n"
        with self._changed:
            self._waiting.append(data)
            self._changed.notify()

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what is waiting, at most for ``timeout_s``, and hang up."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._writer.join(timeout_s)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if threading.current_thread() is not self._reader:
            self._reader.join(timeout_s)
        self._socket.close()

    def finish(self, timeout_s: float = 2.0) -> None:
        """The other side has ended: take what it still sent, and hang up."""
        self._reader.join(timeout_s)
        self.close(0.1)

    def _write(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._is_closing:
                    self._changed.wait()
                if not self._waiting:
                    return
                data = self._waiting.popleft()
            try:
                self._socket.sendall(data)
            except OSError:
                return

    def _read(self) -> None:
        try:
            with self._socket.makefile("rb") as lines:
                while (event := _decoded(lines.readline())) is not None:
                    self._on_event(event)
        except OSError:
            pass  # gone
        self._on_end()


def _decoded(line: bytes) -> Event | None:
    """The event of a line; None at the end, for half a line of one that was killed, and for what is no event."""
    try:
        found = json.loads(line)
        return Event(name=str(found["name"]), fields=dict(found["fields"]))
    except (ValueError, KeyError, TypeError):
        return None
