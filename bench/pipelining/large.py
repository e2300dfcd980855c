"""A study of thousands of trials, written into its database at once: as large as a real one, in seconds.

Each trial has what a real one of ``examples/digits.yaml`` has: five results of together about 12 KB with a curve,
layers and a memory plan, attempts, events, and all that Optuna keeps. Figures are made up, from a smooth trade-off with
noise; one in eight candidates is infeasible, the last two are under way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from optuna.distributions import distribution_to_json
from optuna.storages._rdb import models
from optuna.storages._rdb.models import TrialValueModel
from optuna.trial import TrialState

from mcu_agent.kinds import load_kind
from orchestrator.ledger import outcome_to_json
from orchestrator.location import Location
from orchestrator.loop import trial_seed
from orchestrator.objectives import Objectives
from orchestrator.records import Ending, Json, Outcome, Source, StageResult, Value, Violation
from orchestrator.space import SearchSpace
from orchestrator.study import Study
from orchestrator.studyfile import StudyFile
from orchestrator.tables import ATTEMPTS, CANDIDATES, EVENTS, RESULTS

UNDER_WAY = 2
STAGES = ("gate", "train", "compress", "build", "profile")
_EPOCHS = 20
_LAYERS = 9
_AT_ONCE = 500
_BEGAN = datetime(2026, 1, 5, 8, tzinfo=UTC)
_BOARD = "nrf52840-dk"


def file_of(n_trials: int, name: str = "large") -> StudyFile:
    """The study file, for as many trials and half as many again."""
    return StudyFile.from_json(
        {
            "name": name,
            "seed": 0,
            "dataset": {"source": "digits"},
            "network": {"family": "resnet2d", "options": {"stages": 2}},
            "space": {
                "network.width": {"type": "int", "low": 2, "high": 16, "log": True},
                "network.depth": {"type": "int", "low": 1, "high": 2},
                "network.kernel_size": {"type": "categorical", "choices": [3, 5]},
                "training.learning_rate": {"type": "float", "low": 1e-3, "high": 2e-2, "log": True},
                "training.epochs": {"type": "int", "low": 10, "high": 30},
                "compression.sparsity.stage1": {"type": "float", "low": 0.0, "high": 0.7},
                "compression.sparsity.stage2": {"type": "float", "low": 0.0, "high": 0.7},
            },
            "board": _BOARD,
            "objectives": {
                "error": {"limit": 0.25},
                "rom": {"limit": "64 KiB"},
                "ram": {"limit": "32 KiB"},
                "flops": {"limit": "4 M"},
            },
            "budget": {"trials": n_trials + n_trials // 2},
            "sampler": {"name": "random", "initial": 8},
        }
    )


def write_large_study(place: Path | Location, n_trials: int) -> Study:
    """Begin the study and fill its tables; it is left open."""
    file = file_of(n_trials, place.name)
    kind = load_kind(_BOARD)
    study = Study.create(place, file, Objectives.from_study(file, kind.flash_bytes, kind.ram_bytes))
    space = SearchSpace.from_parameters(file.space)
    rng = np.random.default_rng(0)
    trials = (_made_up(number, space, study, rng, is_open=number >= n_trials - UNDER_WAY) for number in range(n_trials))
    with study.engine.begin() as connection:
        optuna_study = connection.scalar(sa.select(models.StudyModel.study_id))
        for part in _parts(trials):
            _insert(connection, part, space, optuna_study)
    return study


@dataclass(frozen=True, kw_only=True, slots=True)
class _Trial:
    number: int
    params: dict[str, Any]
    seed: int
    outcome: Outcome | None
    results: list[StageResult]
    told: int | None
    objectives: Objectives


def _made_up(number: int, space: SearchSpace, study: Study, rng: np.random.Generator, *, is_open: bool) -> _Trial:
    point = rng.random(len(space.distributions()))
    params = {**space.decode(point), **space.fixed}
    size = float(point[0] * (1 - 0.5 * point[-1]))
    is_infeasible = not is_open and rng.random() < 0.125
    values = made_up_values(size, rng)
    stages = STAGES[:1] if is_infeasible or is_open else STAGES
    results = [made_up_result(study.study_id, number, stage, values, rng) for stage in stages]
    return _Trial(
        number=number,
        params=params,
        seed=trial_seed(0, number),
        outcome=None if is_open else _outcome(values, results, study.objectives, is_infeasible=is_infeasible),
        results=results,
        told=None if is_open else number + 1,
        objectives=study.objectives,
    )


def made_up_values(size: float, rng: np.random.Generator) -> dict[str, Value]:
    """What a network of this size (0 to 1) has: the larger, the better and the dearer."""
    return {
        "error": _value(0.02 + 0.2 * (1 - size) ** 2 * rng.lognormal(0, 0.4), "1"),
        "rom": _value(12e3 + 40e3 * size * rng.lognormal(0, 0.1), "byte"),
        "ram": _value(2e3 + 20e3 * size * rng.lognormal(0, 0.2), "byte"),
        "flops": _value(2e5 + 3e6 * size * rng.lognormal(0, 0.2), "1"),
        "macs": _value(1e5 + 1.5e6 * size, "1"),
        "latency": _value(1e-3 + 2e-2 * size, "s"),
        "cycles": _value(6e4 + 1e6 * size, "1"),
    }


def _value(amount: float, unit: str) -> Value:
    return Value(amount=amount, unit=unit, source=Source.EMULATED, note="made up, as long as a real note of a value is")


def _outcome(
    values: dict[str, Value], results: list[StageResult], objectives: Objectives, *, is_infeasible: bool
) -> Outcome:
    broken = objectives.violations(values)
    if is_infeasible:
        broken = (Violation(quantity="rom", amount=9e4, limit=65536.0, unit="byte", message="rom: 24,464 bytes over"),)
    return Outcome(
        ending=Ending.INFEASIBLE if broken else Ending.COMPLETE,
        values={} if is_infeasible else values,
        artifacts={name: sha256 for result in results for name, sha256 in result.artifacts.items()},
        violations=broken,
        stage_seconds={result.stage: result.seconds for result in results},
    )


_ARTIFACTS = {
    "train": ("weights",),
    "compress": ("onnx", "onnx_float"),
    "build": ("sources", "elf", "layers", "vectors"),
}


def made_up_result(
    study_id: str, number: int, stage: str, values: dict[str, Value], rng: np.random.Generator
) -> StageResult:
    """What a stage answers, as large as a real one's."""
    return StageResult(
        study_id=study_id,
        trial=number,
        stage=stage,
        attempt=1,
        ending=Ending.COMPLETE,
        seconds=1.0,
        values={name: values[name] for name in ("rom", "flops", "macs")} if stage == "gate" else values,
        artifacts={name: rng.bytes(32).hex() for name in _ARTIFACTS.get(stage, ())},
        notes=_notes(stage, rng),
        worker=f"{stage}-1",
    )


