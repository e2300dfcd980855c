"""Early stopping: when a trial in training cannot add to the front any more; and when a search has stopped gaining.

ROM, RAM and FLOPs are counted before training, so all that is open about a trial is its error. Two pure steps say at
which epochs it may be given up:

1. :func:`worthless_error`: the front and what is known of the candidate give the error above which it is dominated, or
   adds next to nothing to the hypervolume.
2. :func:`remaining_shares`: the study's own finished trials give, for each epoch, the smallest share of the best error
   so far that the final error can plausibly be; pruning and quantisation are in it, because the final error is that of
   the deployed network.

Both together are a :class:`StoppingRule`. It is fixed when the training is queued and travels with the request, so the
same request always stops at the same epoch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from orchestrator.arrays import FloatArray, check_shape
from orchestrator.objectives import Objectives
from orchestrator.pareto import hypervolume
from orchestrator.records import Json, StageResult
from orchestrator.studyfile import EarlyStopping, Plateau

ERROR = "error"
# Errors are compared by their logarithms. This much is added to them first: half a sample of a split of 500, so that an
# error of 0 has one and a single sample counts little among few.
ERROR_FLOOR = 1e-3
# With fewer finished trials, the spread of what is still to come is itself a guess.
LEAST_CURVES = 6
# So often the range of an error is halved to find from where on it is worth nothing.
_HALVINGS = 20
# Never less spread (in nats) than this, however alike the finished trials are.
LEAST_SPREAD = 0.1
# What the board measures later grows with the work. A candidate is credited with half the least cost for each unit of
# it that any trial of the study had.
_MEASURED_PER_WORK = {"latency": "macs", "energy": "macs"}
_MEASURED_CREDIT = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A finished trial: validation errors (E,) by epoch of training, E ≥ 1, and the error of what was deployed."""

    errors: tuple[float, ...]
    final: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """Why a training ends at ``epoch`` of ``epochs``: an error of at most ``needed`` would be worth something, at least
    ``expected`` is."""

    epoch: int
    epochs: int
    needed: float
    expected: float

    @property
    def message(self) -> str:
        return (
            f"stopped early at epoch {self.epoch} of {self.epochs}: would need an error of at most "
            f"{_percent(self.needed)}, expected at least {_percent(self.expected)}"
        )

    def to_json(self) -> Json:
        return {
            "epoch": self.epoch,
            "epochs": self.epochs,
            "needed": self.needed,
            "expected": self.expected,
            "message": self.message,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class StoppingRule:
    """``threshold`` is the error above which the trial is worth nothing; ``shares`` (E,) by epoch, of the best error so
    far, what the final error will hardly fall below (0: nothing can be said)."""

    threshold: float
    shares: tuple[float, ...]

    def look(self, errors: Sequence[float]) -> Stop | None:
        """Whether a training with these validation errors so far ends here; None: it goes on. Beyond the epochs that
        the rule was made for it never stops."""
        epoch = len(errors)
        if not 1 <= epoch <= len(self.shares):
            return None
        expected = (min(errors) + ERROR_FLOOR) * self.shares[epoch - 1] - ERROR_FLOOR
        if not expected > self.threshold:
            return None
        return Stop(epoch=epoch, epochs=len(self.shares), needed=self.threshold, expected=expected)

    def to_json(self) -> Json:
        return {"threshold": self.threshold, "shares": list(self.shares)}

    @staticmethod
    def from_json(data: Json) -> StoppingRule:
        return StoppingRule(threshold=data["threshold"], shares=tuple(data["shares"]))


def error_threshold(front: FloatArray, lowest: FloatArray, error: int) -> float:
    """The error above which a candidate is dominated by ``front``, and below which it is not; inf where none of the
    front is as good in everything else.

    Shapes:
        front: (n, m), minimised, n ≥ 0.
        lowest: (m,), at least this much the candidate will have of each objective, in the units of the front; the
            smaller, the less is stopped. Column ``error`` is not looked at, NaN counts as -inf: not known at all.
    """
    check_shape("front", front, None, None)
    check_shape("lowest", lowest, front.shape[1])
    bounds = np.where(np.isnan(lowest), -np.inf, lowest)
    bounds[error] = np.inf
    as_good = (front <= bounds).all(axis=1)
    return float(front[as_good, error].min(initial=np.inf))


def worthless_error(front: FloatArray, lowest: FloatArray, error: int, reference: FloatArray, gain: float) -> float:
    """The error from which on a candidate adds at most the share ``gain`` to the front's hypervolume.

    With ``gain`` 0 this is :func:`error_threshold`, as it is where the front measures nothing yet. With any other it is
    at most the reference, because nothing is added beyond.

    Shapes:
        As there; reference: (m,), finite. NaN in ``lowest`` counts as 0, the least of any objective.
    """
    dominated_from = error_threshold(front, lowest, error)
    reached = hypervolume(front, reference)
    if gain == 0 or reached == 0:
        return dominated_from

    def adds_little(at: float) -> bool:
        candidate = np.nan_to_num(lowest, nan=0.0)
        candidate[error] = at
        return hypervolume(np.vstack([front, candidate]), reference) - reached <= gain * reached

    low, high = 0.0, min(dominated_from, float(reference[error]))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if adds_little(middle) else (middle, high)
    return high


def remaining_shares(curves: Sequence[Curve], epochs: int, chance: float) -> tuple[float, ...]:
    """By epoch, the share of its best error so far that a trial of ``epochs`` epochs ends above with probability
    1 − ``chance``; zeros where there are fewer than :data:`LEAST_CURVES` finished trials.

    Each finished trial tells by which factor it still fell from the same fraction of its training to its deployed end
    (rounded to the earlier epoch, from where it fell further). The share is the lower of two bounds: the falls' own
    quantile, which is the deepest of all unless they are many, and Student's prediction bound for one more normal draw
    of their logarithms.
    """
    if len(curves) < LEAST_CURVES:
        return (0.0,) * epochs
    best = [np.minimum.accumulate(np.array(curve.errors) + ERROR_FLOOR) for curve in curves]
    finals = np.log([curve.final + ERROR_FLOOR for curve in curves])
    return tuple(_share(best, finals, epoch / epochs, chance) for epoch in range(1, epochs + 1))


def _share(best: Sequence[FloatArray], finals: FloatArray, fraction: float, chance: float) -> float:
    n = len(best)
    rows = [max(0, math.floor(fraction * len(errors) + 1e-9) - 1) for errors in best]
    falls = finals - np.log([errors[row] for errors, row in zip(best, rows, strict=True)])
    spread = max(float(falls.std(ddof=1)), LEAST_SPREAD)
    bound = float(falls.mean()) + float(stdtrit(n - 1, chance)) * spread * math.sqrt(1 + 1 / n)
    rank = max(1, math.floor(chance * (n + 1)))  # of n + 1 alike, the newest is among the lowest ranks that often
    return math.exp(min(bound, float(np.sort(falls)[rank - 1])))


def lowest_values(
    known: Mapping[str, float], objectives: Objectives, finished: Sequence[Mapping[str, float]]
) -> FloatArray:
    """What the candidate will have at least of each objective, (m,) in natural units, NaN where nothing says so.

    ``known`` is what the gate counted. Where the board measures later (latency, energy), the finished trials' least
    cost for each multiply-accumulate, halved, says what even an unusually cheap network would take.
    """
    return np.array([_lowest(name, known, finished) for name in objectives.names])


def _lowest(name: str, known: Mapping[str, float], finished: Sequence[Mapping[str, float]]) -> float:
    if name in known:
        return known[name]
    work = _MEASURED_PER_WORK.get(name, "")
    rates = [trial[name] / trial[work] for trial in finished if name in trial and trial.get(work, 0.0) > 0]
    if work not in known or len(rates) < LEAST_CURVES:
        return math.nan
    return _MEASURED_CREDIT * min(rates) * known[work]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A complete trial as the rule looks back on it: all its values in natural units, and its training's errors."""

    values: Mapping[str, float]
    errors: tuple[float, ...]


def stopping_rule(
    known: Mapping[str, float],
    epochs: int,
    finished: Sequence[Finished],
    objectives: Objectives,
    settings: EarlyStopping,
) -> StoppingRule | None:
    """The rule for a candidate about to be trained; None where it goes through in any case.

    That is: too few trials have finished, there is no error to minimise, or, with a least gain of 0, the candidate is
    not dominated whatever its error.
    """
    if settings.mode == "off" or ERROR not in objectives.names or not finished:
        return None
    front = objectives.normalised(np.array([objectives.vector(trial.values) for trial in finished]))
    lowest = objectives.normalised(lowest_values(known, objectives, [trial.values for trial in finished]))
    error = objectives.names.index(ERROR)
    threshold = worthless_error(front, lowest, error, objectives.reference, settings.gain)
    curves = [Curve(errors=trial.errors, final=trial.values[ERROR]) for trial in finished if trial.errors]
    shares = remaining_shares(curves, epochs, settings.chance)
    if not math.isfinite(threshold) or not any(shares):
        return None
    limit = objectives.limits[error]
    return StoppingRule(threshold=threshold * (limit if math.isfinite(limit) else 1.0), shares=shares)


def known_of(gate: StageResult) -> dict[str, float]:
    """What the gate counted of a candidate and no later stage makes smaller.

    The stack that the board will use is not among it: of ``ram``, the static part.
    """
    known = {name: value.amount for name, value in gate.values.items()}
    memory = gate.notes.get("memory")
    static = memory.get("ram", {}).get("static") if isinstance(memory, dict) else None
    if "ram" in known and static is not None:
        known["ram"] = min(known["ram"], float(static))
    return known


def errors_of(train: StageResult) -> tuple[float, ...]:
    """Validation errors by epoch, from the curve that the stage ``train`` notes; empty without one."""
    curve = train.notes.get("curve")
    return tuple(1.0 - float(accuracy) for _, accuracy in curve) if isinstance(curve, list) else ()


def has_plateaued(hypervolumes: Sequence[float], initial: int, plateau: Plateau) -> bool:
    """Whether the last ``plateau.trials`` trials, all told after the first ``initial``, raised the hypervolume by at
    most the share ``plateau.gain``. ``hypervolumes`` are those after each told trial; while nothing feasible was found
    there is no plateau.
    """
    before = len(hypervolumes) - plateau.trials
    if before < max(initial, 1) or hypervolumes[-1] <= 0:
        return False
    return hypervolumes[-1] - hypervolumes[before - 1] <= plateau.gain * hypervolumes[-1]


def _percent(error: float) -> str:
    return f"{100 * error:.2f} %"
