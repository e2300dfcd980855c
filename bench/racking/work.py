"""Many measurements through the queue, as a study's loop would ask for them."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import zoo
from mcu_agent.kinds import load_kind
from mcu_agent.measure import pack_vectors
from orchestrator.records import Ending, FaultKind, StageRequest, StageResult
from orchestrator.studyfile import StudyFile
from tasks.artifacts import ArtifactStore
from tasks.compile import job_of, json_text
from tasks.evaluator import CeleryEvaluator
from tasks.firmware.compiler import compile_network

STAGE = "profile"
NETWORK = "mlp"
IN_FLIGHT = 160
SAMPLES = 32
_LOST_EVERY_S = 1.0


@dataclass(kw_only=True)
class Tally:
    """What became of the measurements: ``results`` by trial, the first that was complete; ``doubled`` counts trials
    that gave a second one; ``faults`` counts attempts that failed, by reason."""

    results: dict[int, StageResult] = field(default_factory=dict)
    doubled: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def study_of(kind: str) -> StudyFile:
    """A study whose profiles run ``SAMPLES`` known answers on a board of ``kind``."""
    return StudyFile.from_json(
        {
            "name": "bench",
            "dataset": {"source": "digits"},
            "network": {"family": "mlp"},
            "space": {"network.width": {"type": "int", "low": 1, "high": 64}, "network.depth": 1},
            "board": kind,
            "objectives": {"error": {}, "latency": {"limit": "1 s"}},
            "budget": {"trials": 1},
            "profiling": {"samples": SAMPLES, "timeout": 60},
        }
    )


def requests(store: ArtifactStore, kind: str, n: int, n_images: int) -> list[StageRequest]:
    """``n`` measurements of ``n_images`` different images. Each has a name of its own: none is answered from
    memory."""
    study = study_of(kind).to_json()
    images = [_image(store, kind, seed) for seed in range(n_images)]
    return [
        StageRequest(
            study_id=f"bench-{n}",
            trial=trial,
            stage=STAGE,
            attempt=1,
            params={"network.width": trial % 64 + 1},
            seed=trial,
            inputs=images[trial % n_images],
            study=study,
        )
        for trial in range(n)
    ]


def _image(store: ArtifactStore, kind: str, seed: int) -> dict[str, str]:
    compiled = compile_network(zoo.quantised(NETWORK, seed), load_kind(kind))
    job = job_of(compiled, SAMPLES, seed)
    parts = {"elf": job.elf, "vectors": pack_vectors(job), "layers": json_text(compiled.layers_json()).encode()}
    return {name: store.put_bytes(data) for name, data in parts.items()}


@contextmanager
def evaluator(url: str, artifacts: Path, study_id: str) -> Iterator[CeleryEvaluator]:
    """The queue's near end."""
    one = CeleryEvaluator(url=url, study_id=study_id, artifacts=artifacts, patience_s=120.0)
    try:
        yield one
    finally:
        one.close()


def measure_all(
    queue: CeleryEvaluator,
    wanted: Sequence[StageRequest],
    *,
    in_flight: int = IN_FLIGHT,
    trouble: Callable[[int], None] = lambda done: None,
) -> Tally:
    """Have all of them measured: attempts that fail or are lost are asked for again. ``trouble`` is called with the
    number done, over and over."""
    tally, started = Tally(), time.monotonic()
    waiting, open_, looked = deque(wanted), dict[str, StageRequest](), time.monotonic()
    while waiting or open_:
        while waiting and len(open_) < in_flight:
            request = waiting.popleft()
            open_[request.task_id] = request
            queue.submit(request)
        for result in queue.collect(0.2):
            _take(tally, open_, waiting, result)
        if time.monotonic() - looked > _LOST_EVERY_S:
            looked = time.monotonic()
            for task_id in queue.lost(list(open_)):
                tally.faults["worker_lost"] += 1
                _again(open_, waiting, task_id)
        trouble(len(tally.results))
    tally.seconds = time.monotonic() - started
    return tally


def _take(tally: Tally, open_: dict[str, StageRequest], waiting: deque[StageRequest], result: StageResult) -> None:
    task_id = next((key for key, one in open_.items() if one.trial == result.trial), None)
    if result.ending is Ending.COMPLETE:
        tally.doubled += result.trial in tally.results
        tally.results.setdefault(result.trial, result)
        if task_id is not None:
            del open_[task_id]
        return
    fault = result.fault
    if fault is None or fault.kind is FaultKind.DEFECT:
        raise RuntimeError(f"trial {result.trial} ended as {result.ending}: {fault}; {result.violations}")
    tally.faults[fault.reason] += 1
    if task_id is not None and open_[task_id].attempt == result.attempt:
        _again(open_, waiting, task_id)


def _again(open_: dict[str, StageRequest], waiting: deque[StageRequest], task_id: str) -> None:
    request = open_.pop(task_id)
    waiting.appendleft(replace(request, attempt=request.attempt + 1))
