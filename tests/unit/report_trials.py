"""Made-up trials for tests of the report: shaped like real ones, computed from a formula, the same every time."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.boards import named, with_worst
from orchestrator.fronts import front, front_hypervolume
from orchestrator.objectives import Objectives
from orchestrator.records import Ending, Fault, FaultKind, Json, Outcome, Source, Value, Violation
from orchestrator.report.contents import BoardFront, ReportInput
from orchestrator.studyfile import StudyFile

LIMITS = {"error": 1.0, "rom": 131072.0, "ram": 32768.0, "flops": 4e6}


@dataclass(frozen=True, kw_only=True)
class MadeUpTrial:
    number: int
    params: dict[str, Any]
    state: str = "complete"
    stage: str = "profile"
    outcome: Outcome | None = None
    notes: dict[str, Json] = field(default_factory=dict)


def study_file(**changes: Any) -> StudyFile:
    return StudyFile.model_validate(
        {
            "name": "digits",
            "dataset": {"source": "digits"},
            "network": {"family": "resnet"},
            "space": {
                "network.width": {"type": "int", "low": 4, "high": 32},
                "network.depth": {"type": "int", "low": 1, "high": 3},
                "network.kernel_size": {"type": "categorical", "choices": [3, 5]},
                "training.learning_rate": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
                "training.epochs": {"type": "int", "low": 5, "high": 30},
                "compression.sparsity.stage1": {"type": "float", "low": 0.0, "high": 0.8},
                "compression.sparsity.stage2": {"type": "float", "low": 0.0, "high": 0.8},
            },
            "board": "nrf52840-dk",
            "objectives": {
                "error": {},
                "rom": {"limit": "128 KiB"},
                "ram": {"limit": "32 KiB"},
                "flops": {"limit": "4 M"},
            },
            "budget": {"trials": 40},
            **changes,
        }
    )


def made_up_trials(count: int = 40, seed: int = 1) -> list[MadeUpTrial]:
    rng = random.Random(seed)
    return [_trial(number, rng, skill=number / count) for number in range(count)]


def _trial(number: int, rng: random.Random, skill: float) -> MadeUpTrial:
    width, depth, kernel = rng.randint(4, 32), rng.randint(1, 3), rng.choice([3, 5])
    sparsity = rng.uniform(0, 0.8)
    params = {
        "network.width": width,
        "network.depth": depth,
        "network.kernel_size": kernel,
        "training.learning_rate": 10 ** rng.uniform(-4, -1),
        "training.epochs": rng.randint(5, 30),
        "compression.sparsity.stage1": round(sparsity, 3),
        "compression.sparsity.stage2": round(rng.uniform(0, 0.8), 3),
    }
    weights = width * width * depth * kernel * kernel * (1 - sparsity) * 2.2
    rom, ram = 9000 + weights, 1200 + 64 * width * 2.5
    flops = weights * 55
    if flops > LIMITS["flops"] or rom > LIMITS["rom"]:
        return _infeasible(number, params, rom, ram, flops)
    if number == 17:
        fault = Fault(kind=FaultKind.TRANSIENT, reason="board_hung", detail="no answer within 120 s")
        return MadeUpTrial(
            number=number, params=params, state="fault", outcome=Outcome(ending=Ending.FAULT, fault=fault)
        )
    error = 0.012 + 0.5 / math.sqrt(weights) + rng.expovariate(1) * 0.05 * (1.2 - skill)
    cycles = flops * 3.1
    values = {
        "float_error": Value(amount=error * 0.9, unit="1", source=Source.EXACT),
        "error": Value(amount=error, unit="1", source=Source.EXACT, note="deployed integer network, whole split"),
        "rom": Value(amount=round(rom), unit="byte", source=Source.EXACT),
        "ram": Value(amount=round(ram), unit="byte", source=Source.EMULATED, note="static and stack high-water mark"),
        "flops": Value(amount=round(flops), unit="1", source=Source.EXACT),
        "cycles": Value(amount=round(cycles), unit="1", source=Source.EMULATED),
        "latency": Value(amount=cycles / 64e6, unit="s", source=Source.EMULATED),
        "energy": Value(amount=cycles * 0.35e-9, unit="J", source=Source.ESTIMATED, note="nJ per cycle of the board"),
    }
    layers = [
        {
            "index": i,
            "name": f"conv{i}",
            "op": "conv2d",
            "macs": round(flops / 8),
            "cycles": round(cycles / (i + 2)),
            "source": "emulated",
        }
        for i in range(2 * depth + 2)
    ]
    seconds = {"gate": 0.8, "train": rng.uniform(3, 12), "compress": 2.5, "build": 1.1, "profile": 0.7}
    return MadeUpTrial(
        number=number,
        params=params,
        outcome=Outcome(
            ending=Ending.COMPLETE, values=values, artifacts={"elf": f"{number:064x}"}, stage_seconds=seconds
        ),
        notes={"build": {"memory": memory_map(len(layers), 64 * width)}, "profile": {"layers": layers}},
    )


def memory_map(n_layers: int, n_bytes: int) -> Json:
    """A chain of layers whose tensors take turns in two halves of the arena, with scratch memory on top."""
    arena = [
        buffer(i % 2 * n_bytes, n_bytes, max(i - 1, 0), min(i, n_layers - 1), f"t{i}") for i in range(n_layers + 1)
    ]
    arena += [buffer(2 * n_bytes, 128, i, i) for i in range(n_layers)]
    return {"arena": arena, "arena_lower_bound": 2 * n_bytes + 128, "arena_peak_layer": 0}


def buffer(offset: int, n_bytes: int, first: int, last: int, *tensors: str) -> Json:
    places = {"offset": offset, "bytes": n_bytes, "first_layer": first, "last_layer": last}
    return {"tensors": list(tensors), **places}


def _infeasible(number: int, params: dict[str, Any], rom: float, ram: float, flops: float) -> MadeUpTrial:
    values = {
        "rom": Value(amount=round(rom), unit="byte", source=Source.EXACT),
        "ram": Value(amount=round(ram), unit="byte", source=Source.EXACT),
        "flops": Value(amount=round(flops), unit="1", source=Source.EXACT),
    }
    violation = Violation(
        quantity="flops",
        amount=flops,
        limit=LIMITS["flops"],
        unit="1",
        message=f"flops {flops / 1e6:.2f} M are {(flops - LIMITS['flops']) / 1e6:.2f} M above the limit of 4 M",
    )
    outcome = Outcome(ending=Ending.INFEASIBLE, values=values, violations=(violation,), stage_seconds={"gate": 0.9})
    return MadeUpTrial(number=number, params=params, state="infeasible", stage="gate", outcome=outcome)


def front_of(trials: list[MadeUpTrial]) -> list[int]:
    points = {
        trial.number: [trial.outcome.values[name].amount for name in LIMITS]
        for trial in trials
        if trial.state == "complete" and trial.outcome is not None
    }
    return [
        number
        for number, point in points.items()
        if not any(
            all(a <= b for a, b in zip(other, point, strict=True)) and other != point for other in points.values()
        )
    ]


def report_input(trials: list[MadeUpTrial] | None = None, **changes: Any) -> ReportInput:
    trials = made_up_trials() if trials is None else trials
    front = changes["front"] if "front" in changes else front_of(trials)
    history = [(n + 1, 0.75 * (1 - math.exp(-(n + 1) / 14)) + (0.02 if n > 8 else 0)) for n in range(len(trials))]
    fields: dict[str, Any] = {
        "study": study_file(),
        "limits": LIMITS,
        "trials": trials,
        "front": front,
        "history": history,
        "test_results": {n: Value(amount=0.02 + 0.001 * n, unit="1", source=Source.EXACT) for n in front},
        "written_at": "2026-01-02T03:04:05+00:00",
        "board_text": "nRF52840, Cortex-M4F at 64 MHz, 1 MiB flash, 256 KiB RAM",
        "study_yaml": "name: digits\nboard: nrf52840-dk\n",
        "export_command": "edgefront export digits --trial {trial} --to digits-{trial}",
        "downloads": {n: [("C sources", f"report_files/trial-{n}/network-c.zip")] for n in front},
        **changes,
    }
    return ReportInput(**fields)


# Share of the first board's latency that each board takes, by size of the kernels: which network is fast depends on it.
TWO_BOARDS = {"nrf52840-dk": {3: 1.0, 5: 1.0}, "nucleo-h743zi": {3: 2.5, 5: 0.4}}
_ONE_A_BOARD = ("rom", "ram", "cycles", "latency", "energy")


def two_board_study() -> StudyFile:
    changes = {"boards": list(TWO_BOARDS), "objectives": {"error": {}, "ram": {}, "latency": {"limit": "400 ms"}}}
    return StudyFile.model_validate({**study_file().to_json(), "board": None, **changes})


def two_board_trials(count: int = 40) -> list[MadeUpTrial]:
    """The made-up trials, measured on two boards."""
    return [_on_two_boards(trial) for trial in made_up_trials(count)]


def _on_two_boards(trial: MadeUpTrial) -> MadeUpTrial:
    if trial.outcome is None:
        return trial
    kinds, kernel = tuple(TWO_BOARDS), trial.params["network.kernel_size"]
    values = {name: value for name, value in trial.outcome.values.items() if name not in _ONE_A_BOARD}
    for name in (name for name in _ONE_A_BOARD if name in trial.outcome.values):
        for kind, shares in TWO_BOARDS.items():
            value = trial.outcome.values[name]
            share = shares[kernel] if name in ("cycles", "latency", "energy") else 1.0
            values[named(name, kind, kinds)] = replace(value, amount=value.amount * share)
    build = trial.notes.get("build", {})
    notes = {"build": {named(name, kind, kinds): note for name, note in build.items() for kind in kinds}}
    for kind, shares in TWO_BOARDS.items():
        layers = trial.notes.get("profile", {}).get("layers", [])
        counted = [{**layer, "cycles": round(layer["cycles"] * shares[kernel])} for layer in layers]
        notes[named("profile", kind, kinds)] = {"layers": counted}
    return replace(trial, outcome=replace(trial.outcome, values=with_worst(values, kinds)), notes=notes)


def two_board_input(trials: list[MadeUpTrial] | None = None) -> ReportInput:
    trials = two_board_trials() if trials is None else trials
    study = two_board_study()
    objectives = Objectives.from_study(study, 1024 * 1024, 256 * 1024)
    fronts = {kind: front(trials, objectives, kind) for kind in TWO_BOARDS}
    boards = [
        BoardFront(
            kind=kind,
            text=f"text of {kind}",
            front=[trial.number for trial in members],
            hypervolume=front_hypervolume(members, objectives, kind),
        )
        for kind, members in fronts.items()
    ]
    return report_input(
        trials,
        study=study,
        limits=dict(zip(objectives.names, objectives.limits, strict=True)),
        front=[trial.number for trial in front(trials, objectives)],
        boards=boards,
        board_text="",
        export_command="edgefront export digits --trial {trial} --board {board} --to digits-{trial}",
    )
