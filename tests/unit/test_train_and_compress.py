"""The stages train and compress, on the real digits."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from orchestrator.records import Ending, Event, ParamValue, StageRequest, StageResult
from orchestrator.studyfile import StudyFile
from tasks import compress, train
from tasks.errors import Defect
from tasks.nn.candidate import (
    build_candidate,
    compression_of,
    pruned_untrained,
    training_of,
    unmatched_prefixes,
)
from tasks.nn.datasets import load_dataset
from tasks.nn.weights import pack_weights, unpack_weights
from tasks.quant.export import run_onnx
from tasks.stage import StageContext, run_stage

PARAMS: Mapping[str, ParamValue] = {
    "network.width": 6,
    "network.kernel_size": 3,
    "training.learning_rate": 0.01,
    "training.epochs": 6,
    "compression.sparsity.stage1": 0.3,
    "compression.sparsity.stage2": 0.4,
    "compression.finetune_epochs": 3,
}


def study(**changes: object) -> StudyFile:
    fields: dict[str, object] = {
        "name": "t",
        "dataset": {"source": "digits"},
        "network": {"family": "resnet2d"},
        "space": {"network.width": 6},
        "board": "nrf52840-dk",
        "objectives": {"error": {}},
        "budget": {"trials": 1},
    }
    return StudyFile.model_validate(fields | changes)


class Shelf(dict[str, bytes]):
    """Artifacts in memory."""

    def put_bytes(self, data: bytes) -> str:
        key = hashlib.sha256(data).hexdigest()
        self[key] = data
        return key

    def get_bytes(self, sha256: str) -> bytes:
        return self[sha256]


def request(stage: str, inputs: Mapping[str, str], **params: ParamValue) -> StageRequest:
    return StageRequest(
        study_id="s",
        trial=4,
        stage=stage,
        attempt=1,
        params={**PARAMS, **params},
        seed=11,
        inputs=inputs,
        study=study().to_json(),
    )


def run_both(shelf: Shelf, events: list[Event], **params: ParamValue) -> tuple[StageResult, StageResult]:
    context = StageContext(artifacts=shelf, progress=events.append)
    trained = run_stage(train.run, request("train", {}, **params), context)
    assert trained.ending is Ending.COMPLETE, trained
    compressed = run_stage(compress.run, request("compress", trained.artifacts, **params), context)
    assert compressed.ending is Ending.COMPLETE, compressed
    return trained, compressed


Finished = tuple[Shelf, list[Event], StageResult, StageResult]


@pytest.fixture(scope="module")
def finished() -> Finished:
    shelf, events = Shelf(), list[Event]()
    return shelf, events, *run_both(shelf, events)


def test_accuracy_survives_pruning_and_quantisation(finished: Finished) -> None:
    shelf, _, trained, compressed = finished
    data = load_dataset(study().dataset, 0)
    logits = run_onnx(shelf[compressed.artifacts["onnx"]], data.validation.x)[0]
    int8_error = float(np.mean(logits.argmax(axis=1) != data.validation.y))
    assert trained.values["float_error"].amount < 0.10
    assert compressed.values["pruned_float_error"].amount < 0.12
    assert abs(int8_error - compressed.values["pruned_float_error"].amount) < 0.02


def test_the_notes_of_a_training_name_its_device(finished: Finished) -> None:
    assert finished[2].notes["device"] == "cpu"


def test_the_float_onnx_model_is_the_pruned_network(finished: Finished) -> None:
    shelf, _, _, compressed = finished
    data = load_dataset(study().dataset, 0)
    logits = run_onnx(shelf[compressed.artifacts["onnx_float"]], data.validation.x)[0]
    error = float(np.mean(logits.argmax(axis=1) != data.validation.y))
    assert error == pytest.approx(compressed.values["pruned_float_error"].amount, abs=0.003)


def test_the_shapes_are_those_the_gate_saw_before_training(finished: Finished) -> None:
    _, _, _, compressed = finished
    data = load_dataset(study().dataset, 0)
    untrained = pruned_untrained(study(), PARAMS, 0, data)
    sizes = {name: len(layer.weight) for name, layer in untrained.named_modules() if name in compressed.notes["layers"]}
    assert sizes == compressed.notes["layers"]
    assert sizes["stage2.0.first.conv"] == 8
    assert sizes["head"] == 10


def test_the_notes_say_how_to_normalise_inputs_and_what_the_outputs_mean(finished: Finished) -> None:
    data = load_dataset(study().dataset, 0)
    facts = finished[3].notes["inputs"]
    pixels = data.train.x[0] * facts["std"][0] + facts["mean"][0]
    np.testing.assert_allclose(pixels * 16.0, np.round(pixels * 16.0), atol=1e-4)
    assert facts["shape"] == [1, 8, 8]
    assert facts["class_names"][3] == "3"


def test_progress_counts_training_and_fine_tuning_epochs(finished: Finished) -> None:
    _, events, trained, compressed = finished
    assert {event.name for event in events} == {"epoch_finished"}
    seen = {stage: [e.fields for e in events if e.fields["stage"] == stage] for stage in ("train", "compress")}
    assert [fields["epoch"] for fields in seen["train"]] == [1, 2, 3, 4, 5, 6]
    assert [fields["epoch"] for fields in seen["compress"]] == [1, 2, 3, 4, 5, 6]
    assert {fields["epochs"] for fields in seen["compress"]} == {6}
    assert {fields["trial"] for fields in seen["train"]} == {4}
    assert len(trained.notes["curve"]) == 6
    assert len(compressed.notes["curve"]) == 6
    assert seen["train"][-1]["accuracy"] == pytest.approx(1 - trained.values["float_error"].amount)


def test_the_same_request_gives_the_same_artifacts_to_the_byte(finished: Finished) -> None:
    _, _, trained, compressed = finished
    torch.rand(3)
    again, compressed_again = run_both(Shelf(), [])
    assert again.artifacts == trained.artifacts
    assert compressed_again.artifacts == compressed.artifacts


def test_without_sparsity_nothing_is_pruned_or_tuned() -> None:
    none = {"compression.sparsity.stage1": 0.0, "compression.sparsity.stage2": 0.0, "training.epochs": 1}
    shelf, events = Shelf(), list[Event]()
    trained, compressed = run_both(shelf, events, **none)
    assert compressed.notes["curve"] == []
    assert compressed.values["pruned_float_error"].amount == trained.values["float_error"].amount


def test_a_diverging_candidate_is_infeasible_and_leaves_nothing() -> None:
    shelf = Shelf()
    wild = {"training.learning_rate": 1e5, "training.optimizer": "sgd"}
    result = run_stage(train.run, request("train", {}, **wild), StageContext(artifacts=shelf))
    assert result.ending is Ending.INFEASIBLE
    assert "diverged at epoch 1" in result.violations[0].message
    assert not shelf


def test_compress_without_weights_is_a_defect() -> None:
    result = run_stage(compress.run, request("compress", {}), StageContext(artifacts=Shelf()))
    assert result.fault is not None
    assert "needs the artifact 'weights'" in result.fault.detail


def test_weights_of_another_candidate_are_refused(finished: Finished) -> None:
    shelf, _, trained, _ = finished
    wider = request("compress", trained.artifacts, **{"network.width": 7})
    result = run_stage(compress.run, wider, StageContext(artifacts=shelf))
    assert result.fault is not None
    assert result.fault.reason == "bad_weights"


def test_damaged_weights_are_refused() -> None:
    module = build_candidate(study(), PARAMS, 0, load_dataset(study().dataset, 0))
    packed = pack_weights(module)
    for damaged in (b"", packed[:100], packed[:-300], b"PK" + packed[2:500]):
        with pytest.raises(Defect, match="do not fit"):
            unpack_weights(module, damaged)


def test_weights_come_back_as_they_were_and_without_pickle() -> None:
    data = load_dataset(study().dataset, 0)
    first, second = (build_candidate(study(), PARAMS, seed, data) for seed in (1, 2))
    packed = pack_weights(first)
    assert pack_weights(unpack_weights(second, packed)) == packed
    with np.load(io.BytesIO(packed), allow_pickle=False) as archive:
        assert set(archive.files) == set(first.state_dict())


def test_searched_options_win_over_those_of_the_study() -> None:
    file = study(training={"epochs": 9, "batch_size": 7}, compression={"sparsity": 0.2, "steps": 5})
    training = training_of(file, {"training.epochs": 3})
    assert (training.epochs, training.batch_size) == (3, 7)
    compression, sparsity = compression_of(file, {"compression.sparsity.stage1": 0.5, "compression.criterion": "l2"})
    assert (compression.steps, compression.criterion) == (5, "l2")
    assert (sparsity.default, dict(sparsity.by_prefix)) == (0.2, {"stage1": 0.5})


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"training.epochs": 0}, r"parameter training.epochs is 0"),
        ({"training.momentum": 0.5}, r"parameter training.momentum is 0.5"),
        ({"compression.steps": -1}, r"parameter compression.steps is -1"),
        ({"compression.sparsity.stage1": 1.5}, r"sparsity of stage1 is 1.5; allowed are 0 to below 1"),
    ],
)
def test_a_parameter_that_is_not_allowed_is_named(params: Mapping[str, ParamValue], text: str) -> None:
    with pytest.raises(Defect, match=text):
        training_of(study(), params)
        compression_of(study(), params)


def test_a_prefix_that_names_no_module_is_found() -> None:
    params = {"compression.sparsity.stage1": 0.1, "compression.sparsity.stage9": 0.1}
    assert unmatched_prefixes(study(), params, load_dataset(study().dataset, 0)) == ["stage9"]
