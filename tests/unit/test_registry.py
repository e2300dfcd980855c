"""Running a stage once, and recalling what it gave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.records import Ending, Event, FaultKind, Source, StageRequest, StageResult, Value, Violation
from tasks import registry
from tasks.artifacts import ArtifactStore, DiskFull
from tasks.errors import Infeasible, TransientFault
from tasks.registry import memo_key, perform, stage_function, stages_for, stages_of_queues
from tasks.stage import StageContext, StageOutput
from tests.support.studies import FAKE_STAGES, request, study_file

Body = Callable[[StageRequest, StageContext], StageOutput]
calls: list[StageRequest] = []


def use(monkeypatch: pytest.MonkeyPatch, body: Body) -> None:
    def counted(one: StageRequest, context: StageContext) -> StageOutput:
        calls.append(one)
        return body(one, context)

    calls.clear()
    monkeypatch.setattr(registry, "stage_function", lambda stage: counted)


def run(one: StageRequest, store: ArtifactStore) -> StageResult:
    return perform(one, store, progress=lambda event: None, worker="here")


def writing(one: StageRequest, context: StageContext) -> StageOutput:
    value = Value(amount=1.0, unit="byte", source=Source.EXACT)
    return StageOutput(values={"rom": value}, artifacts={"elf": context.artifacts.put_bytes(b"elf")})


def test_the_same_work_is_done_once_and_recalled_under_the_new_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, writing)
    store = ArtifactStore(tmp_path)
    first = run(request(trial=1, attempt=1), store)
    again = run(request(trial=2, attempt=3), store)
    assert len(calls) == 1
    assert (again.trial, again.attempt) == (2, 3)
    assert (again.values, again.artifacts, again.seconds) == (first.values, first.artifacts, first.seconds)


def test_work_whose_artifact_is_gone_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, writing)
    store = ArtifactStore(tmp_path)
    result = run(request(), store)
    Path(store.path_of(result.artifacts["elf"])).unlink()
    assert run(request(), store).artifacts == result.artifacts
    assert len(calls) == 2
    assert store.has(result.artifacts["elf"])


def test_a_damaged_record_only_costs_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, writing)
    store = ArtifactStore(tmp_path)
    store.remember(memo_key(request()), b'{"version": 1, "half')
    assert run(request(), store).ending is Ending.COMPLETE


def test_an_infeasible_result_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(one: StageRequest, context: StageContext) -> StageOutput:
        raise Infeasible(Violation(quantity="rom", amount=2, limit=1, unit="byte", message="1 byte over"))

    use(monkeypatch, too_large)
    store = ArtifactStore(tmp_path)
    assert run(request(), store).ending is Ending.INFEASIBLE
    assert run(request(), store).violations[0].message == "1 byte over"
    assert len(calls) == 1


def test_a_fault_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(one: StageRequest, context: StageContext) -> StageOutput:
        raise TransientFault("board_lost", "no answer")

    use(monkeypatch, fails)
    store = ArtifactStore(tmp_path)
    run(request(), store)
    run(request(), store)
    assert len(calls) == 2


def test_a_result_that_cannot_be_recorded_is_a_defect_that_stops_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: ArtifactStore, key: str, data: bytes) -> None:
        raise DiskFull("/disk", len(data))

    use(monkeypatch, writing)
    monkeypatch.setattr(ArtifactStore, "remember", full)
    result = run(request(), ArtifactStore(tmp_path))
    assert result.fault is not None
    assert (result.fault.kind, result.fault.reason) == (FaultKind.DEFECT, "disk_full")
    assert result.values == {}


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({"trial": 9}, True),
        ({"attempt": 2}, True),
        ({"study": study_file(budget={"trials": 99}).to_json()}, True),
        ({"study": study_file(parallelism={"train_workers": 9}).to_json()}, True),
        ({"study": study_file(sampler={"name": "ars"}).to_json()}, True),
        ({"study": study_file(training={"epochs": 2}).to_json()}, False),
        ({"study": study_file(seed=2).to_json()}, False),
        ({"stage": "train"}, False),
        ({"seed": 8}, False),
        ({"params": {"network.width": 4}}, False),
        ({"inputs": {"weights": "0" * 64}}, False),
    ],
)
def test_a_result_is_named_by_what_determines_it_and_by_nothing_else(change: dict[str, object], is_same: bool) -> None:
    assert (memo_key(request(**change)) == memo_key(request())) is is_same


def test_a_users_mapping_replaces_single_stages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEFRONT_STAGES", FAKE_STAGES)
    events: list[Event] = []
    result = perform(request("train"), ArtifactStore(tmp_path), progress=events.append, worker="here")
    assert result.values["float_error"].amount == pytest.approx(0.1 / 4)
    assert [event.name for event in events] == ["epoch_finished"]


@pytest.mark.parametrize(
    ("address", "text"),
    [("no.such.module:STAGES", "no.such.module"), ("tests.support.fake_stages:NONE", "NONE"), ("nothing", "nothing")],
)
def test_a_mapping_that_cannot_be_loaded_is_a_defect_that_names_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str, text: str
) -> None:
    monkeypatch.setenv("EDGEFRONT_STAGES", address)
    fault = run(request("gate"), ArtifactStore(tmp_path)).fault
    assert fault is not None
    assert fault.kind is FaultKind.DEFECT
    assert text in fault.detail


def test_an_unknown_stage_is_a_defect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEFRONT_STAGES", raising=False)
    fault = run(request("polish"), ArtifactStore(tmp_path)).fault
    assert fault is not None
    assert fault.reason == "unknown_stage"


@pytest.mark.parametrize("stage", [*registry.STAGES, registry.FINAL_STAGE])
def test_every_stage_of_the_pipeline_has_a_function(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    monkeypatch.delenv("EDGEFRONT_STAGES", raising=False)
    assert callable(stage_function(stage))


def test_a_worker_knows_its_stages_by_its_queues() -> None:
    from tasks.messages import QUEUE_STAGES

    assert stages_of_queues(QUEUE_STAGES, ("train", "board.nrf52-dk")) == ("train", "compress", "profile")


@pytest.mark.parametrize(
    ("stage", "key"),
    [
        ("gate", "af3156610c181e777e2e91ff4d948b3210283ca1240d6f97dc843ac833b1ae90"),
        ("profile", "0781b6ffe937e6846abceef77be09b9b3a7bc48d11193bb6acb17a466662cf29"),
    ],
)
def test_the_names_of_results_of_a_study_with_one_board_are_those_of_before_there_could_be_several(
    stage: str, key: str
) -> None:
    assert memo_key(request(stage)) == key


def test_each_board_of_several_has_its_own_profile_and_its_own_name_for_the_result() -> None:
    kinds = ("nrf52-dk", "nucleo-h743zi")
    assert stages_for(kinds[:1]) == ("gate", "train", "compress", "build", "profile")
    stages = stages_for(kinds)
    assert stages == ("gate", "train", "compress", "build", "profile@nrf52-dk", "profile@nucleo-h743zi")
    file = study_file(board=None, boards=list(kinds)).to_json()
    assert len({memo_key(request(stage, study=file)) for stage in stages}) == len(stages)
    assert stage_function(stages[-1]) is stage_function("profile")
