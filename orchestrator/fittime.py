"""How long the fitting of surrogates takes, for whoever wants to know, without the surrogates knowing who does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from time import perf_counter
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(kw_only=True, slots=True)
class FitTime:
    """``seconds`` of wall-clock time in ``n_fits`` fits."""

    seconds: float = 0.0
    n_fits: int = 0


_counting: ContextVar[FitTime | None] = ContextVar("edgefront_fit_time", default=None)


@contextmanager
def counting_fits() -> Iterator[FitTime]:
    """The time of all fits inside the block, on this thread; an inner block counts for itself."""
    total = FitTime()
    token = _counting.set(total)
    try:
        yield total
    finally:
        _counting.reset(token)


def counted_as_fit(function: Callable[P, T]) -> Callable[P, T]:
    """``function``, which fits a surrogate, with its time counted, a failing call's too."""

    @wraps(function)
    def timed(*args: P.args, **kwargs: P.kwargs) -> T:
        before = perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            total = _counting.get()
            if total is not None:
                total.seconds += perf_counter() - before
                total.n_fits += 1

    return timed
