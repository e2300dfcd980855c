"""Studies of thousands of trials: looked at by a short way that shows what the long one would."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.samplers import RandomSampler

from bench.pipelining.large import UNDER_WAY, write_large_study
from bench.pipelining.looking import Instant
from orchestrator import database
from orchestrator.errors import StudyError
from orchestrator.loop import run_study
from orchestrator.reading import StudyReader
from orchestrator.records import Event
from orchestrator.report import write
from orchestrator.study import Study
from orchestrator.summary import summarise, summary_of
from tests.support.studies import Recorder

N_TRIALS = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("studies") / "large"
    write_large_study(place, N_TRIALS).close()
    return place


@pytest.fixture
def study(folder: Path) -> Iterator[StudyReader]:
    opened = StudyReader.open(folder)
    yield opened
    opened.close()


def test_the_summary_from_bare_numbers_is_that_of_all_trials(study: StudyReader) -> None:
    found = summary_of(study)
    whole = summarise(study.file, study.objectives, study.trials(), study.hypervolume_history(), study.test_results())
    assert found == whole
    assert found["told"] == N_TRIALS - UNDER_WAY
    assert found["states"]["running"] == UNDER_WAY
    assert len(found["front"]) > 10


def test_trials_without_notes_are_otherwise_those_in_full(study: StudyReader) -> None:
    short, full = study.trials(in_full=False), study.trials()
    for one, other in zip(short, full, strict=True):
        assert (one.number, one.params, one.state, one.outcome, one.told) == (
            other.number,
            other.params,
            other.state,
            other.outcome,
            other.told,
        )
        assert one.notes == {}
        assert other.notes
    assert [trial.stage for trial in short[-UNDER_WAY:]] == ["gate"] * UNDER_WAY
    assert study.with_notes(short, [3])[3].notes == full[3].notes


def test_a_page_has_the_layers_of_the_fronts_and_of_the_last_trials(
    study: StudyReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "_LAST_WITH_NOTES", 20)
    path = write.write_report(study, lambda sha256: None, written_at="2026-01-01T00:00:00", board_texts={})
    data = re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', path.read_text(), re.DOTALL)
    assert data is not None
    trials = json.loads(data.group(1))["trials"]
    with_layers = {trial["number"] for trial in trials if trial["layers"]}
    fronts = {trial["number"] for trial in trials if trial["front"]}
    assert len(trials) == N_TRIALS
    assert with_layers == fronts | set(range(N_TRIALS - 20, N_TRIALS))


def test_looking_at_a_study_does_not_load_optuna(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from orchestrator.reading import StudyReader;"
        "from orchestrator.summary import summary_of;"
        "told = summary_of(StudyReader.open(Path(sys.argv[1])))['told'];"
        "print(told, 'optuna' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(N_TRIALS - UNDER_WAY), "False", "False"]


def test_a_search_goes_on_as_optuna_and_the_ledger_have_it(folder: Path, tmp_path: Path) -> None:
    study = write_large_study(tmp_path / "large", 40)
    stop = threading.Event()
    sink = Recorder(lambda event: stop.set() if is_new(event) else None)

    def is_new(event: Event) -> bool:
        return event.name == "trial_ended" and event.fields["trial"] >= 42

    run_study(study, Instant(), RandomSampler(seed=0), sink=sink, stop=stop)
    told = [trial for trial in study.trials() if trial.told is not None]
    assert sorted(trial.told or 0 for trial in told) == list(range(1, len(told) + 1))
    in_optuna = [trial for trial in study.optuna.get_trials(deepcopy=False) if trial.state.is_finished()]
    assert {trial.number for trial in in_optuna} == {trial.number for trial in told}
    study.close()


def test_a_large_database_is_checked_when_it_is_run_and_not_when_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_large_study(tmp_path / "large", 40).close()
    file = tmp_path / "large" / "study.db"
    content = bytearray(file.read_bytes())
    content[-300_000:-200_000] = b"\xff" * 100_000  # results, which nobody reads for a summary
    file.write_bytes(content)
    monkeypatch.setattr(database, "_CHECKED_AT_ONCE_BYTES", 1000)
    study = Study.open(tmp_path / "large")
    with pytest.raises(StudyError, match=r"study\.db: .*restore it from a copy"):
        study.locked().__enter__()
    study.close()
