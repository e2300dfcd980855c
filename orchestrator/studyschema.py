"""The study file's JSON Schema, for editors that complete and check YAML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from orchestrator.studyfile import (
    Budget,
    Compression,
    Dataset,
    EarlyStopping,
    Firmware,
    Network,
    Notify,
    Parallelism,
    Profiling,
    Sampler,
    StudyFile,
    Training,
)

SECTIONS: Mapping[str, type[BaseModel]] = {
    "dataset": Dataset,
    "network": Network,
    "budget": Budget,
    "sampler": Sampler,
    "training": Training,
    "compression": Compression,
    "early_stopping": EarlyStopping,
    "firmware": Firmware,
    "parallelism": Parallelism,
    "profiling": Profiling,
    "notify": Notify,
}
_QUANTITY_FIELDS = ("limit", "wall_clock", "timeout", "stall_after")


def json_schema() -> dict[str, Any]:
    """The study file's JSON Schema (draft 2020-12): fields, defaults, bounds and what each means."""
    schema = StudyFile.model_json_schema()
    definitions = schema["$defs"]
    for model in (schema, *definitions.values()):
        for name, item in model.get("properties", {}).items():
            if name in _QUANTITY_FIELDS:
                _allow_units(item)
    for path, text in FIELD_HELP.items():
        section, _, name = path.rpartition(".")
        model = definitions[SECTIONS[section].__name__] if section else schema
        model["properties"][name]["description"] = text
    space = schema["properties"]["space"]
    plain = [{"type": "boolean"}, {"type": "number"}, {"type": "string"}]
    space["additionalProperties"] = {"anyOf": [space["additionalProperties"], *plain]}
    schema["properties"]["boards"]["anyOf"][0]["uniqueItems"] = True
    schema["oneOf"] = [{"required": ["board"]}, {"required": ["boards"]}]
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Edgefront study file"
    return schema


def _allow_units(item: dict[str, Any]) -> None:
    """A number, or text like ``64 KiB`` or ``30 min``."""
    numbers = item.pop("anyOf", None) or [{key: item.pop(key) for key in ("type", "exclusiveMinimum") if key in item}]
    item["anyOf"] = [*numbers, {"type": "string", "pattern": r"^\s*[0-9.]+([eE][+-]?[0-9]+)?\s*[A-Za-zµ]*\s*$"}]


FIELD_HELP: Mapping[str, str] = {
    "name": "Name of the study and of its folder.",
    "seed": "Fixes the split of the data, the proposals and each trial's training.",
    "space": "Parameters to search: network.<option>, training.<field>, compression.<field>; a plain value is fixed.",
    "board": "Board kind; `edgefront boards` lists them. This or `boards` must be given.",
    "boards": "Instead of `board`: several kinds. Trained once, built and measured on each; the worst value counts.",
    "objectives": "What is minimised, each with an optional limit.",
    "dataset.source": "A built-in data set, a .npz file with x and y, or module:function.",
    "dataset.validation": "Share of the data the error is measured on during the search.",
    "dataset.test": "Share of the data kept for the final front.",
    "dataset.options": "Arguments of the data set.",
    "network.family": "A built-in family, or module:function returning a PyTorch module.",
    "network.options": "Fixed arguments of the family.",
    "budget.trials": "Trials to be told, infeasible ones and those stopped early included.",
    "budget.wall_clock": "Time over all runs (`8 h`); no trial is begun after it.",
    "budget.plateau": "End when the last `trials` trials raised the hypervolume by no more than the share `gain`.",
    "early_stopping.mode": "conservative: give up trainings that can hardly add to the front; off: never.",
    "early_stopping.chance": "How likely a trial that is given up may at most have been to matter.",
    "early_stopping.gain": "A trial matters if it adds more than this share to the hypervolume.",
    "sampler.name": "Method of search after the initial design.",
    "sampler.initial": "Trials of the Latin hypercube at the start.",
    "sampler.options": "Settings of the method.",
    "training.epochs": "Passes over the training data.",
    "training.learning_rate": "Highest learning rate of the schedule.",
    "training.batch_size": "Samples a step.",
    "training.weight_decay": "Weight decay of the optimizer.",
    "training.optimizer": "adamw or sgd.",
    "training.label_smoothing": "Share of the label spread over the other classes.",
    "training.threads": "CPU threads a training uses.",
    "training.device": "PyTorch device to train on.",
    "training.checkpoint_every": "How often a training keeps its state, so that it goes on after its worker died.",
    "compression.sparsity": "Share of the channels removed.",
    "compression.steps": "Rounds of pruning.",
    "compression.finetune_epochs": "Epochs of training after each round.",
    "compression.criterion": "Which channels go first: smallest l1 or l2 norm, or random.",
    "compression.calibration_samples": "Training samples that fix the ranges of int8.",
    "firmware.optimise": "What code is made for: `speed`, or `size` (0.5 to 2.4 KiB less for 2 to 12 % more cycles).",
    "firmware.extra_macs": "Share of more multiply-accumulates that may be spent on less RAM.",
    "parallelism.train_workers": "Processes that train.",
    "parallelism.build_workers": "Processes that check, compile and test.",
    "parallelism.boards": "Boards (emulated ones: processes) that measure, of each kind.",
    "parallelism.in_flight": "Trials under way at once; default: train and build workers together.",
    "profiling.samples": "Validation samples run on the board and compared with the host.",
    "profiling.timeout": "Longest time of one attempt at a profile (`120 s`).",
    "notify.webhook": "Address that JSON is posted to; one of Slack's incoming webhooks will do.",
    "notify.on": "What is told: record, end, stall.",
    "notify.secret": "Signs each POST: `X-Edgefront-Signature: sha256=` HMAC of the body.",
    "notify.stall_after": "A study stalls when no trial was told for so long (`1 h`) while it runs.",
    "profiling.calibration": "Files of `edgefront rack calibrate` for virtual boards to estimate by, one a board kind.",
}
