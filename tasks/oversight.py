"""What a worker's parent knows of its children: which task each runs, how much memory it takes, why it is gone.

The decisions are functions of what was seen; looking at the system's processes and signalling them is the rim.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from orchestrator.quantities import exact, rounded, show
from orchestrator.records import Event, Fault, StageRequest
from tasks.answers import transient
from tasks.messages import bare_request

_GIB = 1024.0**3


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningTask:
    """What the child process ``pid`` is at."""

    pid: int
    study_id: str
    trial: int
    stage: str
    attempt: int

    @property
    def request(self) -> StageRequest:
        """As much of the request as an answer needs."""
        return bare_request(self.study_id, self.trial, self.stage, self.attempt)


class TaskTable:
    """The tasks under way by process, from what the children say; may be called from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[int, RunningTask] = {}

    def take(self, event: Event) -> None:
        fields = event.fields
        with self._lock:
            if event.name == "task_started":
                self._tasks[int(fields["pid"])] = RunningTask(**fields)
            elif event.name == "task_ended":
                self._tasks.pop(int(fields["pid"]), None)

    def of(self, pid: int) -> RunningTask | None:
        with self._lock:
            return self._tasks.get(pid)

    def drop(self, pid: int) -> RunningTask | None:
        """Forget the process; what it was at."""
        with self._lock:
            return self._tasks.pop(pid, None)

    def all(self) -> list[RunningTask]:
        with self._lock:
            return list(self._tasks.values())

    def counts(self) -> Counter[str]:
        """How many of each stage, whatever board it names."""
        return Counter(task.stage.partition("@")[0] for task in self.all())


def resident_bytes(parents: Iterable[int]) -> dict[int, float]:
    """The children of the processes ``parents``, each with the resident memory of itself and all below it."""
    found: dict[int, float] = {}
    for parent in parents:
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(parent).children(recursive=True)
            above = {process.pid: process.ppid() for process in family if process.is_running()}
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    child = _child_above(process.pid, parent, above)
                    found[child] = found.get(child, 0.0) + process.memory_info().rss
    return found


def _child_above(pid: int, parent: int, above: Mapping[int, int]) -> int:
    while above.get(pid, parent) != parent:
        pid = above[pid]
    return pid


def over_limit(used: Mapping[int, float], limit_bytes: float) -> list[int]:
    """The children that take more than they may; a limit of 0 is none."""
    return [pid for pid, amount in used.items() if limit_bytes and amount > limit_bytes]


def memory_fault(task: RunningTask, used_bytes: float, limit_bytes: float) -> Fault:
    """The worker ended it, before the system would have ended something else."""
    used, limit = show(used_bytes, "byte"), rounded(limit_bytes, "byte")
    if rounded(used_bytes, "byte") == limit:  # where only bytes show the difference
        used, limit = exact(round(used_bytes), "byte"), exact(round(limit_bytes), "byte")
    detail = (
        f"stage {task.stage} took {used} of memory; this worker allows {limit} (--memory-limit). Give it more, or let "
        "the space reach smaller batches and networks"
    )
    return transient("memory_limit", detail)


def out_of_memory_fault(task: RunningTask, seen_bytes: float) -> Fault:
    """The system ended it."""
    detail = (
        f"the system killed stage {task.stage} for want of memory; it was last seen with {seen_bytes / _GIB:.2f} GiB. "
        "Run fewer tasks at once, give the worker more memory, or a --memory-limit that names the candidate"
    )
    return transient("out_of_memory", detail)


def leaving_fault(task: RunningTask) -> Fault:
    return transient("handed_over", f"the worker left before stage {task.stage} was finished")


@dataclass
class OomCounter:
    """How many processes of this worker's control group the kernel has killed for want of memory, as far as it says
    so (``memory.events``; ``memory.oom_control`` of the first version)."""

    files: tuple[Path, ...]
    _seen: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._seen = self._count()

    @staticmethod
    def of_this_process(root: Path = Path("/")) -> OomCounter:
        try:
            lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        except OSError:
            lines = []
        groups = [line.split(":", 2) for line in lines if line.count(":") >= 2]
        mount = root / "sys/fs/cgroup"
        files = [mount / path.lstrip("/") / "memory.events" for number, _, path in groups if number == "0"]
        files += [
            mount / "memory" / place.lstrip("/") / "memory.oom_control"
            for _, controllers, path in groups
            if "memory" in controllers.split(",")
            for place in (path, "")  # a container sees its own group as the root
        ]
        return OomCounter(tuple(file for file in files if file.exists())[:1])

    def has_risen(self) -> bool:
        """Whether there was another since the last call."""
        count = self._count()
        risen, self._seen = count > self._seen, count
        return risen

    def _count(self) -> int:
        for file in self.files:
            with contextlib.suppress(OSError, ValueError):
                facts = dict(line.split()[:2] for line in file.read_text(encoding="utf-8").splitlines())
                return int(facts.get("oom_kill", 0))
        return 0


def kill_family(pid: int) -> None:
    """End a process and all below it at once."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)
