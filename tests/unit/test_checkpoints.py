"""Trainings go on from their checkpoints, to the bit; a checkpoint that cannot be used costs time and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.records import Ending, Event, StageRequest, StageResult
from orchestrator.stopping import StoppingRule
from orchestrator.studyfile import Training
from tasks import checkpoints
from tasks.artifacts import ArtifactStore
from tasks.checkpoints import StoredCheckpoint, sealed, unsealed
from tasks.nn.fit import TensorData, fit, reproducible
from tasks.nn.resume import CheckpointUnusable, FitState, Progress, pack, unpack
from tasks.registry import memo_key, perform
from tests.support.studies import request, study_file
from tests.unit.test_fit import CPU, bands, network, state

PARAMS: Mapping[str, Any] = {"network.width": 8, "training.epochs": 5, "training.learning_rate": 0.01}
COMPRESSION: Mapping[str, Any] = {"compression.sparsity": 0.5, "compression.steps": 3, "compression.finetune_epochs": 2}
EVERY_EPOCH = study_file(training={"checkpoint_every": 1e-9}).to_json()
ROOT = Path(__file__).parents[2]


class Killed(BaseException):
    """Stands for SIGKILL: nobody catches it."""


def training_of(**options: object) -> Training:
    return Training.model_validate({"epochs": 6, "learning_rate": 0.01, "batch_size": 16, **options})


def train(
    training: Training, start: FitState | None = None, keep: Callable[[FitState], None] = lambda state: None
) -> tuple[nn.Module, list[Any]]:
    with reproducible(3, 1):
        module = network(3)
        data = TensorData.of(bands(), CPU)
        curve = fit(module, data, training, seed=3, start=start, on_state=lambda make: keep(make()))
    return module, curve


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("kept_at", [1, 4])
def test_a_training_that_goes_on_from_bytes_is_equal_to_the_bit(optimizer: str, kept_at: int) -> None:
    training = training_of(optimizer=optimizer)
    kept: list[bytes] = []
    whole, curve = train(training, keep=lambda state: kept.append(pack(Progress(rounds={}, fit=state), CPU)))
    assert len(kept) == 5  # after the last epoch there is nothing to go on with
    torch.manual_seed(99)
    start = unpack(kept[kept_at - 1], CPU).fit
    assert start is not None
    assert start.epoch == kept_at
    again, curve_again = train(training, start)
    assert all(torch.equal(a, b) for a, b in zip(state(whole), state(again), strict=True))
    assert curve_again == curve


@dataclass
class Attempts:
    """Attempts at one request over one store, each of which may die at an epoch."""

    request: StageRequest
    store: ArtifactStore
    events: list[Event] = field(default_factory=list)
    leaving: bool = False

    def run(self, *, die_at: int | None = None, leave_at: int | None = None) -> StageResult:
        self.events.clear()

        def progress(event: Event) -> None:
            self.events.append(event)
            epoch = event.fields["epoch"] if event.name == "epoch_finished" else None
            if epoch is not None and epoch == leave_at:
                self.leaving = True
            if epoch is not None and epoch == die_at:
                raise Killed

        return perform(self.request, self.store, progress=progress, worker="w", checkpoint=self._checkpoint)

    def _checkpoint(self, store: ArtifactStore, key: str) -> StoredCheckpoint:
        return StoredCheckpoint(store=store, key=key, leaving=lambda: self.leaving)

    @property
    def epochs(self) -> list[int]:
        return [event.fields["epoch"] for event in self.events if event.name == "epoch_finished"]

    @property
    def kept(self) -> list[Path]:
        return [path for path in Path(self.store.url, "checkpoint").rglob("*") if path.is_file()]


def attempts(folder: Path, stage: str = "train", **changes: Any) -> Attempts:
    return Attempts(request(stage, **{"params": PARAMS, "study": EVERY_EPOCH, **changes}), ArtifactStore(folder))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> StageResult:
    return attempts(tmp_path_factory.mktemp("whole")).run()


def same(result: StageResult, other: StageResult) -> bool:
    facts = ("ending", "values", "artifacts", "notes")
    return all(getattr(result, name) == getattr(other, name) for name in facts)


def test_an_attempt_after_a_death_goes_on_from_the_last_epoch_kept(tmp_path: Path, whole: StageResult) -> None:
    training = attempts(tmp_path)
    with pytest.raises(Killed):
        training.run(die_at=4)
    assert training.epochs == [1, 2, 3, 4]
    training.request = replace(training.request, attempt=2)
    result = training.run()
    assert training.epochs == [4, 5]  # the fourth had ended and was not kept yet
    assert [event.fields for event in training.events if event.name == "stage_resumed"] == [{"epoch": 3, "rounds": 0}]
    assert same(result, whole)
    assert training.kept == []


def test_a_worker_killed_amid_a_training_costs_the_epochs_since_its_checkpoint(
    tmp_path: Path, whole: StageResult
) -> None:
    training = attempts(tmp_path / "store")
    command = [sys.executable, "-m", "tests.support.train_and_die", training.store.url, "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    text = json.dumps(training.request.to_json())
    killed = subprocess.run(command, input=text, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert len(training.kept) == 1
    result = training.run()
    assert training.epochs == [3, 4, 5]
    assert same(result, whole)


def test_fine_tuning_goes_on_amid_its_rounds(tmp_path: Path, whole: StageResult) -> None:
    weights = ArtifactStore(tmp_path / "whole")
    changes = {"params": {**PARAMS, **COMPRESSION}}
    inputs = {"weights": attempts(tmp_path / "whole", **changes).run().artifacts["weights"]}
    undisturbed = attempts(tmp_path / "whole", "compress", inputs=inputs, **changes).run()
    assert undisturbed.ending is Ending.COMPLETE
    tuning = attempts(tmp_path / "again", "compress", inputs=inputs, **changes)
    tuning.store.put_bytes(weights.get_bytes(inputs["weights"]))
    with pytest.raises(Killed):
        tuning.run(die_at=2)
    with pytest.raises(Killed):
        tuning.run(die_at=6)
    assert tuning.epochs == [2, 3, 4, 5, 6]
    result = tuning.run()
    assert tuning.epochs == [6]
    assert same(result, undisturbed)
    assert tuning.kept == []


def test_a_stopping_rule_knows_the_epochs_before_the_death(tmp_path: Path) -> None:
    rule = StoppingRule(threshold=0.0, shares=(0.0, 0.0, 0.0, 1.0, 1.0)).to_json()
    undisturbed = attempts(tmp_path / "a", stopping=rule).run()
    assert undisturbed.ending is Ending.STOPPED
    training = attempts(tmp_path / "b", stopping=rule)
    with pytest.raises(Killed):
        training.run(die_at=3)
    assert same(training.run(), undisturbed)
    assert training.epochs == [3, 4]
    assert training.kept == []


def test_a_worker_that_is_leaving_keeps_the_epoch_and_hands_over(tmp_path: Path, whole: StageResult) -> None:
    training = attempts(tmp_path, study=study_file().to_json())
    result = training.run(leave_at=2)
    assert result.fault is not None
    assert result.fault.reason == "handed_over"
    assert training.epochs == [1, 2]
    training.leaving = False
    assert same(training.run(), whole)
    assert training.epochs == [3, 4, 5]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-1], "is damaged"),
        (lambda data: b"", "is damaged"),
        (lambda data: data[:200] + b"x" + data[201:], "is damaged"),
        (lambda data: sealed(b"no archive"), "cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_line_in_the_log(
    tmp_path: Path,
    whole: StageResult,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[bytes], bytes],
    said: str,
) -> None:
    training = attempts(tmp_path)
    with pytest.raises(Killed):
        training.run(die_at=3)
    (path,) = training.kept
    path.write_bytes(damage(path.read_bytes()))
    assert same(training.run(), whole)
    assert training.epochs == [1, 2, 3, 4, 5]
    assert said in caplog.text
    assert training.kept == []


def test_a_checkpoint_of_another_pytorch_or_device_is_not_gone_on_from(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pack(Progress(rounds={}, fit=None), CPU)
    with pytest.raises(CheckpointUnusable, match="'device': 'cpu'"):
        unpack(data, torch.device("cuda"))
    monkeypatch.setattr(torch, "__version__", "1.0")
    with pytest.raises(CheckpointUnusable, match="torch"):
        unpack(data, CPU)


def test_a_checkpoint_holds_no_code(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (ran,))

    path = tmp_path / "trap"
    torch.save({"format": 1, "rounds": Trap()}, path)
    with pytest.raises(CheckpointUnusable, match="cannot be read"):
        unpack(path.read_bytes(), CPU)
    assert not ran.exists()


def test_how_often_a_training_is_kept_is_no_part_of_its_name() -> None:
    usual = request("train", study=study_file().to_json())
    assert memo_key(usual) == memo_key(replace(usual, study=EVERY_EPOCH))
    before = {key: value for key, value in usual.study["training"].items() if key != "checkpoint_every"}
    assert memo_key(usual) == memo_key(replace(usual, study={**usual.study, "training": before}))
    other = study_file(training={"epochs": 7}).to_json()
    assert memo_key(usual) != memo_key(replace(usual, study=other))


def test_what_is_sealed_is_whole_or_nothing() -> None:
    assert unsealed(sealed(b"state")) == b"state"
    assert unsealed(sealed(b"state")[:-1]) is None
    assert unsealed(b"") is None


def test_checkpoints_that_nobody_touches_are_swept_away_and_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "_last_sweep", {})
    store = ArtifactStore(tmp_path)
    old, fresh = "a" * 64, "b" * 64
    store.save_checkpoint(old, b"old")
    store.save_checkpoint(fresh, b"fresh")
    written = tmp_path / "checkpoint" / old[:2] / old[2:]
    os.utime(written, (0, 0))
    checkpoints.sweep(store)
    assert store.load_checkpoint(old) is None
    assert store.load_checkpoint(fresh) == b"fresh"


def test_a_store_that_cannot_be_written_costs_the_checkpoint_only(
    tmp_path: Path, whole: StageResult, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "checkpoint").write_text("a file where the folder should be")
    assert same(attempts(tmp_path).run(), whole)
    assert "no checkpoint of" in caplog.text
