"""What every evaluator promises the loop, held against the one in this process and the one over the queue."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import pytest

from orchestrator.ports import Evaluator
from orchestrator.records import Ending, FaultKind, StageRequest, StageResult
from tasks.artifacts import ArtifactStore
from tasks.evaluator import CeleryEvaluator, InlineEvaluator
from tasks.workers import EmbeddedLab
from tests.support.fake_stages import NO_JSON, NO_OUTPUT
from tests.support.studies import BOARD, FAKE_STAGES, Recorder, request

PATIENCE_S = 30.0
TROUBLE = "transient:gate:101,defect:gate:102,infeasible:gate:103,crash:gate:104"


@contextmanager
def environment(**values: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    os.environ.pop("EDGEFRONT_BROKER_URL", None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class Bench:
    """An evaluator with its sink and store, and how to wait for results."""

    def __init__(self, evaluator: Evaluator, sink: Recorder, artifacts: Path) -> None:
        self.evaluator = evaluator
        self.sink = sink
        self.store = ArtifactStore(artifacts)

    def results(self, *requests: StageRequest) -> list[StageResult]:
        for one in requests:
            self.evaluator.submit(one)
        found: dict[tuple[int, str], StageResult] = {}
        deadline = monotonic() + PATIENCE_S
        while len(found) < len(requests) and monotonic() < deadline:
            for result in self.evaluator.collect(0.5):
                found.setdefault((result.trial, result.stage), result)
        return [found[one.trial, one.stage] for one in requests]

    def result(self, one: StageRequest) -> StageResult:
        return self.results(one)[0]


@pytest.fixture(scope="module", params=["inline", "celery"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp(request.param)
    sink = Recorder()
    with environment(EDGEFRONT_STAGES=FAKE_STAGES, EDGEFRONT_TEST_TROUBLE=TROUBLE):
        if request.param == "inline":
            evaluator: Evaluator = InlineEvaluator(folder / "artifacts", sink)
            yield Bench(evaluator, sink, folder / "artifacts")
            evaluator.close()
            return
        with EmbeddedLab(folder, board_kinds=(BOARD,)) as lab:
            evaluator = CeleryEvaluator(
                url=lab.url, study_id="study", artifacts=folder / "artifacts", sink=sink, check=lab.check
            )
            yield Bench(evaluator, sink, folder / "artifacts")
            evaluator.close()


def numbered(trial: int, stage: str = "gate", **changes: object) -> StageRequest:
    return request(stage, trial=trial, seed=trial, **changes)


def test_a_result_carries_the_ids_of_its_request(bench: Bench) -> None:
    result = bench.result(numbered(1, attempt=2))
    assert (result.study_id, result.trial, result.stage, result.attempt) == ("study", 1, "gate", 2)
    assert result.ending is Ending.COMPLETE
    assert result.worker


def test_artifacts_go_from_stage_to_stage_by_hash(bench: Bench) -> None:
    trained = bench.result(numbered(2, "train"))
    assert bench.store.get_bytes(trained.artifacts["weights"]).startswith(b"train")
    compressed = bench.result(numbered(2, "compress", inputs=trained.artifacts))
    assert compressed.ending is Ending.COMPLETE
    assert set(compressed.artifacts) == {"onnx"}


def test_every_stage_of_every_queue_is_served(bench: Bench) -> None:
    hashes = {name: bench.store.put_bytes(name.encode()) for name in ("weights", "onnx", "elf")}
    stages = (*bench.evaluator.stages, "final")
    results = bench.results(*(numbered(3, stage, inputs=hashes) for stage in stages))
    assert [result.ending for result in results] == [Ending.COMPLETE] * len(stages)


@pytest.mark.parametrize(
    ("trial", "ending", "kind", "reason"),
    [
        (101, Ending.FAULT, FaultKind.TRANSIENT, "board_lost"),
        (102, Ending.FAULT, FaultKind.DEFECT, "bit_mismatch"),
        (103, Ending.INFEASIBLE, None, ""),
        (104, Ending.FAULT, FaultKind.DEFECT, "unexpected_error"),
        (NO_OUTPUT, Ending.FAULT, FaultKind.DEFECT, "bad_stage"),
        (NO_JSON, Ending.FAULT, FaultKind.DEFECT, "bad_stage"),
    ],
)
def test_a_stage_that_fails_is_a_result_and_no_exception(
    bench: Bench, trial: int, ending: Ending, kind: FaultKind | None, reason: str
) -> None:
    result = bench.result(numbered(trial))
    assert result.ending is ending
    assert (result.fault.kind, result.fault.reason) == (kind, reason) if result.fault else kind is None


def test_a_missing_artifact_is_a_transient_fault_that_names_it(bench: Bench) -> None:
    fault = bench.result(numbered(4, "compress", inputs={"weights": "ab" * 32})).fault
    assert fault is not None
    assert (fault.kind, fault.reason) == (FaultKind.TRANSIENT, "artifact_missing")
    assert "ab" * 32 in fault.detail


def test_a_request_submitted_again_gives_the_recorded_result(bench: Bench) -> None:
    first = bench.result(numbered(5, "train"))
    again = bench.result(numbered(5, "train"))
    assert (again.values, again.artifacts, again.seconds) == (first.values, first.artifacts, first.seconds)


def test_progress_reaches_the_sink_with_trial_stage_and_worker(bench: Bench) -> None:
    bench.result(numbered(6, "train"))
    bench.evaluator.collect(0.2)
    (started,) = [event for event in bench.sink.named("stage_started") if event["trial"] == 6]
    (epoch,) = [event for event in bench.sink.named("epoch_finished") if event["trial"] == 6]
    assert started["stage"] == epoch["stage"] == "train"
    assert started["worker"] == epoch["worker"] != ""
    assert epoch["epoch"] == 1


def test_nothing_to_collect_is_an_empty_answer_in_time(bench: Bench) -> None:
    before = monotonic()
    assert list(bench.evaluator.collect(0.1)) == []
    assert monotonic() - before < 2.0


def test_what_has_ended_or_was_never_submitted_is_not_lost(bench: Bench) -> None:
    one = numbered(7)
    bench.result(one)
    assert list(bench.evaluator.lost([one.task_id, numbered(8).task_id])) == []
    assert list(bench.evaluator.lost([])) == []
