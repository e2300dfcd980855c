"""An agent's self-tests: every board at the start and from time to time, those out of use when their time has come."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

from mcu_agent.errors import AgentError
from mcu_agent.measuring import recorder_of
from mcu_agent.pool import Pool
from mcu_agent.recovery import Events, check_board
from mcu_agent.selftest import NoKnownImage

AT_ONCE = 4

_log = logging.getLogger(__name__)


class SelfTests:
    """Runs the self-tests that are due, in threads; ``events`` hears of them. A board that is in use is tested when it
    is free; one whose kind has no known image never."""

    def __init__(self, pool: Pool, every_s: float, events: Events) -> None:
        self._pool = pool
        self._every_s = every_s
        self._events = events
        self._executor = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="self-test")
        self._lock = threading.Lock()
        self._busy: set[str] = set()
        self._cannot: set[str] = set()

    def start_due(self) -> None:
        """Begin what is due and not under way."""
        for entry in self._pool.due_for_self_test(self._pool.now(), self._every_s):
            with self._lock:
                if entry.board_id in self._busy or entry.kind in self._cannot:
                    continue
                self._busy.add(entry.board_id)
            self._executor.submit(self._run, entry.board_id, entry.kind)

    def close(self) -> None:
        """Begin no more; those under way finish, each has a deadline."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _run(self, board_id: str, kind: str) -> None:
        try:
            check_board(self._pool, board_id, "self-test", events=self._events, recorders=recorder_of)
        except NoKnownImage as error:
            self._cannot.add(kind)
            _log.warning("%s", error)
        except AgentError as error:
            _log.info("self-test of %s put off: %s", board_id, error)
        except Exception:
            _log.exception("self-test of %s", board_id)  # the outermost loop of this thread
        finally:
            with self._lock:
                self._busy.discard(board_id)
