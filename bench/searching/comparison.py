"""What the runs say: means with confidence intervals, and differences paired by seed with a rank test."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from orchestrator.arrays import FloatArray

CONFIDENCE = 0.95
_RESAMPLES = 4000
# Up to this many pairs all signs are tried (65,536); beyond, as many random ones.
_EXACT = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over seeds with its 95 % bootstrap interval (both ends are the mean for a single seed)."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """One proposer on one problem. ``final`` and ``area`` (the mean over all trials) are shares of the reference
    hypervolume; ``proposal_s`` and ``proposal_cpu_s`` are the median wall-clock and processor seconds of the last tenth
    of the proposals."""

    problem: str
    proposer: str
    n_seeds: int
    final: Estimate
    area: Estimate
    proposal_s: float
    proposal_cpu_s: float
    repeats: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """What runs with several workers keep of the final hypervolume of the same runs with one; ``repeats`` counts
    proposals equal to one that was pending."""

    problem: str
    proposer: str
    n_seeds: int
    share: Estimate
    repeats: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Lead:
    """How far ``base`` is ahead of ``other``, seed by seed, in shares of the reference.

    ``p`` and ``p_area`` are one-sided: how likely a lead in ranks as clear as this one is when no method is better.
    ``p_least`` is the smallest p that this number of pairs can give. ``trials_to_match`` is the first trial at which
    the base's mean curve reaches the other's final mean, if it does.
    """

    problem: str
    base: str
    other: str
    n_pairs: int
    final: Estimate
    area: Estimate
    p: float
    p_area: float
    p_least: float
    trials_to_match: int | None


class Results:
    """Finished runs of one budget, by problem, proposer and seed."""

    def __init__(self, runs: Sequence[Mapping[str, Any]], reference_hv: Mapping[str, float]) -> None:
        self._runs = {(run["problem"], run["proposer"], run["seed"]): run for run in runs}
        self._reference = reference_hv
        self.problems = tuple(dict.fromkeys(key[0] for key in self._runs))
        self.proposers = tuple(dict.fromkeys(key[1] for key in self._runs))

    def seeds(self, problem: str, *proposers: str) -> list[int]:
        """The seeds that all of these proposers have finished."""
        found = [{key[2] for key in self._runs if key[:2] == (problem, item)} for item in proposers]
        return sorted(set.intersection(*found))

    def curves(self, problem: str, proposer: str, seeds: Sequence[int] | None = None) -> FloatArray:
        """Hypervolume as a share of the reference, (seeds, trials)."""
        chosen = self.seeds(problem, proposer) if seeds is None else seeds
        raw = np.array([self._runs[problem, proposer, seed]["hv"] for seed in chosen])
        return np.asarray(raw / self._reference[problem])

    def seconds(self, problem: str, proposer: str, kind: str = "proposal_s") -> FloatArray:
        """Seconds of each proposal, (seeds, trials): wall-clock ones, or with ``proposal_cpu_s`` the processor's."""
        return np.array([self._runs[problem, proposer, seed][kind] for seed in self.seeds(problem, proposer)])

    def against_sequential(self, alone: Sequence[Mapping[str, Any]]) -> list[Kept]:
        """These runs, as far as they have several workers, against those of ``alone`` that are the same with one."""
        single = {(run["problem"], run["proposer"], run["seed"]): run["hv"][-1] for run in alone}
        pairs: dict[tuple[str, str], list[tuple[float, int]]] = {}
        for key, run in self._runs.items():
            if run["workers"] > 1 and single.get(key, 0.0) > 0:
                pairs.setdefault(key[:2], []).append((run["hv"][-1] / single[key], run["repeats"]))
        return [
            Kept(
                problem=problem,
                proposer=proposer,
                n_seeds=len(found),
                share=estimate(np.array([share for share, _ in found])),
                repeats=sum(repeats for _, repeats in found),
            )
            for (problem, proposer), found in pairs.items()
        ]

    def standings(self) -> list[Standing]:
        """Every proposer on every problem it was run on, the best first."""
        pairs = [(p, m) for p in self.problems for m in self.proposers if self.seeds(p, m)]
        found = [self._standing(problem, proposer) for problem, proposer in pairs]
        return sorted(found, key=lambda item: (self.problems.index(item.problem), -item.final.mean))

    def leads(self, base: str) -> list[Lead]:
        """``base`` against every other proposer, on each problem that both were run on and on all of them together."""
        found = []
        for other in (item for item in self.proposers if item != base):
            shared = [problem for problem in self.problems if self.seeds(problem, base, other)]
            found += [self._lead((problem,), base, other) for problem in shared]
            if len(shared) > 1:
                found.append(self._lead(tuple(shared), base, other))
        return found

    def _standing(self, problem: str, proposer: str) -> Standing:
        curves, seconds = self.curves(problem, proposer), self.seconds(problem, proposer)
        last = max(1, curves.shape[1] // 10)
        return Standing(
            problem=problem,
            proposer=proposer,
            n_seeds=len(curves),
            final=estimate(curves[:, -1]),
            area=estimate(curves.mean(axis=1)),
            proposal_s=float(np.median(seconds[:, -last:])),
            proposal_cpu_s=float(np.median(self.seconds(problem, proposer, "proposal_cpu_s")[:, -last:])),
            repeats=sum(self._runs[problem, proposer, seed]["repeats"] for seed in self.seeds(problem, proposer)),
        )

    def _lead(self, problems: tuple[str, ...], base: str, other: str) -> Lead:
        shared = {problem: self.seeds(problem, base, other) for problem in problems}
        ours = np.vstack([self.curves(problem, base, seeds) for problem, seeds in shared.items()])
        theirs = np.vstack([self.curves(problem, other, seeds) for problem, seeds in shared.items()])
        final, area = ours[:, -1] - theirs[:, -1], ours.mean(axis=1) - theirs.mean(axis=1)
        reached = np.flatnonzero(ours.mean(axis=0) >= theirs.mean(axis=0)[-1])
        return Lead(
            problem=problems[0] if len(problems) == 1 else "all",
            base=base,
            other=other,
            n_pairs=len(final),
            final=estimate(final),
            area=estimate(area),
            p=signed_rank_p(final),
            p_area=signed_rank_p(area),
            p_least=0.5 ** len(final),
            trials_to_match=int(reached[0]) + 1 if len(reached) else None,
        )


def estimate(values: FloatArray) -> Estimate:
    """The mean of ``values`` (n,) with its percentile bootstrap interval; always the same for the same values.

    With few values the interval is too narrow: resampling cannot know what it has never seen.
    """
    rng = np.random.default_rng(0)
    means = values[rng.integers(len(values), size=(_RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(mean=float(values.mean()), low=float(low), high=float(high))


def signed_rank_p(differences: FloatArray) -> float:
    """Wilcoxon's signed-rank test, one-sided (are the differences above 0?), by trying all signs.

    Exact for up to 16 pairs, ties included; more pairs are tested against 65,536 random signs. Differences of 0 carry
    no rank. Without any other difference p is 1.
    """
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    ranks = rankdata(np.abs(differences))
    observed = ranks[differences > 0].sum()
    if len(ranks) <= _EXACT:
        signs = np.array(list(itertools.product((0.0, 1.0), repeat=len(ranks))))
        return float((signs @ ranks >= observed - 1e-9).mean())
    signs = np.random.default_rng(0).integers(0, 2, size=(2**_EXACT, len(ranks))).astype(np.float64)
    # The observed signs are one of the possible ones, so p is never 0.
    return float(((signs @ ranks >= observed - 1e-9).sum() + 1) / (len(signs) + 1))
