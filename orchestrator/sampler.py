"""Any proposer as an Optuna sampler.

The first ``initial`` trial numbers take the rows of a Latin hypercube that depends on the seed alone; every later trial
is proposed from the trials told so far, conditioned on those still running. All randomness derives from the seed and
the trial's number and nothing is kept between calls, so the same history gives the same proposals, in a resumed study
too.

How trials are told is the rule of :mod:`orchestrator.telling`, which this module reads.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from orchestrator.arrays import FloatArray
from orchestrator.axes import RealAxis
from orchestrator.design import initial_design
from orchestrator.known import CheckedValues, KnownValues, Vectorised, checked_outcomes, known_outcomes
from orchestrator.objectives import Objectives
from orchestrator.proposers.protocol import History
from orchestrator.proposers.registry import Insight, make_proposer
from orchestrator.space import SearchSpace
from orchestrator.studyfile import StudyFile
from orchestrator.telling import FIRST_LIMITS_ATTR, LIMITS_ATTR, STOPPED_ATTR, VIOLATIONS_ATTR, tell_outcome

__all__ = ["ARSSampler", "ProposerSampler", "make_sampler", "read_history", "read_pending", "tell_outcome"]

_log = logging.getLogger(__name__)

# What a margin is where nothing has a limit: as far from it as a margin counts.
_NO_LIMIT_MARGIN = -1.0

# Streams of randomness that must never meet: (seed, number) of a trial, and the design of the whole study.
_DESIGN_STREAM = 1
_PROPOSAL_STREAM = 2
_INDEPENDENT_STREAM = 3

# The attribute of a running trial that holds its candidate until the parameters are suggested.
_PROPOSED = "edgefront:proposed"
# Threads of one process wait for each other's candidate instead of proposing the same.
_ONE_AT_A_TIME = threading.Lock()

# Stands in where the real space is not known yet and only names and options are to be checked.
_SOME_SPACE = SearchSpace(axes={"x": RealAxis(low=0.0, high=1.0, is_log=False)}, fixed={})


class ProposerSampler(BaseSampler):
    """An Optuna sampler that asks a proposer.

    Works in any Optuna study, for one objective or several, minimised or maximised::

        study = optuna.create_study(directions=["minimize", "minimize"], sampler=ProposerSampler("ars", seed=1))

    ``search_space`` is what all trials suggest; without it, it is what the finished trials suggested, and trials before
    that are random. Parameters that some of these trials had and others had not form groups: each group is proposed
    from the trials that had all of it. ``objectives`` name the objectives in the order of the
    study's directions and bound them; bounds are for minimised objectives. Constraints set with
    ``trial.set_constraint`` are respected too. ``known`` computes objectives from the parameters, for the proposers
    that can use it (``ars``); its values are named and measured like ``objectives``. Wrapped as
    ``Vectorised(function)`` it is asked about many candidates at once. ``checked`` looks at a few candidates a
    proposal, the best, and may take its time.

    Raises:
        UsageError: the proposer's name or an option is not allowed.
    """

    def __init__(
        self,
        name: str = "ars",
        *,
        seed: int,
        initial: int = 8,
        search_space: SearchSpace | Mapping[str, BaseDistribution] | None = None,
        objectives: Objectives | None = None,
        options: Mapping[str, Any] | None = None,
        known: KnownValues | Vectorised | None = None,
        checked: CheckedValues | None = None,
    ) -> None:
        self._known = known
        self._checked = checked
        self._name = name
        self._seed = seed
        self._initial = initial
        self._options = dict(options or {})
        self._objectives = objectives
        self._space = _as_space(search_space)
        # Made here too, so that a wrong name or option is an error now and not at the first proposal.
        make_proposer(name, self._space or _SOME_SPACE, self._options)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters the proposer decides about together."""
        if self._space is not None:
            return {name: item for name, item in self._space.distributions().items() if not item.single()}
        return {name: item for group in _groups(study) for name, item in group.items()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The candidate for this trial number."""
        if not search_space:
            return {}
        if self._space is not None:
            params = self._space.decode(self.propose(study, trial.number, self._space))
            return {name: params[name] for name in search_space}
        with _ONE_AT_A_TIME:
            found: dict[str, Any] = {}
            groups, singles = _groups(study), _single_values(study)
            for index, group in enumerate(groups):
                # Optuna's PartialFixedSampler leaves out what it has fixed.
                wanted = {name: item for name, item in group.items() if name in search_space}
                if wanted:
                    # A whole candidate has its single values too; a formula of costs may need them.
                    fixed = singles if len(groups) == 1 else {}
                    space = replace(SearchSpace.from_distributions(wanted), fixed=fixed)
                    point = self.propose(study, trial.number, space, group=index, is_whole=len(groups) == 1)
                    found |= {name: value for name, value in space.decode(point).items() if name in wanted}
            # A define-by-run trial has its parameters only once they are suggested; others should see them before.
            study._storage.set_trial_system_attr(trial._trial_id, _PROPOSED, json.dumps(found))
        return found

    def propose(
        self, study: optuna.Study, number: int, space: SearchSpace, *, group: int = 0, is_whole: bool = True
    ) -> FloatArray:
        """The point (d,) for trial ``number``, from the study's other trials; ``group`` numbers a part of the space,
        and costs are known of whole candidates only."""
        if number < self._initial:
            return np.asarray(initial_design(space, self._initial, self._rng(_DESIGN_STREAM, group))[number])
        others = [item for item in study.get_trials(deepcopy=False) if item.number != number]
        objectives = self._objectives or _unbounded(study)
        first_limits = study.user_attrs.get(FIRST_LIMITS_ATTR, {})
        history = read_history(others, space, objectives, study.directions, first_limits)
        signs = _signs(study.directions)
        insight = self._insight(space, objectives, signs, number) if is_whole else Insight()
        proposer = make_proposer(self._name, space, self._options, insight=insight)
        return proposer.propose(history, read_pending(others, space), self._rng(_PROPOSAL_STREAM, number, group))

    def _insight(self, space: SearchSpace, objectives: Objectives, signs: FloatArray, number: int) -> Insight:
        known = None if self._known is None else known_outcomes(self._known, space, objectives, signs)
        if known is not None:
            try:
                known(space.at_quantiles(np.full((1, len(space.axes)), 0.5)))
            except KeyError as error:
                _log.warning("known objectives need %s, which not all trials have; every objective is modelled", error)
                known = None
        checked = self._checked and checked_outcomes(self._checked, space, objectives, signs, number)
        return Insight(known=known, checked=checked)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A random value, for a parameter that was not known when the trial started."""
        space = SearchSpace.from_distributions({param_name: param_distribution})
        rng = self._rng(_INDEPENDENT_STREAM, trial.number, *param_name.encode())
        return space.decode(space.at_quantiles(rng.random((1, 1)))[0])[param_name]

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, *stream])


