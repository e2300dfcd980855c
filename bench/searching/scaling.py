"""How the time of a proposal grows with the number of trials told."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna

from bench.searching.problem import Problem
from bench.searching.run import distributions_of, objectives_of, one_thread, outcome_of, sampler_of
from orchestrator.telling import tell_outcome

_REPEATS = 3
# Half of the history is random, half close to the front so far, as in a search that has found its way.
_NEAR = 0.1


def proposal_times(
    problem: Problem, proposer: str, sizes: Sequence[int], *, seed: int, limit_s: float
) -> list[dict[str, Any]]:
    """Median wall-clock and processor seconds of three proposals after each number of trials told.

    Every proposer gets the same history. After a median above ``limit_s`` larger histories are left out.
    """
    measured: list[dict[str, Any]] = []
    with one_thread():
        for size in sorted(sizes):
            wall_s, cpu_s = _timed(problem, proposer, size, seed)
            times = {"proposal_s": round(wall_s, 4), "proposal_cpu_s": round(cpu_s, 4)}
            measured.append({"problem": problem.name, "proposer": proposer, "trials": size, **times})
            if wall_s > limit_s:
                break
    return measured


def growth(measured: Sequence[dict[str, Any]]) -> float | None:
    """The exponent k of time ∝ trialsᵏ, fitted over all sizes; none for a single size."""
    if len({item["trials"] for item in measured}) < 2:
        return None
    logs = np.log([[item["trials"], max(item["proposal_s"], 1e-6)] for item in measured])
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


def _timed(problem: Problem, proposer: str, size: int, seed: int) -> tuple[float, float]:
    study = _told(problem, size, seed)
    study.sampler = sampler_of(problem, proposer, seed=seed, initial=1)
    searched, walls, cpus = distributions_of(problem.space), [], []
    for _ in range(_REPEATS):
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        trial = study.ask(fixed_distributions=searched)
        walls.append(time.perf_counter() - wall_s)
        cpus.append(time.process_time() - cpu_s)
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return statistics.median(walls), statistics.median(cpus)


def _told(problem: Problem, size: int, seed: int) -> optuna.Study:
    """A study with ``size`` told trials, the same for every proposer."""
    space, rng = problem.space, np.random.default_rng([seed, 21])
    study = optuna.create_study(
        directions=["minimize"] * len(problem.objectives), sampler=optuna.samplers.RandomSampler(seed=seed)
    )
    points = list(space.at_quantiles(rng.random(((size + 1) // 2, len(space.axes)))))
    totals = [float(problem.vector(problem.truth(space.decode(point))).max()) for point in points]
    best = [points[index] for index in np.argsort(totals)[: max(1, len(points) // 4)]]
    while len(points) < size:
        points.append(best[len(points) % len(best)] + _NEAR * rng.standard_normal(space.dim))
    for number, point in enumerate(points):
        params = space.decode(point)
        study.enqueue_trial({name: params[name] for name in space.names})
        trial = study.ask(fixed_distributions=distributions_of(space))
        tell_outcome(study, trial.number, outcome_of(problem, params, number), objectives_of(problem))
    return study
