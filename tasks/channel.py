"""How worker processes tell the process that started them what happened: datagrams on a socket of this host.

Workers are children of children and the exporter is their parent's own process, so counts have to travel. A datagram
that cannot be delivered in time is dropped: work must never wait for its statistics.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from orchestrator.records import Event

AGENT_CHANNEL = "EDGEFRONT_AGENT_CHANNEL"
WORKER_CHANNEL = "EDGEFRONT_WORKER_CHANNEL"
_LONGEST_BYTES = 60_000


def tell_agent(event: Event) -> None:
    """Pass ``event`` to the agent that started this process; nobody listens where there is none."""
    _tell(AGENT_CHANNEL, event, wait_s=0.0)


def tell_worker(event: Event) -> None:
    """Pass ``event`` to the worker's parent; nobody listens where there is none. The system queues ten at most, so a
    burst waits for a moment."""
    _tell(WORKER_CHANNEL, event, wait_s=0.2)


def _tell(variable: str, event: Event, *, wait_s: float) -> None:
    address = os.environ.get(variable)
    if not address:
        return
    data = json.dumps({"name": event.name, "fields": event.fields}).encode()
    if len(data) > _LONGEST_BYTES:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
        sender.settimeout(wait_s)
        sender.sendto(data, address)


class Channel:
    """The parent's end: calls ``on_event`` from a thread of its own for whatever arrives, until closed."""

    def __init__(self, on_event: Callable[[Event], None], name: str = "agent") -> None:
        self._on_event = on_event
        self._folder = Path(tempfile.mkdtemp(prefix=f"edgefront-{name}-", dir="/tmp"))  # socket paths are short
        self.address = str(self._folder / "events")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._thread = threading.Thread(target=self._listen, name="channel", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; what is still on its way is taken first."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", self.address)
        self._thread.join()
        self._socket.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _listen(self) -> None:
        while data := self._socket.recv(_LONGEST_BYTES + 1):
            try:
                found = json.loads(data)
                event = Event(name=str(found["name"]), fields=dict(found["fields"]))
            except (ValueError, KeyError, TypeError):
                continue  # not ours: the socket lies in a folder of this user
            self._on_event(event)
