"""Checks, wherever a study's process is about to act on the world, that it still holds the study."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orchestrator.ports import Evaluator
from orchestrator.records import StageRequest, StageResult


class FencedEvaluator:
    """An evaluator that lets nothing be published and no result be recorded unless ``check`` allows it.

    ``check`` raises where the study has changed hands; whoever held it before acts no more, however late it wakes up.
    """

    def __init__(self, inner: Evaluator, check: Callable[[], None]) -> None:
        self.stages = inner.stages
        self._inner = inner
        self._check = check

    def submit(self, request: StageRequest) -> None:
        self._check()
        self._inner.submit(request)

    def collect(self, timeout_s: float) -> Sequence[StageResult]:
        results = self._inner.collect(timeout_s)
        if results:
            self._check()
        return results

    def lost(self, task_ids: Sequence[str]) -> Sequence[str]:
        return self._inner.lost(task_ids)

    def close(self) -> None:
        self._inner.close()
