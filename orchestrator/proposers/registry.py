"""Proposers by the name a study file gives them, with their options checked."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any

from orchestrator.ars import ArsSettings
from orchestrator.errors import UsageError
from orchestrator.known import Checked, Known
from orchestrator.proposers.ars import DEFAULT_ITERATIONS, ArsProposer
from orchestrator.proposers.ars_published import ArsPublishedProposer
from orchestrator.proposers.gp import GpProposer
from orchestrator.proposers.nsga2 import Nsga2Proposer
from orchestrator.proposers.protocol import Proposer
from orchestrator.proposers.qmc import QmcProposer
from orchestrator.proposers.random import RandomProposer
from orchestrator.proposers.tpe import TpeProposer
from orchestrator.space import SearchSpace


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    module: str
    description: str
    defaults: Mapping[str, int | float]
    build: _Build


@dataclass(frozen=True, kw_only=True, slots=True)
class Insight:
    """What may be known of candidates without a trial: of all of them by a formula, of a few by a look."""

    known: Known | None = None
    checked: Checked | None = None


_Build = Callable[[SearchSpace, Mapping[str, Any], Insight], Proposer]

_ASCENT: Mapping[str, int | float] = {"pool": 256, "restarts": 4, "bent": 1}
_REGION: Mapping[str, int | float] = {"initial": 8, "candidates": 1000, "bent": 1}
_POLICIES = {item.name: getattr(ArsSettings(), item.name) for item in fields(ArsSettings)}


def _build_ars(space: SearchSpace, options: Mapping[str, Any], insight: Insight) -> Proposer:
    others = {name: value for name, value in options.items() if name not in _POLICIES}
    settings = ArsSettings(**{name: options[name] for name in _POLICIES})
    return ArsProposer(space=space, settings=settings, known=insight.known, checked=insight.checked, **others)


def _build_ars_published(space: SearchSpace, options: Mapping[str, Any], insight: Insight) -> Proposer:
    settings = ArsSettings(**{name: options[name] for name in _POLICIES})
    return ArsPublishedProposer(space=space, settings=settings, draws=options["draws"])


def _plain(proposer: Callable[..., Proposer]) -> _Build:
    """A proposer whose options are its fields and which has no use for known objectives."""

    def build(space: SearchSpace, options: Mapping[str, Any], insight: Insight) -> Proposer:
        return proposer(space=space, **options)

    return build


def _on_botorch(module: str, proposer: str, field: str, settings: str) -> _Build:
    """One on BoTorch, whose ``field`` takes its options as an object of the class ``settings`` of its module; imported
    when asked for: that takes seconds, which no other command should."""

    def build(space: SearchSpace, options: Mapping[str, Any], insight: Insight) -> Proposer:
        found = import_module(f"orchestrator.proposers.{module}")
        made: Proposer = getattr(found, proposer)(space=space, **{field: getattr(found, settings)(**options)})
        return made

    return build


_PROPOSERS = {
    "ars": _Entry(
        module="ars",
        description="competing policies, trained by random search on Gaussian processes; the default",
        defaults=_POLICIES
        | {
            "iterations": DEFAULT_ITERATIONS,
            "pool": 512,
            "off_front": 0.5,
            "chebyshev": 0.2,
            "optimism": 0.3,
            "polish": 6,
            "shortlist": 4,
        },
        build=_build_ars,
    ),
    "ars-published": _Entry(
        module="ars_published",
        description="ARS-MOBOpt as published, nothing added",
        defaults=_POLICIES | {"draws": 64},
        build=_build_ars_published,
    ),
    "qparego": _Entry(
        module="qparego",
        description="qParEGO: expected improvement of random scalarisations (BoTorch)",
        defaults=dict(_ASCENT) | {"draws": 128},
        build=_on_botorch("qparego", "QparegoProposer", "ascent", "Ascent"),
    ),
    "turbo-1": _Entry(
        module="turbo",
        description="TuRBO-1: Thompson sampling of random scalarisations in a trust region (BoTorch)",
        defaults=_REGION,
        build=_on_botorch("turbo", "TurboProposer", "region", "RegionSearch"),
    ),
    "morbo-1": _Entry(
        module="morbo",
        description="MORBO-1: Thompson sampling by hypervolume in a trust region (BoTorch)",
        defaults=_REGION,
        build=_on_botorch("morbo", "MorboProposer", "region", "RegionSearch"),
    ),
    "qlognehvi": _Entry(
        module="qlognehvi",
        description="qLogNEHVI: noisy expected hypervolume improvement (BoTorch); slow",
        defaults=dict(_ASCENT) | {"draws": 16},
        build=_on_botorch("qlognehvi", "QlognehviProposer", "ascent", "Ascent"),
    ),
    "gp": _Entry(
        module="gp",
        description="Gaussian processes with expected hypervolume improvement (Optuna's); slow",
        defaults={},
        build=_plain(GpProposer),
    ),
    "tpe": _Entry(
        module="tpe", description="tree-structured Parzen estimator (Optuna's)", defaults={}, build=_plain(TpeProposer)
    ),
    "nsga2": _Entry(
        module="nsga2",
        description="NSGA-II, an evolutionary method (Optuna's)",
        defaults={"population": 20},
        build=_plain(Nsga2Proposer),
    ),
    "qmc": _Entry(
        module="qmc",
        description="quasi-random search along a Sobol sequence (Optuna's)",
        defaults={"scrambling": 0},
        build=_plain(QmcProposer),
    ),
    "random": _Entry(module="random", description="uniform random search", defaults={}, build=_plain(RandomProposer)),
}


def names() -> tuple[str, ...]:
    """The names a study file may use."""
    return tuple(_PROPOSERS)


def description(name: str) -> str:
    """What the proposer is, in one line."""
    return _entry(name).description


def defaults(name: str) -> dict[str, int | float]:
    """The proposer's options and their default values."""
    return dict(_entry(name).defaults)


