"""From an image to a profile on a board of a rack: lease, driver, meter, measurement."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass, field, replace

from mcu_agent.boards.protocol import Board
from mcu_agent.energy import check_known_load
from mcu_agent.errors import InventoryError
from mcu_agent.kinds import load_kind
from mcu_agent.measure import KnownAnswers, job_of
from mcu_agent.meters.protocol import Recorder
from mcu_agent.meters.registry import make_recorder
from mcu_agent.pool import Pool, lock_folder
from mcu_agent.profiling import Plan, Profile, profile
from mcu_agent.rack import Rack, RackBoard

LEASE_MARGIN_S = 20.0  # for programming the board; the first virtual one of a machine compiles its counter


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What to measure, and how long it may take once there is a board, which is waited for ``wait_s``."""

    elf: bytes
    known: KnownAnswers | None
    samples: int = 32
    timeout_s: float = 120.0
    wait_s: float = 60.0
    plan: Plan = field(default_factory=Plan)


def measure_on(rack: Rack, board_id: str, request: Request) -> Profile:
    """The profile of an image on the board ``board_id`` of ``rack``, or on any of its boards of the kind ``board_id``.

    Raises:
        InventoryError: the rack has no such board.
        NoBoardFree: it is in use or quarantined.
        AgentError: as :func:`mcu_agent.profiling.profile`.
    """
    entries = [entry for entry in rack.boards if board_id in (entry.board_id, entry.kind)]
    if not entries:
        known = ", ".join(f"{entry.board_id} ({entry.kind})" for entry in rack.boards)
        raise InventoryError(
            f"no board is called {board_id!r}, and none is of a kind of this name; the rack has {known}"
        )
    pool = Pool(rack, lock_folder())
    owner = f"{os.environ.get('USER') or os.getuid()}@{socket.gethostname()}"
    kind, only = entries[0].kind, entries[0].board_id if entries[0].board_id == board_id else None
    duration_s = request.timeout_s + LEASE_MARGIN_S
    with pool.lease(kind, owner, duration_s=duration_s, wait_s=request.wait_s, board_id=only) as board:
        return measure_leased(board, rack.board(board.board_id), request)


def measure_leased(board: Board, entry: RackBoard, request: Request) -> Profile:
    """The profile on a board that is leased already, with its meter where it has one.

    Raises:
        AgentError: as :func:`mcu_agent.profiling.profile`.
    """
    started = time.monotonic()
    recorder = recorder_of(entry)
    job = job_of(request.elf, request.known, board, samples=request.samples, timeout_s=request.timeout_s)
    left_s = request.timeout_s - (time.monotonic() - started)
    return profile(replace(job, timeout_s=left_s), board, recorder, request.plan)


def recorder_of(entry: RackBoard) -> Recorder | None:
    """The meter of a board, not opened yet, set to the supply voltage of its kind where the rack file names none; None
    for a board without one.

    Raises:
        InventoryError: the library of the meter is not installed.
    """
    return make_recorder(entry.meter, load_kind(entry.kind).supply_v) if entry.meter is not None else None


def read_known_load(pool: Pool, board_id: str) -> str:
    """What the meter of a board reads of its reference resistor, wired in place of the board, in words.

    Raises:
        InventoryError: the board has no meter, or its entry names no resistor.
        NoBoardFree: the board is in use (transient).
        MeterError: the meter reads another current than it must, or cannot be believed.
    """
    entry = pool.rack.board(board_id)
    recorder = recorder_of(entry)
    ohms = entry.meter.options.get("known_load_ohms") if entry.meter is not None else None
    if recorder is None or ohms is None:
        raise InventoryError(f"board {board_id}: its entry has no meter with known_load_ohms; see docs/rack.md")
    supply_v = (entry.meter.supply_v if entry.meter else None) or load_kind(entry.kind).supply_v
    # The board is not touched, so its health is no matter, and a fault of the meter does not count against it.
    with pool.hold(entry.kind, "check-meter", duration_s=LEASE_MARGIN_S, board_id=board_id, is_test=True):
        try:
            recorder.open()
            found_a = check_known_load(recorder, ohms, supply_v)
        finally:
            recorder.close()
    return f"{recorder.name}: {1e3 * found_a:.4g} mA through {ohms:g} ohm at {supply_v:g} V, as it must be within 5 %"
