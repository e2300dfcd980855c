"""NSGA-II, by Optuna's sampler.

Optuna keeps generations in attributes of its trials. Here they follow from the order of the trials instead: the first
``population`` told are generation 0, the next ``population`` generation 1, and so on. So NSGA-II, too, is a function of
the history, and infeasible trials take part as constrained ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from optuna.samplers import NSGAIISampler

from orchestrator.arrays import FloatArray
from orchestrator.proposers.protocol import History
from orchestrator.proposers.replay import ask_untried, replay
from orchestrator.proposers.untried import Tried
from orchestrator.space import SearchSpace


@dataclass(frozen=True, kw_only=True, slots=True)
class Nsga2Proposer:
    """Optuna's NSGA-II with its default operators and ``population`` individuals (its default of 50 leaves a budget of
    a hundred trials two generations)."""

    space: SearchSpace
    population: int = 20

    def __post_init__(self) -> None:
        if self.population < 2:
            raise ValueError(f"population is {self.population}, allowed are whole numbers from 2")

    def propose(self, history: History, pending: FloatArray, rng: np.random.Generator) -> FloatArray:
        """See :class:`orchestrator.proposers.protocol.Proposer`."""
        sampler = NSGAIISampler(population_size=self.population, seed=int(rng.integers(2**32)))
        marks = [{sampler._get_generation_key(): index // self.population} for index in range(len(history))]
        study = replay(self.space, history, sampler, marks=marks)
        return ask_untried(study, self.space, Tried(self.space, history.points, pending), rng)
