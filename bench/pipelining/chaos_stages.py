"""Stages of a study under chaos: a training that waits a second, and images that were built before; boards are real.

``EDGEFRONT_STAGES=bench.pipelining.chaos_stages:STAGES`` puts them in the place of the real ones. The profile is not
among them: agents load each image on a board as ever.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from bench import zoo
from mcu_agent.kinds import load_kind
from mcu_agent.measure import pack_vectors
from orchestrator.records import Source, StageRequest, Value
from tasks.compile import job_of, json_text
from tasks.firmware.compiler import compile_network
from tasks.stage import StageContext, StageFunction, StageOutput

IMAGES_VARIABLE = "EDGEFRONT_BENCH_IMAGES"  # the folder that `write_images` has filled
TRAINING_VARIABLE = "EDGEFRONT_BENCH_TRAINING_S"
SAMPLES = 32
_NETWORK = "mlp"
_NOISE = 0.02


def write_images(folder: Path, kind: str, n: int) -> None:
    """Compile ``n`` networks for boards of ``kind``, with their test vectors and layers."""
    for seed in range(n):
        compiled = compile_network(zoo.quantised(_NETWORK, seed), load_kind(kind))
        job = job_of(compiled, SAMPLES, seed)
        parts = {"elf": job.elf, "vectors": pack_vectors(job), "layers": json_text(compiled.layers_json()).encode()}
        for name, data in parts.items():
            (folder / str(seed)).mkdir(parents=True, exist_ok=True)
            (folder / str(seed) / name).write_bytes(data)


def _gate(request: StageRequest, context: StageContext) -> StageOutput:
    return StageOutput(values={"rom": _bytes(_rom(request)), "ram": _bytes(100.0)})


def _train(request: StageRequest, context: StageContext) -> StageOutput:
    time.sleep(float(os.environ.get(TRAINING_VARIABLE, "1")))
    weights = f"weights {request.seed} {sorted(request.params.items())}".encode()
    return StageOutput(
        values={"float_error": _share(_error(request))}, artifacts={"weights": context.artifacts.put_bytes(weights)}
    )


def _compress(request: StageRequest, context: StageContext) -> StageOutput:
    weights = context.artifacts.get_bytes(request.inputs["weights"])
    onnx = context.artifacts.put_bytes(b"pruned " + weights)
    return StageOutput(values={"pruned_float_error": _share(_error(request))}, artifacts={"model": onnx})


def _build(request: StageRequest, context: StageContext) -> StageOutput:
    context.artifacts.get_bytes(request.inputs["model"])
    folders = sorted(Path(os.environ[IMAGES_VARIABLE]).iterdir())
    image = folders[request.seed % len(folders)]
    artifacts = {part.name: context.artifacts.put_bytes(part.read_bytes()) for part in sorted(image.iterdir())}
    return StageOutput(values={"rom": _bytes(_rom(request)), "error": _share(_error(request))}, artifacts=artifacts)


def _final(request: StageRequest, context: StageContext) -> StageOutput:
    context.artifacts.get_bytes(request.inputs["elf"])
    return StageOutput(values={"test_error": _share(_error(request))})


def _rom(request: StageRequest) -> float:
    return 2000.0 + 40.0 * float(request.params["network.width"]) * float(request.params["network.depth"])


def _error(request: StageRequest) -> float:
    """A trade-off with noise that the trial's seed decides: wider and deeper is better."""
    width, depth = float(request.params["network.width"]), float(request.params["network.depth"])
    return 1 / (1 + 0.2 * width) + 0.05 / depth + _NOISE * (request.seed % 1000) / 1000


def _bytes(amount: float) -> Value:
    return Value(amount=amount, unit="byte", source=Source.EXACT)


def _share(amount: float) -> Value:
    return Value(amount=amount, unit="1", source=Source.EXACT)


STAGES: dict[str, StageFunction] = {
    "gate": _gate,
    "train": _train,
    "compress": _compress,
    "build": _build,
    "final": _final,
}
