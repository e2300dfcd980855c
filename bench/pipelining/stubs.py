"""Stages without work: every one answers at once, or the training waits for ``EDGEFRONT_BENCH_WAIT_S`` seconds.

``EDGEFRONT_STAGES=bench.pipelining.stubs:STAGES`` puts them in the place of the real ones.
"""

from __future__ import annotations

import os
import time

from orchestrator.records import Source, StageRequest, Value
from tasks.stage import StageContext, StageFunction, StageOutput

WAIT_VARIABLE = "EDGEFRONT_BENCH_WAIT_S"
_UNITS = {"rom": "byte", "ram": "byte"}
_VALUES: dict[str, dict[str, float]] = {
    "gate": {"rom": 1000.0, "ram": 100.0},
    "train": {"float_error": 0.1},
    "compress": {"pruned_float_error": 0.12},
    "build": {"rom": 2000.0, "error": 0.2},
    "profile": {"ram": 200.0},
    "final": {"test_error": 0.25},
}


def _stage(name: str) -> StageFunction:
    def run(request: StageRequest, context: StageContext) -> StageOutput:
        if name == "train":
            time.sleep(float(os.environ.get(WAIT_VARIABLE, "0")))
        width = float(request.params.get("network.width", 0))
        values = {
            key: Value(
                amount=amount / (1 + width) if "error" in key else amount * (1 + width),
                unit=_UNITS.get(key, "1"),
                source=Source.EXACT,
            )
            for key, amount in _VALUES[name].items()
        }
        return StageOutput(values=values)

    return run


STAGES: dict[str, StageFunction] = {name: _stage(name) for name in _VALUES}
