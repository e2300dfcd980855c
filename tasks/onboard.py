"""A job on a board of this host's rack: leased, retried as the rack's health asks for, told to study and agent."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from time import monotonic
from typing import Any

from mcu_agent.boards.protocol import Board
from mcu_agent.errors import AgentError, InventoryError, NoBoardFree
from mcu_agent.measuring import lease_s, recorder_of
from mcu_agent.pool import Pool, lock_folder
from mcu_agent.profiling import Profile, profile
from mcu_agent.rack import Rack, RackBoard, load_rack, virtual_rack
from mcu_agent.recovery import run_on_rack
from mcu_agent.session import Job
from orchestrator.records import Event, StageRequest
from orchestrator.studyfile import StudyFile
from tasks.channel import AGENT_CHANNEL, tell_agent
from tasks.stage import StageContext

RACK_VARIABLE = "EDGEFRONT_RACK"
# What a study's own log keeps of a rack's troubles; the rest is the agent's.
_FOR_STUDIES = ("board_leased", "board_fault", "board_quarantined")


def rack_of(study: StudyFile, kind: str) -> Rack:
    """The boards this host offers a study: those of the rack file that ``EDGEFRONT_RACK`` names, or else as many
    virtual boards of the kind as it asks for.

    Raises:
        InventoryError: the rack file is wrong.
    """
    path = os.environ.get(RACK_VARIABLE)
    return measuring(_read_rack(path)) if path else virtual_rack(kind, study.parallelism.boards)


def measuring(rack: Rack) -> Rack:
    """The boards that can say how long an inference takes: QEMU counts nothing, so its boards serve no study."""
    boards = [one for one in rack.boards if "qemu" not in (one.server, one.emulator if one.driver == "virtual" else "")]
    return replace(rack, boards=tuple(boards))


def _read_rack(path: str) -> Rack:
    """The rack file as it is now; for an agent as it was when it could last be read: a file that somebody is editing
    must not end what measures.

    Raises:
        InventoryError: it is wrong; or no agent's, or never was right.
    """
    try:
        _last_racks[path] = load_rack(Path(path))
    except InventoryError as error:
        if path not in _last_racks:
            if os.environ.get(AGENT_CHANNEL):
                raise NoBoardFree(f"the agent's rack file cannot be used: {error}") from error
            raise
    return _last_racks[path]


_last_racks: dict[str, Rack] = {}


def pool_of(study: StudyFile, study_id: str, kind: str) -> Pool:
    """Those boards to borrow: a rack's are shared by all studies, virtual ones without a rack are the study's own.

    Raises:
        InventoryError: the rack file is wrong.
    """
    is_shared = bool(os.environ.get(RACK_VARIABLE))
    return _pool(rack_of(study, kind), lock_folder() if is_shared else lock_folder(study_id))


@lru_cache(maxsize=4)
def _pool(rack: Rack, folder: Path) -> Pool:
    """One pool a process, for as long as the rack file says the same: it keeps the connection by which hosts share
    probes."""
    return Pool(rack, folder)


def profile_on_rack(request: StageRequest, context: StageContext, study: StudyFile, job: Job, kind: str) -> Profile:
    """The profile of ``job`` on a board of ``kind``. Each attempt on a board may take the job's time; waiting for a
    board as long again.

    Raises:
        NoBoardFree: every board of the kind is in use or out of use (transient).
        AgentError: as :func:`mcu_agent.recovery.run_on_rack`.
    """
    about = {"trial": request.trial, "board_kind": kind}

    def tell(name: str, fields: Mapping[str, Any]) -> None:
        event = Event(name=name, fields={**about, **fields})
        tell_agent(event)
        if name in _FOR_STUDIES:
            context.progress(event)

    def work(board: Board, entry: RackBoard) -> Profile:
        return profile(job, board, recorder_of(entry))

    started = monotonic()
    try:
        pool = pool_of(study, request.study_id, kind)
        found = run_on_rack(
            pool,
            kind,
            f"{study.name}/{request.trial}/{request.attempt}",
            work,
            duration_s=lease_s(pool.rack, kind, job.timeout_s),
            wait_s=job.timeout_s,
            events=tell,
            recorders=recorder_of,
        )
    except AgentError as error:
        tell("measurement_ended", {"outcome": _outcome(error), "reason": error.reason})
        raise
    tell("measurement_ended", _facts(found, monotonic() - started))
    return found


def _outcome(error: AgentError) -> str:
    if isinstance(error, NoBoardFree):
        return "no_board_free"
    return "rig_fault" if error.is_transient else "image_fault"


def _facts(found: Profile, total_s: float) -> dict[str, Any]:
    return {
        "outcome": "complete",
        "board": found.board_id,
        "flash_s": found.phases.flash_s,
        "run_s": found.phases.run_s,
        "measure_s": found.phases.measure_s,
        "total_s": total_s,
        "energy_j": found.energy.energy_j,
        "energy_source": found.energy_source,
        "latency_s": found.latency_s,
        "latency_source": found.cycles_source,
    }
