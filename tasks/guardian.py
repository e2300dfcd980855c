"""A small process that ends a run's workers and broker when the run itself is gone, however it went.

It reads lines ``add PID`` and ``remove PID`` from a pipe whose only writer is the orchestrator. When the pipe closes –
the orchestrator left, crashed or was killed – every process group still on the list is killed. It needs nothing but the
standard library, so that it starts in a few hundredths of a second.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import IO


def watch(lines: IO[str]) -> None:
    """Keep the list until the pipe closes, then kill the groups on it."""
    groups: set[int] = set()
    for line in lines:
        order, _, number = line.strip().partition(" ")
        if order == "add":
            groups.add(int(number))
        elif order == "remove":
            groups.discard(int(number))
    for group in groups:
        kill_group(group, signal.SIGKILL)


def kill_group(group: int, number: signal.Signals) -> None:
    """Signal a process group; one that is gone or another user's by now is left alone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


class Guardian:
    """The orchestrator's end of the pipe."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def add(self, group: int) -> None:
        self._tell(f"add {group}\n")

    def remove(self, group: int) -> None:
        self._tell(f"remove {group}\n")

    def stop(self) -> None:
        """Let the guardian go; it kills what is still on its list. May be called twice."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):  # a dead guardian guards nothing; the workers still end with the run
                self._process.stdin.write(line)
                self._process.stdin.flush()


if __name__ == "__main__":
    watch(sys.stdin)
