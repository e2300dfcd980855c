"""Which function runs which stage, and running it so that a repeated request gives the recorded result.

The environment variable ``EDGEFRONT_STAGES`` (``module:mapping``) replaces single stages by functions of one's own: the
mapping's values are functions of the kind :class:`tasks.stage.StageFunction`, its keys the stages' names.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from orchestrator.boards import base, named
from orchestrator.records import Ending, Event, Fault, FaultKind, StageRequest, StageResult
from tasks.artifacts import ArtifactStore
from tasks.checkpoints import StoredCheckpoint
from tasks.errors import Defect, TransientFault
from tasks.stage import StageContext, StageFunction, run_stage

STAGES = ("gate", "train", "compress", "build", "profile")
# What each board kind of a study has a stage of its own for.
BOARD_STAGES = ("profile",)
FINAL_STAGE = "final"

_FUNCTIONS = {
    "gate": "tasks.gate:run",
    "train": "tasks.train:run",
    "compress": "tasks.compress:run",
    "build": "tasks.build:run",
    "profile": "tasks.profile:run",
    "final": "tasks.final:run",
}
OVERRIDE_VARIABLE = "EDGEFRONT_STAGES"

# What of a study cannot change a stage's result; all the rest is part of a result's name.
_IRRELEVANT = {"name", "budget", "sampler", "parallelism", "early_stopping"}
_IRRELEVANT_TRAINING = {"checkpoint_every"}
_MEMO_VERSION = 2


def stages_for(kinds: Sequence[str]) -> tuple[str, ...]:
    """The stages of a study for these board kinds: with several, ``profile@<kind>`` for each of them."""
    return tuple(
        name
        for stage in STAGES
        for name in ([named(stage, kind, kinds) for kind in kinds] if stage in BOARD_STAGES else [stage])
    )


def stage_function(stage: str) -> StageFunction:
    """The function that runs ``stage``, whatever board it names. Imported on first use: some load PyTorch.

    Raises:
        Defect: there is no such function.
    """
    stage = base(stage)
    override = os.environ.get(OVERRIDE_VARIABLE)
    if override and stage in (replaced := _load(override, OVERRIDE_VARIABLE)):
        function: StageFunction = replaced[stage]
        return function
    if stage not in _FUNCTIONS:
        raise Defect("unknown_stage", f"no stage is called {stage!r}; there are {', '.join(_FUNCTIONS)}")
    loaded: StageFunction = _load(_FUNCTIONS[stage], f"stage {stage}")
    return loaded


def _load(address: str, what: str):  # type: ignore[no-untyped-def]  # whatever the address names
    module, _, name = address.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise Defect("cannot_import", f"{what}: cannot load {address!r}: {error}") from error


def memo_key(request: StageRequest) -> str:
    """A hash of everything that determines the stage's result, the rule for stopping early included; trial number and
    attempt do not."""
    study = {key: value for key, value in request.study.items() if key not in _IRRELEVANT}
    if isinstance(training := study.get("training"), dict):
        study["training"] = {key: value for key, value in training.items() if key not in _IRRELEVANT_TRAINING}
    facts = [_MEMO_VERSION, request.stage, study, dict(request.params), request.seed, dict(request.inputs)]
    facts += [dict(request.sources), request.stopping]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def checkpoint_of(store: ArtifactStore, key: str) -> StoredCheckpoint:
    """A checkpoint in the store, of a process that stays."""
    return StoredCheckpoint(store=store, key=key)


def perform(
    request: StageRequest,
    store: ArtifactStore,
    *,
    progress: Callable[[Event], None],
    worker: str,
    guard: Callable[[StageFunction], StageFunction] = lambda function: function,
    checkpoint: Callable[[ArtifactStore, str], StoredCheckpoint] = checkpoint_of,
) -> StageResult:
    """Run a stage, or answer at once with the result that was recorded for the same work.

    Complete and infeasible results are remembered beside the artifacts before anybody hears of them, so whoever dies
    afterwards, the work is done once. ``guard`` wraps the stage's function (time limits); ``checkpoint`` makes the
    place where a long stage keeps its state, which is emptied once there is a result.
    """
    recorded = recall(request, store)
    if recorded is not None:
        return replace(recorded, worker=worker)
    kept = checkpoint(store, memo_key(request))
    context = StageContext(artifacts=store, progress=progress, checkpoint=kept)
    result = replace(run_stage(guard(_resolving(request.stage)), request, context), worker=worker)
    if result.ending is not Ending.FAULT:
        result = _remembered(result, request, store)
    if result.ending is not Ending.FAULT:
        kept.forget()
    return result


def _remembered(result: StageResult, request: StageRequest, store: ArtifactStore) -> StageResult:
    """The result once it is recorded; a fault when it cannot be: work that cannot be kept does not count."""
    try:
        store.remember(memo_key(request), json.dumps(result.to_json()).encode())
    except Defect as error:
        fault = Fault(kind=FaultKind.DEFECT, reason=error.reason, detail=error.detail)
    except TransientFault as error:
        fault = Fault(kind=FaultKind.TRANSIENT, reason=error.reason, detail=error.detail)
    except OSError as error:
        fault = Fault(kind=FaultKind.TRANSIENT, reason="os_error", detail=str(error))
    except (TypeError, ValueError) as error:
        fault = Fault(kind=FaultKind.DEFECT, reason="bad_stage", detail=f"the result cannot be kept as JSON: {error}")
    else:
        return result
    return replace(result, ending=Ending.FAULT, fault=fault, values={}, artifacts={}, violations=(), notes={})


def _resolving(stage: str) -> StageFunction:
    """The stage's function, found inside the frame that turns errors into results."""
    return lambda request, context: stage_function(stage)(request, context)


def recall(request: StageRequest, store: ArtifactStore) -> StageResult | None:
    """The result recorded for this work, under this request's ids; None without one or if an artifact is gone."""
    try:
        store.register(request.study_id)
        data = store.recall(memo_key(request))
        result = StageResult.from_json(json.loads(data)) if data is not None else None
        # Held, not only looked for: they may be old, and nobody names them yet.
        if result is None or not all(store.hold(sha256) for sha256 in result.artifacts.values()):
            return None
    except (OSError, TransientFault, Defect):
        return None  # the store cannot be reached; the stage will meet the same error and say so
    except (ValueError, KeyError, TypeError):
        return None  # damaged or of another version: the stage simply runs again
    return replace(result, study_id=request.study_id, trial=request.trial, attempt=request.attempt)


def stages_of_queues(queues: Mapping[str, tuple[str, ...]], names: tuple[str, ...]) -> tuple[str, ...]:
    """The stages that a worker of the queues ``names`` may be asked for."""
    return tuple(stage for name in names for stage in queues.get(name.split(".")[0], ()))
