"""The ledger's tables, beside Optuna's in the same database, and the version of their form.

A change of the form is a new version with a step in :mod:`orchestrator.upgrade`; a step never uses what is defined
here, because it must go on making what its version had.
"""

from __future__ import annotations

import sqlalchemy as sa

LEDGER_VERSION = 2

TABLES = sa.MetaData()
STUDY = sa.Table(
    "edgefront_study",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("study_id", sa.String(64), nullable=False),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("created_at", sa.String(40), nullable=False),
    sa.Column("file", sa.Text, nullable=False),
    sa.Column("objectives", sa.Text, nullable=False),
    sa.Column("active_seconds", sa.Float, nullable=False, default=0.0),
)
CANDIDATES = sa.Table(
    "edgefront_candidates",
    TABLES,
    sa.Column("trial", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("params", sa.Text, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("told", sa.Integer),
    sa.Column("started_at", sa.String(40), nullable=False),
    sa.Column("ended_at", sa.String(40)),
    sa.Column("outcome", sa.Text),
)
ATTEMPTS = sa.Table(
    "edgefront_attempts",
    TABLES,
    sa.Column("trial", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("stage", sa.String(200), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task_id", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("queued_at", sa.String(40), nullable=False),
    sa.Column("started_at", sa.String(40)),
    sa.Column("ended_at", sa.String(40)),
    sa.Column("seconds", sa.Float),
    sa.Column("worker", sa.Text, nullable=False, default=""),
    sa.Column("fault", sa.Text),
)
RESULTS = sa.Table(
    "edgefront_results",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("trial", sa.Integer, nullable=False),
    sa.Column("stage", sa.String(200), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("counts", sa.Boolean, nullable=False),
    sa.Column("result", sa.Text, nullable=False),
)
sa.Index(
    "edgefront_one_result",
    RESULTS.c.trial,
    RESULTS.c.stage,
    unique=True,
    sqlite_where=RESULTS.c.counts,
    postgresql_where=RESULTS.c.counts,
)
sa.Index("edgefront_results_trial", RESULTS.c.trial)
sa.Index("edgefront_candidates_told", CANDIDATES.c.told)
sa.Index("edgefront_candidates_state", CANDIDATES.c.state)
EVENTS = sa.Table(
    "edgefront_events",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", sa.String(40), nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("fields", sa.Text, nullable=False),
)

STOPPING = sa.Table(
    "edgefront_stopping",
    TABLES,
    sa.Column("trial", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("rule", sa.Text, nullable=False),
)

# One row: who runs the study, where there is no file to lock. ``deadline`` is in seconds of the database's own clock.
HOLDER = sa.Table(
    "edgefront_holder",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("token", sa.String(36), nullable=False),
    sa.Column("machine", sa.String(400), nullable=False),
    sa.Column("pid", sa.BigInteger, nullable=False),
    sa.Column("born", sa.Float, nullable=False),
    sa.Column("deadline", sa.Float, nullable=False),
)
NO_HOLDER = {"id": 1, "token": "", "machine": "", "pid": 0, "born": 0.0, "deadline": 0.0}
