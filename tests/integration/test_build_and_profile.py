"""A real network from the compiler's hands into the agent's: built and profiled on every kind of board."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcu_agent.kinds import kinds
from orchestrator.records import Ending, FaultKind, Json, Source, StageRequest, StageResult
from orchestrator.studyfile import Network, StudyFile
from tasks import build, profile
from tasks.nn.datasets import load_dataset
from tasks.nn.families import build_network
from tasks.quant.quantise import quantise
from tasks.stage import StageContext, run_stage
from tests.support.artifacts import MemoryArtifacts


def study(board: str) -> Json:
    return StudyFile.model_validate(
        {
            "name": "s",
            "dataset": {"source": "digits"},
            "network": {"family": "resnet2d"},
            "space": {"network.width": {"type": "int", "low": 1, "high": 8}},
            "board": board,
            "objectives": {"error": {}, "rom": {}, "ram": {}, "latency": {"limit": "1 s"}, "energy": {"limit": "1 J"}},
            "budget": {"trials": 1},
            "profiling": {"samples": 32, "timeout": 30},
        }
    ).to_json()


@pytest.fixture(scope="module")
def onnx() -> bytes:
    file = StudyFile.from_json(study("nrf52-dk"))
    data = load_dataset(file.dataset, file.seed)
    network = build_network(Network(family="resnet2d"), {}, data.input_shape, data.n_classes, 0)
    return quantise(network.eval(), data.train.x[:64])[1]


@pytest.fixture(autouse=True)
def _own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFRONT_LOCKS", str(tmp_path / "locks"))
    monkeypatch.delenv("EDGEFRONT_RACK", raising=False)


def stage(name: str, board: str, inputs: dict[str, str], store: MemoryArtifacts) -> StageResult:
    function: Any = {"build": build.run, "profile": profile.run}[name]
    request = StageRequest(
        study_id="id", trial=0, stage=name, attempt=1, params={}, seed=0, inputs=inputs, study=study(board)
    )
    return run_stage(function, request, StageContext(artifacts=store))


@pytest.mark.parametrize("board", sorted(kinds()))
def test_a_network_is_bit_exact_on_every_kind_of_board(board: str, onnx: bytes) -> None:
    store = MemoryArtifacts()
    built = stage("build", board, {"onnx": store.put_bytes(onnx)}, store)
    assert built.ending is Ending.COMPLETE, built.fault
    found = stage("profile", board, dict(built.artifacts), store)
    assert found.ending is Ending.COMPLETE, found.fault
    values = found.values
    assert found.notes["image_id"] == built.notes["image_id"]
    assert values["ram"].amount == built.values["ram"].amount + values["stack"].amount
    assert 0 < values["stack"].amount <= built.values["stack_reserved"].amount
    assert values["instructions"].amount > built.values["macs"].amount / 2
    assert (values["cycles"].source, values["energy"].source) == (Source.EMULATED, Source.ESTIMATED)
    assert sum(layer["macs"] for layer in found.notes["layers"]) == built.values["macs"].amount
    assert found.seconds < 5


def test_a_wrong_reference_is_found_in_the_layer_it_is_wrong_in(onnx: bytes) -> None:
    """Outputs and the third layer's reference are altered, so the third layer is the first to differ."""
    store = MemoryArtifacts()
    built = stage("build", "nrf52-dk", {"onnx": store.put_bytes(onnx)}, store)
    with np.load(io.BytesIO(store.get_bytes(built.artifacts["vectors"]))) as archive:
        vectors = {name: archive[name].copy() for name in archive.files}
    vectors["outputs"][0, 0] ^= 1
    vectors["layer_2"].flat[5] ^= 1
    file = io.BytesIO()
    np.savez(file, **vectors)
    inputs = {**built.artifacts, "vectors": store.put_bytes(file.getvalue())}
    fault = stage("profile", "nrf52-dk", inputs, store).fault
    assert fault is not None
    assert (fault.kind, fault.reason) == (FaultKind.DEFECT, "bit_mismatch")
    assert "first differing layer: stage1_0_second" in fault.detail
