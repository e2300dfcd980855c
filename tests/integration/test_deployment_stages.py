"""The stages gate, build and final on real digits, with an untrained network where training would only take time."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mcu_agent.kinds import load_kind
from orchestrator.boards import on_board
from orchestrator.records import Ending, Source, StageRequest
from orchestrator.studyfile import StudyFile
from tasks import build, deployment, final, gate, studyboards
from tasks.errors import Defect, Infeasible, TransientFault
from tasks.firmware import toolchain
from tasks.firmware.host import HostNetwork
from tasks.nn.candidate import pruned_untrained
from tasks.nn.datasets import load_dataset
from tasks.nn.fit import calibration_inputs, reproducible
from tasks.quant import reference
from tasks.quant.quantise import quantise
from tasks.stage import StageContext, StageOutput, run_stage
from tests.support.artifacts import MemoryArtifacts

PARAMS = {"compression.sparsity": 0.25}
SEPARABLE = {"family": "dscnn", "options": {"width": 16}}


def study_of(**changes: Any) -> StudyFile:
    fields: dict[str, Any] = {
        "name": "digits",
        "dataset": {"source": "digits"},
        "network": {"family": "resnet2d"},
        "space": {"compression.sparsity": {"type": "float", "low": 0.0, "high": 0.5}},
        "board": "nrf52840-dk",
        "objectives": {"error": {}, "rom": {}, "ram": {}, "flops": {}},
        "budget": {"trials": 1},
    }
    return StudyFile.model_validate(fields | changes)


def request(stage: str, study: StudyFile, inputs: Mapping[str, str] | None = None) -> StageRequest:
    given = dict(inputs or {})
    return StageRequest(
        study_id="study", trial=0, stage=stage, attempt=0, params=PARAMS, seed=7, inputs=given, study=study.to_json()
    )


@pytest.fixture(scope="module")
def artifacts() -> MemoryArtifacts:
    return MemoryArtifacts()


@pytest.fixture(scope="module")
def context(artifacts: MemoryArtifacts) -> StageContext:
    return StageContext(artifacts=artifacts)


@pytest.fixture(scope="module")
def onnx(artifacts: MemoryArtifacts) -> str:
    """An int8 model with other weights and other ranges than the gate's."""
    study = study_of()
    data = load_dataset(study.dataset, study.seed)
    with reproducible(99, 1):
        module = pruned_untrained(study, PARAMS, 99, data)
        return artifacts.put_bytes(quantise(module, calibration_inputs(data, 64, 1))[1])


@pytest.fixture(scope="module")
def built(context: StageContext, onnx: str) -> StageOutput:
    return build.run(request("build", study_of(), {"onnx": onnx}), context)


@pytest.fixture(scope="module")
def gated(context: StageContext) -> StageOutput:
    return gate.run(request("gate", study_of()), context)


def test_the_gate_foretells_what_the_build_finds(gated: StageOutput, built: StageOutput) -> None:
    assert set(gated.values) == {"rom", "ram", "flops", "macs"}
    for name, value in gated.values.items():
        assert value == built.values[name]
        assert value.source is Source.EXACT and value.amount > 0


def test_code_for_size_is_smaller_in_the_gate_and_in_the_build(
    context: StageContext, gated: StageOutput, onnx: str
) -> None:
    study = study_of(firmware={"optimise": "size"})
    small = gate.run(request("gate", study), context)
    assert small.values["rom"].amount < gated.values["rom"].amount
    assert small.values["ram"] == gated.values["ram"]
    assert build.run(request("build", study, {"onnx": onnx}), context).values["rom"] == small.values["rom"]


