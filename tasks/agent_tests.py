"""An agent's self-tests: from time to time of every board, of those out of use when their time has come.

A board that has passed lately is not tested again because an agent starts.
"""

from __future__ import annotations

import logging
import threading
from time import monotonic

from mcu_agent.errors import AgentError, NoBoardFree
from mcu_agent.leases import BACK_OFF_S
from mcu_agent.measuring import recorder_of
from mcu_agent.pool import Pool
from mcu_agent.recovery import Events, check_board
from mcu_agent.selftest import NoKnownImage

AT_ONCE = 4

_log = logging.getLogger(__name__)


class SelfTests:
    """Runs the self-tests that are due, in threads; ``events`` hears of them. A board that is in use is tested when it
    is free; one whose kind has no known image never; one whose test cannot be carried out ever more seldom."""

    def __init__(self, pool: Pool, every_s: float, events: Events) -> None:
        self._pool = pool
        self._every_s = every_s
        self._events = events
        self._lock = threading.Lock()
        self._threads: dict[str, threading.Thread] = {}
        self._cannot: set[str] = set()
        self._put_off: dict[str, tuple[int, float]] = {}  # how often in a row, and until when
        self._is_over = False

    def start_due(self) -> None:
        """Begin what is due and not under way."""
        for entry in self._pool.due_for_self_test(self._pool.now(), self._every_s):
            with self._lock:
                if len(self._threads) >= AT_ONCE or self._is_over:
                    return
                _, until = self._put_off.get(entry.board_id, (0, 0.0))
                if entry.board_id in self._threads or entry.kind in self._cannot or monotonic() < until:
                    continue
                # A daemon, because a program that is to end at once cannot wait for a board.
                thread = threading.Thread(
                    target=self._run, args=(entry.board_id, entry.kind), name="self-test", daemon=True
                )
                self._threads[entry.board_id] = thread
                thread.start()

    def close(self, wait_s: float) -> None:
        """Begin no more, and give those under way ``wait_s`` to finish."""
        with self._lock:
            self._is_over = True
            threads = list(self._threads.values())
        until = monotonic() + wait_s
        for thread in threads:
            thread.join(max(0.0, until - monotonic()))

    def _run(self, board_id: str, kind: str) -> None:
        try:
            check_board(self._pool, board_id, "self-test", events=self._events, recorders=recorder_of)
            self._put_off.pop(board_id, None)
        except NoKnownImage as error:
            self._cannot.add(kind)
            _log.warning("%s", error)
        except NoBoardFree as error:
            _log.info("self-test of %s put off: %s", board_id, error)
        except AgentError as error:
            _log.warning("self-test of %s put off for %g s: %s", board_id, self._later(board_id), error)
        except Exception:
            _log.exception("self-test of %s", board_id)  # the outermost loop of this thread
            self._later(board_id)
        finally:
            with self._lock:
                del self._threads[board_id]

    def _later(self, board_id: str) -> float:
        """Put a board's test off; gives for how many seconds."""
        times = self._put_off.get(board_id, (0, 0.0))[0]
        wait_s = BACK_OFF_S[min(times, len(BACK_OFF_S) - 1)]
        self._put_off[board_id] = (times + 1, monotonic() + wait_s)
        return wait_s
