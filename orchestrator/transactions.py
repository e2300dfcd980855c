"""Several records in one transaction: the disk is waited for once, and after a crash all of them are there or none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy.engine import Connection, Engine

# Connections with this option wait for the disk at every commit. What others commit reaches it with the next of these:
# the log of SQLite is one file, written in order, so that a power failure loses the last of it and nothing in between.
DURABLE = "edgefront_durable"


class Transactions:
    """The transactions of one engine, which reach the disk before they are over.

    Inside :meth:`together` all of them are one. It belongs to the thread that began it; other threads see nothing of it
    until it is over.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine.execution_options(**{DURABLE: True})
        self._local = threading.local()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction, or a part of the one under way."""
        if self._is_together:
            yield self._shared()
            return
        with self._engine.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that sees what the transaction under way has written."""
        if self._is_together:
            yield self._shared()
            return
        with self._engine.connect() as connection:
            yield connection

    @contextmanager
    def together(self, at_end: Callable[[], None] = lambda: None) -> Iterator[None]:
        """All that is written inside is one transaction; an exception undoes it. ``at_end`` may write the last of it.
        May be nested: the outermost counts."""
        if self._is_together:
            yield
            return
        self._local.is_together, self._local.connection = True, None
        try:
            yield
            at_end()
            if self._local.connection is not None:
                self._local.connection.commit()
        finally:
            connection, self._local.connection = self._local.connection, None
            self._local.is_together = False
            if connection is not None:
                connection.close()  # rolls back what was not committed

    @property
    def _is_together(self) -> bool:
        return getattr(self._local, "is_together", False)

    def _shared(self) -> Connection:
        """Opened by whoever needs it first: most turns of a loop write nothing."""
        if self._local.connection is None:
            self._local.connection = self._engine.connect()
        connection: Connection = self._local.connection
        return connection
