"""Leases: the rules, the lock, and the pool that applies them."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcu_agent import locks
from mcu_agent.boards.fake import FakeBoard, Script
from mcu_agent.errors import BitMismatch, BoardLost, InventoryError, LeaseLost, NoBoardFree
from mcu_agent.image import read_image
from mcu_agent.kinds import load_kind
from mcu_agent.leases import (
    SUSPICION_S,
    BoardRecord,
    State,
    Timing,
    add_fault,
    after_test,
    check,
    clear,
    give_back,
    grant,
    is_due,
    is_offered,
    is_stuck,
    quarantine,
    state,
    suspect,
)
from mcu_agent.locks import BoardLock, file_name
from mcu_agent.pool import Pool
from mcu_agent.rack import RackBoard, virtual_rack
from mcu_agent.waiting import Ticket, assign
from tests.support import boards

KIND = "nrf52-dk"


class Clock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def make_pool(folder: Path, count: int = 1, clock: Clock | None = None, script: Script | None = None) -> Pool:
    clock = clock or Clock()

    def make(entry: RackBoard) -> FakeBoard:
        return FakeBoard(entry.board_id, load_kind(entry.kind), boards.fake_network(), script)

    return Pool(virtual_rack(KIND, count), folder, make=make, now=clock)


def test_every_lease_has_a_higher_token_and_a_deadline() -> None:
    record = BoardRecord(board_id="b")
    record, first = grant(record, "me", now=10.0, duration_s=5.0)
    record, second = grant(give_back(record), "you", now=20.0, duration_s=5.0)
    assert (first.token, second.token, first.deadline) == (1, 2, 15.0)
    assert record.owner == "you"


def test_a_lease_holds_until_its_deadline_or_its_successor() -> None:
    record, lease = grant(BoardRecord(board_id="b"), "me", now=10.0, duration_s=5.0)
    check(lease, record, now=14.9)
    with pytest.raises(LeaseLost, match=r"lease 1 ended 0\.0 s ago"):
        check(lease, record, now=15.0)
    later, _ = grant(record, "you", now=11.0, duration_s=5.0)
    with pytest.raises(LeaseLost, match="followed by 2 of you"):
        check(lease, later, now=11.0)


def test_a_lease_needs_a_duration() -> None:
    with pytest.raises(ValueError, match="lease of 0 s"):
        grant(BoardRecord(board_id="b"), "me", now=0.0, duration_s=0.0)


def test_a_token_is_never_below_that_of_other_hosts() -> None:
    record, lease = grant(BoardRecord(board_id="b", token=3), "me", now=0.0, duration_s=1.0, token=9)
    assert (lease.token, record.token) == (9, 9)
    assert grant(record, "you", now=0.0, duration_s=1.0, token=2)[1].token == 10


def test_three_faults_in_a_row_quarantine_a_board_and_a_good_run_forgives() -> None:
    record = BoardRecord(board_id="b")
    for _ in range(2):
        record = give_back(record, fault="probe lost")
    assert state(record, is_locked=False) is State.IDLE
    forgiven = give_back(record)
    assert forgiven.faults == 0
    record = give_back(record, fault="probe lost")
    assert record.quarantine == "3 faults in a row, the last: probe lost"
    assert state(record, is_locked=False) is State.QUARANTINED
    assert state(clear(record), is_locked=False) is State.IDLE


def test_a_record_survives_its_file() -> None:
    record = BoardRecord(board_id="b", token=3, owner="me", deadline=4.5, faults=1, quarantine="why")
    assert BoardRecord.from_json(record.to_json()) == record
    with pytest.raises(ValueError, match="version 0"):
        BoardRecord.from_json({**record.to_json(), "version": 0})


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    mine, yours = BoardLock(tmp_path, "b"), BoardLock(tmp_path, "b")
    assert not mine.is_held_by_anyone()
    assert mine.acquire()
    assert not yours.acquire()
    assert yours.is_held_by_anyone()
    mine.release()
    assert yours.acquire()
    yours.release()


def test_a_record_is_changed_as_a_whole_and_a_torn_one_is_a_fresh_one(tmp_path: Path) -> None:
    lock = BoardLock(tmp_path, "b")
    lock.update(lambda record: replace(record, token=12345))
    lock.update(lambda record: replace(record, faults=2))
    assert BoardLock(tmp_path, "b").read() == BoardRecord(board_id="b", token=12345, faults=2)
    (tmp_path / "b.json").write_text('{"version": 2, "boa')
    assert lock.read() == BoardRecord(board_id="b")


def test_the_lock_of_a_process_that_died_is_free(tmp_path: Path) -> None:
    code = (
        "import sys, os; from pathlib import Path; from mcu_agent.locks import BoardLock;"
        "lock = BoardLock(Path(sys.argv[1]), 'b'); assert lock.acquire(); print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert BoardLock(tmp_path, "b").is_held_by_anyone()
        process.kill()
    assert not BoardLock(tmp_path, "b").is_held_by_anyone()


def test_a_dead_owner_does_not_keep_a_board_from_its_self_test(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    lock = BoardLock(tmp_path, f"virtual-{KIND}")
    lock.update(lambda record: replace(record, owner="killed", deadline=1060.0))
    assert [entry.board_id for entry in pool.due_for_self_test(1000.0, 60.0)] == [f"virtual-{KIND}"]
    assert lock.acquire()
    assert pool.due_for_self_test(1000.0, 60.0) == []
    lock.release()


@pytest.mark.parametrize(("mode", "inside"), [(0o2770, 0o2770), (0o0770, 0o0700), (0o1777, 0o0700), (0o0700, 0o0700)])
def test_a_folder_of_a_group_is_shared_by_the_group_all_the_way_down(tmp_path: Path, mode: int, inside: int) -> None:
    tmp_path.chmod(mode)
    pool = make_pool(tmp_path / "locks" / "boards")
    with pool.lease(KIND, "a", duration_s=5.0):
        for folder in ("locks", "locks/boards", "locks/boards/queue"):
            assert (tmp_path / folder).stat().st_mode & 0o7777 == inside, folder
    tmp_path.chmod(0o700)


def test_a_leased_board_is_nobody_elses(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, count=2)
    with pool.lease(KIND, "me", duration_s=10.0) as first, pool.lease(KIND, "you", duration_s=10.0) as second:
        assert {first.board_id, second.board_id} == {"virtual-nrf52-dk-1", "virtual-nrf52-dk-2"}
        assert pool.counts() == {"idle": 0, "leased": 2, "stuck": 0, "suspect": 0, "quarantined": 0}
        assert [status.detail for status in pool.statuses()] == ["me", "you"]
        with pytest.raises(NoBoardFree, match=r"no board of kind nrf52-dk became free in 0\.2 s: .*leased me"):
            next(iter_lease(pool, wait_s=0.2))
    assert pool.counts() == {"idle": 2, "leased": 0, "stuck": 0, "suspect": 0, "quarantined": 0}


def iter_lease(pool: Pool, wait_s: float, avoid: Collection[str] = ()):  # type: ignore[no-untyped-def]
    with pool.lease(KIND, "third", duration_s=1.0, wait_s=wait_s, avoid=avoid) as board:
        yield board


def test_a_board_is_closed_and_given_back_after_an_error(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    image = read_image(boards.firmware(), load_kind(KIND))
    with pytest.raises(RuntimeError), pool.lease(KIND, "me", duration_s=10.0) as board:
        board.load(image)
        raise RuntimeError("anything")
    assert pool.counts()["idle"] == 1
    with pytest.raises(BoardLost, match="no power"):
        board.read(load_kind(KIND).ram_origin, 4)


def lose(pool: Pool, error: Callable[[], Exception]) -> None:
    try:
        with pool.lease(KIND, "me", duration_s=10.0):
            raise error()
    except (BoardLost, BitMismatch):
        pass


def test_faults_of_the_rig_quarantine_a_board_until_a_person_puts_it_back(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    for _ in range(3):
        lose(pool, lambda: BoardLost("virtual-nrf52-dk", "probe gone"))
    assert pool.counts() == {"idle": 0, "leased": 0, "stuck": 0, "suspect": 0, "quarantined": 1}
    with pytest.raises(NoBoardFree, match=r"quarantined 3 faults in a row, the last: .*probe gone"):
        next(iter_lease(pool, wait_s=0.0))
    pool.put_back("virtual-nrf52-dk")
    assert pool.counts()["idle"] == 1
    with pytest.raises(InventoryError, match="no board is called 'x'; there are virtual-nrf52-dk"):
        pool.put_back("x")


def test_faults_of_the_firmware_do_not_count_against_the_board(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    for _ in range(3):
        lose(pool, lambda: BitMismatch("wrong", "layer"))
    assert pool.counts()["idle"] == 1


def test_a_board_in_use_cannot_be_put_back(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    with pool.lease(KIND, "me", duration_s=10.0), pytest.raises(NoBoardFree, match="in use"):
        pool.put_back("virtual-nrf52-dk")


def test_a_late_holder_cannot_touch_the_board(tmp_path: Path) -> None:
    clock = Clock()
    pool = make_pool(tmp_path, clock=clock)
    image = read_image(boards.firmware(), load_kind(KIND))
    with pool.lease(KIND, "me", duration_s=10.0) as board:
        board.load(image)
        board.run_until([image.address("edgefront_ready")], 1.0)
        assert board.counter is None
        clock.time += 10.0
        for operation in (
            lambda: board.load(image),
            lambda: board.run_until([0], 1.0),
            lambda: board.read(load_kind(KIND).ram_origin, 4),
            lambda: board.write(load_kind(KIND).ram_origin, b"1234"),
        ):
            with pytest.raises(LeaseLost):
                operation()


def test_a_kind_the_rack_does_not_have_is_told(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    with (
        pytest.raises(InventoryError, match="no board of kind 'nucleo-h743zi'; it has nrf52-dk"),
        pool.lease("nucleo-h743zi", "me", duration_s=1.0),
    ):
        pass


def test_a_board_that_cannot_be_made_is_given_back(tmp_path: Path) -> None:
    def fail(entry: RackBoard) -> FakeBoard:
        raise InventoryError("no emulator")

    pool = Pool(virtual_rack(KIND, 1), tmp_path, make=fail)
    with pytest.raises(InventoryError, match="no emulator"), pool.lease(KIND, "me", duration_s=1.0):
        pass
    assert pool.counts()["idle"] == 1


TIMING = Timing()


@pytest.mark.parametrize(
    ("beat", "deadline", "found"),
    [
        (100.0, 200.0, False),
        (100.0, 111.0, False),  # late, but within its grace
        (100.0, 109.0, True),  # alive, and does not come back
        (99.0, 200.0, True),  # silent
    ],
)
def test_a_holder_is_stuck_when_it_is_silent_or_long_past_its_deadline(
    beat: float, deadline: float, *, found: bool
) -> None:
    record = BoardRecord(board_id="b", owner="me", deadline=deadline)
    assert is_stuck(record, beat, 114.0, TIMING) is found
    assert state(record, is_locked=True, is_stuck=found) is (State.STUCK if found else State.LEASED)


def test_a_suspect_board_is_offered_again_when_nobody_clears_the_suspicion_up() -> None:
    record = suspect(BoardRecord(board_id="b"), "odd", now=100.0)
    assert state(record, is_locked=False, now=100.0) is State.SUSPECT
    assert not is_offered(record, 100.0 + SUSPICION_S - 1)
    assert is_offered(record, 100.0 + SUSPICION_S)
    assert suspect(quarantine(record, "bad", now=0.0), "odd", now=1.0).suspect == ""


def test_a_fault_outside_a_lease_counts_and_leaves_the_lease_alone() -> None:
    record, _ = grant(BoardRecord(board_id="b", faults=2), "me", now=10.0, duration_s=5.0)
    after = add_fault(record, "probe lost", now=11.0)
    assert (after.owner, after.deadline, after.token) == ("me", 15.0, 1)
    assert after.quarantine == "3 faults in a row, the last: probe lost"
    assert after.quarantined_at == 11.0


def test_a_persons_quarantine_is_not_replaced_by_an_automatic_one() -> None:
    by_ana = quarantine(BoardRecord(board_id="b"), "new wires", now=1.0, by="ana")
    assert quarantine(by_ana, "hang", now=2.0) == by_ana
    assert quarantine(by_ana, "still out", now=2.0, by="ben").quarantine == "still out"
    assert after_test(by_ana, "", now=3.0).quarantine == "new wires"
    assert not is_due(by_ana, 1e9)
    automatic = quarantine(BoardRecord(board_id="b"), "hang", now=1.0)
    assert after_test(automatic, "", now=3.0).quarantine == ""


@given(st.lists(st.text(min_size=1, max_size=80), min_size=2, max_size=2, unique=True))
@settings(derandomize=True, max_examples=150)
def test_every_rig_has_files_of_its_own_within_the_folder(rigs: list[str]) -> None:
    names = [file_name(rig) for rig in rigs]
    assert names[0] != names[1]
    assert all("/" not in name and not name.startswith(".") and len(name) < 100 for name in names)


def test_two_names_of_a_rig_share_one_lock(tmp_path: Path) -> None:
    mine, yours = (BoardLock(tmp_path, "066A/FF 30", name) for name in ("desk", "bench"))
    assert mine.acquire()
    assert not yours.acquire()
    mine.release()


def test_a_link_in_the_place_of_a_lock_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InventoryError, match=r"cannot be opened: .*; remove the link"):
        BoardLock(tmp_path, "b").acquire()


def test_a_record_can_be_changed_although_somebody_was_stopped_while_changing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_GUARD_S", 0.05)
    BoardLock(tmp_path, "b").update(lambda record: record)
    with (tmp_path / "b.guard").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert BoardLock(tmp_path, "b").update(lambda record: replace(record, faults=1)).faults == 1


TICKETS = st.lists(st.lists(st.sampled_from("abcde"), min_size=1, max_size=5, unique=True), max_size=6)


@given(TICKETS, st.lists(st.sampled_from("abcde"), max_size=5, unique=True))
@settings(derandomize=True, max_examples=200)
def test_free_boards_go_to_those_who_came_first(wishes: list[list[str]], free: list[str]) -> None:
    tickets = [Ticket(name=f"{n:03}", rigs=tuple(rigs)) for n, rigs in enumerate(wishes)]
    found = assign(tickets, free)
    assert len(set(found.values())) == len(found)  # nobody shares
    for ticket in tickets:
        if ticket.name in found:
            assert found[ticket.name] in ticket.rigs
            continue
        earlier = {rig for name, rig in found.items() if name < ticket.name}
        assert not set(ticket.rigs) & (set(free) - earlier)  # whoever goes without was beaten by earlier ones alone


def test_a_particular_board_is_leased_and_boards_are_avoided(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, count=3)
    first, second, third = (entry.board_id for entry in pool.rack.boards)
    with pool.lease(KIND, "me", duration_s=10.0, board_id=second) as board:
        assert board.board_id == second
        with pool.lease(KIND, "you", duration_s=10.0, avoid={first}) as other:
            assert other.board_id == third
    with pytest.raises(NoBoardFree, match="no board of kind nrf52-dk is left"):
        next(iter_lease(pool, wait_s=0.0, avoid=[first, second, third]))
    with (
        pytest.raises(InventoryError, match="no board is called 'x'"),
        pool.lease(KIND, "me", duration_s=1.0, board_id="x"),
    ):
        pass
