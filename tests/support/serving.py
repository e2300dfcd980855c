"""A worker as its own process, serving one queue until the block ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.studies import FAKE_STAGES

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def serving(queue: str, url: str, log: Path) -> Iterator[int]:
    """The worker's process id. It says what it says into ``log``."""
    environment = {
        **os.environ,
        "EDGEFRONT_BROKER_URL": url,
        "EDGEFRONT_STAGES": FAKE_STAGES,
        "PYTHONPATH": str(ROOT),  # the stages are the tests', and whoever serves may have gone elsewhere
    }
    command = [sys.executable, "-m", "tasks.workers", "--queues", queue, "--name", "served"]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream, start_new_session=True)
        try:
            yield process.pid
        finally:
            process.kill()  # a worker that is idle has nothing to finish; its children follow it
            process.wait(10)
