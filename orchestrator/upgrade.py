"""Steps that bring a ledger written by an earlier version to the present one, in one transaction.

Each step knows the form before and after it by its own statements, not by :mod:`orchestrator.tables`, which goes on
changing. What a step adds, an earlier version must be able to overlook: it may have the database open for reading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from orchestrator.errors import StudyError
from orchestrator.tables import LEDGER_VERSION

Step = Callable[[Connection], None]


def upgrade(engine: Engine, version: int, *, steps: Mapping[int, Step] | None = None) -> int:
    """Bring the ledger from ``version`` to the present one; all of it or, after an error, nothing.

    The caller holds the study: nobody else runs it. Who has come second finds it done.

    Returns:
        The version it has now.

    Raises:
        StudyError: it is newer than this program, or there is no way from that version.
    """
    known = STEPS if steps is None else steps
    last = max(known) + 1
    check_version(version, last)
    with engine.connect() as connection:
        _begin(connection)
        found = int(connection.execute(sa.text("SELECT version FROM edgefront_study")).scalar_one())
        for step_from in range(found, last):
            if step_from not in known:
                raise StudyError(f"the study was written by version {step_from} of the ledger, too old to be upgraded")
            known[step_from](connection)
            connection.execute(sa.text("UPDATE edgefront_study SET version = :to"), {"to": step_from + 1})
        connection.commit()
    return last


def check_version(version: int, last: int = LEDGER_VERSION) -> None:
    """
    Raises:
        StudyError: the study is newer than this program.
    """
    if version > last:
        raise StudyError(
            f"the study was written by version {version} of the ledger, this Edgefront reads up to {last}: install the "
            "newer one that wrote it, or restore a backup from before its upgrade"
        )


def _begin(connection: Connection) -> None:
    """A transaction that holds off other writers. Python's SQLite begins none for statements that change tables."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.exec_driver_sql("LOCK TABLE edgefront_study IN ACCESS EXCLUSIVE MODE")


def _one_to_two(connection: Connection) -> None:
    """The rules of early stopping have a table from the start; who runs the study has a row; results of a trial and
    those told are found without reading all of the others."""
    connection.exec_driver_sql(
        "CREATE TABLE IF NOT EXISTS edgefront_stopping (trial INTEGER NOT NULL PRIMARY KEY, rule TEXT NOT NULL)"
    )
    connection.exec_driver_sql(
        "CREATE TABLE edgefront_holder (id INTEGER NOT NULL PRIMARY KEY, token VARCHAR(36) NOT NULL, "
        "machine VARCHAR(400) NOT NULL, pid BIGINT NOT NULL, born FLOAT NOT NULL, deadline FLOAT NOT NULL)"
    )
    connection.exec_driver_sql(
        "INSERT INTO edgefront_holder (id, token, machine, pid, born, deadline) VALUES (1, '', '', 0, 0, 0)"
    )
    connection.exec_driver_sql("CREATE INDEX edgefront_results_trial ON edgefront_results (trial)")
    connection.exec_driver_sql("CREATE INDEX edgefront_candidates_told ON edgefront_candidates (told)")
    connection.exec_driver_sql("CREATE INDEX edgefront_candidates_state ON edgefront_candidates (state)")


STEPS: Mapping[int, Step] = {1: _one_to_two}
