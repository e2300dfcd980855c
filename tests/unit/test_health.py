"""Who is at fault, and what comes next: the decisions, and what they lead to on fake rigs with real leases."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcu_agent import errors
from mcu_agent.boards.fake import Script
from mcu_agent.boards.protocol import Board
from mcu_agent.errors import (
    AgentError,
    BitMismatch,
    BoardLost,
    FirmwareFault,
    FirmwareHang,
    ImageAtFault,
    LeaseLost,
    NoBoardFree,
    TraceGap,
)
from mcu_agent.health import Attempt, Fault, Step, Verdict, fault_of, is_hub_away, next_step, verdict
from mcu_agent.leases import BoardRecord, State
from mcu_agent.pool import Pool
from mcu_agent.profiling import profile
from mcu_agent.rack import Hub, PowerSwitch, RackBoard
from mcu_agent.recovery import check_board, run_on_rack
from tests.support import boards
from tests.support.rigs import KIND, Rig, make_pool, outputs

HANG = Script(hang_at="edgefront_run")
LOST = Script(lost_after=3)


def attempt(board_id: str, fault: Fault, reason: str = "board_lost") -> Attempt:
    return Attempt(board_id=board_id, fault=fault, reason=reason, text="as it happened")


A1, B1 = attempt("a", Fault.RIG), attempt("b", Fault.RIG)
HUNG_A, HUNG_B = (attempt(name, Fault.DOUBTFUL, "firmware_hang") for name in "ab")
WRONG_A, WRONG_B = (attempt(name, Fault.MISMATCH, "bit_mismatch") for name in "ab")
CABLE_A = attempt("a", Fault.CABLING, "wrong_board")


@pytest.mark.parametrize(
    ("attempts", "has_other", "step"),
    [
        ([A1], True, Step.RETRY),
        ([A1, A1], True, Step.MOVE),
        ([A1, A1], False, Step.JUDGE),
        ([A1, A1, B1], True, Step.JUDGE),  # in the same way on a second board
        ([A1, A1, HUNG_B], True, Step.RETRY),  # in another way: its own first fault
        ([A1, A1, HUNG_B, HUNG_B], True, Step.JUDGE),
        ([HUNG_A], False, Step.RETRY),
        ([WRONG_A], True, Step.MOVE),
        ([WRONG_A], False, Step.RAISE),
        ([WRONG_A, WRONG_B], True, Step.RAISE),
        ([CABLE_A], True, Step.MOVE),
        ([CABLE_A], False, Step.JUDGE),
        ([attempt("a", Fault.IMAGE)], True, Step.RAISE),
        ([attempt("a", Fault.NONE)], True, Step.RAISE),
    ],
)
def test_the_ladder(attempts: list[Attempt], step: Step, *, has_other: bool) -> None:
    assert next_step(attempts, is_emulated=False, has_other=has_other) is step


def test_another_emulated_board_has_nothing_to_add_to_wrong_bits() -> None:
    assert next_step([HUNG_A], is_emulated=True, has_other=True) is Step.RETRY
    assert next_step([HUNG_A, HUNG_A], is_emulated=True, has_other=True) is Step.MOVE
    assert next_step([WRONG_A], is_emulated=True, has_other=True) is Step.RAISE


@given(st.lists(st.sampled_from(list(Fault)), min_size=1, max_size=8), st.booleans(), st.booleans())
@settings(derandomize=True, max_examples=200)
def test_no_board_is_tried_more_than_twice_and_the_ladder_ends(
    faults: list[Fault], is_emulated: bool, has_other: bool
) -> None:
    attempts, board, steps = list[Attempt](), 0, list[Step]()
    for fault in faults:
        attempts.append(attempt(f"b{board}", fault, fault.value))
        steps.append(next_step(attempts, is_emulated=is_emulated, has_other=has_other))
        if steps[-1] in (Step.RAISE, Step.JUDGE):
            break
        board += steps[-1] is Step.MOVE
    assert max(sum(one.board_id == name for one in attempts) for name in {a.board_id for a in attempts}) <= 2
    assert len(attempts) <= 4
    assert board <= 1 or Fault.MISMATCH in faults or Fault.CABLING in faults


@pytest.mark.parametrize(
    ("attempts", "tests", "found"),
    [
        ([HUNG_A, HUNG_A, HUNG_B], {"a": "", "b": ""}, Verdict.IMAGE),
        ([HUNG_A, HUNG_A, HUNG_B], {"a": "dead", "b": ""}, Verdict.IMAGE),
        ([HUNG_A, HUNG_A, HUNG_B], {"a": "dead", "b": "dead"}, Verdict.BOARDS),
        ([HUNG_A, HUNG_A, B1], {"a": "dead", "b": ""}, Verdict.RIG),
        ([A1, A1], {"a": ""}, Verdict.RIG),
        ([A1, A1], {"a": None}, Verdict.UNKNOWN),
        ([A1, A1, B1], {"a": None, "b": "dead"}, Verdict.BOARDS),
    ],
)
def test_self_tests_decide_between_image_and_boards(
    attempts: list[Attempt], tests: Mapping[str, str | None], found: Verdict
) -> None:
    assert verdict(attempts, tests) is found


def test_every_class_of_errors_has_somebody_at_fault() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, AgentError)]
    made = {c: c.__new__(c) for c in classes}
    assert all(isinstance(fault_of(error), Fault) for error in made.values())
    never_transient = {
        c.reason for c, e in made.items() if fault_of(e) in (Fault.IMAGE, Fault.MISMATCH) and c.is_transient
    }
    assert never_transient == set()
    assert fault_of(made[TraceGap]) is fault_of(made[BoardLost]) is Fault.RIG
    assert fault_of(made[LeaseLost]) is Fault.NONE


def test_a_hub_that_is_away_is_told_from_bad_boards() -> None:
    lost, bad = BoardRecord(board_id="a", suspect="board_lost: gone"), BoardRecord(board_id="b", quarantine="self_test")
    assert is_hub_away([lost, lost], is_present=None)
    assert not is_hub_away([lost, bad], is_present=None)
    assert not is_hub_away([], is_present=None)
    assert is_hub_away([bad], is_present=False)
    assert not is_hub_away([lost], is_present=True)


class Heard:
    """Events, as they come."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, name: str, fields: Mapping[str, Any]) -> None:
        self.events.append((name, dict(fields)))

    @property
    def story(self) -> list[str]:
        return [f"{name} {fields['board']}" for name, fields in self.events]