def test_operations_are_spent_on_ram_where_the_study_allows_it(context: StageContext) -> None:
    plain, spent = study_of(network=SEPARABLE), study_of(network=SEPARABLE, firmware={"extra_macs": 1.0})
    before, after = (gate.run(request("gate", study), context).values for study in (plain, spent))
    assert after["ram"].amount < before["ram"].amount
    assert before["macs"].amount < after["macs"].amount <= 2 * before["macs"].amount
    data = load_dataset(spent.dataset, spent.seed)
    with reproducible(3, 1):
        module = pruned_untrained(spent, PARAMS, 3, data)
        onnx = context.artifacts.put_bytes(quantise(module, calibration_inputs(data, 64, 1))[1])
    built = build.run(request("build", spent, {"onnx": onnx}), context)  # compares C and reference layer by layer
    assert {name: built.values[name] for name in after} == after
    given = {"sources": built.artifacts["sources"], "onnx": onnx}
    assert final.run(request("final", spent, given), context).values["test_error"].source is Source.EXACT


def test_the_notes_hold_a_memory_map_that_adds_up(gated: StageOutput) -> None:
    memory = json.loads(json.dumps(gated.notes))["memory"]
    rom = memory["rom"]
    assert rom["total"] == rom["weights"] + rom["code"] + rom["runtime"] == gated.values["rom"].amount
    assert max(item["offset"] + item["bytes"] for item in memory["arena"]) == memory["ram"]["arena"]
    assert memory["arena_lower_bound"] <= memory["ram"]["arena"]
    assert 0 <= memory["arena_peak_layer"] <= max(item["last_layer"] for item in memory["arena"])
    scratch = [item for item in memory["arena"] if not item["tensors"]]
    assert scratch and all(item["first_layer"] == item["last_layer"] for item in scratch)


def test_the_examples_arena_is_within_5_percent_of_the_bound(gated: StageOutput) -> None:
    memory = gated.notes["memory"]
    assert memory["ram"]["arena"] <= 1.05 * memory["arena_lower_bound"]


def test_the_gate_lists_every_broken_limit_with_its_excess(context: StageContext, gated: StageOutput) -> None:
    rom, flops = gated.values["rom"].amount, gated.values["flops"].amount
    limits = {"error": {}, "rom": {"limit": rom - 3}, "flops": {"limit": flops / 2}, "ram": {}}
    with pytest.raises(Infeasible) as caught:
        gate.run(request("gate", study_of(objectives=limits)), context)
    found = {violation.quantity: violation.excess for violation in caught.value.violations}
    assert found == {"rom": 3, "flops": flops / 2}


def test_what_is_refused_keeps_the_values_that_are_known(context: StageContext, gated: StageOutput, onnx: str) -> None:
    refused = request("gate", study_of(objectives={"rom": {"limit": 1024}}))
    assert run_stage(gate.run, refused, context).values == gated.values
    unlearned = request("build", study_of(objectives={"error": {"limit": 1e-6}}), {"onnx": onnx})
    result = run_stage(build.run, unlearned, context)
    assert result.ending is Ending.INFEASIBLE and result.values["error"].amount == result.violations[0].amount > 0.5


def test_a_limit_that_is_just_met_is_kept(context: StageContext, gated: StageOutput) -> None:
    limits = {name: {"limit": gated.values[name].amount} for name in ("rom", "ram", "flops")}
    assert gate.run(request("gate", study_of(objectives=limits)), context).values == gated.values


