"""The generated C, byte for byte, as it was last reviewed.

Origin: ``tests.support.graphs.small_cnn``. A change on purpose is recorded with
``EDGEFRONT_UPDATE_GOLDEN=1 python -m pytest tests/golden`` and reviewed in the diff.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tasks.firmware.emit import emit_network
from tasks.firmware.planner import plan_memory
from tasks.quant import reference
from tests.support.graphs import small_cnn
from tests.support.networks import random_inputs

FOLDER = Path(__file__).parent / "small_cnn"
FILES = ("edgefront.h", "edgefront.c", "edgefront_weights.h", "edgefront_weights.c")


def compare(name: str, text: str) -> None:
    path = FOLDER / name
    if os.environ.get("EDGEFRONT_UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    assert text == path.read_text("utf-8"), f"{path} differs; see the module's docstring"


@pytest.mark.parametrize("name", FILES)
def test_generated_files_are_those_last_reviewed(name: str) -> None:
    graph = small_cnn()
    compare(name, emit_network(graph, plan_memory(graph))[name])


def test_outputs_are_those_last_reviewed() -> None:
    graph = small_cnn()
    x = random_inputs(graph, 6)
    compare("outputs.json", json.dumps(reference.output_of(graph, x).tolist()) + "\n")
    assert len(np.unique(reference.output_of(graph, x))) > 5
