"""Augmented Random Search, against updates computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from orchestrator.ars import ArsSettings, moves, n_weights, roll_out, search, train, updated

TINY = ArsSettings(policies=1, directions=3, top=2, noise=0.5, step_size=0.4, horizon=1, iterations=1, hidden=1)


def tensor(values: list[object]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_update_is_the_published_one() -> None:
    theta = tensor([[1.0, -1.0]])
    directions = tensor([[[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]])
    plus, minus = tensor([[4.0, 1.0, 0.0]]), tensor([[0.0, 3.0, 0.5]])
    # max(r₊, r₋) = 4, 3, 0.5: the first two are kept. Their rewards 4, 0, 1, 3 have mean 2 and deviation √(10/4);
    # the slope is (4 - 0) φ₁ + (1 - 3) φ₂ = (4, -2); the rate is 0.4 / (2 √2.5).
    rate = 0.4 / (2 * math.sqrt(2.5))
    expected = tensor([[1.0 + 4 * rate, -1.0 - 2 * rate]])
    torch.testing.assert_close(updated(theta, directions, plus, minus, TINY), expected)


def test_every_policy_is_updated_from_its_own_rewards() -> None:
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    directions = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64)
    plus, minus = torch.rand(2, 4, 3, generator=generator, dtype=torch.float64)
    together = updated(theta, directions, plus, minus, TINY)
    for row in range(4):
        one = slice(row, row + 1)
        alone = updated(theta[one], directions[one], plus[one], minus[one], TINY)
        torch.testing.assert_close(together[one], alone)


def test_equal_rewards_leave_a_policy_as_it_is() -> None:
    theta = tensor([[1.0, -1.0]])
    directions = torch.ones(1, 3, 2, dtype=torch.float64)
    flat = torch.full((1, 3), 7.0, dtype=torch.float64)
    assert torch.equal(updated(theta, directions, flat, flat, TINY), theta)


def test_a_move_is_the_policys_output_computed_by_hand() -> None:
    # d = 1, hidden = 1: weights (w₁, b₁, w₂, b₂) at x = 0.75, seen as 2 · 0.75 - 1 = 0.5.
    theta = tensor([0.6, 0.1, -1.5, 0.2])
    expected = 0.2 * math.tanh(-1.5 * math.tanh(0.6 * 0.5 + 0.1) + 0.2)
    assert n_weights(1, 1) == 4
    assert float(moves(theta, tensor([0.75]), hidden=1, reach=0.2)) == pytest.approx(expected)


def test_rollouts_stay_in_the_cube_and_within_reach_of_the_step_before() -> None:
    settings = ArsSettings(policies=3, horizon=5)
    generator = torch.Generator().manual_seed(0)
    starts = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    theta = 10 * torch.randn(3, 7, n_weights(4, settings.hidden), generator=generator, dtype=torch.float64)
    visited = roll_out(theta, starts, settings)
    assert visited.shape == (3, 7, 5, 4)
    assert float(visited.min()) >= 0.0
    assert float(visited.max()) <= 1.0
    path = torch.cat([starts[:, None, None, :].expand(-1, 7, 1, -1), visited], dim=2)
    assert float(path.diff(dim=2).abs().max()) <= settings.reach + 1e-12


def test_a_batch_of_rollouts_is_each_rollout_by_itself() -> None:
    settings = ArsSettings(policies=2, horizon=3)
    generator = torch.Generator().manual_seed(1)
    starts = torch.rand(2, 3, generator=generator, dtype=torch.float64)
    theta = torch.randn(2, 4, n_weights(3, settings.hidden), generator=generator, dtype=torch.float64)
    together = roll_out(theta, starts, settings)
    for policy in range(2):
        for rollout in range(4):
            alone = roll_out(theta[policy : policy + 1, rollout : rollout + 1], starts[policy : policy + 1], settings)
            torch.testing.assert_close(together[policy, rollout], alone[0, 0])


def hill(points: Tensor) -> Tensor:
    """Highest at (0.8, 0.3)."""
    return -((points - tensor([0.8, 0.3])) ** 2).sum(dim=-1)


def test_training_leads_policies_from_their_starts_towards_higher_rewards() -> None:
    settings = ArsSettings(policies=4, iterations=25)
    starts = torch.rand(4, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = search(hill, starts, settings, torch.Generator().manual_seed(0))
    assert found.points.shape == (4, settings.horizon, 2)
    torch.testing.assert_close(found.rewards, hill(found.points))
    assert float(found.rewards.amax(dim=1).mean()) > 0.1 * float(hill(starts).mean())


def test_the_same_generator_trains_the_same_policies() -> None:
    starts = torch.full((2, 2), 0.5, dtype=torch.float64)
    first, second = (train(hill, starts, TINY, torch.Generator().manual_seed(5)) for _ in range(2))
    other = train(hill, starts, TINY, torch.Generator().manual_seed(6))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_one_iteration_asks_for_all_rollouts_of_all_policies_at_once() -> None:
    asked: list[int] = []

    def reward(points: Tensor) -> Tensor:
        asked.append(len(points))
        return hill(points)

    settings = ArsSettings(policies=3, directions=4, top=2, horizon=2, iterations=2)
    search(reward, torch.full((3, 2), 0.5, dtype=torch.float64), settings, torch.Generator().manual_seed(0))
    assert asked == [3 * 2 * 4 * 2] * 2 + [3 * 2]


@pytest.mark.parametrize(("name", "value"), [("top", 17), ("horizon", 0), ("noise", 0.0), ("reach", -0.1)])
def test_settings_that_make_no_sense_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        ArsSettings(**{name: value})  # type: ignore[arg-type]  # a wrong value is the point
