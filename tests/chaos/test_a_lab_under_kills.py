"""A whole lab – PostgreSQL, Redis, orchestrator, workers, agents with virtual boards – whose processes are killed.

``bench/pipeline.py --only chaos`` does the same at length.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.pipelining.chaos import Found, kills, outage, run_study
from tests.support.postgres import PostgresServer, postgres_server, why_not

TRIALS = 16
pytestmark = [
    pytest.mark.xdist_group("chaos"),
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as one:
        yield one


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Short enough for a socket's path."""
    with tempfile.TemporaryDirectory(prefix="edgefront-chaos-") as name:
        yield Path(name)


def check_whole(found: Found) -> None:
    assert (found.told, found.lost, found.doubled) == (TRIALS, 0, 0)


def test_nothing_is_lost_or_doubled_while_any_process_is_killed_and_one_by_one_the_search_is_the_same(
    folder: Path, server: PostgresServer
) -> None:
    calm = run_study(folder / "calm", server, trials=TRIALS, in_flight=1, initial=6, training_s=0.2)
    killed = run_study(
        folder / "killed", server, trials=TRIALS, in_flight=1, initial=6, training_s=0.2, trouble=kills(2.5, 1)
    )
    check_whole(calm)
    check_whole(killed)
    assert sum(killed.kills.values()) >= 3
    assert killed.values == calm.values
    assert killed.front == calm.front


def test_a_broker_that_is_away_for_a_while_costs_no_trial(folder: Path, server: PostgresServer) -> None:
    found = run_study(
        folder / "outage", server, trials=TRIALS, in_flight=8, initial=6, training_s=0.5, trouble=outage(8.0, 10.0)
    )
    check_whole(found)
    assert found.kills == {"broker": 1}
