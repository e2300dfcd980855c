"""Reading JSON that somebody else wrote: bounded in size and depth, and of nothing but what JSON has."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

DEEPEST = 64
# Celery's own JSON turns maps with this key into objects of other types.
_TYPE_KEY = "__type__"


def loads(data: bytes | str, most_bytes: int) -> Any:
    """The value that ``data`` (UTF-8) spells.

    Raises:
        ValueError: more than ``most_bytes`` bytes, no JSON, NaN or a number that is infinite, nested deeper than 64, or
            a map with the key ``__type__``.
    """
    # A character is one byte at least, so the shorter measure of a text is bound enough before it is encoded.
    size = len(data)
    if size > most_bytes:
        raise ValueError(f"{size} bytes; allowed are {most_bytes}")
    try:
        value = json.loads(data, parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError(f"nested deeper than {DEEPEST}") from None
    _check_depth(value)
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _check_depth(value: Any) -> None:
    """Level by level and without recursion: what is looked at may be nested however deep."""
    level = [value]
    for _ in range(DEEPEST):
        level = [item for one in level for item in _children(one)]
        if not level:
            return
    raise ValueError(f"nested deeper than {DEEPEST}")


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        if _TYPE_KEY in value:
            raise ValueError(f"a map has the key {_TYPE_KEY}")
        return [item for item in value.values() if isinstance(item, dict | list)]
    return [item for item in value if isinstance(item, dict | list)] if isinstance(value, list) else []
