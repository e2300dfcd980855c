"""Options of data sets and network families: what is allowed, checked in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.errors import Defect


@dataclass(frozen=True, slots=True)
class Option:
    """One option: its kind (``int``, ``float``, ``str``, ``bool``, ``list``), default, meaning and allowed values."""

    kind: str
    default: Any
    meaning: str
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] = ()

    def allowed(self) -> str:
        """The allowed values in words."""
        if self.choices:
            return ", ".join(repr(choice) for choice in self.choices)
        if self.low is not None:
            return f"{self.low:g} to {self.high:g}" if self.high is not None else f"{self.low:g} or more"
        return f"any {self.kind}"

    def __str__(self) -> str:
        return f"{self.meaning} ({self.kind}, default {self.default!r}, allowed {self.allowed()})"

    def check(self, where: str, name: str, value: Any) -> Any:
        """``value`` if it is allowed; an integral float is taken as an int.

        Raises:
            Defect: it is not; the text says what is.
        """
        if self.kind == "int" and isinstance(value, float) and value.is_integer():
            value = int(value)
        if self.kind == "float" and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        kinds = {"int": int, "float": float, "str": str, "bool": bool, "list": list}
        is_right = isinstance(value, kinds[self.kind]) and (self.kind == "bool" or not isinstance(value, bool))
        if is_right and self.choices and self.kind != "list":
            is_right = value in self.choices
        if is_right and self.choices and self.kind == "list":
            is_right = bool(value) and all(item in self.choices for item in value)
        if is_right and self.low is not None:
            is_right = self.low <= value <= (self.high if self.high is not None else float("inf"))
        if not is_right:
            text = f"{where}: option {name!r} is {value!r}; allowed: {self.allowed()} ({self.kind})"
            raise Defect("bad_option", text)
        return value


def check_options(where: str, known: Mapping[str, Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """The given options over the defaults.

    Raises:
        Defect: an option is unknown or its value is not allowed.
    """
    for name in given:
        if name not in known:
            allowed = ", ".join(known) or "none"
            raise Defect("bad_option", f"{where}: option {name!r} is unknown; allowed: {allowed}")
    defaults = {name: option.default for name, option in known.items()}
    return defaults | {name: known[name].check(where, name, value) for name, value in given.items()}
