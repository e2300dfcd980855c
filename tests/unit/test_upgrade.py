"""A study of an earlier version is upgraded as it is opened, all of it or not at all; a newer one is refused."""

from __future__ import annotations

import sqlite3
import tarfile
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

import cli
from orchestrator.errors import StudyError
from orchestrator.ledger import OutdatedStudy
from orchestrator.locks import StudyTaken, locked_file
from orchestrator.reading import StudyReader
from orchestrator.study import Study
from orchestrator.tables import LEDGER_VERSION, TABLES
from orchestrator.upgrade import STEPS, upgrade
from tests.support.stored import run
from tests.support.studies import check_whole, make_study

DATA = Path(__file__).parents[1] / "data"


def unpack(version: int, folder: Path) -> Path:
    """The study as that version wrote it: two trials told, two under way."""
    with tarfile.open(DATA / f"study-v{version}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "small"


def version_of(folder: Path) -> int:
    connection = sqlite3.connect(folder / "study.db")
    (version,) = connection.execute("SELECT version FROM edgefront_study").fetchone()
    connection.close()
    return int(version)


@pytest.mark.parametrize("version", range(1, LEDGER_VERSION + 1))
def test_a_study_of_every_version_is_opened_and_goes_on(tmp_path: Path, version: int) -> None:
    folder = unpack(version, tmp_path)
    assert version_of(folder) == version
    study = Study.open(folder)
    assert version_of(folder) == LEDGER_VERSION
    before = study.trials()
    assert [trial.state for trial in before] == ["complete", "complete", "running", "running"]
    run(study)
    check_whole(study, 4)
    assert [trial.outcome for trial in study.trials()[:2]] == [trial.outcome for trial in before[:2]]
    study.close()


def test_an_upgraded_study_has_the_tables_and_indices_of_a_new_one(tmp_path: Path) -> None:
    old, new = Study.open(unpack(1, tmp_path / "old")), make_study(tmp_path / "new")
    for name in TABLES.tables:
        columns = [
            [(column["name"], column["nullable"]) for column in sa.inspect(study.engine).get_columns(name)]
            for study in (old, new)
        ]
        indices = [{index["name"] for index in sa.inspect(study.engine).get_indexes(name)} for study in (old, new)]
        assert columns[0] == columns[1], name
        assert indices[0] == indices[1], name
    old.close()
    new.close()


def test_there_is_a_step_from_every_version() -> None:
    assert sorted(STEPS) == list(range(1, LEDGER_VERSION))


def test_whoever_only_looks_upgrades_it_too(tmp_path: Path) -> None:
    folder = unpack(1, tmp_path)
    with pytest.raises(OutdatedStudy, match="version 1 of the ledger"):
        StudyReader.open(folder)
    shown = CliRunner().invoke(cli.main, ["status", "small", "--studies", str(tmp_path)])
    assert "2/4 trials told" in shown.output
    assert version_of(folder) == LEDGER_VERSION


def test_a_step_that_fails_leaves_the_study_as_it_was(tmp_path: Path) -> None:
    folder = unpack(1, tmp_path)

    def fail(connection: sa.Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE half (x INTEGER)")
        connection.exec_driver_sql("UPDATE edgefront_candidates SET state = 'lost'")
        raise sqlite3.OperationalError("database or disk is full")

    engine = sa.create_engine(f"sqlite:///{folder / 'study.db'}")
    with pytest.raises(sqlite3.OperationalError):
        upgrade(engine, 1, steps={**STEPS, LEDGER_VERSION: fail})
    engine.dispose()
    assert version_of(folder) == 1
    assert not sa.inspect(engine).has_table("half")
    assert not sa.inspect(engine).has_table("edgefront_holder")
    engine.dispose()
    assert len(Study.open(folder).trials()) == 4


def test_a_study_that_an_earlier_version_is_running_is_not_upgraded_under_it(tmp_path: Path) -> None:
    folder = unpack(1, tmp_path)
    with locked_file(folder, "small"), pytest.raises(StudyTaken, match="of version 1 and must be upgraded, but study"):
        Study.open(folder)
    assert version_of(folder) == 1


def test_a_newer_study_is_refused_by_whoever_runs_and_whoever_looks(tmp_path: Path) -> None:
    study = make_study(tmp_path / "small")
    with study.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE edgefront_study SET version = 99")
    study.close()
    for opened in (Study, StudyReader):
        with pytest.raises(StudyError, match=r"version 99 .* reads up to \d+: install the newer one"):
            opened.open(tmp_path / "small")


@pytest.mark.parametrize(
    ("revision", "remedy"),
    [("v3.0.0.a", "optuna storage upgrade --storage URL"), ("v99.0.0.a", "pip install -U optuna")],
)
def test_tables_of_another_optuna_are_told_with_what_to_do(tmp_path: Path, revision: str, remedy: str) -> None:
    study = make_study(tmp_path / "small")
    with study.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{revision}'")
    study.close()
    with pytest.raises(StudyError, match=r"study\.db: Optuna's tables in it were made by another version") as caught:
        Study.open(tmp_path / "small")
    assert remedy in str(caught.value)
