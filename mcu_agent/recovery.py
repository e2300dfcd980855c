"""Work on a rack that carries on in spite of its boards: the ladder of :mod:`mcu_agent.health`, with real leases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from mcu_agent.boards.protocol import Board
from mcu_agent.errors import AgentError, ImageAtFault, NoBoardFree, PowerFault
from mcu_agent.health import LOST, Attempt, Step, Verdict, fault_of, is_hub_away, next_step, verdict
from mcu_agent.holding import Holding
from mcu_agent.image import Image, read_image
from mcu_agent.kinds import load_kind
from mcu_agent.leases import AUTOMATIC, is_offered
from mcu_agent.meters.protocol import Recorder
from mcu_agent.meters.registry import make_recorder
from mcu_agent.pool import Pool
from mcu_agent.power import BACK_S, COMMAND_S, PowerCycle, power_cycle
from mcu_agent.rack import RackBoard
from mcu_agent.selftest import TIMEOUT_S, NoKnownImage, SelfTestReport, known_image, self_test

T = TypeVar("T")
Events = Callable[[str, Mapping[str, Any]], None]
Work = Callable[[Board, RackBoard], T]
Recorders = Callable[[RackBoard], Recorder | None]

_TEST_LEASE_S = TIMEOUT_S + 60.0  # for programming, and for a meter to be opened


def ignore(name: str, fields: Mapping[str, Any]) -> None:
    """Events that nobody wants to hear of."""


def recorder_of(entry: RackBoard) -> Recorder | None:
    """The board's meter, not yet connected; None where it has none that measures.

    Raises:
        InventoryError: the rack file asks for what the meter cannot do.
    """
    return make_recorder(entry.meter, load_kind(entry.kind).supply_v) if entry.meter else None


def run_on_rack(
    pool: Pool,
    kind: str,
    owner: str,
    work: Work[T],
    *,
    duration_s: float,
    wait_s: float,
    events: Events = ignore,
    recorders: Recorders = recorder_of,
) -> T:
    """What ``work`` gives on a board of ``kind``; each attempt has a lease of ``duration_s``, for which it waits up to
    ``wait_s``. Faults of the rig are dealt with here: retried after a power cycle, taken to another board, and the
    boards at fault quarantined.

    Events, each with the ``board`` and ``kind``: ``board_leased``, ``board_fault`` (``reason``, ``fault``),
    ``board_power_cycled`` (``proved``, ``seconds``), ``board_power_failed`` (``reason``), ``board_reset``,
    ``board_suspect``, ``board_tested`` (``ok``, ``reason``, ``seconds``), ``board_quarantined`` (``reason``),
    ``board_healed``, ``hub_away`` (``hub``), ``image_blamed`` (``reason``).

    Raises:
        ImageAtFault: it fails on boards that are well.
        NoBoardFree: no board of the kind is well, or none became free (transient).
        AgentError: what ``work`` raised, where that is the image's fault, or a fault that boards which are well now do
            not explain (transient).
    """
    return _Run(pool, kind, owner, events, recorders).carry_out(work, duration_s, wait_s)


def check_board(
    pool: Pool,
    board_id: str,
    owner: str,
    *,
    wait_s: float = 0.0,
    events: Events = ignore,
    recorders: Recorders = recorder_of,
) -> SelfTestReport:
    """The self-test of a board, whatever its health; one that passes heals it, one that fails quarantines it.

    Raises:
        NoBoardFree: somebody is using the board (transient).
        NoKnownImage: there is nothing to test it with; its health is left as it is.
        InventoryError: the rack has no such board.
    """
    entry = pool.rack.board(board_id)
    known_image(entry.kind)
    before = pool.record(board_id)
    with (
        pool.hold(
            entry.kind, owner, duration_s=_TEST_LEASE_S, wait_s=wait_s, board_id=board_id, is_test=True
        ) as holding,
        pool.opened(holding) as board,
    ):
        report = self_test(board, entry, recorders(entry))
        after = pool.note_test(board_id, _hub_away(pool, entry, report.why, events) or report.why)
    fields = {"board": board_id, "kind": entry.kind}
    events("board_tested", {**fields, "ok": report.is_ok, "reason": report.fault, "seconds": report.seconds})
    if after.quarantine and not report.is_ok:
        events("board_quarantined", {**fields, "reason": after.quarantine})
    elif (before.quarantine or before.suspect) and not after.quarantine:
        events("board_healed", fields)
    return report


class _Run:
    """One piece of work on its way over the boards of a kind."""

    def __init__(self, pool: Pool, kind: str, owner: str, events: Events, recorders: Recorders) -> None:
        self._pool = pool
        self._kind = kind
        self._owner = owner
        self._events = events
        self._recorders = recorders
        self._attempts: list[Attempt] = []
        self._errors: list[AgentError] = []
        self._suspects: dict[str, str] = {}  # boards that this run has put under suspicion, and why

    def carry_out(self, work: Work[T], duration_s: float, wait_s: float) -> T:
        """See :func:`run_on_rack`."""
        try:
            while True:
                try:
                    done = self._on_one_board(work, duration_s, wait_s)
                except NoBoardFree as error:
                    if not self._suspects:
                        raise
                    self._judge(error)  # no other board can say whether it is the board or the image
                    continue
                if done is not None:
                    self._condemn()
                    return done[0]
        except AgentError:
            self._settle()
            raise

    def _on_one_board(self, work: Work[T], duration_s: float, wait_s: float) -> tuple[T] | None:
        """The result on a board that was not tried yet; None where the next one is to be tried."""
        with self._pool.hold(
            self._kind, self._owner, duration_s=duration_s, wait_s=wait_s, avoid=self._tried()
        ) as holding:
            self._emit("board_leased", holding.entry)
            while True:
                is_emulated = False
                try:
                    with self._pool.opened(holding) as board:
                        is_emulated = board.is_emulated
                        return (work(board, holding.entry),)
                except AgentError as error:
                    step = self._after(error, holding.entry, is_emulated=is_emulated)
                    if step is Step.RAISE:
                        raise
                if step is not Step.RETRY:
                    break
                self._cycle(holding, duration_s)
            self._suspect(holding.entry)
        if step is Step.JUDGE:
            self._judge(self._errors[-1])
        return None

    def _tried(self) -> set[str]:
        return {attempt.board_id for attempt in self._attempts}

    def _after(self, error: AgentError, entry: RackBoard, *, is_emulated: bool) -> Step:
        fault = fault_of(error)
        attempt = Attempt(board_id=entry.board_id, fault=fault, reason=error.reason, text=str(error))
        self._attempts.append(attempt)
        self._errors.append(error)
        self._emit("board_fault", entry, reason=error.reason, fault=fault.value, detail=str(error))
        return next_step(self._attempts, is_emulated=is_emulated, has_other=self._has_other())

    def _has_other(self) -> bool:
        tried, now = self._tried(), self._pool.now()
        return any(
            entry.board_id not in tried and is_offered(self._pool.record(entry.board_id), now)
            for entry in self._pool.rack.of_kind(self._kind)
        )

    def _cycle(self, holding: Holding, duration_s: float) -> None:
        """Off and on again, or, without a switch, whatever a fresh driver does."""
        entry = holding.entry
        if entry.power is None:
            self._emit("board_reset", entry)
        else:
            holding.extend(entry.power.off_s + 4 * COMMAND_S + BACK_S)
            try:
                done = self._power_cycle(holding)
                self._emit("board_power_cycled", entry, proved=done.is_proved, seconds=done.seconds)
            except AgentError as error:
                if not isinstance(error, PowerFault) and not error.is_transient:
                    raise
                self._emit("board_power_failed", entry, reason=error.reason, detail=str(error))
        holding.extend(duration_s)

    def _power_cycle(self, holding: Holding) -> PowerCycle:
        assert holding.entry.power is not None
        with self._pool.opened(holding) as board:
            return power_cycle(holding.entry.power, board, _witness(self._kind))

    def _suspect(self, entry: RackBoard) -> None:
        why = self._attempts[-1].why
        self._suspects[entry.board_id] = why
        self._pool.suspect(entry.board_id, why)
        self._emit("board_suspect", entry, reason=why)

    def _condemn(self) -> None:
        """Another board did what these could not."""
        for board_id, why in self._suspects.items():
            entry = self._pool.rack.board(board_id)
            reason = _hub_away(self._pool, entry, why, self._events) or f"{why} (another board did the same work)"
            self._pool.quarantine(board_id, reason, by=AUTOMATIC)
            self._emit("board_quarantined", entry, reason=reason)
        self._suspects.clear()

    def _judge(self, error: AgentError) -> None:
        """Pass where the work may go on to yet another board.

        Raises:
            ImageAtFault, NoBoardFree, AgentError: as :func:`run_on_rack`.
        """
        tests = {board_id: self._test(board_id) for board_id in list(self._suspects)}
        found = verdict(self._attempts, tests)
        last = self._attempts[-1]
        if found is Verdict.IMAGE:
            well = ", ".join(board_id for board_id, fault in tests.items() if fault == "")
            for board_id in well.split(", "):
                self._emit("image_blamed", self._pool.rack.board(board_id), reason=last.reason)
            raise ImageAtFault(
                f"the image is at fault: {last.text} – and board {well}, on which it was tried, passes its self-test",
                last.reason,
            ) from self._errors[-1]
        if found is Verdict.BOARDS:
            if self._has_other():
                return
            states = "; ".join(f"{board_id}: {fault}" for board_id, fault in tests.items() if fault)
            raise NoBoardFree(f"no board of kind {self._kind} is well: {states}") from error
        raise self._errors[-1]

    def _test(self, board_id: str) -> str | None:
        """What is wrong with a board, by its self-test; None where that could not be carried out."""
        try:
            report = check_board(
                self._pool,
                board_id,
                f"{self._owner} self-test",
                wait_s=TIMEOUT_S,
                events=self._events,
                recorders=self._recorders,
            )
        except AgentError as error:
            if not isinstance(error, NoKnownImage) and not error.is_transient:
                raise
            return None
        del self._suspects[board_id]
        return "" if report.is_ok else self._pool.record(board_id).quarantine

    def _settle(self) -> None:
        """Leave no board under suspicion: those that were not judged run their self-test now."""
        for board_id, why in list(self._suspects.items()):
            if self._test(board_id) is None:
                self._pool.note_fault(board_id, why)
                self._suspects.pop(board_id, None)

    def _emit(self, name: str, entry: RackBoard, **fields: Any) -> None:
        self._events(name, {"board": entry.board_id, "kind": entry.kind, **fields})


def _witness(kind: str) -> Image | None:
    """The image that is in the board while its power is cut, so that what is in RAM is known."""
    try:
        return read_image(known_image(kind).elf, load_kind(kind))
    except NoKnownImage:
        return None


def _hub_away(pool: Pool, entry: RackBoard, why: str, events: Events) -> str:
    """Why a lost board is away with its hub, in words; empty where the hub is not to blame."""
    hub = pool.rack.hub_of(entry)
    if hub is None or not why.startswith(LOST):
        return ""
    others = [pool.record(one.board_id) for one in pool.rack.on_hub(hub) if one.board_id != entry.board_id]
    if not is_hub_away(others, is_present=pool.is_hub_present(hub)):
        return ""
    events("hub_away", {"board": entry.board_id, "kind": entry.kind, "hub": hub.hub_id})
    return f"{LOST}: hub {hub.hub_id} at {hub.location} is away, and the board with it"
