"""Calibrating a board kind on one real board: its known image, layer by layer, against the emulated one."""

from __future__ import annotations

from datetime import UTC, datetime

from mcu_agent.boards.protocol import Board
from mcu_agent.calibration import Calibration, fit
from mcu_agent.errors import CalibrationError
from mcu_agent.measuring import recorder_of
from mcu_agent.meters.protocol import Recorder
from mcu_agent.pool import Pool
from mcu_agent.profiling import Plan, Profile, profile
from mcu_agent.selftest import KnownImage, known_image

_LEASE_S = 600.0


def calibrate_on(pool: Pool, board_id: str, *, wait_s: float = 0.0) -> Calibration:
    """The calibration of a board of a rack, with its meter where it has one.

    Raises:
        InventoryError: the rack has no such board.
        NoBoardFree: it is in use or out of use (transient).
        CalibrationError, AgentError: as :func:`calibrate`.
    """
    entry = pool.rack.board(board_id)
    known = known_image(entry.kind)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    with pool.lease(entry.kind, "calibration", duration_s=_LEASE_S, wait_s=wait_s, board_id=board_id) as board:
        return calibrate(board, known, at, recorder_of(entry))


def calibrate(
    board: Board, known: KnownImage, at: str, recorder: Recorder | None = None, plan: Plan | None = None
) -> Calibration:
    """The calibration of ``board``'s kind from its known image; ``at`` is the UTC stamp to keep with it. Board and
    recorder are closed afterwards.

    Raises:
        CalibrationError: the board is an emulated one, its image has no marks or its kind no emulated cycles.
        AgentError: as :func:`mcu_agent.profiling.profile`.
    """
    if board.is_emulated:
        raise CalibrationError(
            f"board {board.board_id} is a virtual one: estimates come from it; calibrate a device of its kind"
        )
    if not known.layer_cycles:
        raise CalibrationError(f"no emulated cycles are known for board kind {known.kind}: its core has no cost table")
    found = profile(known.job(), board, recorder, plan)
    if len(found.layers) != len(known.layer_cycles):
        raise CalibrationError(
            f"board {board.board_id}: {len(found.layers)} layers were measured, {len(known.layer_cycles)} are known; "
            "its cycle counter or the marks of the known image do not work"
        )
    factor, residual, worst = fit(known.layer_cycles, [layer.cycles for layer in found.layers])
    nj, interval = _nj_per_cycle(found)
    return Calibration(
        kind=known.kind,
        board_id=board.board_id,
        at=at,
        image_id=found.image_id,
        clock_hz=found.clock_hz,
        supply_v=found.supply_v,
        n_layers=len(found.layers),
        cycle_factor=factor,
        residual=residual,
        worst=worst,
        nj_per_cycle=nj,
        nj_interval=interval,
        meter=found.meter if found.energy.is_measured else "",
    )


def _nj_per_cycle(found: Profile) -> tuple[float | None, tuple[float, float] | None]:
    """Nanojoules of one measured cycle with their interval; None where the energy is only a model's."""
    energy = found.energy
    if not energy.is_measured or energy.interval_j is None:
        return None, None
    per_cycle = 1e9 / found.cycles.median
    low, high = energy.interval_j
    return energy.energy_j * per_cycle, (low * per_cycle, high * per_cycle)
