"""An evaluator without workers: it runs stages by a table of answers, and can lose tasks and results."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orchestrator.boards import MARK, base, kind_of
from orchestrator.records import Ending, Fault, FaultKind, Source, StageRequest, StageResult, Value, Violation

Answer = Callable[[StageRequest], StageResult | None]
_UNITS = {"error": "1", "test_error": "1", "rom": "byte", "latency": "s"}
TWO_BOARDS = ("nrf52-dk", "nucleo-h743zi")
TWO_BOARD_STAGES = ("gate", "train", "build", *(f"profile{MARK}{kind}" for kind in TWO_BOARDS))
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
    if base(request.stage) == "profile":  # the first board is faster at narrow networks, the second at wide ones
        kind = kind_of(request.stage)
        amount = 1.0 + width if kind == TWO_BOARDS[0] else 10.0 + width / 2
        values[f"latency{MARK}{kind}"] = Value(amount=amount, unit="s", source=Source.EMULATED, note="scripted")
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

    def __init__(self, answer: Answer = complete, stages: tuple[str, ...] = ("gate", "train", "build")) -> None:
        self.answer = answer
        self.stages = stages
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
