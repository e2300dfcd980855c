"""What a candidate's parameters mean: its training, its compression, its network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from orchestrator.records import ParamValue
from orchestrator.studyfile import Compression, StudyFile, Training, section
from tasks.errors import Defect
from tasks.nn.datasets import DataSplit
from tasks.nn.families import build_network
from tasks.nn.prune import Sparsity, is_below, prune

SPARSITY = "sparsity"


def training_of(study: StudyFile, params: Mapping[str, ParamValue]) -> Training:
    """The study's training options under the candidate's ``training.…`` parameters.

    Raises:
        Defect: a parameter is no training option, or its value is not allowed.
    """
    given = {**study.training.model_dump(), **section(dict(params), "training")}
    try:
        return Training.model_validate(given)
    except ValidationError as error:
        raise Defect("bad_parameter", _first_mistake("training", error)) from error


def compression_of(study: StudyFile, params: Mapping[str, ParamValue]) -> tuple[Compression, Sparsity]:
    """The compression options, and the sparsity of each part of the network.

    Raises:
        Defect: a parameter is no compression option, or its value is not allowed.
    """
    chosen = section(dict(params), "compression")
    by_prefix = section(chosen, SPARSITY)
    given = {key: value for key, value in chosen.items() if not key.startswith(SPARSITY + ".")}
    try:
        compression = Compression.model_validate({**study.compression.model_dump(), **given})
        shares = {prefix: float(share) for prefix, share in by_prefix.items()}
        return compression, Sparsity(default=compression.sparsity, by_prefix=shares)
    except ValidationError as error:
        raise Defect("bad_parameter", _first_mistake("compression", error)) from error
    except ValueError as error:
        raise Defect("bad_parameter", str(error)) from error


def build_candidate(study: StudyFile, params: Mapping[str, ParamValue], seed: int, data: DataSplit) -> nn.Module:
    """The candidate's untrained network."""
    options = section(dict(params), "network")
    return build_network(study.network, options, data.input_shape, data.n_classes, seed)


def pruned_untrained(study: StudyFile, params: Mapping[str, ParamValue], seed: int, data: DataSplit) -> nn.Module:
    """The candidate's network with its final shapes and random weights: what the gate sizes up."""
    module = build_candidate(study, params, seed, data)
    _, sparsity = compression_of(study, params)
    return prune(module, example_of(data), sparsity)


def example_of(data: DataSplit) -> torch.Tensor:
    """Two inputs of zeros, (2, *input_shape)."""
    return torch.zeros(2, *data.input_shape)


def unmatched_prefixes(study: StudyFile, params: Mapping[str, ParamValue], data: DataSplit) -> list[str]:
    """The prefixes in ``compression.sparsity.<prefix>`` that name no module of this candidate's network."""
    _, sparsity = compression_of(study, params)
    names = [name for name, _ in build_candidate(study, params, 0, data).named_modules()]
    return [prefix for prefix in sparsity.by_prefix if not any(is_below(name, prefix) for name in names)]


def _first_mistake(what: str, error: ValidationError) -> str:
    mistake: Any = error.errors()[0]
    field = ".".join(str(part) for part in mistake["loc"])
    return f"parameter {what}.{field} is {mistake['input']!r}: {mistake['msg']}"
