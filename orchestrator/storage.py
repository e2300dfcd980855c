"""Optuna's tables in a study's database."""

from __future__ import annotations

import optuna
from optuna.storages import RDBStorage

from orchestrator.database import Connecting, Database
from orchestrator.errors import StudyError


def open_storage(database: Database, *, is_new: bool) -> RDBStorage:
    """Optuna's storage in the database, checked; every commit reaches the disk.

    Raises:
        StudyError: it is damaged or not ours, or its tables were written by an Optuna of another form of them.
    """
    with database.preparing(is_new=is_new) as connecting:
        return storage_at(connecting, database.shown)


def storage_at(connecting: Connecting, shown: str) -> RDBStorage:
    """Optuna's storage, its tables made where there are none."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # its own chatter about each trial
    try:
        storage = RDBStorage(connecting.url, engine_kwargs=dict(connecting.options))
    except RuntimeError as error:
        if "compatible with the table schema" not in str(error):
            raise
        if "optuna storage upgrade" in str(error):
            remedy = (
                "Make a backup of the database, then upgrade its tables with: optuna storage upgrade --storage URL "
                "(docs/storage.md has the URL)"
            )
        else:
            remedy = "Install the newer one: pip install -U optuna"
        raise StudyError(
            f"{shown}: Optuna's tables in it were made by another version than the installed {optuna.__version__}. "
            f"{remedy}."
        ) from error
    connecting.tune(storage.engine)
    return storage
