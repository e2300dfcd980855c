"""Run the small study in a process of its own, with stages that take no time: ``python -m … FOLDER TRIALS``."""

from __future__ import annotations

import sys
from pathlib import Path

from orchestrator.loop import run_study
from tests.support.scripted import ScriptedEvaluator
from tests.support.studies import Recorder, make_sampler, make_study


def main(folder: Path, trials: int) -> None:
    study = make_study(folder, budget={"trials": trials})
    run_study(study, ScriptedEvaluator(), make_sampler(), sink=Recorder())
    study.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
