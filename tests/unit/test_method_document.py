"""The page about the method says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import optuna
import pytest

from orchestrator.proposers.registry import defaults
from orchestrator.proposers.registry import names as proposer_names

PAGE = (Path(__file__).parents[2] / "docs" / "method.md").read_text(encoding="utf-8")


def test_the_page_lists_every_option_of_ars_with_its_default() -> None:
    listed = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| ([0-9.]+) \|", PAGE, flags=re.MULTILINE))
    assert {name: float(value) for name, value in listed.items()} == defaults("ars")


def test_the_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    example = re.search(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert example is not None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names: dict[str, optuna.Study] = {}
    exec(example.group(1).replace("n_trials=20", "n_trials=10"), names)
    assert len(names["study"].best_trials) > 0
    assert all("constraint_0" in trial.constraints for trial in names["study"].trials)


def test_the_page_names_every_method() -> None:
    assert all(f"`{name}`" in PAGE for name in proposer_names())


@pytest.mark.parametrize("module", sorted(set(re.findall(r"`((?:\w+/)*\w+\.py)`", PAGE))))
def test_every_module_the_page_names_exists(module: str) -> None:
    root = Path(__file__).parents[2]
    assert (root / "orchestrator" / module).exists() or (root / module).exists()
