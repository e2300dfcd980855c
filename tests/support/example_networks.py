"""The smallest and the largest networks that the example studies search among, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from orchestrator.studyfile import StudyFile
from tasks.nn.families import build_network
from tasks.quant.quantise import quantise

EXAMPLES = Path(__file__).parents[2] / "examples"
# Of an input (C, …), and how many classes there are.
SHAPES = {"digits": ((1, 8, 8), 10), "har": ((18, 256), 13)}
CORNERS = ("smallest", "largest")


def example_network(name: str, corner: str) -> bytes:
    """The network at one ``corner`` of an example's space, as a QDQ int8 ONNX model."""
    study = StudyFile.model_validate(yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text("utf-8")))
    shape, n_classes = SHAPES[name]
    options = {
        key.removeprefix("network."): _end(entry, corner) for key, entry in study.space.items() if "network." in key
    }
    module = build_network(study.network, options, shape, n_classes, seed=0)
    x = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    return quantise(module, x)[1]


def _end(entry: Any, corner: str) -> Any:
    """The lowest or highest value of a parameter, the value of a fixed one."""
    if hasattr(entry, "value"):
        return entry.value
    values = getattr(entry, "choices", None) or (entry.low, entry.high)
    return min(values) if corner == "smallest" else max(values)
