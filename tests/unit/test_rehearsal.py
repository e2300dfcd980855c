"""What is wrong with a study's data and networks shows before it runs, at the field it comes from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.studyfile import StudyFile
from orchestrator.studyvalues import telling_candidates
from tasks import rehearsal

Found = list[tuple[str, str]]
WIDTH = {"type": "int", "low": 2, "high": 8}
NETS = """
from torch import nn

def plain(input_shape, n_classes, width):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, n_classes))

def shares(input_shape, n_classes, width):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, n_classes), nn.Softmax(1))

def leaves(input_shape, n_classes, width):
    raise SystemExit(3)

def only_even(input_shape, n_classes, width):
    assert width % 2 == 0, f"width {width} is odd"
    return plain(input_shape, n_classes, width)
"""


def study(family: str = "mlp", source: str = "digits", **space: Any) -> StudyFile:
    return StudyFile.model_validate(
        {
            "name": "tried",
            "dataset": {"source": source},
            "network": {"family": family},
            "space": {name.replace("__", "."): value for name, value in space.items()} or {"network.width": WIDTH},
            "board": "nrf52-dk",
            "objectives": {"error": {}},
            "budget": {"trials": 3},
        }
    )


def mistakes(file: StudyFile) -> Found:
    return [*rehearsal.mistakes(file, telling_candidates(file))]


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    module = f"nets_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(NETS)
    monkeypatch.setenv("EDGEFRONT_IMPORT_PATH", str(tmp_path))
    return module


def test_a_study_that_can_run_has_no_mistake() -> None:
    assert not mistakes(study(network__width=WIDTH, compression__sparsity__stage1=0.3))


@pytest.mark.parametrize(
    ("option", "parameter", "field", "text"),
    [
        ("width", {"type": "float", "low": 2, "high": 8}, "", "found type float; allowed: 1 to 1024 (int)"),
        ("width", {"type": "int", "low": -2, "high": 8}, ".low", "found -2; allowed: 1 to 1024 (int)"),
        ("width", {"type": "int", "low": 2, "high": 10**9}, ".high", "found 1000000000; allowed: 1 to 1024 (int)"),
        ("width", "wide", "", "found 'wide'; allowed: 1 to 1024 (int)"),
        ("kernel_size", {"type": "int", "low": 3, "high": 5}, "", "found 4; allowed: 1, 3, 5"),
        ("kernel_size", {"type": "categorical", "choices": [3, 4, 5]}, ".choices", "found 4; allowed: 1, 3, 5"),
        (
            "activation",
            {"type": "categorical", "choices": ["relu", "gelu"]},
            ".choices",
            "found 'gelu'; allowed: 'relu'",
        ),
    ],
)
def test_values_that_the_family_refuses_are_found_wherever_they_lie(
    option: str, parameter: Any, field: str, text: str
) -> None:
    space = {f"network__{option}": parameter, "training__epochs": {"type": "int", "low": 1, "high": 2}}
    ((where, what),) = mistakes(study("resnet2d", **space))
    assert where == f"space.network.{option}{field}"
    assert text in what


def test_steps_that_meet_only_allowed_values_are_right() -> None:
    assert not mistakes(study("resnet2d", network__kernel_size={"type": "int", "low": 3, "high": 7, "step": 2}))


def test_a_sparsity_for_what_no_network_has_lists_its_parts() -> None:
    ((where, what),) = mistakes(study(network__width=WIDTH, compression__sparsity__stem=0.3))
    assert where == "space.compression.sparsity.stem"
    assert "its parts are flatten, stage1, stage2, head" in what


def test_a_sparsity_for_what_only_larger_networks_have_is_right() -> None:
    depth = {"type": "int", "low": 1, "high": 2}
    assert not mistakes(study(network__depth=depth, compression__sparsity__stage2=0.3))


def test_data_of_another_kind_than_the_family_takes_is_a_mistake() -> None:
    ((where, what),) = mistakes(study("resnet1d"))
    assert where == "network"
    assert "takes (channels, time)" in what


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_data_that_may_not_be_read_is_a_mistake(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((9, 4)), y=np.arange(9) % 3)
    (tmp_path / "data.npz").chmod(0)
    ((where, what),) = mistakes(study(source=str(tmp_path / "data.npz")))
    assert where == "dataset.source"
    assert "Permission denied" in what


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("shares", "operator Softmax, node 'node_softmax': its output is not quantised; leave it out"),
        ("leaves", "failed: SystemExit: 3"),
        ("absent", "'absent' does not exist in"),
    ],
)
def test_a_network_of_ones_own_that_cannot_be_built_or_compiled_is_a_mistake(nets: str, family: str, text: str) -> None:
    ((where, what),) = mistakes(study(f"{nets}:{family}"))
    assert where == "network"
    assert text in what


def test_each_choice_of_ones_own_network_is_tried(nets: str) -> None:
    choices = {"type": "categorical", "choices": [2, 3, 4]}
    ((_, what),) = mistakes(study(f"{nets}:only_even", network__width=choices))
    assert "width 3 is odd" in what


def test_a_network_of_ones_own_that_compiles_is_right(nets: str) -> None:
    assert not mistakes(study(f"{nets}:plain"))