def work(board: Board, entry: RackBoard) -> np.ndarray:
    return profile(boards.make_job(timeout_s=5.0), board).outputs


def run(pool: Pool, heard: Heard, wait_s: float = 0.2) -> np.ndarray:
    return run_on_rack(pool, KIND, "job", work, duration_s=20.0, wait_s=wait_s, events=heard)


def states(pool: Pool) -> dict[str, State]:
    return {status.board.board_id: status.state for status in pool.statuses()}


def test_work_that_goes_well_takes_one_board_once(tmp_path: Path) -> None:
    heard, pool = Heard(), make_pool(tmp_path, Rig(), Rig())
    assert np.array_equal(run(pool, heard), outputs())
    assert heard.story == ["board_leased b0"]
    assert states(pool) == {"b0": State.IDLE, "b1": State.IDLE}


@pytest.mark.parametrize("script", [HANG, LOST, Script(corrupt_transfer=True)])
def test_a_fault_that_a_reset_mends_is_forgotten(tmp_path: Path, script: Script) -> None:
    heard, pool = Heard(), make_pool(tmp_path, Rig(script=script, faults_left=1), Rig())
    assert np.array_equal(run(pool, heard), outputs())
    assert heard.story == ["board_leased b0", "board_fault b0", "board_reset b0"]
    assert states(pool) == {"b0": State.IDLE, "b1": State.IDLE}


@pytest.mark.parametrize(("script", "reason"), [(HANG, "firmware_hang"), (LOST, "board_lost")])
def test_a_board_is_quarantined_when_another_does_what_it_could_not(
    tmp_path: Path, script: Script, reason: str
) -> None:
    heard, pool = Heard(), make_pool(tmp_path, Rig(script=script), Rig())
    assert np.array_equal(run(pool, heard), outputs())
    assert heard.story == [
        "board_leased b0",
        "board_fault b0",
        "board_reset b0",
        "board_fault b0",
        "board_suspect b0",
        "board_leased b1",
        "board_quarantined b0",
    ]
    assert states(pool) == {"b0": State.QUARANTINED, "b1": State.IDLE}
    assert pool.record("b0").quarantine.startswith(f"{reason}: ")
    assert np.array_equal(run(pool, Heard()), outputs())  # on the board that is left


