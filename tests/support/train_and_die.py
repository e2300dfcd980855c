"""Train the candidate of a request in a process of its own, and die by SIGKILL at an epoch.

``python -m tests.support.train_and_die STORE EPOCH`` reads the request as JSON from standard input.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from orchestrator.records import Event, StageRequest
from tasks.artifacts import ArtifactStore
from tasks.registry import perform


def main(store: str, epoch: int) -> None:
    def die(event: Event) -> None:
        if event.name == "epoch_finished" and event.fields["epoch"] == epoch:
            os.kill(os.getpid(), signal.SIGKILL)

    perform(StageRequest.from_json(json.load(sys.stdin)), ArtifactStore(store), progress=die, worker="doomed")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