def test_what_does_not_fit_the_board_is_infeasible_to_the_byte(
    context: StageContext, gated: StageOutput, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = load_kind("nrf52840-dk")
    stack = gated.notes["memory"]["ram"]["stack_reserved"]  # the linker reserves it whole, a limit counts what is used
    rom, ram = int(gated.values["rom"].amount), int(gated.values["ram"].amount) + stack
    small = type(kind)(
        **{name: getattr(kind, name) for name in kind.__slots__} | {"flash_bytes": rom - 1, "ram_bytes": ram - 2}
    )
    monkeypatch.setattr(studyboards, "load_kind", lambda name: small)
    # even where the study does not ask for ROM or RAM
    with pytest.raises(Infeasible) as caught:
        gate.run(request("gate", study_of(objectives={"error": {}})), context)
    found = {violation.quantity: (violation.amount, violation.excess) for violation in caught.value.violations}
    assert found == {"rom": (rom, 1), "ram": (ram, 2)}


def test_an_unknown_board_is_named(context: StageContext) -> None:
    with pytest.raises(Defect, match=r"known kinds: .*nrf52840-dk"):
        gate.run(request("gate", study_of(board="toaster")), context)


def test_the_build_measures_the_shipped_c_over_the_whole_validation_split(
    built: StageOutput, artifacts: MemoryArtifacts, onnx: str
) -> None:
    graph = deployment.integer_graph(artifacts.get_bytes(onnx))
    study = study_of()
    validation = load_dataset(study.dataset, study.seed).validation
    outputs = reference.output_of(graph, reference.quantise_input(validation.x, graph.input_tensor))
    assert built.values["error"].amount == np.mean(outputs.argmax(axis=1) != validation.y)


def test_the_vectors_hold_what_the_board_must_answer(built: StageOutput, artifacts: MemoryArtifacts) -> None:
    with np.load(io.BytesIO(artifacts.get_bytes(built.artifacts["vectors"])), allow_pickle=False) as vectors:
        layers = json.loads(artifacts.get_bytes(built.artifacts["layers"]))
        assert vectors["inputs"].shape == (32, 8, 8, 1) and vectors["inputs"].dtype == np.int8
        assert vectors["outputs"].shape == (32, 10) and vectors["labels"].shape == (32,)
        for layer in layers:
            assert list(vectors[f"layer_{layer['index']}"].shape) == layer["output_shape"]
        last = vectors[f"layer_{len(layers) - 1}"]
        assert np.array_equal(last.ravel(), vectors["outputs"][0])


def test_building_twice_writes_the_same_artifacts(built: StageOutput, context: StageContext, onnx: str) -> None:
    again = build.run(request("build", study_of(), {"onnx": onnx}), context)
    assert (again.artifacts, again.values) == (built.artifacts, built.values)


def test_more_vectors_than_samples_start_over(built: StageOutput, context: StageContext, onnx: str) -> None:
    many = build.run(request("build", study_of(profiling={"samples": 400}), {"onnx": onnx}), context)
    data = io.BytesIO(context.artifacts.get_bytes(many.artifacts["vectors"]))
    with np.load(data, allow_pickle=False) as vectors:
        n = len(load_dataset(study_of().dataset, 0).validation)
        assert len(vectors["inputs"]) == 400 > n
        assert np.array_equal(vectors["inputs"][n], vectors["inputs"][0])


def test_an_error_beyond_its_limit_is_infeasible(context: StageContext, onnx: str, built: StageOutput) -> None:
    limit = built.values["error"].amount / 2
    with pytest.raises(Infeasible, match="error is"):
        build.run(request("build", study_of(objectives={"error": {"limit": limit}}), {"onnx": onnx}), context)


def test_c_that_disagrees_with_the_reference_is_a_defect_that_names_the_layer(
    context: StageContext, onnx: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(HostNetwork):
        def run(self, x: np.ndarray) -> np.ndarray:
            return super().run(x) ^ 1

        def layer_outputs(self, sample: np.ndarray) -> dict[str, np.ndarray]:
            outputs = super().layer_outputs(sample)
            third = list(outputs)[2]
            return outputs | {third: outputs[third] + 1}

    monkeypatch.setattr(deployment, "HostNetwork", Wrong)
    with pytest.raises(Defect, match="differ first in layer 2 ") as caught:
        build.run(request("build", study_of(), {"onnx": onnx}), context)
    assert caught.value.reason == "host_mismatch"


def test_the_final_stage_measures_the_shipped_sources_on_the_test_split(
    built: StageOutput, context: StageContext, onnx: str
) -> None:
    inputs = {"onnx": onnx, "sources": built.artifacts["sources"]}
    result = final.run(request("final", study_of(), inputs), context)
    graph = deployment.integer_graph(context.artifacts.get_bytes(onnx))
    test = load_dataset(study_of().dataset, 0).test
    outputs = reference.output_of(graph, reference.quantise_input(test.x, graph.input_tensor))
    assert result.values["test_error"].amount == np.mean(outputs.argmax(axis=1) != test.y)


def test_a_missing_artifact_is_named(context: StageContext) -> None:
    with pytest.raises(Defect, match="needs the artifact 'onnx'"):
        build.run(request("build", study_of()), context)


def test_a_slow_compiler_is_a_passing_fault(context: StageContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "TIMEOUT_S", 0.001)
    with pytest.raises(TransientFault):
        gate.run(request("gate", study_of()), context)


def test_the_packed_sources_come_back_and_open_anywhere() -> None:
    sources = {"b.c": "int b;\n", "a/é.h": "/* ü */\n"}
    packed = build.pack_sources(sources)
    assert packed == build.pack_sources(dict(reversed(sources.items())))
    assert build.unpack_sources(packed) == sources
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert archive.testzip() is None


TWO = ("nrf52840-dk", "nucleo-h743zi")


def two_boards(**changes: Any) -> StudyFile:
    return study_of(board=None, boards=list(TWO), **changes)


def test_several_boards_are_built_in_one_go_with_one_error_and_the_figures_of_each_alone(
    context: StageContext, gated: StageOutput, built: StageOutput, onnx: str
) -> None:
    both_gated = gate.run(request("gate", two_boards()), context)
    both = build.run(request("build", two_boards(), {"onnx": onnx}), context)
    alone = build.run(request("build", study_of(board=TWO[1]), {"onnx": onnx}), context)
    for kind, single in zip(TWO, (built, alone), strict=True):
        assert on_board(both.values, kind) == single.values
        assert on_board(both.artifacts, kind) == single.artifacts
        assert on_board(both.notes, kind) == single.notes
    for name in ("rom", "ram"):
        assert both.values[name].amount == max(single.values[name].amount for single in (built, alone))
        assert both_gated.values[name] == both.values[name]
    assert on_board(both_gated.values, TWO[0]) == gated.values
    assert set(both.artifacts) == {"vectors", *(f"{name}@{k}" for name in ("sources", "elf", "layers") for k in TWO)}
    given = {"onnx": onnx, **both.artifacts}
    assert final.run(request("final", two_boards(), given), context).values["test_error"].source is Source.EXACT


def test_what_is_too_large_for_one_of_the_boards_is_infeasible_there_by_name(
    context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = replace(load_kind(TWO[1]), flash_bytes=4096)
    kinds = {TWO[0]: load_kind(TWO[0]), TWO[1]: tiny}
    monkeypatch.setattr(gate, "boards_of", lambda study: kinds)
    with pytest.raises(Infeasible) as caught:
        gate.run(request("gate", two_boards(objectives={"error": {}})), context)
    (violation,) = caught.value.violations
    assert (violation.quantity, violation.limit) == ("rom", 4096)
    assert f"of board {TWO[1]}" in violation.message
    values = caught.value.values
    assert {"rom", *(f"rom@{kind}" for kind in TWO)} <= set(values)  # what is known of the other board, too
    assert values[f"rom@{TWO[1]}"].amount == violation.amount


def test_a_limit_holds_on_every_board(context: StageContext, gated: StageOutput) -> None:
    limit = gated.values["rom"].amount - 1
    with pytest.raises(Infeasible) as caught:
        gate.run(request("gate", two_boards(objectives={"error": {}, "rom": {"limit": limit}})), context)
    assert any(f"rom on {TWO[0]} is" in violation.message for violation in caught.value.violations)


def test_a_boards_c_that_answers_otherwise_than_the_reference_is_a_defect(
    context: StageContext, onnx: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_all = build.compile_within

    def with_a_wrong_second(*arguments: Any) -> Any:
        first, second = compile_all(*arguments).values()
        weights = second.sources["edgefront_weights.c"]
        altered = {**second.sources, "edgefront_weights.c": re.sub(r"-(\d+),", r"\1,", weights)}
        return {TWO[0]: first, TWO[1]: replace(second, sources=altered)}

    monkeypatch.setattr(build, "compile_within", with_a_wrong_second)
    with pytest.raises(Defect, match="the generated C and the integer reference differ first in layer"):
        build.run(request("build", two_boards(), {"onnx": onnx}), context)
