"""Run the small study in a process of its own, and die by SIGKILL at an event on request.

``python -m tests.support.run_and_die FOLDER TRIALS [EVENT NTH [FIELD=VALUE]]``; without an event it runs to the end and
prints how it ended.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from orchestrator.loop import SystemClock, run_study
from orchestrator.records import Event
from tasks.evaluator import CeleryEvaluator
from tasks.workers import EmbeddedLab
from tests.support.studies import BOARD, Recorder, make_sampler, make_study


def main(folder: Path, trials: int, at: str, nth: int, condition: str) -> None:
    seen = 0

    def die(event: Event) -> None:
        nonlocal seen
        name, _, value = condition.partition("=")
        if event.name == at and (not name or str(event.fields[name]) == value):
            seen += 1
            if seen == nth:
                os.kill(os.getpid(), signal.SIGKILL)

    study = make_study(folder, budget={"trials": trials})
    clock = SystemClock()
    with study.locked(), EmbeddedLab(folder, board_kinds=(BOARD,)) as lab:
        sink = study.recording(Recorder(die), clock.now_iso)
        evaluator = CeleryEvaluator(
            url=lab.url, study_id=study.study_id, artifacts=study.artifacts, sink=sink, check=lab.check
        )
        end = run_study(study, evaluator, make_sampler(), sink=sink, retry_delays_s=(0.1,))
        evaluator.close()
    sys.stdout.write(f"{end.reason} {end.told}\n")


if __name__ == "__main__":
    folder, trials, *rest = sys.argv[1:]
    at, nth, condition = [*rest, "", "1", ""][:3] if rest else ("", "1", "")
    main(Path(folder), int(trials), at, int(nth), condition)
