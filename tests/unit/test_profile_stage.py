"""The profile stage: values with their sources, and every way it can end."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcu_agent.kinds import load_kind
from mcu_agent.rack import load_rack
from orchestrator.records import Ending, Event, FaultKind, Source, StageRequest, StageResult
from orchestrator.studyfile import StudyFile
from tasks import mismatch, onboard
from tasks import profile as profile_stage
from tasks.channel import AGENT_CHANNEL
from tasks.firmware.image import measure
from tasks.profile import run
from tasks.stage import StageContext, run_stage
from tests.support import boards
from tests.support.artifacts import MemoryArtifacts
from tests.unit.test_calibration import record


@pytest.fixture(autouse=True)
def _own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFRONT_LOCKS", str(tmp_path / "locks"))
    monkeypatch.delenv("EDGEFRONT_RACK", raising=False)


def study(**changes: Any) -> dict[str, Any]:
    data = {
        "name": "s",
        "dataset": {"source": "digits"},
        "network": {"family": "resnet2d"},
        "space": {"network.width": {"type": "int", "low": 1, "high": 8}},
        "board": "nrf52-dk",
        "objectives": {"error": {}, "ram": {}, "latency": {"limit": "1 s"}, "energy": {"limit": "1 J"}},
        "budget": {"trials": 3},
        "profiling": {"samples": 32, "timeout": 5},
    }
    return StudyFile.model_validate({**data, **changes}).to_json()


def vectors(first_byte: int = 0, wrong: bool = False) -> bytes:
    x = boards.inputs(40, first_byte)
    outputs = boards.layer_outputs(x)
    expected = outputs[1].copy()
    expected[3, 2] ^= wrong
    layers = {f"layer_{index}": output[0] for index, output in enumerate(outputs)}
    file = io.BytesIO()
    np.savez(file, inputs=x.reshape(40, 1, 1, 16), outputs=expected, **layers)
    return file.getvalue()


def ask(
    store: MemoryArtifacts, *, vector_file: bytes | None = None, elf: bytes | None = None, **changes: Any
) -> StageRequest:
    inputs = {
        "elf": store.put_bytes(elf if elf is not None else boards.firmware()),
        "layers": store.put_bytes(json.dumps(boards.LAYERS).encode()),
        "vectors": store.put_bytes(vector_file if vector_file is not None else vectors()),
    }
    return StageRequest(
        study_id="id",
        trial=7,
        stage="profile",
        attempt=1,
        params={},
        seed=0,
        inputs=inputs,
        study=study(**changes),
    )


def answer(request: StageRequest, store: MemoryArtifacts, events: list[Event] | None = None) -> StageResult:
    sink = events if events is not None else []
    return run_stage(run, request, StageContext(artifacts=store, progress=sink.append))


def test_a_profile_gives_every_value_with_its_source() -> None:
    store, events = MemoryArtifacts(), []
    result = answer(ask(store), store, events)
    assert result.ending is Ending.COMPLETE
    sources = {name: (value.unit, value.source) for name, value in result.values.items()}
    assert sources == {
        "ram": ("byte", Source.EMULATED),
        "stack": ("byte", Source.EMULATED),
        "instructions": ("1", Source.EMULATED),
        "cycles": ("1", Source.EMULATED),
        "latency": ("s", Source.EMULATED),
        "energy": ("J", Source.ESTIMATED),
    }
    assert result.values["latency"].amount == result.values["cycles"].amount / 64e6
    assert "estimate: 3.7 mA" in result.values["energy"].note
    assert [event.name for event in events] == ["board_leased"]


def test_ram_is_static_data_and_the_deepest_stack() -> None:
    store = MemoryArtifacts()
    values = answer(ask(store), store).values
    static = measure(boards.firmware(), load_kind("nrf52-dk"))[1].static_bytes
    assert values["ram"].amount == static + values["stack"].amount
    assert 0 < values["stack"].amount < boards.STACK_BYTES


def test_the_notes_hold_a_table_of_layers_that_adds_up() -> None:
    store = MemoryArtifacts()
    result = answer(ask(store), store)
    notes = json.loads(json.dumps(result.notes))
    assert [layer["name"] for layer in notes["layers"]] == ["double", "add"]
    assert {layer["source"] for layer in notes["layers"]} == {"emulated"}
    total = notes["glue"]["instructions"] + sum(layer["instructions"] for layer in notes["layers"])
    assert total == result.values["instructions"].amount
    assert (notes["board_id"], notes["n_inputs"], notes["bit_exact"]) == ("virtual-nrf52-dk", 32, True)


@pytest.mark.parametrize(("objective", "limit"), [("ram", "0.1 KiB"), ("latency", "1 us"), ("energy", "0.001 uJ")])
def test_what_is_over_a_limit_is_infeasible_by_how_much(objective: str, limit: str) -> None:
    store = MemoryArtifacts()
    result = answer(ask(store, objectives={"error": {}, objective: {"limit": limit}}), store)
    assert result.ending is Ending.INFEASIBLE
    assert [violation.quantity for violation in result.violations] == [objective]
    assert result.violations[0].excess > 0


def test_a_mismatch_is_a_defect_that_names_the_layer() -> None:
    store = MemoryArtifacts()
    result = answer(ask(store, vector_file=vectors(106)), store)
    assert result.fault is not None
    assert (result.fault.kind, result.fault.reason) == (FaultKind.DEFECT, "bit_mismatch")
    assert "first differing layer: add" in result.fault.detail


def test_a_mismatch_that_the_first_input_does_not_show_is_looked_into_with_the_one_that_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = boards.inputs(40, 0)
    x[3] = boards.inputs(40, 106)[0]  # the firmware adds wrongly for an input that begins so
    outputs = boards.layer_outputs(x)
    file = io.BytesIO()
    layers = {f"layer_{index}": output[0] for index, output in enumerate(outputs)}
    np.savez(file, inputs=x.reshape(40, 1, 1, 16), outputs=outputs[1], **layers)

    def reference_layers(onnx: bytes, inputs: np.ndarray, extra_macs: float) -> dict[int, np.ndarray]:
        assert (onnx, extra_macs) == (b"the network", 0.0)
        return {index: output[0] for index, output in enumerate(boards.layer_outputs(inputs))}

    monkeypatch.setattr(mismatch, "reference_layers", reference_layers)
    store = MemoryArtifacts()
    request = ask(store, vector_file=file.getvalue())
    named = replace(request, inputs={**request.inputs, "onnx": store.put_bytes(b"the network")})
    fault = answer(named, store).fault
    assert fault is not None
    assert fault.kind is FaultKind.DEFECT
    assert "input 3 gives" in fault.detail
    assert fault.detail.endswith("of input 3 the first differing layer: add")


def test_a_host_without_the_integer_reference_reports_the_mismatch_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(profile_stage.util, "find_spec", lambda name: None)
    store = MemoryArtifacts()
    request = ask(store, vector_file=vectors(wrong=True))
    named = replace(request, inputs={**request.inputs, "onnx": store.put_bytes(b"the network")})
    fault = answer(named, store).fault
    assert fault is not None
    assert (fault.kind, fault.reason) == (FaultKind.DEFECT, "bit_mismatch")
    assert "input 3 gives 1 of 16" in fault.detail
    assert "extra search" in fault.detail


def test_a_wrong_reference_is_told_by_the_input_it_is_of() -> None:
    store = MemoryArtifacts()
    later = answer(ask(store, vector_file=vectors(wrong=True)), store)
    assert later.fault is not None
    assert later.fault.detail.startswith("board virtual-nrf52-dk: input 3 gives 1 of 16")


@pytest.mark.parametrize(
    ("first_byte", "kind", "reason"),
    [
        (101, FaultKind.DEFECT, "image_at_fault"),  # it hangs twice, and the board passes its self-test between
        (102, FaultKind.DEFECT, "firmware_fault"),
        (103, FaultKind.DEFECT, "firmware_fault"),
        (111, FaultKind.TRANSIENT, "transfer_corrupt"),
    ],
)
def test_misbehaving_firmware_is_a_fault_of_the_right_kind(first_byte: int, kind: FaultKind, reason: str) -> None:
    store = MemoryArtifacts()
    request = ask(store, vector_file=vectors(first_byte), profiling={"samples": 32, "timeout": 0.3})
    fault = answer(request, store).fault
    assert fault is not None
    assert (fault.kind, fault.reason) == (kind, reason)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"elf": b"no ELF file"}, "image_rejected"),
        ({"vector_file": b"no npz file"}, "bad_artifact"),
        ({"board": "nrf99"}, "unknown_board_kind"),
    ],
)
def test_unusable_input_is_a_defect(change: dict[str, Any], reason: str) -> None:
    store = MemoryArtifacts()
    fault = answer(ask(store, **change), store).fault
    assert fault is not None
    assert (fault.kind, fault.reason) == (FaultKind.DEFECT, reason)


def test_a_calibrated_kind_has_estimates_with_their_error_in_place_of_emulated_latency() -> None:
    fitted = record(cycle_factor=2.0, nj_per_cycle=0.5, nj_interval=(0.4, 0.6), meter="ppk2")
    store = MemoryArtifacts()
    calibrated = {"samples": 32, "timeout": 5, "calibration": [fitted.to_json()]}
    plain, found = answer(ask(store), store).values, answer(ask(store, profiling=calibrated), store).values
    assert (plain["latency"].source, found["latency"].source) == (Source.EMULATED, Source.ESTIMATED)
    assert found["latency"].amount == pytest.approx(2 * plain["latency"].amount)
    assert found["cycles"] == plain["cycles"]
    assert found["energy"].amount == pytest.approx(2 * found["cycles"].amount * 0.5e-9)
    assert "±3.0 % a layer" in found["latency"].note
    assert "0.500 nJ a cycle by ppk2" in found["energy"].note


def test_a_calibration_of_another_kind_changes_nothing() -> None:
    store = MemoryArtifacts()
    other = {"samples": 32, "timeout": 5, "calibration": [record(kind="nucleo-f446re").to_json()]}
    assert answer(ask(store, profiling=other), store).values == answer(ask(store), store).values


def bomb() -> bytes:
    """A file of arrays that unpacks to more than any vectors are."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed, packed.open("inputs.npy", "w") as stream:
        for _ in range(257):
            stream.write(bytes(1_000_000))
    return file.getvalue()