class ARSSampler(ProposerSampler):
    """The default proposer for an ordinary Optuna study, with nothing to set.

    ::

        study = optuna.create_study(directions=["minimize", "maximize"], sampler=ARSSampler())
        study.optimize(objective, n_trials=50)

    The space is the one ``objective`` suggests as it runs (define-by-run), parameters that only some trials suggest
    included. Any storage will do, several workers and ``n_jobs`` too: all that is known is in the study, so a resumed
    study goes on where it stopped.

    ``constraints_func`` turns a finished trial into numbers that are at most 0 where the trial is feasible, as for
    Optuna's own samplers; ``trial.set_constraint`` inside ``objective`` does the same. Without ``seed`` each sampler
    draws its own. The first ``n_startup_trials`` trials spread over the space. ``known`` computes objectives from the
    parameters, named by ``study.set_metric_names``.

    Raises:
        UsageError: an option is not allowed.
    """

    def __init__(
        self,
        *,
        constraints_func: Callable[[FrozenTrial], Sequence[float]] | None = None,
        seed: int | None = None,
        n_startup_trials: int = 10,
        options: Mapping[str, Any] | None = None,
        known: KnownValues | Vectorised | None = None,
    ) -> None:
        chosen = int(np.random.default_rng().integers(2**32)) if seed is None else seed
        super().__init__("ars", seed=chosen, initial=n_startup_trials, options=options, known=known)
        self._constraints_func = constraints_func

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Keep what ``constraints_func`` says with the trial; called by Optuna.

        Raises:
            ValueError: a constraint is NaN.
        """
        if self._constraints_func is None or state not in (TrialState.COMPLETE, TrialState.PRUNED):
            return
        finished = Trial(study, trial._trial_id)
        for index, value in enumerate(self._constraints_func(trial)):
            if math.isnan(value):
                raise ValueError(f"constraint {index} of trial {trial.number} is NaN, allowed are numbers")
            finished.set_constraint(f"constraint_{index}", float(value))


def make_sampler(study: StudyFile, objectives: Objectives, checked: CheckedValues | None = None) -> ProposerSampler:
    """The sampler a study file asks for; ``checked`` looks at the best candidates of a proposal.

    Raises:
        UsageError: the sampler's name or one of its options is not allowed, or the space has nothing to search.
    """
    return ProposerSampler(
        study.sampler.name,
        seed=study.seed,
        initial=study.sampler.initial,
        search_space=SearchSpace.from_parameters(study.space),
        objectives=objectives,
        options=study.sampler.options,
        checked=checked,
    )


def read_history(
    trials: Sequence[FrozenTrial],
    space: SearchSpace,
    objectives: Objectives,
    directions: Sequence[StudyDirection],
    first_limits: Mapping[str, float] | None = None,
) -> History:
    """What the trials teach, in the order of their numbers; trials of another space and pruned ones that say nothing of
    a constraint (stopped early by Optuna's pruner) are passed over. ``first_limits``: those that the study began with,
    where they were tightened since; what was told under them is judged by ``objectives`` now."""
    told = [item for item in sorted(trials, key=lambda item: item.number) if _teaches(item)]
    rows = [(point, item) for item in told if (point := _encoded(item, space)) is not None]
    signs = _signs(directions)
    if not rows:
        return History.empty(space.dim, len(signs))
    scales = [_scales(item, objectives, first_limits or {}) for _, item in rows]
    outcomes = np.array(
        [_outcomes(item, objectives, signs, scale) for (_, item), scale in zip(rows, scales, strict=True)]
    )
    margins = np.array([_margin(item, row, objectives) for (_, item), row in zip(rows, outcomes, strict=True)])
    return History(
        points=np.array([point for point, _ in rows]),
        outcomes=outcomes,
        feasible=margins <= 0,
        margins=margins,
        unbounded=tuple(np.flatnonzero(np.isinf(objectives.limits)).tolist()),
    )


def read_pending(trials: Sequence[FrozenTrial], space: SearchSpace) -> FloatArray:
    """The points (k, d) of trials without a result, running or stopped early, in the order of their numbers.

    Of a trial that was stopped nothing is told; conditioning on what is believed of it keeps the search from asking
    for the same again.
    """
    without = (item for item in trials if item.state == TrialState.RUNNING or STOPPED_ATTR in item.user_attrs)
    waiting = sorted(without, key=lambda item: item.number)
    points = [point for item in waiting if (point := _encoded(item, space)) is not None]
    return np.array(points).reshape(len(points), space.dim)


def _signs(directions: Sequence[StudyDirection]) -> FloatArray:
    """The one flip: -1 where larger is better."""
    return np.array([-1.0 if item == StudyDirection.MAXIMIZE else 1.0 for item in directions])


def _teaches(trial: FrozenTrial) -> bool:
    if trial.state == TrialState.COMPLETE:
        return True
    return trial.state == TrialState.PRUNED and bool(trial.constraints or VIOLATIONS_ATTR in trial.user_attrs)


def _encoded(trial: FrozenTrial, space: SearchSpace) -> FloatArray | None:
    proposed = trial.system_attrs.get(_PROPOSED, "{}") if trial.state == TrialState.RUNNING else "{}"
    try:
        return space.encode(json.loads(proposed) | trial.params)
    except ValueError:
        return None


def _scales(trial: FrozenTrial, objectives: Objectives, first_limits: Mapping[str, float]) -> FloatArray:
    """The limits (m,) that the trial was told under, as shares of those that hold now."""
    then = trial.user_attrs.get(LIMITS_ATTR, first_limits)
    now = zip(objectives.names, objectives.limits, strict=True)
    return np.array([then[name] / limit if name in then else 1.0 for name, limit in now])


def _outcomes(trial: FrozenTrial, objectives: Objectives, signs: FloatArray, scales: FloatArray) -> FloatArray:
    """Normalised and minimised, (m,); of an infeasible trial what its constraints tell, NaN where they do not."""
    if trial.state == TrialState.COMPLETE and trial.values is not None:
        values = objectives.normalised(np.array(trial.values) * signs)
        return np.where(np.isfinite(values), values, np.nan)
    known = trial.constraints
    named = zip(objectives.names, scales, strict=True)
    return np.array([(1.0 + known[name]) * scale if name in known else np.nan for name, scale in named])


def _margin(trial: FrozenTrial, outcomes: FloatArray, objectives: Objectives) -> float:
    margins = [*trial.constraints.values(), *trial.user_attrs.get(VIOLATIONS_ATTR, ())]
    if trial.state == TrialState.COMPLETE:
        # An infinite value (NaN here) cannot be within any limit.
        beyond = np.where(np.isfinite(outcomes), outcomes - 1.0, np.inf)
        bounded = np.isfinite(objectives.limits) | ~np.isfinite(outcomes)
        margins += beyond[bounded].tolist()
    else:  # what its constraints told under wider limits
        margins += (outcomes[np.isfinite(outcomes)] - 1.0).tolist()
    largest = max(margins, default=_NO_LIMIT_MARGIN)
    # A pruned trial is infeasible even where only limits it keeps were recorded.
    return largest if trial.state == TrialState.COMPLETE or largest > 0 else 1e-9


def _groups(study: optuna.Study) -> list[dict[str, BaseDistribution]]:
    """Parameters that the same finished trials suggested, each with the latest of its distributions; those with a
    single value are left out."""
    groups: list[tuple[str, ...]] = []
    latest: dict[str, BaseDistribution] = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
        latest |= trial.distributions
        new = set(trial.distributions) - {name for group in groups for name in group}
        split = [
            [name for name in group if (name in trial.distributions) is had]
            for group in groups
            for had in (True, False)
        ]
        groups = [tuple(part) for part in [*split, sorted(new)] if part]
    searched = [{name: latest[name] for name in group if not latest[name].single()} for group in groups]
    return [group for group in searched if group]


def _single_values(study: optuna.Study) -> dict[str, Any]:
    """What finished trials suggested from distributions with one value, as the latest of them had it."""
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return {
        name: trial.params[name]
        for trial in finished
        for name, distribution in trial.distributions.items()
        if distribution.single()
    }


def _unbounded(study: optuna.Study) -> Objectives:
    names = study.metric_names or [f"objective_{index}" for index in range(len(study.directions))]
    return Objectives(names=tuple(names), units=("1",) * len(names), limits=(math.inf,) * len(names))


def _as_space(given: SearchSpace | Mapping[str, BaseDistribution] | None) -> SearchSpace | None:
    if given is None or isinstance(given, SearchSpace):
        return given
    return SearchSpace.from_distributions(given)
