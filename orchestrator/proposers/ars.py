"""The default: competing ARS policies on Gaussian processes, rewarded by the hypervolume they would add.

The frame is that of ARS-MOBOpt (``ars_published.py``): one surrogate of all trials, start points from clusters of the
front, a policy trained from each by Augmented Random Search, the best one's proposal evaluated. What is added, and what
each addition is worth, is listed in ``docs/method.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from orchestrator.acquisition import Reward
from orchestrator.arrays import FloatArray
from orchestrator.ars import ArsSettings, search
from orchestrator.beliefs import Beliefs, margin_surrogate
from orchestrator.boxes import free_boxes
from orchestrator.clustering import centres
from orchestrator.improvement import LogChebyshevImprovement, LogHypervolumeImprovement
from orchestrator.known import Checked, Known
from orchestrator.proposers.front import pareto_set, reference_point, unexplained_margins
from orchestrator.proposers.nearby import moved
from orchestrator.proposers.protocol import History
from orchestrator.proposers.untried import Tried
from orchestrator.space import SearchSpace
from orchestrator.surrogate import Surrogate
from orchestrator.threads import one_thread

# Fewer than in the published form: starts chosen by their reward and the polish leave less to be trained.
DEFAULT_ITERATIONS = 8
# Mean deviations at random candidates, as a share of the outcomes' own. A process that hardly knows the space sees
# improvements in every corner; one that does is right about what little it does not know.
_SURE, _UNSURE = 0.05, 0.1
# The best points ever visited are kept: more than could all be tried or pending.
_REMEMBERED = 256
# So many shortlists are checked at most for a candidate that fits.
_SHORTLISTS = 3
# Candidates that tell how far known objectives range; beyond them costs are not told apart as features.
_SCALE_SAMPLE = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class ArsProposer:
    """Trains policies from the front and from elsewhere, and proposes the best new candidate any of them visited.

    ``known`` computes the objectives that need no evaluation. ``pool`` random candidates, and as many near the front,
    are scored to find the starts away from it; ``off_front`` is those starts' share. The share ``chebyshev`` of the
    policies is trained for the improvement of one random scalarisation, the others for the hypervolume's; that of the
    hypervolume alone decides between them. As long as the posterior's deviations are large, the share ``optimism`` of
    them counts. ``polish`` rounds of small moves around the best candidates end the search. Of the ``shortlist`` best
    candidates ``checked`` then says what a look at each of them gives, and the best of those that fit is proposed.
    """

    space: SearchSpace
    settings: ArsSettings = field(default_factory=lambda: ArsSettings(iterations=DEFAULT_ITERATIONS))
    pool: int = 512
    off_front: float = 0.5
    chebyshev: float = 0.2
    optimism: float = 0.3
    polish: int = 6
    shortlist: int = 4
    known: Known | None = None
    checked: Checked | None = None

    def __post_init__(self) -> None:
        if self.pool < 1:
            raise ValueError(f"pool is {self.pool}, allowed are whole numbers from 1")
        if self.shortlist < 0:
            raise ValueError(f"shortlist is {self.shortlist}, allowed are whole numbers from 0")
        for name in ("off_front", "chebyshev", "optimism"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, allowed are numbers from 0 to 1")
        if self.polish < 0:
            raise ValueError(f"polish is {self.polish}, allowed are whole numbers from 0")

    def propose(self, history: History, pending: FloatArray, rng: np.random.Generator) -> FloatArray:
        """See :class:`orchestrator.proposers.protocol.Proposer`.

        Without any trial told, an untried point drawn at random.
        """
        tried = Tried(self.space, history.points, pending)
        if not len(history):
            return np.asarray(tried.draw(1, rng)[0])
        scales = _scales(history)
        proposer = replace(self, known=_divided(self.known, scales), checked=_divided(self.checked, scales))
        with one_thread():
            return proposer._search(replace(history, outcomes=history.outcomes / scales), pending, tried, rng)

    def _search(self, history: History, pending: FloatArray, tried: Tried, rng: np.random.Generator) -> FloatArray:
        front = pareto_set(history)
        # candidates everywhere and near the front
        elsewhere = tried.draw(self.pool, rng)
        pool = np.concatenate([elsewhere, moved(self.space, front, self.pool, rng)])
        beliefs = self._beliefs(history, pending)
        reached = _reached(beliefs, history, pending)
        reference = reference_point(history, reached)
        boxes = free_boxes(reached, reference)
        improvement = LogHypervolumeImprovement.over(boxes, beliefs, reference, self._optimism(beliefs, elsewhere))
        feasible = _log_feasibility(history, pending)
        visited = _Visited(reward=_Sum((improvement, *feasible)), snap=self.space.snap)
        worth = visited(torch.as_tensor(pool)).numpy()
        starts = torch.as_tensor(self._starts(front, pool[np.argsort(-worth, kind="stable")], rng))
        # policies from each start compete
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        scalarised = self._scalarised(has_front=bool(history.feasible.any()))
        search(visited, starts[~scalarised], self.settings, generator)
        if scalarised.any():
            second = LogChebyshevImprovement.over(reached, beliefs, rng)
            others = _Visited(reward=_Sum((second, *feasible)), snap=self.space.snap)
            search(others, starts[scalarised], self.settings, generator)
            visited(torch.as_tensor(others.best_first()))
        for round_ in range(self.polish):
            best = visited.best_first()[: self.settings.policies]
            visited(torch.as_tensor(moved(self.space, best, self.pool, rng, size=0.1 / 2**round_)))
        new = tried.untried(self._possible(visited.best_first(), history))
        if not len(new):
            new = self._possible(tried.draw(self.pool, rng), history)
        return self._best_checked(new, improvement, feasible, history)

    def _best_checked(
        self,
        best_first: FloatArray,
        improvement: LogHypervolumeImprovement,
        feasible: tuple[Reward, ...],
        history: History,
    ) -> FloatArray:
        """The first of the candidates; where they can be checked, the best of the first few that fit after all.

        When none of a shortlist fits, the next one is checked; after ``_SHORTLISTS`` of them the first candidate goes
        out, and its trial will teach what is wrong with it.
        """
        if self.checked is None or not self.shortlist:
            return np.asarray(best_first[0])
        for start in range(0, _SHORTLISTS * self.shortlist, self.shortlist):
            some = best_first[start : start + self.shortlist]
            if not len(some):
                break
            outcomes = self.checked(some)
            bounded = np.where(np.isnan(outcomes), -np.inf, outcomes)[:, history.bounded]
            fits = ~np.isposinf(outcomes).any(axis=1) & ~(bounded > 1.0).any(axis=1)
            if fits.any():
                points = torch.as_tensor(some[fits])
                worth = improvement.knowing(points, torch.as_tensor(outcomes[fits])).nan_to_num(-math.inf)
                return np.asarray(some[fits][int(sum([part(points) for part in feasible], worth).argmax())])
        return np.asarray(best_first[0])

    def _starts(self, front: FloatArray, best_first: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Start points (L, d): centres of the front's clusters, and the best of elsewhere, one per cluster too."""
        n_policies = self.settings.policies
        n_off = round(self.off_front * n_policies)
        off = _apart(best_first[: 8 * n_policies], n_off)
        on = centres(front, n_policies - n_off, rng) if n_off < n_policies else off[:0]
        starts = np.concatenate([on, off])
        return starts[np.arange(n_policies) % len(starts)]

    def _optimism(self, beliefs: Beliefs, elsewhere: FloatArray) -> float:
        """What share of the deviations counts: all of them of processes that know the space, ``optimism`` of those that
        hardly do."""
        doubt = (beliefs.doubt(torch.as_tensor(elsewhere)) - _SURE) / (_UNSURE - _SURE)
        return 1.0 - (1.0 - self.optimism) * min(max(doubt, 0.0), 1.0)

    def _scalarised(self, *, has_front: bool) -> Tensor:
        """Which policies (L,) are trained for a scalarisation: spread over the starts, never all, and none without a
        front."""
        n_policies = self.settings.policies
        count = min(round(self.chebyshev * n_policies), n_policies - 1) if has_front else 0
        chosen = torch.zeros(n_policies, dtype=torch.bool)
        chosen[(torch.arange(count) * n_policies) // max(count, 1)] = True
        return chosen

    def _beliefs(self, history: History, pending: FloatArray) -> Beliefs:
        # The same candidates at every proposal, so that features keep their scale.
        quantiles = np.random.default_rng(0).random((_SCALE_SAMPLE, len(self.space.axes)))
        elsewhere = None if self.known is None else self.space.at_quantiles(quantiles)
        return Beliefs.learn(history.points, history.outcomes, pending, self.known, elsewhere)

    def _possible(self, points: FloatArray, history: History) -> FloatArray:
        """Those of ``points`` not known to break a limit; all, when none is left."""
        if self.known is None:
            return points
        values = np.asarray(self.known(points))[:, history.bounded]
        fits = ~(values > 1.0).any(axis=1)
        return points[fits] if fits.any() else points


@dataclass(frozen=True, kw_only=True, slots=True)
class _LogFeasibility:
    """A reward: the log probability that ``margin``'s one output is at most 0."""

    margin: Surrogate

    def __call__(self, points: Tensor) -> Tensor:
        mean, deviation = self.margin.posterior(points)
        feasible: Tensor = torch.special.log_ndtr(-mean[:, 0] / deviation[:, 0])
        return feasible


@dataclass(frozen=True, slots=True)
class _Sum:
    """Logarithmic rewards together."""

    parts: tuple[Reward, ...]

    def __call__(self, points: Tensor) -> Tensor:
        return torch.stack([part(points) for part in self.parts]).sum(dim=0)


@dataclass(kw_only=True, slots=True)
class _Visited:
    """A reward of the candidates that points decode to, which remembers the best of all it was asked about.

    In a discrete space nothing between candidates exists, so a point is worth what its candidate is worth.
    """

    reward: Reward
    snap: Callable[[FloatArray], FloatArray]
    _points: list[Tensor] = field(default_factory=list)
    _rewards: list[Tensor] = field(default_factory=list)

    def __call__(self, points: Tensor) -> Tensor:
        candidates = torch.as_tensor(self.snap(points.numpy()))
        rewards = self.reward(candidates).nan_to_num(-math.inf, neginf=-math.inf)
        best = rewards.topk(min(_REMEMBERED, len(rewards))).indices
        self._points.append(candidates[best])
        self._rewards.append(rewards[best])
        return rewards

    def best_first(self) -> FloatArray:
        """Different candidates (k, d), the most rewarding first."""
        points, rewards = torch.cat(self._points).numpy(), torch.cat(self._rewards).numpy()
        points = points[np.argsort(-rewards, kind="stable")]
        first = np.sort(np.unique(np.round(points, 9), axis=0, return_index=True)[1])
        return np.asarray(points[first[:_REMEMBERED]])


def _log_feasibility(history: History, pending: FloatArray) -> tuple[Reward, ...]:
    """What else makes trials infeasible, as a reward; none where limits of the objectives explain all."""
    unexplained = unexplained_margins(history)
    if unexplained is None:
        return ()
    return (_LogFeasibility(margin=margin_surrogate(history.points, unexplained, pending)),)


def _reached(beliefs: Beliefs, history: History, pending: FloatArray) -> FloatArray:
    """The outcomes (k, m) believed of all feasible and pending trials."""
    reached = beliefs.expected(np.concatenate([history.points[history.feasible], pending]))
    return np.asarray(reached[np.isfinite(reached).all(axis=1)])


def _scales(history: History) -> FloatArray:
    """What outcomes (m,) are divided by: objectives without a limit come in units of any size. Powers of two, so that
    nothing is rounded and the next trial hardly ever changes them: fits would have to begin anew."""
    sizes = np.abs(np.where(np.isfinite(history.outcomes), history.outcomes, 0.0)).mean(axis=0)
    powers = np.exp2(np.round(np.log2(np.where(sizes > 0, sizes, 1.0))))
    return np.asarray(np.where(~history.bounded & (sizes > 0), powers, 1.0))


def _divided(values: Known | None, scales: FloatArray) -> Known | None:
    return None if values is None else lambda points: np.asarray(values(points)) / scales


def _apart(points: FloatArray, count: int) -> FloatArray:
    """At most ``count`` of ``points``, best first: the first, then always the one farthest from those taken."""
    taken = points[:1] if count else points[:0]
    while len(taken) < min(count, len(points)):
        distance = np.abs(points[:, None, :] - taken[None, :, :]).sum(axis=-1).min(axis=1)
        taken = np.concatenate([taken, points[[int(distance.argmax())]]])
    return taken