def array_file(header: str) -> bytes:
    """Vectors whose inputs say of themselves what ``header`` says, and hold nothing."""
    text = header.encode().ljust(117) + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("inputs.npy", content)
    return file.getvalue()


@pytest.mark.parametrize(
    "vector_file",
    [
        bomb(),
        array_file("{'descr': '|i1', 'fortran_order': False, 'shape': (1000000000000000,)}"),
        array_file("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"),
        array_file("{'descr': __import__('os'), 'fortran_order': False, 'shape': (1,)}"),
    ],
    ids=["bomb", "a petabyte", "pickles", "code"],
)
def test_vectors_made_to_harm_are_a_defect(vector_file: bytes) -> None:
    store = MemoryArtifacts()
    fault = answer(ask(store, vector_file=vector_file), store).fault
    assert fault is not None
    assert (fault.kind, fault.reason) == (FaultKind.DEFECT, "bad_artifact")


def test_layers_nested_without_end_are_a_defect() -> None:
    store = MemoryArtifacts()
    request = ask(store)
    spoilt = {**request.inputs, "layers": store.put_bytes(b"[" * 100_000)}
    fault = answer(replace(request, inputs=spoilt), store).fault
    assert fault is not None
    assert (fault.kind, fault.reason) == (FaultKind.DEFECT, "bad_artifact")