def module(name: str) -> str:
    """Where the proposer's code is."""
    return f"orchestrator.proposers.{_entry(name).module}"


def wiring(name: str) -> str:
    """The source of the function that makes the proposer."""
    return inspect.getsource(_entry(name).build)


def make_proposer(
    name: str, space: SearchSpace, options: Mapping[str, Any] | None = None, *, insight: Insight | None = None
) -> Proposer:
    """The proposer of that name on this space. ``insight`` is for those that can use it (``ars``).

    Raises:
        UsageError: the name or an option is unknown, or an option has a value it cannot have.
    """
    entry = _entry(name)
    chosen = dict(entry.defaults)
    for option, value in (options or {}).items():
        chosen[option] = _checked(name, option, value, entry.defaults)
    try:
        return entry.build(space, chosen, insight or Insight())
    except ValueError as error:
        option, _, text = str(error).partition(" is ")
        raise UsageError(f"sampler.options.{option}: found {text}") from None


def _entry(name: str) -> _Entry:
    if name not in _PROPOSERS:
        raise UsageError(f"sampler.name: found {name!r}, allowed are {', '.join(_PROPOSERS)}")
    return _PROPOSERS[name]


def _checked(name: str, option: str, value: Any, known: Mapping[str, int | float]) -> int | float:
    """The value, as the kind of number its default is."""
    field = f"sampler.options.{option}"
    if option not in known:
        allowed = f"allowed are {', '.join(known)}" if known else "it has none"
        raise UsageError(f"{field}: sampler {name} has no such option; {allowed}")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UsageError(f"{field}: found {value!r}, allowed is a number like {known[option]}")
    if isinstance(known[option], float):
        return float(value)
    if value != int(value):
        raise UsageError(f"{field}: found {value!r}, allowed is a whole number like {known[option]}")
    return int(value)
