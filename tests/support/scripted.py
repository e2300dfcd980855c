"""An evaluator without workers: it runs stages by a table of answers, and can lose tasks and results."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orchestrator.records import Ending, Fault, FaultKind, Source, StageRequest, StageResult, Value, Violation

Answer = Callable[[StageRequest], StageResult | None]
_UNITS = {"error": "1", "test_error": "1", "rom": "byte"}
_VALUES = {"gate": {"rom": 1000.0}, "build": {"rom": 2000.0, "error": 0.2}, "final": {"test_error": 0.25}}


def complete(request: StageRequest) -> StageResult:
    """Wider is larger and better; each stage but gate and profile leaves an artifact of its own name."""
    width = float(request.params["network.width"])
    values = {
        name: Value(
            amount=amount / (1 + width) if "error" in name else amount * (1 + width),
            unit=_UNITS[name],
            source=Source.EXACT,
        )
        for name, amount in _VALUES.get(request.stage, {}).items()
    }
    artifacts = {request.stage: f"{request.trial:032x}{len(request.stage):032x}"} if request.stage != "gate" else {}
    return _result(request, Ending.COMPLETE, values=values, artifacts=artifacts, notes={"inputs": dict(request.inputs)})


def infeasible(request: StageRequest) -> StageResult:
    over = Violation(quantity="rom", amount=300.0, limit=200.0, unit="byte", message="rom: 100 bytes over")
    return _result(request, Ending.INFEASIBLE, violations=(over,))


def fault(request: StageRequest, kind: FaultKind, reason: str = "board_lost", detail: str = "no answer") -> StageResult:
    return _result(request, Ending.FAULT, fault=Fault(kind=kind, reason=reason, detail=detail))


def _result(request: StageRequest, ending: Ending, **fields: object) -> StageResult:
    return StageResult(
        study_id=request.study_id,
        trial=request.trial,
        stage=request.stage,
        attempt=request.attempt,
        ending=ending,
        seconds=0.1,
        worker="scripted",
        **fields,  # type: ignore[arg-type]
    )


class ScriptedEvaluator:
    """``answer`` gives the result of a request, or None: then the task is lost."""

    stages: tuple[str, ...] = ("gate", "train", "build")

    def __init__(self, answer: Answer = complete) -> None:
        self.answer = answer
        self.submitted: list[StageRequest] = []
        self._ready: list[StageResult] = []
        self._lost: set[str] = set()

    def submit(self, request: StageRequest) -> None:
        self.submitted.append(request)
        result = self.answer(request)
        if result is None:
            self._lost.add(request.task_id)
        else:
            self._ready.append(result)

    def collect(self, timeout_s: float) -> Sequence[StageResult]:
        ready, self._ready = self._ready, []
        return ready

    def lost(self, task_ids: Sequence[str]) -> Sequence[str]:
        return [task_id for task_id in task_ids if task_id in self._lost]

    def close(self) -> None:
        self._ready.clear()
