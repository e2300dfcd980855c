"""A board is free again whatever its holder died of, and those who wait are served in order; with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import monotonic

import pytest

from mcu_agent.errors import InventoryError, NoBoardFree
from mcu_agent.image import read_image
from mcu_agent.leases import Holder, State
from mcu_agent.pool import Pool
from mcu_agent.processes import born, end, this_process
from mcu_agent.waiting import Queue
from tasks.broker import EmbeddedBroker, connect
from tests.support import boards
from tests.support.holders import DURATION_S, FAST, KIND, holder, make_pool, wanter


def wait_for(condition: object, seconds: float = 10.0) -> None:
    deadline = monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert monotonic() < deadline, "waited in vain"
        threading.Event().wait(0.005)


def take(pool: Pool, owner: str = "next", wait_s: float = 10.0, duration_s: float = 5.0) -> float:
    """How long it took to get a board."""
    started = monotonic()
    with pool.lease(KIND, owner, duration_s=duration_s, wait_s=wait_s):
        return monotonic() - started


def test_a_killed_holder_frees_its_board_at_once(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    with holder(tmp_path, "wait") as process:
        with pytest.raises(NoBoardFree, match="b0 leased wait"):
            take(pool, wait_s=0.0)
        process.send_signal(signal.SIGKILL)
        assert take(pool) < 1.0


@pytest.mark.parametrize("how", ["raise", "exit", "vanish", "fork", "leak"])
def test_however_a_process_ends_its_board_is_free(tmp_path: Path, how: str) -> None:
    with holder(tmp_path, how) as process:
        process.wait(10.0)
        assert take(make_pool(tmp_path)) < 1.0


def test_a_stopped_holder_is_called_stuck_and_ended_after_its_deadline(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    with holder(tmp_path, "wait") as process:
        process.send_signal(signal.SIGSTOP)
        stopped = monotonic()
        wait_for(lambda: pool.statuses()[0].state is State.STUCK)
        assert f"process {process.pid} of wait" in pool.statuses()[0].detail
        assert process.poll() is None
        take(pool)
        assert DURATION_S - 0.2 < monotonic() - stopped < 10.0
        assert process.wait(10.0) == -signal.SIGKILL


def test_a_holder_that_is_alive_is_never_ended(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    with holder(tmp_path, "wait") as process:
        wait_for(lambda: pool.statuses()[0].state is State.STUCK)  # past its deadline, with a beating heart
        with pytest.raises(NoBoardFree, match="b0 stuck process"):
            take(pool, wait_s=0.6)
        assert process.poll() is None
        assert pool.overdue() == []


def test_a_process_finds_its_own_threads_that_do_not_come_back(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, timing=replace(FAST, grace_s=0.0))
    with pool.lease(KIND, "me", duration_s=0.01):
        wait_for(pool.overdue)
        assert [status.board.board_id for status in pool.overdue()] == ["b0"]


def test_a_process_with_a_number_that_was_used_again_is_not_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        mine = Holder(host=this_process().host, pid=process.pid, born=born(process.pid) or "")
        for other in (
            replace(mine, born="1"),
            replace(mine, born=""),
            replace(mine, host="elsewhere"),
            replace(mine, pid=0),
            this_process(),
        ):
            assert not end(other)
        assert process.poll() is None
        assert end(mine)
        assert process.wait(10.0) == -signal.SIGKILL
        assert not end(mine)


def test_a_thread_that_ends_without_a_word_frees_its_board(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)

    def take_and_go() -> None:
        pool.lease(KIND, "thread", duration_s=60.0).__enter__()

    thread = threading.Thread(target=take_and_go)
    thread.start()
    thread.join()
    assert take(pool) < 1.0


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    broker = EmbeddedBroker(tmp_path / "redis", tmp_path / "redis.log")
    broker.start()
    yield broker.url
    broker.stop()


def test_hosts_that_share_a_probe_exclude_each_other(tmp_path: Path, url: str) -> None:
    here, there = (make_pool(tmp_path / host, url=url) for host in ("here", "there"))
    with here.lease(KIND, "study", duration_s=60.0):
        assert there.statuses()[0].state is State.LEASED
        assert there.statuses()[0].detail == f"study on {this_process().host}"
        with pytest.raises(NoBoardFree, match="study on"):
            take(there, wait_s=0.8)  # longer than a lease that nobody renews
    assert take(there) < 1.0
    assert there.record("b0").token > here.record("b0").token > 0


def test_a_host_that_dies_loses_its_boards_and_learns_of_it_when_it_is_back(tmp_path: Path, url: str) -> None:
    with holder(tmp_path / "there", "touch", url) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "fine\n"
        process.send_signal(signal.SIGSTOP)
        assert 0.1 < take(make_pool(tmp_path / "here", url=url)) < 5.0
        process.send_signal(signal.SIGCONT)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline().startswith("lost: board b0: lease 1 has lapsed at ")


def test_a_redis_that_forgets_or_is_away_for_a_moment_costs_nobody_a_board(tmp_path: Path, url: str) -> None:
    here, there = (make_pool(tmp_path / host, url=url) for host in ("here", "there"))
    client = connect(url)
    with here.lease(KIND, "study", duration_s=60.0) as board:
        client.flushall()
        wait_for(lambda: client.exists("edgefront:lease:probe/0"))
        with pytest.raises(NoBoardFree, match="study on"):
            take(there, wait_s=0.2)
        board.load(read_image(boards.firmware(), board.kind))
    client.close()


def test_who_waits_outlasts_a_restart_of_the_redis(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path / "redis", tmp_path / "redis.log")
    broker.start()
    try:
        pool = make_pool(tmp_path, url=broker.url)
        take(pool)
        broker.stop()
        with ThreadPoolExecutor(1) as executor:
            waiting = executor.submit(take, pool)
            wait_for(lambda: pool.n_waiting() == 1)
            broker.start()
            assert waiting.result(10.0) > 0.0
    finally:
        broker.stop()


def test_without_the_redis_that_hosts_share_nobody_gets_a_board(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, url=f"redis://:sesame@localhost:1/{os.getpid()}")
    with pytest.raises(NoBoardFree, match=r"Redis of \[leases\] at redis://localhost:1/.* does not answer") as caught:
        take(pool, wait_s=0.2)
    assert "sesame" not in str(caught.value)
    with pytest.raises(InventoryError, match="no address of a Redis"):
        make_pool(tmp_path, url="redis://:x@host:port/0")


def waiters(pool: Pool, n: int, executor: ThreadPoolExecutor, order: list[int], hold_s: float = 0.0) -> list[object]:
    """``n`` threads that wait for a board, arriving one after the other."""

    def one(index: int) -> None:
        with pool.lease(KIND, f"waiter {index}", duration_s=30.0, wait_s=30.0):
            order.append(index)
            threading.Event().wait(hold_s)

    found = []
    for index in range(n):
        before = pool.n_waiting()
        found.append(executor.submit(one, index))
        wait_for(lambda before=before: pool.n_waiting() > before)
    return found


def test_those_who_wait_are_served_in_the_order_of_their_arrival(tmp_path: Path) -> None:
    pool, order = make_pool(tmp_path), list[int]()
    with ThreadPoolExecutor(8) as executor:
        with pool.lease(KIND, "first", duration_s=30.0):
            found = waiters(pool, 8, executor, order)
        for one in found:
            one.result()  # type: ignore[attr-defined]
    assert order == list(range(8))


def test_who_waits_wakes_within_fifty_milliseconds(tmp_path: Path) -> None:
    slow = replace(FAST, poll_s=5.0)  # so that looking every now and then does not help
    pool, delays = make_pool(tmp_path, timing=slow), list[float]()
    for _ in range(9):
        released = [0.0]
        with ThreadPoolExecutor(1) as executor:
            with pool.lease(KIND, "first", duration_s=30.0):
                found = executor.submit(lambda: (take(pool), monotonic())[1])
                wait_for(lambda: pool.n_waiting() == 1)
                released[0] = monotonic()
            delays.append(found.result() - released[0])
    assert median(delays) < 0.05, delays


def test_processes_and_threads_wait_in_one_queue(tmp_path: Path) -> None:
    pool, order = make_pool(tmp_path), list[int]()
    with ThreadPoolExecutor(2) as executor, ExitStack() as stack:
        with pool.lease(KIND, "first", duration_s=30.0):
            waiters(pool, 1, executor, order)
            process = stack.enter_context(wanter(tmp_path, "wait"))
            wait_for(lambda: pool.n_waiting() == 2)
            last = executor.submit(take, pool, "last")
            wait_for(lambda: pool.n_waiting() == 3)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert order == [0]
        assert not last.done()
        process.communicate("\n", timeout=10.0)
        assert last.result(10.0) > 0.0


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_who_dies_or_sleeps_in_the_queue_holds_up_nobody(tmp_path: Path, sent: signal.Signals) -> None:
    pool = make_pool(tmp_path)
    with ThreadPoolExecutor(1) as executor, ExitStack() as stack:
        with pool.lease(KIND, "first", duration_s=30.0):
            process = stack.enter_context(wanter(tmp_path, "wait"))
            wait_for(lambda: pool.n_waiting() == 1)
            last = executor.submit(take, pool, "last")
            wait_for(lambda: pool.n_waiting() == 2)
            process.send_signal(sent)
            if sent == signal.SIGKILL:
                process.wait(10.0)
        last.result(5.0)
        take(pool, wait_s=0.1)  # and nobody waits for the sleeper a second time
    assert Queue(tmp_path / "queue").waiting() == []
    assert list((tmp_path / "queue").iterdir()) == []


def test_boards_of_one_kind_work_side_by_side(tmp_path: Path) -> None:
    pool, together = make_pool(tmp_path, count=4), threading.Barrier(4)

    def one(index: int) -> str:
        with pool.lease(KIND, f"job {index}", duration_s=30.0, wait_s=10.0) as board:
            together.wait(10.0)  # passes only if four have a board at once
            return board.board_id

    with ThreadPoolExecutor(12) as executor:
        served = list(executor.map(one, range(12)))
    assert {name: served.count(name) for name in set(served)} == dict.fromkeys(["b0", "b1", "b2", "b3"], 3)


def test_boards_that_come_back_at_once_are_all_taken_at_once(tmp_path: Path) -> None:
    slow = replace(FAST, poll_s=5.0)  # so that looking every now and then does not help
    pool, together = make_pool(tmp_path, count=4, timing=slow), threading.Barrier(5)

    def one(index: int) -> None:
        with pool.lease(KIND, f"job {index}", duration_s=30.0, wait_s=30.0):
            together.wait(10.0)

    with ThreadPoolExecutor(4) as executor, ExitStack() as stack:
        for index in range(4):
            stack.enter_context(pool.lease(KIND, f"first {index}", duration_s=30.0))
        found = [executor.submit(one, index) for index in range(4)]
        wait_for(lambda: pool.n_waiting() == 4)
        stack.close()
        started = monotonic()
        together.wait(10.0)  # passes once all four have a board
        assert monotonic() - started < 1.0
        for each in found:
            each.result()
