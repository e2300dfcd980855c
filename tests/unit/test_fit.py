"""Training: it learns, it repeats to the bit, and it says when it diverges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from orchestrator.studyfile import Training
from tasks.errors import Defect, Infeasible
from tasks.nn.fit import (
    Epoch,
    TensorData,
    accuracy_of,
    calibration_inputs,
    choose_device,
    described,
    error_of,
    fit,
    reproducible,
)
from tasks.nn.samples import DataSplit, RawData, split_data

CPU = torch.device("cpu")


def bands(n: int = 240) -> DataSplit:
    """Three classes: which of three channels is loud."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % 3
    x = rng.normal(size=(n, 3, 8))
    x[np.arange(n), y] *= 4.0
    raw = RawData(name="bands", x=x.astype(np.float32), y=y, class_names=("a", "b", "c"))
    return split_data(raw, validation=0.25, test=0.25, seed=0)


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        conv = nn.Conv1d(3, 8, 3, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(), nn.Linear(64, 3))


def trained(seed: int = 0, **options: object) -> tuple[nn.Module, list[Epoch]]:
    training = Training.model_validate({"epochs": 12, "learning_rate": 0.01, "batch_size": 16, **options})
    with reproducible(seed, 1):
        module = network(seed)
        curve = fit(module, TensorData.of(bands(), CPU), training, seed=seed)
    return module, curve


def state(module: nn.Module) -> list[Tensor]:
    return list(module.state_dict().values())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training_learns_and_the_curve_tells(optimizer: str) -> None:
    module, curve = trained(optimizer=optimizer, learning_rate=0.02)
    assert [epoch.epoch for epoch in curve] == list(range(1, 13))
    assert {epoch.epochs for epoch in curve} == {12}
    assert curve[-1].loss < 0.5 * curve[0].loss
    assert error_of(module, bands().test) < 0.15
    assert curve[-1].accuracy == pytest.approx(1.0 - error_of(module, bands().validation))
    assert not module.training


def test_two_runs_with_one_seed_are_equal_to_the_bit_whatever_happened_before() -> None:
    torch.manual_seed(1)
    first, curve = trained(3)
    torch.manual_seed(2)
    torch.rand(17)
    again, curve_again = trained(3)
    assert all(torch.equal(a, b) for a, b in zip(state(first), state(again), strict=True))
    assert curve == curve_again


def test_a_gpu_is_told_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"NVIDIA H200 number {device.index}")
    assert described(torch.device("cuda:1")) == "cuda:1 (NVIDIA H200 number 1)"
    assert described(CPU) == "cpu"


def test_another_seed_gives_another_network() -> None:
    assert not all(torch.equal(a, b) for a, b in zip(state(trained(3)[0]), state(trained(4)[0]), strict=True))


def test_the_seed_decides_the_order_of_the_batches_too() -> None:
    def after(order_seed: int) -> Tensor:
        with reproducible(0, 1):
            module = network()
            fit(module, TensorData.of(bands(), CPU), Training(epochs=1), seed=order_seed)
        return state(module)[0]

    assert not torch.equal(after(1), after(2))


def test_nothing_global_is_changed() -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    trained()
    assert torch.equal(torch.rand(2), expected)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_training_that_diverges_is_infeasible_and_names_the_epoch() -> None:
    with pytest.raises(Infeasible, match="training diverged at epoch 1") as caught:
        trained(optimizer="sgd", learning_rate=1e4)
    (violation,) = caught.value.violations
    assert violation.quantity == "loss"
    assert violation.excess > 0


def test_a_loss_that_is_not_a_number_is_infeasible() -> None:
    class Poison(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(24, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.dense(x.flatten(1)) * float("nan")  # type: ignore[no-any-return]

    with pytest.raises(Infeasible, match="diverged at epoch 1: the mean loss is nan"):
        fit(Poison(), TensorData.of(bands(), CPU), Training(epochs=2), seed=0)


def test_every_epoch_is_reported_as_it_ends() -> None:
    seen: list[Epoch] = []
    with reproducible(0, 1):
        fit(network(), TensorData.of(bands(), CPU), Training(epochs=3), seed=0, on_epoch=seen.append)
    assert [epoch.epoch for epoch in seen] == [1, 2, 3]


@pytest.mark.parametrize("batch_size", [1000, 119, 60])
def test_no_batch_of_one_sample_breaks_batch_norm(batch_size: int) -> None:
    assert len(bands().train) == 120
    _, curve = trained(epochs=1, batch_size=batch_size)
    assert np.isfinite(curve[0].loss)


def test_label_smoothing_and_weight_decay_take_effect() -> None:
    plain, smooth = trained(epochs=3), trained(epochs=3, label_smoothing=0.3)
    decayed, _ = trained(epochs=3, weight_decay=5.0)
    assert smooth[1][-1].loss > plain[1][-1].loss
    assert state(decayed)[0].norm().item() < state(plain[0])[0].norm().item()


def test_accuracy_counts_over_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.nn.fit.EVALUATION_BATCH", 2)
    x = torch.eye(3)[[0, 1, 2, 0, 1]]
    assert accuracy_of(nn.Identity(), x, torch.tensor([0, 1, 2, 1, 2])) == pytest.approx(0.6)


def test_calibration_inputs_take_every_class_in_its_share_and_follow_the_seed() -> None:
    data = bands()
    rows = {row.tobytes(): label for row, label in zip(data.train.x, data.train.y, strict=True)}
    chosen = calibration_inputs(data, 30, 0)
    counts = np.bincount([rows[row.tobytes()] for row in chosen])
    assert len({row.tobytes() for row in chosen}) == 30
    assert counts.min() >= 9
    assert np.array_equal(chosen, calibration_inputs(data, 30, 0))
    assert not np.array_equal(chosen, calibration_inputs(data, 30, 1))
    assert len(calibration_inputs(data, 10_000, 0)) == len(data.train)


def test_a_device_that_is_not_there_is_named() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in {"cpu", "cuda", "mps"}
    with pytest.raises(Defect, match=r"training.device 'gpu' cannot be used here"):
        choose_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(Defect, match=r"training.device 'cuda' cannot be used here.*use cpu, auto"):
            choose_device("cuda")