def test_a_missing_artifact_is_a_defect_that_names_it() -> None:
    store = MemoryArtifacts()
    request = ask(store)
    fault = answer(replace(request, inputs={"elf": request.inputs["elf"]}), store).fault
    assert fault is not None
    assert fault.reason == "missing_artifact"
    assert "layers" in fault.detail


ONE_BOARD = '[[board]]\nid = "bench"\nkind = "nrf52-dk"\ndriver = "virtual"\n'


def test_a_rack_file_that_somebody_edits_ends_nothing_that_an_agent_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rack, store = tmp_path / "rack.toml", MemoryArtifacts()
    monkeypatch.setenv("EDGEFRONT_RACK", str(rack))
    rack.write_text("[[board]\n")
    fault = answer(ask(store), store).fault
    assert fault is not None
    assert (fault.reason, fault.kind) == ("inventory", FaultKind.DEFECT)
    monkeypatch.setenv(AGENT_CHANNEL, "")  # no agent yet: an empty name is none
    assert answer(ask(store), store).fault == fault
    monkeypatch.setenv(AGENT_CHANNEL, str(tmp_path / "channel"))
    fault = answer(ask(store), store).fault
    assert fault is not None
    assert (fault.reason, fault.kind) == ("no_board_free", FaultKind.TRANSIENT)
    assert "the agent's rack file cannot be used" in fault.detail
    rack.write_text(ONE_BOARD)
    assert answer(ask(store), store).notes["board_id"] == "bench"
    rack.write_text("[[board]\n")
    assert answer(ask(store), store).notes["board_id"] == "bench"


def test_boards_that_count_nothing_serve_no_study(tmp_path: Path) -> None:
    path = tmp_path / "rack.toml"
    others = (
        '[[board]]\nid = "model"\nkind = "nrf52-dk"\ndriver = "virtual"\nemulator = "qemu"\n',
        '[[board]]\nid = "served"\nkind = "nrf52-dk"\ndriver = "gdb"\nconnection = "localhost:1"\nserver = "qemu"\n',
        '[[board]]\nid = "probed"\nkind = "nrf52-dk"\ndriver = "gdb"\nconnection = "localhost:2"\n',
    )
    path.write_text("".join((ONE_BOARD, *others)))
    rack = load_rack(path)
    assert [one.board_id for one in rack.boards] == ["bench", "model", "served", "probed"]
    assert [one.board_id for one in onboard.measuring(rack).boards] == ["bench", "probed"]


def test_boards_come_from_the_rack_file_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rack = tmp_path / "rack.toml"
    rack.write_text(ONE_BOARD)
    monkeypatch.setenv("EDGEFRONT_RACK", str(rack))
    store = MemoryArtifacts()
    assert answer(ask(store), store).notes["board_id"] == "bench"
    fault = answer(ask(store, board="nucleo-h743zi"), store).fault
    assert fault is not None
    assert (fault.reason, fault.kind) == ("inventory", FaultKind.DEFECT)
