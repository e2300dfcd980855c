"""The frame every stage runs in: request in, result out, every error classified once."""

from __future__ import annotations

import socket
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol

from orchestrator.records import Ending, Event, Fault, FaultKind, Json, StageRequest, StageResult, Value, Violation
from tasks.errors import Defect, Infeasible, Stopped, TransientFault


class Artifacts(Protocol):
    """Content-addressed bytes: what is put under a hash is what comes back, or an error."""

    def put_bytes(self, data: bytes) -> str: ...

    def get_bytes(self, sha256: str) -> bytes: ...


class Checkpoint(Protocol):
    """Where a long stage keeps its state now and then, so that another attempt at the same work goes on from there.

    ``load`` gives what was kept last, None where nothing usable was; ``save`` replaces it. Neither ever raises: a stage
    without its checkpoint is slower, not wrong. ``is_leaving`` says that this process is to be gone soon: a stage that
    can should save its state and raise :class:`tasks.errors.HandedOver`.
    """

    def load(self) -> bytes | None: ...

    def save(self, data: bytes) -> None: ...

    def is_leaving(self) -> bool: ...


class NoCheckpoint:
    """Keeps nothing; for a stage that is run on its own."""

    def load(self) -> bytes | None:
        return None

    def save(self, data: bytes) -> None:
        """Nothing is kept."""

    def is_leaving(self) -> bool:
        return False


@dataclass(frozen=True, kw_only=True, slots=True)
class StageContext:
    """What a stage may touch: artifacts, a place to report progress to, and one to keep its state at."""

    artifacts: Artifacts
    progress: Callable[[Event], None] = lambda event: None
    checkpoint: Checkpoint = field(default_factory=NoCheckpoint)


@dataclass(frozen=True, kw_only=True, slots=True)
class StageOutput:
    """What a stage that completed hands over; see :class:`orchestrator.records.StageResult` for the fields."""

    values: Mapping[str, Value] = field(default_factory=dict)
    artifacts: Mapping[str, str] = field(default_factory=dict)
    notes: Json = field(default_factory=dict)


StageFunction = Callable[[StageRequest, StageContext], StageOutput]


def run_stage(function: StageFunction, request: StageRequest, context: StageContext) -> StageResult:
    """Run one stage and say how it ended; never raises for anything the stage does wrong."""
    started = monotonic()
    output, ending, fault = StageOutput(), Ending.COMPLETE, None
    violations: tuple[Violation, ...] = ()
    try:
        output = _checked(function(request, context), request.stage)
    except Infeasible as error:
        ending, violations, output = Ending.INFEASIBLE, error.violations, StageOutput(values=error.values)
    except Stopped as error:
        ending, output = Ending.STOPPED, StageOutput(notes={**error.notes, "stopped": error.stop.to_json()})
    except TransientFault as error:
        ending, fault = Ending.FAULT, Fault(kind=FaultKind.TRANSIENT, reason=error.reason, detail=error.detail)
    except Defect as error:
        ending, fault = Ending.FAULT, Fault(kind=FaultKind.DEFECT, reason=error.reason, detail=error.detail)
    except OSError as error:  # disk full, no permission, a lost mount: the machine's fault
        ending, fault = Ending.FAULT, Fault(kind=FaultKind.TRANSIENT, reason="os_error", detail=str(error))
    except Exception as error:  # the outermost loop of a worker: whatever is left is a defect
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"
        detail = f"{' '.join(where.splitlines())}\n{traceback.format_exc()}"
        ending, fault = Ending.FAULT, Fault(kind=FaultKind.DEFECT, reason="unexpected_error", detail=detail)
    return StageResult(
        study_id=request.study_id,
        trial=request.trial,
        stage=request.stage,
        attempt=request.attempt,
        ending=ending,
        seconds=monotonic() - started,
        values=output.values,
        artifacts=output.artifacts,
        violations=violations,
        fault=fault,
        notes=output.notes,
        worker=socket.gethostname(),
    )


def _checked(output: StageOutput, stage: str) -> StageOutput:
    """What a stage of one's own gave, if it is what a stage gives."""
    if not isinstance(output, StageOutput):
        raise Defect("bad_stage", f"stage {stage} gave {type(output).__name__}; expected a tasks.stage.StageOutput")
    return output
