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


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")  # Optuna's names of objectives
@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL))
def test_the_examples_run(example: str) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names: dict[str, optuna.Study] = {}
    exec(example.replace("n_trials=20", "n_trials=12"), names)
    assert len(names["study"].best_trials) > 0
    if "constraints_func" in example:
        assert all("constraint_0" in trial.constraints for trial in names["study"].trials)


def test_there_is_an_example_of_constraints() -> None:
    assert "constraints_func=fits" in PAGE


def test_the_page_names_every_method() -> None:
    assert all(f"`{name}`" in PAGE for name in proposer_names())


@pytest.mark.parametrize("module", sorted(set(re.findall(r"`((?:\w+/)*\w+\.py)`", PAGE))))
def test_every_module_the_page_names_exists(module: str) -> None:
    root = Path(__file__).parents[2]
    assert (root / "orchestrator" / module).exists() or (root / module).exists()
