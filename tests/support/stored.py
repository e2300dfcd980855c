"""Studies in both kinds of database, run with stages that take no time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.location import Location
from orchestrator.loop import StudyEnd, run_study
from orchestrator.objectives import Objectives
from orchestrator.study import Study
from tasks.artifacts import ArtifactStore
from tasks.errors import TransientFault
from tasks.evaluator import InlineEvaluator
from tests.support.studies import FAKE_STAGES, FLASH_BYTES, RAM_BYTES, Recorder, make_sampler, study_file

KINDS = ("file", "postgresql")


class Interrupted(BaseException):
    """The process ends here, as far as the study can tell."""


def begin(location: Location, **changes: Any) -> Study:
    """Open the study at the location, or begin it."""
    file = study_file(name=location.name, **changes)
    return Study.open_or_create(location, file, Objectives.from_study(file, FLASH_BYTES, RAM_BYTES))


def run(study: Study, sink: Recorder | None = None) -> StudyEnd:
    """To its end, in this process."""
    sink = sink or Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEFRONT_STAGES", FAKE_STAGES)
        evaluator = InlineEvaluator(study.artifacts, sink)
        return run_study(study, evaluator, make_sampler(), sink=sink, retry_delays_s=())


def run_until(study: Study, event: str, nth: int, **fields: Any) -> None:
    """Until the nth such event, where it is interrupted."""
    seen = 0

    def look(found: Any) -> None:
        nonlocal seen
        if found.name == event and all(found.fields[name] == value for name, value in fields.items()):
            seen += 1
            if seen == nth:
                raise Interrupted

    with pytest.raises(Interrupted):
        run(study, Recorder(look))


def reader(study: Study) -> Any:
    """Its artifacts by hash; None where one is gone."""
    store = ArtifactStore(study.artifacts)

    def read(sha256: str) -> bytes | None:
        try:
            return store.get_bytes(sha256)
        except TransientFault:
            return None

    return read


def in_file(folder: Path, name: str = "small") -> Location:
    return Location(folder=folder / name, name=name)