def test_an_image_that_hangs_on_boards_that_are_well_is_at_fault(tmp_path: Path) -> None:
    heard, pool = Heard(), make_pool(tmp_path, Rig(script=HANG), Rig(script=HANG))
    with pytest.raises(
        ImageAtFault, match=r"the image is at fault: .* board b0, b1, on which it was tried, passes"
    ) as caught:
        run(pool, heard)
    assert (caught.value.is_transient, caught.value.cause) == (False, "firmware_hang")
    assert isinstance(caught.value.__cause__, FirmwareHang)
    assert heard.story[-6:] == [
        "board_tested b0",
        "board_healed b0",
        "board_tested b1",
        "board_healed b1",
        "image_blamed b0",
        "image_blamed b1",
    ]
    assert states(pool) == {"b0": State.IDLE, "b1": State.IDLE}


def test_an_image_that_hangs_on_the_only_board_is_at_fault_when_that_is_well(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, Rig(script=HANG))
    with pytest.raises(ImageAtFault):
        run(pool, Heard())
    assert states(pool) == {"b0": State.IDLE}


def test_boards_that_hang_at_everything_are_quarantined_and_nobody_is_left(tmp_path: Path) -> None:
    bad = [Rig(script=HANG, test_script=HANG) for _ in range(2)]
    heard, pool = Heard(), make_pool(tmp_path, *bad)
    with pytest.raises(
        NoBoardFree, match=r"no board of kind nrf52-dk is well: b0: firmware_hang: answer: .*; b1: "
    ) as caught:
        run(pool, heard)
    assert caught.value.is_transient
    assert states(pool) == {"b0": State.QUARANTINED, "b1": State.QUARANTINED}
    assert sum(name == "board_quarantined" for name, _ in heard.events) == 2


def test_a_third_board_is_tried_when_two_are_bad(tmp_path: Path) -> None:
    bad = [Rig(script=HANG, test_script=HANG) for _ in range(2)]
    pool = make_pool(tmp_path, *bad, Rig())
    assert np.array_equal(run(pool, Heard()), outputs())
    assert states(pool) == {"b0": State.QUARANTINED, "b1": State.QUARANTINED, "b2": State.IDLE}


def test_a_fault_of_the_rig_is_never_the_images(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, Rig(script=LOST), Rig(script=LOST))
    with pytest.raises(BoardLost, match="the probe does not answer") as caught:
        run(pool, Heard())
    assert caught.value.is_transient
    assert states(pool) == {"b0": State.IDLE, "b1": State.IDLE}  # both pass their self-test now


def test_a_firmware_fault_is_the_images_at_once(tmp_path: Path) -> None:
    heard, pool = Heard(), make_pool(tmp_path, Rig(script=Script(fault_at="edgefront_run")), Rig())
    with pytest.raises(FirmwareFault):
        run(pool, heard)
    assert heard.story == ["board_leased b0", "board_fault b0"]


def test_a_wrong_answer_is_looked_at_once_more_on_another_board(tmp_path: Path) -> None:
    wrong = Script(wrong_layer=0)
    pool = make_pool(tmp_path / "one", Rig(script=wrong), Rig())
    assert np.array_equal(run(pool, Heard()), outputs())
    assert states(pool)["b0"] is State.QUARANTINED
    heard, pool = Heard(), make_pool(tmp_path / "two", Rig(script=wrong), Rig(script=wrong))
    with pytest.raises(BitMismatch):
        run(pool, heard)
    assert states(pool) == {"b0": State.IDLE, "b1": State.IDLE}
    with pytest.raises(BitMismatch):
        run(make_pool(tmp_path / "three", Rig(script=wrong)), Heard())


def test_a_board_has_its_power_cut_between_two_attempts(tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    program = tmp_path / "relay"
    program.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\nif sys.argv[1] == 'off': pathlib.Path({str(cut)!r}).touch()\n"
    )
    program.chmod(0o755)
    power = PowerSwitch(command=(str(program),), off_s=0.0)
    heard, pool = Heard(), make_pool(tmp_path, Rig(script=HANG, faults_left=1, loses_ram=cut), power=power)
    assert np.array_equal(run(pool, heard), outputs())
    assert heard.story == ["board_leased b0", "board_fault b0", "board_power_cycled b0"]
    assert heard.events[-1][1]["proved"] is True


