"""What a signal's handler may do to an event."""

from __future__ import annotations

import _thread
import threading


def set_soon(event: threading.Event) -> None:
    """Set an event from a signal's handler; it is set an instant later.

    ``event.set()`` takes the event's lock, and a handler runs amid whatever the main thread is doing. Where that waits
    for the event, or sets it for the signal before, it may hold the lock already and would wait for itself for ever: a
    process that was told twice to end, and never does. Here a thread waits for the lock, and it is begun without any
    lock of Python's (those of :mod:`threading` are taken when one of its threads begins).
    """
    _thread.start_new_thread(event.set, ())
