"""One run: one proposer on one problem with one seed, and what is kept of it."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import optuna
import torch
from optuna.trial import Trial

from bench.searching.catalogue import problem as find_problem
from bench.searching.fingerprint import fingerprint
from bench.searching.problem import Problem
from orchestrator.arrays import FloatArray
from orchestrator.errors import UsageError
from orchestrator.objectives import Objectives
from orchestrator.records import Ending, Outcome, ParamValue, Source, Value
from orchestrator.sampler import ProposerSampler
from orchestrator.space import SearchSpace
from orchestrator.telling import tell_outcome

VERSION = 1

# Streams of randomness beside those of the sampler.
_NOISE_STREAM = 11
_DURATION_STREAM = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What is run. ``proposer`` is a name, or ``name:option=value,option=value``; ``workers`` evaluate at once.

    Raises:
        UsageError: a number is too small.
    """

    problem: str
    proposer: str
    seed: int
    trials: int
    initial: int = 20
    workers: int = 1

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("initial", 1), ("workers", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"--{name}: found {getattr(self, name)}, allowed are whole numbers from {least}")


@dataclass(slots=True)
class Record:
    """What a run left behind; lists have one entry a trial.

    ``hv`` is the hypervolume of the true shares of all trials told so far, in the order of telling; ``proposal_s`` and
    ``proposal_cpu_s`` are the proposal's wall-clock and processor seconds in the order of proposing, as are ``shares``.
    ``repeats`` counts proposals equal to one that was pending at that moment.
    """

    hv: list[float] = field(default_factory=list)
    proposal_s: list[float] = field(default_factory=list)
    proposal_cpu_s: list[float] = field(default_factory=list)
    shares: list[list[float]] = field(default_factory=list)
    repeats: int = 0


def execute(run: Run) -> dict[str, Any]:
    """The run's result as JSON: the fields of :class:`Run` and :class:`Record`, the code's fingerprint."""
    with one_thread():
        record = simulate(run, find_problem(run.problem))
    return {"version": VERSION, "code": fingerprint(run.proposer), **asdict(run), **asdict(record)}


def simulate(run: Run, problem: Problem) -> Record:
    """Ask, evaluate and tell until ``trials`` are told.

    With several workers each evaluation takes a random time, drawn by the seed; whenever one ends it is told, and the
    next is asked for while the others are pending. Every trial is evaluated to its end, those beyond a limit too.
    """
    study, searched = _study(run, problem)
    durations = np.random.default_rng([run.seed, _DURATION_STREAM]).uniform(0.5, 1.5, run.trials)
    record, told, now = Record(), np.zeros((0, len(problem.objectives))), 0.0
    running: list[tuple[float, int, _Asked]] = []
    for number in range(run.trials):
        if len(running) == run.workers:
            now, _, ended = heapq.heappop(running)
            told = _tell(study, problem, run.seed, ended, told, record)
        asked = _ask(study, problem, searched, record)
        record.repeats += any(asked.params == other.params for _, _, other in running)
        heapq.heappush(running, (now + durations[number], number, asked))
    while running:
        _, _, ended = heapq.heappop(running)
        told = _tell(study, problem, run.seed, ended, told, record)
    return record


def proposer_of(text: str) -> tuple[str, dict[str, int | float]]:
    """``"ars:policies=5,noise=0.1"`` → the name and its options.

    Raises:
        UsageError: an option is not ``name=number``.
    """
    name, _, rest = text.partition(":")
    return name, dict(_option(text, part) for part in rest.split(",") if part)


def objectives_of(problem: Problem) -> Objectives:
    """The objectives as proposers see them: shares, under limits of 1."""
    count = len(problem.objectives)
    return Objectives(names=problem.objectives, units=("1",) * count, limits=(1.0,) * count)


def sampler_of(problem: Problem, proposer: str, *, seed: int, initial: int) -> ProposerSampler:
    """The sampler of a run; it is told which objectives are known.

    Raises:
        UsageError: the proposer or an option is unknown.
    """
    name, options = proposer_of(proposer)
    return ProposerSampler(
        name,
        seed=seed,
        initial=initial,
        search_space=problem.space,
        objectives=objectives_of(problem),
        options=options,
        known=problem.known_shares(),
    )


def outcome_of(problem: Problem, params: dict[str, ParamValue], seed: int) -> Outcome:
    """A complete outcome of the noisy shares."""
    shares = problem.vector(problem.evaluate(params, seed)).tolist()
    amounts = zip(problem.objectives, shares, strict=True)
    values = {name: Value(amount=amount, unit="1", source=Source.ESTIMATED) for name, amount in amounts}
    return Outcome(ending=Ending.COMPLETE, values=values)


def distributions_of(space: SearchSpace) -> dict[str, optuna.distributions.BaseDistribution]:
    """What a trial has to suggest."""
    return {name: item for name, item in space.distributions().items() if name not in space.fixed}


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one core and Optuna without its announcements, as long as it lasts."""
    n_threads, verbosity = torch.get_num_threads(), optuna.logging.get_verbosity()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
        optuna.logging.set_verbosity(verbosity)


@dataclass(frozen=True, slots=True)
class _Asked:
    trial: Trial
    params: dict[str, ParamValue]


def _study(run: Run, problem: Problem) -> tuple[optuna.Study, dict[str, optuna.distributions.BaseDistribution]]:
    sampler = sampler_of(problem, run.proposer, seed=run.seed, initial=run.initial)
    study = optuna.create_study(directions=["minimize"] * len(problem.objectives), sampler=sampler)
    return study, distributions_of(problem.space)


def _ask(
    study: optuna.Study, problem: Problem, searched: dict[str, optuna.distributions.BaseDistribution], record: Record
) -> _Asked:
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    trial = study.ask(fixed_distributions=searched)
    record.proposal_s.append(round(time.perf_counter() - wall_s, 5))
    record.proposal_cpu_s.append(round(time.process_time() - cpu_s, 5))
    params = {**trial.params, **problem.space.fixed}
    record.shares.append([round(share, 9) for share in problem.vector(problem.truth(params)).tolist()])
    return _Asked(trial, params)


def _tell(
    study: optuna.Study, problem: Problem, seed: int, ended: _Asked, told: FloatArray, record: Record
) -> FloatArray:
    """The true shares told so far, with this trial's."""
    number = ended.trial.number
    noise_seed = int(np.random.SeedSequence([seed, _NOISE_STREAM, number]).generate_state(1)[0])
    tell_outcome(study, number, outcome_of(problem, ended.params, noise_seed), objectives_of(problem))
    told = np.vstack([told, record.shares[number]])
    record.hv.append(problem.score(told))
    return told


def _option(text: str, part: str) -> tuple[str, int | float]:
    name, _, value = part.partition("=")
    for kind in (int, float):
        try:
            return name.strip(), kind(value)
        except ValueError:
            continue
    raise UsageError(f"--proposer {text}: found {part!r}, allowed are options as name=number")
