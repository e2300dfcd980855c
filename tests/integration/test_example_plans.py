"""The memory plans of the example studies' networks, from the smallest to the largest of their spaces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from orchestrator.studyfile import StudyFile
from tasks.deployment import integer_graph
from tasks.firmware.planner import plan_memory
from tasks.nn.families import build_network
from tasks.quant.quantise import quantise

EXAMPLES = Path(__file__).parents[2] / "examples"
SHAPES = {"digits": ((1, 8, 8), 10), "har": ((18, 256), 13)}


@pytest.mark.parametrize("corner", ["smallest", "largest"])
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_the_arena_is_within_5_percent_of_the_most_that_lives_at_once(name: str, corner: str) -> None:
    study = StudyFile.model_validate(yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text("utf-8")))
    shape, n_classes = SHAPES[name]
    options = {
        key.removeprefix("network."): end(entry, corner) for key, entry in study.space.items() if "network." in key
    }
    module = build_network(study.network, options, shape, n_classes, seed=0)
    x = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    plan = plan_memory(integer_graph(quantise(module, x)[1]))
    assert plan.lower_bound_bytes <= plan.arena_bytes <= 1.05 * plan.lower_bound_bytes


def end(entry: Any, corner: str) -> Any:
    """The lowest or highest value of a parameter, the value of a fixed one."""
    if hasattr(entry, "value"):
        return entry.value
    values = getattr(entry, "choices", None) or (entry.low, entry.high)
    return min(values) if corner == "smallest" else max(values)
