"""Handing a stage's result over to the study, by whoever has it: the process that ran the stage, or its parent."""

from __future__ import annotations

import redis

from orchestrator.records import Ending, Fault, FaultKind, StageRequest, StageResult
from tasks import messages


def publish(client: redis.Redis, result: StageResult) -> None:
    """Hand the result over and mark the task as over, both or neither."""
    task_id = messages.task_id_of(result)
    pipeline = client.pipeline(transaction=True)
    pipeline.xadd(messages.results_key(result.study_id), messages.encode_result(result))  # type: ignore[arg-type]
    pipeline.expire(messages.results_key(result.study_id), messages.RESULT_KEPT_S)
    pipeline.hdel(messages.started_key(result.study_id), task_id)
    pipeline.set(messages.beat_key(task_id), messages.DONE, ex=messages.RESULT_KEPT_S)
    pipeline.execute()


def transient(reason: str, detail: str) -> Fault:
    return Fault(kind=FaultKind.TRANSIENT, reason=reason, detail=detail)


def fault_result(request: StageRequest, fault: Fault, worker: str) -> StageResult:
    """The answer of a worker that could not do what the request asks for."""
    return StageResult(
        study_id=request.study_id,
        trial=request.trial,
        stage=request.stage,
        attempt=request.attempt,
        ending=Ending.FAULT,
        seconds=0.0,
        fault=fault,
        worker=worker,
    )