def _notes(stage: str, rng: np.random.Generator) -> Json:
    if stage == "train":
        return {"curve": [[round(2 / epoch, 4), round(1 - 0.5 / epoch, 4)] for epoch in range(1, _EPOCHS + 1)]}
    if stage in ("gate", "build"):
        return {"memory": _memory(), "layers": [_layer(index, rng) for index in range(_LAYERS)]}
    if stage == "profile":
        return {"layers": [{"index": i, "symbol": f"layer_{i}", "cycles": 1000 * i} for i in range(_LAYERS)]}
    return {"inputs": {"scale": 0.01, "zero_point": 3}}


def _layer(index: int, rng: np.random.Generator) -> Json:
    return {
        "index": index,
        "symbol": f"layer_{index}",
        "op": "conv2d",
        "macs": int(rng.integers(1000, 200000)),
        "weight_bytes": int(rng.integers(100, 20000)),
        "scratch_bytes": 64,
        "kernel": "edgefront_conv2d_3x3_s8",
    }


def _memory() -> Json:
    buffers = [
        {
            "tensors": [f"t{i}"],
            "bytes": 512 * (1 + i % 3),
            "offset": 512 * (i % 4),
            "first_layer": i,
            "last_layer": i + 1,
        }
        for i in range(_LAYERS - 1)
    ]
    return {"arena": buffers, "arena_lower_bound": 2048, "arena_peak_layer": 2}


def _parts(trials: Iterator[_Trial]) -> Iterator[list[_Trial]]:
    part: list[_Trial] = []
    for trial in trials:
        part.append(trial)
        if len(part) == _AT_ONCE:
            yield part
            part = []
    if part:
        yield part


