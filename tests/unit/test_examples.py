"""The example studies are whole: every name in them exists and every corner of their spaces can be built."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from orchestrator.space import SearchSpace
from orchestrator.studyfile import StudyFile
from tasks.nn.candidate import compression_of, training_of
from tasks.nn.datasets import BUILT_IN
from tasks.nn.families import build_network
from tasks.nn.options import check_options
from tasks.nn.prune import is_below

EXAMPLES = Path(__file__).parents[2] / "examples"
INPUTS = {"digits": ((1, 8, 8), 10), "har": ((18, 256), 13), "two-boards": ((1, 8, 8), 10)}


def study(name: str) -> StudyFile:
    return StudyFile.model_validate(yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text()))


def test_there_is_a_test_for_every_example() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} == set(INPUTS)


@pytest.mark.parametrize("name", sorted(INPUTS))
def test_every_parameter_of_the_space_has_an_effect_somewhere(name: str) -> None:
    file = study(name)
    space = SearchSpace.from_parameters(file.space)
    check_options(name, BUILT_IN[file.dataset.source].options, file.dataset.options)
    modules: set[str] = set()
    for corner in (np.zeros(space.dim), np.full(space.dim, 0.5), np.ones(space.dim)):
        params = space.decode(corner)
        training_of(file, params)
        _, sparsity = compression_of(file, params)
        options = {key.removeprefix("network."): value for key, value in params.items() if key.startswith("network.")}
        shape, n_classes = INPUTS[name]
        modules |= {module for module, _ in build_network(file.network, options, shape, n_classes, 0).named_modules()}
    for prefix in sparsity.by_prefix:
        assert any(is_below(module, prefix) for module in modules), prefix


def test_the_demo_is_the_study_that_was_promised() -> None:
    file = study("digits")
    assert file.board == "nrf52840-dk"
    assert set(file.objectives) == {"error", "rom", "ram", "flops"}
    assert file.budget.trials >= 30
    assert (file.sampler.name, file.sampler.initial) == ("ars", 8)
    searched = {"network.width", "network.depth", "network.kernel_size", "training.learning_rate", "training.epochs"}
    assert searched | {"compression.sparsity.stage1", "compression.sparsity.stage2"} <= set(file.space)
