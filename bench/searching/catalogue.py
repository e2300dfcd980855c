"""The problems that come with the bench, by name."""

from __future__ import annotations

from collections.abc import Callable

from bench.searching.problem import Problem, load
from bench.searching.standard import car_side_impact, dtlz2, vehicle_safety
from bench.searching.tabular import nas_bench_macro, table_path
from bench.searching.tinyml import tinyml, tinyml_log
from orchestrator.errors import UsageError

_BUILT_IN: dict[str, Callable[[], Problem]] = {
    "tinyml": tinyml,
    "tinyml-log": tinyml_log,
    "nas-bench-macro": nas_bench_macro,
    "dtlz2": dtlz2,
    "vehicle-safety": vehicle_safety,
    "car-side-impact": car_side_impact,
}


def names() -> tuple[str, ...]:
    """All problems that come with the bench, whether their data is there or not."""
    return tuple(_BUILT_IN)


def available() -> tuple[str, ...]:
    """Those whose data is there."""
    return tuple(name for name in _BUILT_IN if name != "nas-bench-macro" or table_path() is not None)


def problem(text: str) -> Problem:
    """The problem of that name, or the user's own at ``module:attribute``.

    Raises:
        UsageError: there is none, or its data is missing.
    """
    if ":" in text:
        return load(text)
    if text not in _BUILT_IN:
        raise UsageError(f"--problem: found {text!r}, allowed are {', '.join(_BUILT_IN)} and module:attribute")
    return _BUILT_IN[text]()
