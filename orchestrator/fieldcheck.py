"""Checks of single fields of JSON that somebody else wrote: what is given back is what it should be, or it is refused.

Every function takes the field's name and raises a ValueError that says it, what was found and what is allowed. What was
found is shown shortened: it may be anything of any length.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

SHA256 = re.compile(r"[0-9a-f]{64}")
# Ids become parts of file names and of keys in Redis: no separators, nothing that begins with a dot or a dash.
IDENTIFIER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
STAGE = re.compile(r"[a-z][a-z0-9_]{0,31}(@[A-Za-z0-9_][A-Za-z0-9_.-]{0,63})?")
MOST_ENTRIES = 1_000
LONGEST_TEXT = 4_096
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SHOWN = 60


def shown(value: object) -> str:
    """The value for a message, on one line and not longer than 60 characters."""
    try:
        text = value[:_SHOWN] if isinstance(value, str) else f"{type(value).__name__} {value!r}"
    except (ValueError, RecursionError):  # a number of too many digits, a list within itself
        text = type(value).__name__
    text = ascii(text) if _CONTROL.search(text) else repr(text) if isinstance(value, str) else text
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def a_map(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name} is {shown(value)}; expected a map with names as keys")
    if len(value) > MOST_ENTRIES:
        raise ValueError(f"{name} has {len(value)} entries; allowed are {MOST_ENTRIES}")
    return value


def a_whole_number(name: str, value: object, lowest: int, highest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise ValueError(f"{name} is {shown(value)}; expected a whole number from {lowest} to {highest}")
    return value


def a_text(name: str, value: object, longest: int = LONGEST_TEXT) -> str:
    """A text on one line that is not empty."""
    if not isinstance(value, str) or not 0 < len(value) <= longest or _CONTROL.search(value):
        raise ValueError(f"{name} is {shown(value)}; expected a text of 1 to {longest} characters on one line")
    return value


def a_match(name: str, value: object, pattern: re.Pattern[str], expected: str) -> str:
    """A text that ``pattern`` matches whole; ``expected`` says in words what that is."""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{name} is {shown(value)}; expected {expected}")
    return value


def an_identifier(name: str, value: object) -> str:
    return a_match(name, value, IDENTIFIER, "letters, digits, _ . - and no more than 128")


def a_sha256(name: str, value: object) -> str:
    return a_match(name, value, SHA256, "a sha256: 64 digits of 0-9 and a-f")


def a_param(name: str, value: object) -> float | int | str | bool:
    """A value of a parameter: a finite number, a short text, or yes and no."""
    if isinstance(value, str):
        return a_text(name, value) if value else value
    if isinstance(value, bool) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ValueError(f"{name} is {shown(value)}; expected a finite number, a text, true or false")


def a_map_of(name: str, value: object, check: Callable[[str, object], T]) -> dict[str, T]:
    """A map from names (one line, up to 200 characters) to values that ``check`` takes."""
    checked = {}
    for key, item in a_map(name, value).items():
        a_text(f"a name in {name}", key, 200)
        checked[key] = check(f"{name}.{key}", item)
    return checked


def only_known(name: str, data: Mapping[str, object], known: frozenset[str]) -> None:
    unknown = sorted(set(data) - known)
    if unknown:
        raise ValueError(f"{name} has the field {shown(unknown[0])}; known are {', '.join(sorted(known))}")
