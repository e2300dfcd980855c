"""A look at a candidate before it is proposed: the stage ``gate``, in the orchestrator's own process.

The search has a few candidates to choose from. Whether they fit, and how much flash and arithmetic they take, costs
parts of a second to find out, and the result is remembered beside the artifacts: the stage of the one that is proposed
answers from there.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Mapping
from types import FrameType

from orchestrator.records import Ending, FaultKind, Params, StageRequest, StageResult
from orchestrator.studyfile import StudyFile
from tasks.artifacts import ArtifactStore
from tasks.errors import TransientFault
from tasks.registry import perform
from tasks.stage import StageContext, StageFunction, StageOutput

_log = logging.getLogger(__name__)

# As long as a worker's gate may take.
LIMIT_S = 300.0
# A compiler that was killed says nothing of the candidate; looked at again, the search goes on as if it had not been.
_MOST_LOOKS = 3
_GATE, _TOO_LONG = "gate", "time_limit"
# Of the gate's values these are final. RAM still lacks the stack, which only a run shows.
_FINAL = ("rom", "flops", "macs")


def looks(
    study_id: str,
    study: StudyFile,
    sources: Mapping[str, str],
    artifacts: ArtifactStore,
    seed_of: Callable[[int], int],
) -> Callable[[Params, int], Mapping[str, float] | None]:
    """A function of parameters and trial number: what the gate counts exactly; None where the candidate does not fit;
    nothing at all after a fault, which says nothing of the candidate, and of a passing one only when it comes again and
    again. ``seed_of`` gives a trial's seed."""
    as_json = study.for_stages()

    def look(params: Params, trial: int) -> Mapping[str, float] | None:
        request = StageRequest(
            study_id=study_id,
            trial=trial,
            stage=_GATE,
            attempt=0,
            params=params,
            seed=seed_of(trial),
            inputs={},
            study=as_json,
            sources=sources,
        )
        result = _patiently(request, artifacts)
        if result.ending is Ending.INFEASIBLE:
            return None
        if result.fault is not None:
            _log.warning("a look at a candidate failed: %s: %s", result.fault.reason, result.fault.detail)
        return {name: value.amount for name, value in result.values.items() if name in _FINAL}

    return look


def _patiently(request: StageRequest, artifacts: ArtifactStore) -> StageResult:
    for _ in range(_MOST_LOOKS):
        result = perform(request, artifacts, progress=lambda event: None, worker="", guard=_limited)
        if result.fault is None or result.fault.kind is not FaultKind.TRANSIENT or result.fault.reason == _TOO_LONG:
            break
    return result


def _limited(function: StageFunction) -> StageFunction:
    """The stage with a time limit, where there can be one: signals reach the main thread only. A network of the user's
    that never gets built would otherwise stop the search."""
    if threading.current_thread() is not threading.main_thread():
        return function

    def expired(number: int, frame: FrameType | None) -> None:
        raise TransientFault(_TOO_LONG, f"a look took longer than {LIMIT_S:g} s")

    def limited(request: StageRequest, context: StageContext) -> StageOutput:
        before = signal.signal(signal.SIGALRM, expired)
        signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
        try:
            return function(request, context)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)

    return limited
