"""A look at a candidate before it is proposed: the stage ``gate``, in the orchestrator's own process.

The search has a few candidates to choose from. Whether they fit, and how much flash and arithmetic they take, costs
parts of a second to find out, and the result is remembered beside the artifacts: the stage of the one that is proposed
answers from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from orchestrator.records import Ending, Params, StageRequest
from orchestrator.studyfile import StudyFile
from tasks.artifacts import ArtifactStore
from tasks.registry import perform

_GATE = "gate"
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
    nothing at all after a fault, which says nothing of the candidate. ``seed_of`` gives a trial's seed."""
    as_json = study.to_json()

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
        result = perform(request, artifacts, progress=lambda event: None, worker="")
        if result.ending is Ending.INFEASIBLE:
            return None
        return {name: value.amount for name, value in result.values.items() if name in _FINAL}

    return look
