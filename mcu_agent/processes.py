"""Which process is which, and ending one that does not come back. Process numbers are used again, so a process is
known by its number and the time of its start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from functools import lru_cache
from pathlib import Path

from mcu_agent.leases import Holder

_PROC = Path("/proc")
_START_FIELD = 19  # of /proc/PID/stat, counted behind the name, which may hold blanks and brackets


def this_process() -> Holder:
    """The process that asks."""
    return _holder(os.getpid())


@lru_cache(maxsize=8)
def _holder(pid: int) -> Holder:  # by number, because a process that was forked is another one
    return Holder(host=socket.gethostname(), pid=pid, born=born(pid) or "")


def born(pid: int) -> str | None:
    """What tells the process from any other of its number on this host; None where there is no such process."""
    if (_PROC / "self").exists():
        try:
            return (_PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[_START_FIELD]
        except (OSError, IndexError):
            return None
    done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return " ".join(done.stdout.split()) or None


def end(holder: Holder) -> bool:
    """Kill a process of this host and user; False where it is gone, is another one, another user's, or this one."""
    if holder.pid in (0, os.getpid()) or holder.host != socket.gethostname() or not holder.born:
        return False
    try:
        handle = os.pidfd_open(holder.pid) if hasattr(os, "pidfd_open") else None
    except OSError:
        return False
    try:
        # With the handle open the number cannot pass to another process between this comparison and the signal.
        if born(holder.pid) != holder.born or not _is_mine(holder.pid):
            return False
        if handle is None:
            os.kill(holder.pid, signal.SIGKILL)
        else:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    except OSError:
        return False
    finally:
        if handle is not None:
            os.close(handle)
    return True


def _is_mine(pid: int) -> bool:
    try:
        return (_PROC / str(pid)).stat().st_uid == os.getuid() if (_PROC / "self").exists() else True
    except OSError:
        return False
