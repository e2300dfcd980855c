"""How much memory a worker's child takes before it has done anything: a limit below that would end it for ever.

``python -m tasks.floor STAGE,STAGE`` loads what a child loads, and prints the bytes.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import psutil

from orchestrator.errors import UsageError
from orchestrator.quantities import rounded, show
from tasks.errors import PipelineError
from tasks.registry import stage_function
from tasks.trust import trust_of_queues

_LOADING_S = 180.0
_SURELY_ENOUGH_BYTES = 2 * 1024.0**3


def check_memory_limit(queues: Sequence[str], limit_bytes: float) -> None:
    """
    Raises:
        UsageError: a child that waits for tasks of ``queues`` takes more than ``limit_bytes`` already; 0 is no limit.
    """
    if limit_bytes >= _SURELY_ENOUGH_BYTES:  # loading everything to find out takes seconds
        return
    floor_bytes = idle_bytes(trust_of_queues(queues).stages) if limit_bytes else 0.0
    if floor_bytes >= limit_bytes > 0:
        raise UsageError(
            f"--memory-limit: found {rounded(limit_bytes, 'byte')}; a process that waits for tasks of "
            f"{', '.join(queues)} takes {show(floor_bytes, 'byte')} already. Allowed is more than that, and a task's "
            "own memory comes on top"
        )


def idle_bytes(stages: Sequence[str]) -> float:
    """The resident memory of a process that has loaded ``stages`` and done nothing; 0 where it cannot be found out."""
    command = [sys.executable, "-m", "tasks.floor", ",".join(stages)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LOADING_S, check=True)
        return float(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):  # the worker itself says what is wrong
        return 0.0


def main(words: Sequence[str]) -> int:
    import tasks.app  # noqa: F401 - what every child has loaded

    for stage in filter(None, words[0].split(",")):
        try:
            stage_function(stage)
        except PipelineError:  # told by the first task that needs it
            continue
    sys.stdout.write(str(psutil.Process().memory_info().rss))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
