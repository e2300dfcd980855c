"""Several boards, one study: what is called how on each of them, and the worst of all.

With one board every name stands alone: ``rom``, ``elf``, ``profile``. With several, what a board has of its own
carries the board's kind behind an ``@`` (``rom@nrf52840-dk``), be it a value, an artifact, a note or a stage; and the
plain name of a value is the worst over the boards, their largest: all objectives are minimised, and what holds of the
worst board holds of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TypeVar

from orchestrator.records import Value

T = TypeVar("T")

MARK = "@"


def named(name: str, kind: str, kinds: Sequence[str]) -> str:
    """What ``name`` of the board ``kind`` is called in a study of these ``kinds``: with one board as it is."""
    return name if len(kinds) == 1 else f"{name}{MARK}{kind}"


def base(name: str) -> str:
    """The name without its board: ``profile@nrf52840-dk`` → ``profile``."""
    return name.partition(MARK)[0]


def kind_of(name: str) -> str:
    """The board in the name; empty where there is none."""
    return name.partition(MARK)[2]


def on_board(entries: Mapping[str, T], kind: str) -> dict[str, T]:
    """``entries`` as they are on one board: its own under their plain names, and those that no board has of its own.

    What stands for all boards together, or for another one, is left out.
    """
    boards_own = {base(name) for name in entries if MARK in name}
    shared = {name: entry for name, entry in entries.items() if MARK not in name and name not in boards_own}
    return shared | {base(name): entry for name, entry in entries.items() if kind_of(name) == kind and MARK in name}


def with_worst(values: Mapping[str, Value], kinds: Sequence[str]) -> dict[str, Value]:
    """``values``, and under the plain name of each that all boards have its worst, with the source it has there.

    What only some boards have is not known yet: no plain name is given to it. The plain names stand first.
    """
    if len(kinds) == 1:
        return dict(values)
    found = {name: value for name, value in values.items() if MARK not in name}
    for name in dict.fromkeys(base(name) for name in values if MARK in name):
        everywhere = {kind: values[f"{name}{MARK}{kind}"] for kind in kinds if f"{name}{MARK}{kind}" in values}
        if len(everywhere) == len(kinds):
            found[name] = _worst(everywhere)
        else:
            found.pop(name, None)
    return found | {name: value for name, value in values.items() if MARK in name}


def _worst(values: Mapping[str, Value]) -> Value:
    """The largest of the boards' values; its note says on which board. Of equals the first."""
    kind, worst = max(values.items(), key=lambda item: item[1].amount)
    is_same = all(value.amount == worst.amount for value in values.values())
    where = f"the same on all {len(values)} boards" if is_same else f"on {kind}, the worst of {len(values)} boards"
    return replace(worst, note=f"{where}: {worst.note}" if worst.note else where)


def side_by_side(stages: Iterable[str]) -> list[tuple[str, ...]]:
    """The stages in their order, those that differ in the board alone together: they may run at the same time."""
    return [tuple(group) for _, group in groupby(stages, key=base)]
