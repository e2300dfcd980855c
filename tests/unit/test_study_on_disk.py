"""A study in its folder: begun once, opened again, changed only where it may be, and clear about damage."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import StudyError, UsageError
from orchestrator.ledger import Ledger
from orchestrator.objectives import Objectives
from orchestrator.records import Ending, Fault, FaultKind, Outcome, Source, StageResult, Value
from orchestrator.study import DATABASE_FILE, Study
from tests.support.studies import make_study, study_file


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return make_study(tmp_path / "small")


def result(stage: str, attempt: int = 1, trial: int = 0, rom: float = 1.0) -> StageResult:
    value = Value(amount=rom, unit="byte", source=Source.EXACT)
    return StageResult(
        study_id="s",
        trial=trial,
        stage=stage,
        attempt=attempt,
        ending=Ending.COMPLETE,
        seconds=0.1,
        values={"rom": value},
        artifacts={"elf": "0" * 64},
        notes={"at": attempt},
        worker="build-1",
    )


def outcome(error: float, rom: float, ending: Ending = Ending.COMPLETE) -> Outcome:
    values = {
        "error": Value(amount=error, unit="1", source=Source.EXACT),
        "rom": Value(amount=rom, unit="byte", source=Source.EXACT),
    }
    return Outcome(ending=ending, values=values)


def begin(study: Study, *, told: bool = False) -> None:
    study.ledger.record_candidate(0, {"x": 0.5}, 1, "2026-01-01T00:00:00")
    if told:
        study.ledger.end(0, outcome(0.1, 10.0), "2026-01-01T00:00:01", [])


def test_objectives_and_limits_are_fixed_when_the_study_begins(tmp_path: Path, study: Study) -> None:
    study.close()
    file = study_file()
    again = Study.open_or_create(tmp_path / "small", file, Objectives.from_study(file, 1.0, 1.0))
    assert again.objectives == study.objectives
    assert again.study_id == study.study_id
    assert again.file == study.file


def test_the_file_is_copied_as_it_was_written(tmp_path: Path) -> None:
    source = tmp_path / "mine.yaml"
    source.write_text("# with a comment\n", encoding="utf-8")
    file = study_file()
    Study.create(tmp_path / "small", file, Objectives.from_study(file, 1e6, 1e6), source=source).close()
    assert (tmp_path / "small" / "study.yaml").read_text(encoding="utf-8") == "# with a comment\n"


def test_artifacts_go_where_they_were_sent_when_the_study_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFRONT_ARTIFACTS", "s3://lab/studies/")
    there = make_study(tmp_path / "there")
    monkeypatch.delenv("EDGEFRONT_ARTIFACTS")
    here = make_study(tmp_path / "here")
    assert there.artifacts == f"s3://lab/studies/small-{there.study_id[:8]}"
    assert here.artifacts == str(tmp_path / "here" / "artifacts")


def test_a_larger_budget_and_other_workers_are_taken_over(tmp_path: Path, study: Study) -> None:
    study.close()
    again = make_study(tmp_path / "small", budget={"trials": 9}, parallelism={"train_workers": 3})
    assert Study.open(tmp_path / "small").file == again.file
    assert again.file.budget.trials == 9


def test_more_time_is_taken_over_and_less_is_refused(tmp_path: Path) -> None:
    begin(make_study(tmp_path, budget={"trials": 4, "wall_clock": "1 h"}))
    make_study(tmp_path, budget={"trials": 4, "wall_clock": "2 h"}).close()
    with pytest.raises(UsageError, match=r"budget\.wall_clock: was 7200\.0, now 3600\.0; it may only be raised"):
        make_study(tmp_path, budget={"trials": 4, "wall_clock": "1 h"})
    assert make_study(tmp_path).file.budget.wall_clock is None


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"seed": 2}, ["seed: was 1, now 2"]),
        ({"budget": {"trials": 3}}, ["budget.trials: was 4, now 3", "only be raised"]),
        (
            {"space": {"network.width": {"type": "int", "low": 0, "high": 50}}},
            ["space.network.width.high: was 40, now 50"],
        ),
        ({"objectives": {"error": {}}}, ["objectives.rom"]),
        ({"board": "nucleo-l4r5zi", "training": {"epochs": 2}}, ["board", "training.epochs: was 20, now 2"]),
    ],
)
def test_any_other_change_is_refused_by_name(
    tmp_path: Path, study: Study, change: dict[str, object], parts: list[str]
) -> None:
    begin(study)
    study.close()
    with pytest.raises(UsageError) as caught:
        make_study(tmp_path / "small", **change)
    for part in parts:
        assert part in str(caught.value)


def test_a_study_without_a_candidate_takes_over_all_of_its_file(tmp_path: Path) -> None:
    first = make_study(tmp_path / "small")
    first.close()
    again = make_study(tmp_path / "small", seed=9, objectives={"error": {}, "rom": {}, "flops": {}})
    assert again.file.seed == 9
    assert again.objectives.names == ("error", "rom", "flops")
    assert len(again.optuna.directions) == 3
    assert Study.open(tmp_path / "small").file == again.file


def test_other_data_are_refused_once_a_study_has_begun(study: Study) -> None:
    assert study.take_sources({"dataset": "a" * 64}) == []
    assert study.take_sources({"dataset": "b" * 64}) == []
    begin(study)
    study.close()
    again = Study.open(study.folder)
    assert again.sources == {"dataset": "b" * 64}
    with pytest.raises(UsageError, match=r"the content of '.*' has changed .*was bbbbbbbbbbbb, is cccccccccccc"):
        again.take_sources({"dataset": "c" * 64})
    assert again.take_sources({"dataset": "b" * 64}) == []


def test_other_code_of_a_network_is_taken_over_with_a_note(study: Study) -> None:
    study.take_sources({"dataset": "d", "network": "old"})
    begin(study, told=True)
    (note,) = study.take_sources({"dataset": "d", "network": "new"})
    assert "has changed since the study began: the 1 trials told so far keep" in note
    assert Study.open(study.folder).sources["network"] == "new"
    assert study.take_sources({"dataset": "d", "network": "new"}) == []


def test_a_study_from_before_fingerprints_takes_those_it_finds(study: Study) -> None:
    begin(study)
    assert study.take_sources({"dataset": "a"}) == []
    assert study.sources == {"dataset": "a"}


def test_a_study_is_run_by_one_process_at_a_time(study: Study) -> None:
    with study.locked(), study.locked():
        code = (
            "import sys; from pathlib import Path; from orchestrator.study import Study\n"
            "with Study.open(Path(sys.argv[1])).locked(): pass"
        )
        other = subprocess.run(
            [sys.executable, "-c", code, str(study.folder)], capture_output=True, text=True, check=False
        )
    assert "is being run by another process" in other.stderr
    with study.locked():
        pass


@pytest.mark.parametrize(
    "damage", [b"this is no database at all, and long enough to be looked at" * 20, b"SQLite format 3\0"]
)
def test_a_damaged_database_is_an_error_that_names_the_file(tmp_path: Path, damage: bytes) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / DATABASE_FILE).write_bytes(damage)
    with pytest.raises(StudyError, match=r"study\.db: .*"):
        make_study(folder)


def test_a_database_damaged_in_the_middle_is_found(study: Study) -> None:
    study.close()
    database = study.folder / DATABASE_FILE
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    content = bytearray(database.read_bytes())
    content[4096:40960] = b"\xff" * (40960 - 4096)
    database.write_bytes(content)
    with pytest.raises(StudyError, match=r"study\.db.*restore it from a copy|study\.db.*move it away"):
        Study.open(study.folder)


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    with sqlite3.connect(folder / DATABASE_FILE) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    with pytest.raises(StudyError, match=r"another program.*recipes"):
        make_study(folder)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("UPDATE edgefront_study SET file = 'no JSON'", "holds a record that cannot be read"),
        ("UPDATE edgefront_study SET file = '{\"name\": 3}'", "its study file cannot be read"),
        ("UPDATE edgefront_study SET objectives = '{}'", "its study file cannot be read"),
        ("UPDATE edgefront_candidates SET params = '['", "holds a record that cannot be read"),
        ("UPDATE edgefront_candidates SET outcome = '{}'", "holds a record that cannot be read"),
    ],
)
def test_records_that_cannot_be_read_are_an_error_and_not_a_traceback(study: Study, change: str, part: str) -> None:
    study.ledger.record_candidate(0, {"x": 1.0}, 1, "2026-01-01T00:00:00")
    study.close()
    with sqlite3.connect(study.folder / DATABASE_FILE) as connection:
        connection.execute(change)
    with pytest.raises(StudyError, match=part):
        Study.open(study.folder).trials()


def test_an_empty_database_among_artifacts_is_not_begun_anew(tmp_path: Path) -> None:
    study = make_study(tmp_path / "small")
    study.close()
    (tmp_path / "small" / "artifacts").mkdir()
    for path in (tmp_path / "small").glob("study.db*"):
        path.unlink()
    (tmp_path / "small" / DATABASE_FILE).touch()
    with pytest.raises(StudyError, match=r"study\.db is empty.*its database was lost"):
        make_study(tmp_path / "small")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_cannot_be_written_is_told_from_a_damaged_database(study: Study) -> None:
    study.close()
    study.folder.chmod(0o500)
    try:
        with pytest.raises(StudyError, match="must be writable"):
            Study.open(study.folder)
    finally:
        study.folder.chmod(0o700)


def test_a_path_too_long_for_the_database_is_said(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["deeper" * 20] * 5, "small")
    with pytest.raises(StudyError, match=r"bytes long .* choose a shorter --studies"):
        make_study(deep)


def test_a_creation_that_was_interrupted_is_finished(tmp_path: Path) -> None:
    whole = make_study(tmp_path / "small")
    whole.close()
    with sqlite3.connect(tmp_path / "small" / DATABASE_FILE) as connection:
        connection.execute("DELETE FROM edgefront_study")
    connection.close()
    with pytest.raises(StudyError, match="interrupted"):
        Study.open(tmp_path / "small")
    assert make_study(tmp_path / "small").trials() == []


def test_no_study_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="there is no study"):
        Study.open(tmp_path)


def test_the_first_result_of_a_stage_counts(study: Study) -> None:
    ledger = study.ledger
    ledger.record_candidate(0, {"network.width": 1}, 7, "t0")
    ledger.record_attempt(0, "gate", 1, "a", "t1")
    assert ledger.record_result(result("gate", rom=5.0), "t2")
    assert not ledger.record_result(result("gate", rom=6.0), "t3")
    assert [one.values["rom"].amount for one in ledger.results(0)] == [5.0]


def test_a_result_nobody_asked_for_does_not_count(study: Study) -> None:
    assert not study.ledger.record_result(result("gate"), "t")
    assert study.ledger.results() == []


def test_the_result_of_an_attempt_thought_lost_counts_and_closes_the_next(study: Study) -> None:
    ledger = study.ledger
    fault = Fault(kind=FaultKind.TRANSIENT, reason="worker_lost", detail="gone")
    ledger.record_attempt(0, "gate", 1, "a", "t1")
    assert ledger.record_fault(0, "gate", 1, fault, "t2", is_lost=True)
    ledger.record_attempt(0, "gate", 2, "b", "t3")
    assert ledger.record_result(result("gate", attempt=1), "t4")
    assert not [attempt for attempt in ledger.attempts() if attempt.is_open]


def test_a_result_taken_back_counts_no_longer_nor_does_a_copy_of_it(study: Study) -> None:
    ledger = study.ledger
    ledger.record_attempt(0, "train", 1, "a", "t1")
    ledger.record_result(result("train"), "t2")
    ledger.take_back(0, ["train", "compress"])
    assert ledger.results(0) == []
    assert not ledger.record_result(result("train"), "t3")
    ledger.record_attempt(0, "train", 2, "b", "t4")
    assert ledger.record_result(result("train", attempt=2), "t5")


def test_a_fault_closes_an_attempt_once(study: Study) -> None:
    fault = Fault(kind=FaultKind.TRANSIENT, reason="board_lost", detail="no answer")
    study.ledger.record_attempt(0, "gate", 1, "a", "t1")
    assert study.ledger.record_fault(0, "gate", 1, fault, "t2")
    assert not study.ledger.record_fault(0, "gate", 1, fault, "t3")
    (attempt,) = study.stage_attempts()
    assert attempt.is_failed
    assert attempt.fault == fault


def test_a_defect_does_not_count_towards_the_cap(study: Study) -> None:
    study.ledger.record_attempt(0, "gate", 1, "a", "t1")
    study.ledger.record_fault(0, "gate", 1, Fault(kind=FaultKind.DEFECT, reason="bit_mismatch", detail="layer 2"), "t2")
    assert not study.stage_attempts()[0].is_failed


def test_front_and_hypervolume_come_from_complete_trials_in_the_order_of_telling(study: Study) -> None:
    ledger = study.ledger
    limit = study.objectives.limits[1]
    outcomes = [
        (1, outcome(0.5, limit / 2)),
        (0, outcome(0.5, limit / 4)),
        (3, outcome(0.1, 0.1, Ending.INFEASIBLE)),
        (2, outcome(0.25, limit / 2)),
        (4, Outcome(ending=Ending.FAULT)),
    ]
    for trial, _ in sorted(outcomes, key=lambda pair: pair[0]):
        ledger.record_candidate(trial, {}, 0, "t")
    for trial, one in outcomes:
        ledger.end(trial, one, "t")
    assert [trial.number for trial in study.front()] == [0, 2]
    # 1/2·1/2; 1/2·3/4; the same; that and 1/4·1/2
    n_told, values = zip(*study.hypervolume_history(), strict=True)
    assert n_told == (1, 2, 3, 4)
    assert values == pytest.approx((0.25, 0.375, 0.375, 0.5))
    assert [trial.told for trial in study.trials()] == [2, 1, 4, 3, None]


def test_a_trial_shows_its_stage_worker_and_notes(study: Study) -> None:
    ledger = study.ledger
    ledger.record_candidate(0, {"network.width": 1}, 7, "t0")
    assert study.trials()[0].state == "proposed"
    ledger.record_attempt(0, "gate", 1, "a", "t1")
    ledger.record_start(0, "gate", 1, "build-1", "t2")
    (trial,) = study.trials()
    assert (trial.state, trial.stage, trial.attempt, trial.worker) == ("running", "gate", 1, "build-1")
    ledger.record_result(result("gate"), "t3")
    assert study.trials()[0].notes == {"gate": {"at": 1}}


def test_commits_reach_the_disk_and_readers_do_not_block(study: Study) -> None:
    with study.ledger._transactions.writing() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
    with study.engine.connect() as connection:  # Optuna's, whose commits the ledger's next takes to the disk
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1  # NORMAL


def test_a_ledger_of_another_version_is_refused(study: Study) -> None:
    with study.ledger._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE edgefront_study SET version = 99")
    with pytest.raises(StudyError, match="version 99"):
        Ledger(study.ledger._engine).study()
