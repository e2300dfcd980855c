"""A worker's child is told by a signal that its parent is leaving, and its stage looks now and then.

SIGUSR2 is free: Celery uses SIGUSR1 for soft time limits, and SIGTERM, SIGINT and SIGQUIT for itself.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

LEAVE_SIGNAL = signal.SIGUSR2
# By process: a child forked from one that was told has not been told itself.
_told: set[int] = set()


def listen() -> None:
    """Have this process take note of the signal; from its main thread."""
    signal.signal(LEAVE_SIGNAL, _take_note)


def is_leaving() -> bool:
    """Whether this process was told that its worker is leaving."""
    return os.getpid() in _told


def _take_note(number: int, frame: FrameType | None) -> None:
    _told.add(os.getpid())