def test_a_switch_that_does_not_work_is_told_and_the_work_tried_again_nevertheless(tmp_path: Path) -> None:
    power = PowerSwitch(command=(str(tmp_path / "none"),), off_s=0.0)
    heard, pool = Heard(), make_pool(tmp_path, Rig(script=HANG, faults_left=1), power=power)
    assert np.array_equal(run(pool, heard), outputs())
    assert heard.story == ["board_leased b0", "board_fault b0", "board_power_failed b0"]
    assert heard.events[-1][1]["reason"] == "power"


def test_a_board_that_was_away_and_comes_back_is_healed_by_its_self_test(tmp_path: Path) -> None:
    rig, heard = Rig(is_away=True), Heard()
    pool = make_pool(tmp_path, rig, Rig())
    assert np.array_equal(run(pool, Heard()), outputs())
    assert states(pool)["b0"] is State.QUARANTINED
    assert not check_board(pool, "b0", "agent", events=heard).is_ok
    assert heard.story == ["board_tested b0", "board_quarantined b0"]
    rig.is_away = False
    assert check_board(pool, "b0", "agent", events=heard).is_ok
    assert heard.story[2:] == ["board_tested b0", "board_healed b0"]
    assert states(pool)["b0"] is State.IDLE


def test_a_hub_that_takes_its_boards_with_it_is_blamed_instead_of_them(tmp_path: Path) -> None:
    hub, usb = Hub(hub_id="left", location="1-1"), tmp_path / "usb"
    (usb / "1-1").mkdir(parents=True)
    power = PowerSwitch(hub="1-1", port=1, off_s=0.0)
    rigs = [Rig(is_away=True), Rig(is_away=True)]
    pool, heard = make_pool(tmp_path, *rigs, power=power, hub=hub, usb=usb), Heard()
    (usb / "1-1").rmdir()
    with pytest.raises(NoBoardFree, match="hub left at 1-1 is away"):
        run(pool, heard)
    assert {pool.record(name).quarantine for name in ("b0", "b1")} == {
        "board_lost: hub left at 1-1 is away, and the board with it"
    }
    assert "hub_away b0" in heard.story


def test_boards_that_are_out_of_use_are_tested_again_ever_more_rarely(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, Rig(test_script=HANG), Rig())
    pool.suspect("b0", "firmware_hang: odd")
    now = pool.now()
    assert pool.due_for_self_test(now) == []
    assert [entry.board_id for entry in pool.due_for_self_test(now + 61.0)] == ["b0"]
    waits = []
    for _ in range(5):
        check_board(pool, "b0", "agent")
        tested_at = pool.record("b0").tested_at
        due = [s for s in range(30, 4000, 30) if pool.due_for_self_test(tested_at + s)]
        waits.append(due[0])
    assert waits == [300, 900, 3600, 3600, 3600]
    assert [entry.board_id for entry in pool.due_for_self_test(now + 1e6, every_s=3600.0)] == ["b1", "b0"]


def test_what_a_person_took_out_of_use_only_a_person_puts_back(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, Rig())
    pool.quarantine("b0", "new wires tomorrow", by="ana")
    assert pool.due_for_self_test(pool.now() + 1e6) == []
    assert check_board(pool, "b0", "agent").is_ok
    record = pool.record("b0")
    assert (record.quarantine, record.quarantined_by) == ("new wires tomorrow", "ana")
    pool.put_back("b0")
    assert states(pool)["b0"] is State.IDLE


def test_a_hang_beside_a_lost_probe_is_not_held_against_the_image() -> None:
    lost = attempt("a", Fault.RIG, "board_lost")
    assert verdict([HUNG_A, lost], {"a": ""}) is Verdict.RIG
    assert verdict([HUNG_A, HUNG_A], {"a": ""}) is Verdict.IMAGE
    assert verdict([HUNG_A, HUNG_A, attempt("b", Fault.RIG, "board_lost")], {"a": "", "b": "gone"}) is Verdict.IMAGE
