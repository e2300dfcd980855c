"""The page about adding a board kind: its example is a right kind that compiles, boots and passes its own check."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mcu_agent import kinds
from mcu_agent.kinds import BoardKind, parse_kind
from tests.support.compilers import COMPILERS, require

PAGE = (Path(__file__).parents[2] / "docs" / "add-a-board-kind.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


def example() -> BoardKind:
    text = block("toml")
    (name,) = re.findall(r"^# mcu_agent/catalogue/([\w-]+)\.toml$", text, re.MULTILINE)
    return parse_kind(name, text, f"{name}.toml")


def test_every_field_of_a_kind_stands_in_the_example() -> None:
    assert set(re.findall(r"^(\w+) = ", block("toml"), re.MULTILINE)) == set(BoardKind.__dataclass_fields__) - {"name"}


@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_example_passes_the_check_of_the_page(compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    require(compiler)
    kind = example()
    known = {**kinds.kinds(), kind.name: kind}
    monkeypatch.setattr(kinds, "kinds", lambda: known)
    namespace: dict[str, object] = {}
    code, call = block("python").split(f'check("{kind.name}")')
    exec(code, namespace)
    namespace["check"](kind.name, compiler)  # type: ignore[operator]
    assert not call.strip()


def test_pyocd_knows_the_part_of_the_example() -> None:
    builtin = pytest.importorskip("pyocd.target.builtin", reason="pyOCD is not installed")
    assert example().pyocd_target in builtin.BUILTIN_TARGETS