def _insert(connection: sa.Connection, trials: list[_Trial], space: SearchSpace, study: int) -> None:
    rows: list[tuple[Any, list[Json]]] = [
        (CANDIDATES, [_candidate(trial) for trial in trials]),
        (ATTEMPTS, [row for trial in trials for row in _attempts(trial)]),
        (RESULTS, [row for trial in trials for row in _results(trial)]),
        (EVENTS, [_event(trial) for trial in trials if trial.outcome]),
        (sa.inspect(models.TrialModel).local_table, [_optuna_trial(trial, study) for trial in trials]),
        (sa.inspect(models.TrialParamModel).local_table, [row for trial in trials for row in _params(trial, space)]),
        (sa.inspect(models.TrialValueModel).local_table, [row for trial in trials for row in _values(trial)]),
        (
            sa.inspect(models.TrialSystemAttributeModel).local_table,
            [row for trial in trials for row in _constraints(trial)],
        ),
    ]
    for table, values in rows:
        if values:
            connection.execute(table.insert(), values)


def _at(trial: _Trial, minutes: float) -> datetime:
    return _BEGAN + timedelta(minutes=trial.number + minutes)


def _candidate(trial: _Trial) -> Json:
    return {
        "trial": trial.number,
        "params": json.dumps(trial.params),
        "seed": trial.seed,
        "state": trial.outcome.ending.value if trial.outcome else "open",
        "told": trial.told,
        "started_at": _at(trial, 0).isoformat(timespec="milliseconds"),
        "ended_at": _at(trial, 1).isoformat(timespec="milliseconds") if trial.outcome else None,
        "outcome": json.dumps(outcome_to_json(trial.outcome)) if trial.outcome else None,
    }


def _attempts(trial: _Trial) -> Iterator[Json]:
    for index, result in enumerate(trial.results):
        at = _at(trial, index / 10).isoformat(timespec="milliseconds")
        yield {
            "trial": trial.number,
            "stage": result.stage,
            "attempt": 1,
            "task_id": f"{trial.number}-{result.stage}",
            "state": "ended",
            "queued_at": at,
            "started_at": at,
            "ended_at": at,
            "seconds": 1.0,
            "worker": result.worker,
            "fault": None,
        }


def _results(trial: _Trial) -> Iterator[Json]:
    for result in trial.results:
        yield {
            "trial": trial.number,
            "stage": result.stage,
            "attempt": 1,
            "counts": True,
            "result": json.dumps(result.to_json()),
        }


def _event(trial: _Trial) -> Json:
    assert trial.outcome is not None
    fields = {"trial": trial.number, "ending": trial.outcome.ending.value, "values": {}, "reason": ""}
    return {"at": _at(trial, 1).isoformat(timespec="milliseconds"), "name": "trial_ended", "fields": json.dumps(fields)}


def _optuna_trial(trial: _Trial, study: int) -> Json:
    states = {Ending.COMPLETE: TrialState.COMPLETE, Ending.INFEASIBLE: TrialState.PRUNED}
    return {
        "trial_id": trial.number + 1,
        "number": trial.number,
        "study_id": study,
        "state": states[trial.outcome.ending] if trial.outcome else TrialState.RUNNING,
        "datetime_start": _at(trial, 0).replace(tzinfo=None),
        "datetime_complete": _at(trial, 1).replace(tzinfo=None) if trial.outcome else None,
    }


def _params(trial: _Trial, space: SearchSpace) -> Iterator[Json]:
    for name, item in space.distributions().items():
        if name not in space.fixed:
            yield {
                "trial_id": trial.number + 1,
                "param_name": name,
                "param_value": item.to_internal_repr(trial.params[name]),
                "distribution_json": distribution_to_json(item),
            }


def _values(trial: _Trial) -> Iterator[Json]:
    if trial.outcome and trial.outcome.ending is Ending.COMPLETE:
        for objective, amount in enumerate(trial.objectives.vector(trial.outcome.values)):
            yield {
                "trial_id": trial.number + 1,
                "objective": objective,
                "value": float(amount),
                "value_type": TrialValueModel.TrialValueType.FINITE,
            }


def _constraints(trial: _Trial) -> Iterator[Json]:
    margins = trial.objectives.margins(trial.outcome.values) if trial.outcome else {}
    for name, margin in margins.items():
        yield {"trial_id": trial.number + 1, "key": f"constraints:{name}", "value_json": json.dumps(margin)}
