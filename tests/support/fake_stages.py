"""Stages that take no time, for tests of the loop and the queue; an environment variable makes them misbehave."""

from __future__ import annotations

import os
import signal
from time import sleep

from orchestrator.records import Event, Source, StageRequest, Value, Violation
from tasks.errors import Defect, HandedOver, Infeasible, TransientFault
from tasks.stage import StageContext, StageFunction, StageOutput

NO_OUTPUT, NO_JSON = 901, 902  # trials whose stages give what no stage may give
_VALUES = {
    "gate": (("rom", 1000.0, "byte"), ("ram", 100.0, "byte")),
    "train": (("float_error", 0.1, "1"),),
    "compress": (("pruned_float_error", 0.12, "1"),),
    "build": (("rom", 2000.0, "byte"), ("error", 0.2, "1")),
    "profile": (("ram", 200.0, "byte"),),
    "final": (("test_error", 0.25, "1"),),
}
_READS = {"compress": "weights", "build": "onnx", "profile": "elf", "final": "elf"}
_WRITES = {"train": "weights", "compress": "onnx", "build": "elf"}


def _stage(name: str) -> StageFunction:
    def run(request: StageRequest, context: StageContext) -> StageOutput:
        x = float(request.params.get("network.width", 0))
        if request.trial == NO_OUTPUT:
            return 5  # type: ignore[return-value]  # what a stage of one's own may do
        if request.trial == NO_JSON:
            return StageOutput(notes={"what": object()})
        _misbehave(name, request, context)
        if name in _READS:
            context.artifacts.get_bytes(request.inputs[_READS[name]])
        artifacts = {}
        if name in _WRITES:
            content = f"{name} {x} {request.seed}".encode()
            artifacts[_WRITES[name]] = context.artifacts.put_bytes(content)
        if name == "train":
            context.progress(
                Event(name="epoch_finished", fields={"epoch": 1, "epochs": 1, "loss": 0.5, "accuracy": 0.9})
            )
        values = {
            key: Value(amount=_amount(key, amount, x), unit=unit, source=Source.EXACT)
            for key, amount, unit in _VALUES[name]
        }
        return StageOutput(values=values, artifacts=artifacts, notes={"stage": name})

    return run


def _amount(key: str, amount: float, x: float) -> float:
    """A trade-off: wider is larger and better."""
    return amount / (1 + x) if "error" in key else amount * (1 + x)


def _misbehave(stage: str, request: StageRequest, context: StageContext) -> None:
    """``EDGEFRONT_TEST_TROUBLE``: ``<kind>:<stage>:<trial>[:<attempts>]``, several with commas."""
    for trouble in filter(None, os.environ.get("EDGEFRONT_TEST_TROUBLE", "").split(",")):
        kind, at, trial, *attempts = trouble.split(":")
        if (
            at == stage
            and trial in ("*", str(request.trial))
            and request.attempt <= int(attempts[0] if attempts else 99)
        ):
            _wait(kind)
            _make(kind, stage)
            if kind == "train":  # for as long as nobody wants it to leave
                _train_until_leaving(context)


def _train_until_leaving(context: StageContext) -> None:
    context.checkpoint.save(b"begun")
    while not context.checkpoint.is_leaving():
        sleep(0.02)
    context.checkpoint.save(b"as far as it came")
    raise HandedOver("another worker goes on")


def _wait(kind: str) -> None:
    if kind == "hog":
        held = b"x" * 400_000_000
        sleep(60)
        del held
    if kind == "pause":
        sleep(3)
    if kind == "slow":
        sleep(0.3)
    if kind == "hang":
        sleep(60)
    if kind == "freeze":  # deaf to being interrupted
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        sleep(60)


def _make(kind: str, stage: str) -> None:
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "killparent":
        os.kill(os.getppid(), signal.SIGKILL)
        sleep(60)
    if kind == "transient":
        raise TransientFault("board_lost", f"{stage}: no answer")
    if kind == "defect":
        raise Defect("bit_mismatch", f"{stage}: layer 2 differs")
    if kind == "infeasible":
        raise Infeasible(
            Violation(quantity="rom", amount=300.0, limit=200.0, unit="byte", message="rom: 100 bytes over")
        )
    if kind == "crash":
        raise ZeroDivisionError(stage)


STAGES: dict[str, StageFunction] = {name: _stage(name) for name in _VALUES}
