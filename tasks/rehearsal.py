"""A study's data and networks, tried before it runs: what is wrong with them shows at once and not in some trial."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from orchestrator.records import ParamValue
from orchestrator.studyfile import CategoricalParameter, FloatParameter, IntParameter, Parameter, StudyFile
from tasks.deployment import integer_graph
from tasks.errors import Defect, Infeasible, TransientFault
from tasks.nn.candidate import build_candidate, pruned_untrained, unmatched_prefixes
from tasks.nn.datasets import DataSplit, load_dataset
from tasks.nn.families import FAMILIES
from tasks.nn.fit import calibration_inputs, reproducible
from tasks.nn.options import Option
from tasks.quant.quantise import quantise

_CALIBRATION_SAMPLES = 8  # ranges need not be good here
_MOST_VALUES = 1000

Found = tuple[str, str]
Params = Mapping[str, ParamValue]


def mistakes(study: StudyFile, candidates: Sequence[Params]) -> Iterator[Found]:
    """Each mistake as the field of the study file, and what was found and what is allowed.

    Tried are: loading the data; every deciding value of a built-in family's options; building the network of each of
    ``candidates`` (as of ``orchestrator.studyvalues.telling_candidates``); and compiling the first, where the family is
    the user's own.
    """
    try:
        data = load_dataset(study.dataset, study.seed)
    except (Defect, TransientFault) as error:
        yield "dataset", error.detail
        return
    except OSError as error:
        yield "dataset.source", f"{error.filename or study.dataset.source}: cannot be read: {error.strerror or error}"
        return
    wrong = [*_wrong_options(study)]
    wrong = wrong or [*_wrong_networks(study, candidates, data)]
    yield from wrong or _wrong_prefixes(study, candidates, data)


def _wrong_options(study: StudyFile) -> Iterator[Found]:
    """Values in the space that the built-in family refuses."""
    family = FAMILIES.get(study.network.family)
    for name, parameter in study.space.items():
        head, _, option = name.partition(".")
        if head == "network" and family is not None and option in family.options:
            yield from _wrong_values(f"space.{name}", parameter, family.options[option])


def _wrong_values(field: str, parameter: Parameter, option: Option) -> Iterator[Found]:
    if isinstance(parameter, FloatParameter) and option.kind != "float":
        yield field, f"found type float; allowed: {option.allowed()} ({option.kind}), so use type: int or categorical"
        return
    for where, value in _deciding_values(parameter, option):
        try:
            option.check(field, "", value)
        except Defect:
            yield f"{field}{where}", f"found {value!r}; allowed: {option.allowed()} ({option.kind})"


def _deciding_values(parameter: Parameter, option: Option) -> list[tuple[str, ParamValue]]:
    """The values that decide whether all are allowed, each with the field below the parameter's."""
    if isinstance(parameter, CategoricalParameter):
        return [(".choices", choice) for choice in parameter.choices]
    if isinstance(parameter, IntParameter) and option.choices:
        return [("", value) for value in range(parameter.low, parameter.high + 1, parameter.step)[:_MOST_VALUES]]
    if isinstance(parameter, IntParameter | FloatParameter):
        return [(".low", parameter.low), (".high", parameter.high)]
    return [("", parameter.value)]


def _wrong_networks(study: StudyFile, candidates: Sequence[Params], data: DataSplit) -> Iterator[Found]:
    try:
        for params in candidates:
            build_candidate(study, params, study.seed, data)
        if study.network.family not in FAMILIES:
            _compile(study, candidates[0], data)
    except Defect as error:
        yield "network", error.detail


def _compile(study: StudyFile, params: Params, data: DataSplit) -> None:
    """Through quantisation to the compiler's graph, where an operator that cannot be compiled shows."""
    with reproducible(study.seed, 1):
        module = pruned_untrained(study, params, study.seed, data)
        _, onnx_int8 = quantise(module, calibration_inputs(data, _CALIBRATION_SAMPLES, study.seed))
    with contextlib.suppress(Infeasible):  # a result like any other
        integer_graph(onnx_int8)


def _wrong_prefixes(study: StudyFile, candidates: Sequence[Params], data: DataSplit) -> Iterator[Found]:
    """``compression.sparsity.<prefix>`` for which no network has a module."""
    unmatched = set.intersection(*(set(unmatched_prefixes(study, params, data)) for params in candidates))
    if unmatched:
        module = build_candidate(study, candidates[0], study.seed, data)
        names = ", ".join(name for name, _ in module.named_children())
        for prefix in sorted(unmatched):
            field = f"space.compression.sparsity.{prefix}"
            yield field, f"no module of the network is called {prefix!r} or lies below it; its parts are {names}"
