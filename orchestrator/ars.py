"""Augmented Random Search over local policies; pure and batched.

An episode starts at a point of the unit cube; at every step the policy looks at the point and moves it. All policies,
all directions and both signs are rolled out as one tensor, and the reward is asked once per iteration for every point
visited.

Source: Mania, Guy, Recht, arXiv 1803.07055 (version V1-t: top directions, step divided by the rewards' deviation).

Shapes: L policies, r rollouts of each, d columns, p policy weights, N directions, H steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator.acquisition import Reward

# Rewards this close together say nothing about the directions that earned them.
_FLAT = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class ArsSettings:
    """How policies look and are trained.

    The paper names these quantities but does not publish their values; the defaults are ours.
    """

    policies: int = 10
    directions: int = 16
    top: int = 8
    noise: float = 0.3
    step_size: float = 0.3
    horizon: int = 4
    iterations: int = 15
    hidden: int = 16
    reach: float = 0.2

    def __post_init__(self) -> None:
        for name in ("policies", "directions", "top", "horizon", "iterations", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, allowed are whole numbers from 1")
        for name in ("noise", "step_size", "reach"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, allowed are numbers above 0")
        if self.top > self.directions:
            raise ValueError(f"top is {self.top}, allowed is at most directions = {self.directions}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """What trained policies found: ``points`` (L, H, d) of rollouts without noise, and their ``rewards`` (L, H)."""

    points: Tensor
    rewards: Tensor


def n_weights(dim: int, hidden: int) -> int:
    """Weights of one policy: a dense layer d → hidden and one back, each with biases."""
    return hidden * (dim + 1) + dim * (hidden + 1)


def moves(theta: Tensor, points: Tensor, *, hidden: int, reach: float) -> Tensor:
    """What policies of weights ``theta`` (…, p) do at ``points`` (…, d): steps of at most ``reach`` per column."""
    dim = points.shape[-1]
    sizes = [hidden * dim, hidden, dim * hidden, dim]
    first, first_bias, second, second_bias = torch.split(theta, sizes, dim=-1)
    seen = 2.0 * points - 1.0
    inner = torch.tanh((_matrix(first, hidden, dim) @ seen[..., None])[..., 0] + first_bias)
    outer = torch.tanh((_matrix(second, dim, hidden) @ inner[..., None])[..., 0] + second_bias)
    return reach * outer


def roll_out(theta: Tensor, starts: Tensor, settings: ArsSettings) -> Tensor:
    """Every point visited after the start; none leaves the unit cube.

    Shapes:
        theta: (L, r, p); starts: (L, d) → (L, r, H, d)
    """
    points = starts[:, None, :].expand(-1, theta.shape[1], -1)
    visited = []
    for _ in range(settings.horizon):
        points = (points + moves(theta, points, hidden=settings.hidden, reach=settings.reach)).clamp(0.0, 1.0)
        visited.append(points)
    return torch.stack(visited, dim=2)


def updated(theta: Tensor, directions: Tensor, plus: Tensor, minus: Tensor, settings: ArsSettings) -> Tensor:
    """One step of ARS: Θ + α / (K σ_R) Σ_k (r₊ − r₋) φ_k over the K directions with the largest max(r₊, r₋).

    σ_R is the (population) standard deviation of the 2 K rewards used. A policy whose rewards are all equal stays as
    it is.

    Shapes:
        theta: (L, p); directions: (L, N, p); plus, minus: (L, N) → (L, p)
    """
    best = torch.maximum(plus, minus).topk(settings.top, dim=1).indices  # (L, K)
    plus, minus = plus.gather(1, best), minus.gather(1, best)
    spread = torch.cat([plus, minus], dim=1).std(dim=1, unbiased=False)
    chosen = directions.gather(1, best[..., None].expand(-1, -1, directions.shape[-1]))
    slope = ((plus - minus)[..., None] * chosen).sum(dim=1)
    rate = torch.where(spread > _FLAT, settings.step_size / (settings.top * spread.clamp_min(_FLAT)), 0.0)
    return theta + rate[:, None] * slope


def train(reward: Reward, starts: Tensor, settings: ArsSettings, generator: torch.Generator) -> Tensor:
    """Train one policy from each row of ``starts`` (L, d); returns their weights (L, p).

    A rollout is worth the best point on it, because one point of it will be evaluated, not all.
    """
    theta = _initial(starts, settings, generator)
    for _ in range(settings.iterations):
        shape = (len(theta), settings.directions, theta.shape[1])
        directions = torch.randn(shape, generator=generator, dtype=torch.float64)
        noisy = torch.cat([directions, -directions], dim=1) * settings.noise + theta[:, None, :]  # (L, 2N, p)
        returns = _rewards(reward, roll_out(noisy, starts, settings)).amax(dim=-1)
        plus, minus = returns[:, : settings.directions], returns[:, settings.directions :]
        theta = updated(theta, directions, plus, minus, settings)
    return theta


def search(reward: Reward, starts: Tensor, settings: ArsSettings, generator: torch.Generator) -> Search:
    """Train a policy from each row of ``starts`` (L, d), then roll each out without noise."""
    theta = train(reward, starts, settings, generator)
    points = roll_out(theta[:, None, :], starts, settings)
    return Search(points=points[:, 0], rewards=_rewards(reward, points)[:, 0])


def _matrix(weights: Tensor, rows: int, columns: int) -> Tensor:
    return weights.reshape(*weights.shape[:-1], rows, columns)


def _initial(starts: Tensor, settings: ArsSettings, generator: torch.Generator) -> Tensor:
    """Small random weights: in a policy of zeros either layer hides the other's slope."""
    n_policies, dim = starts.shape
    weights = torch.randn(n_policies, n_weights(dim, settings.hidden), generator=generator, dtype=torch.float64)
    return weights * (0.1 / math.sqrt(max(dim, settings.hidden)))


def _rewards(reward: Reward, points: Tensor) -> Tensor:
    """Ask for the rewards of (…, d) in one batch → (…)."""
    return reward(points.reshape(-1, points.shape[-1])).reshape(points.shape[:-1])
