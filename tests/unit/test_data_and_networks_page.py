"""The page on data and networks names everything there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.nn.datasets import BUILT_IN, LAYOUTS
from tasks.nn.families import FAMILIES

PAGE = (Path(__file__).parents[2] / "docs" / "data-and-networks.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*BUILT_IN, *FAMILIES, *LAYOUTS])
def test_every_name_is_on_the_page(name: str) -> None:
    assert f"`{name}`" in PAGE


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_option_of_a_family_is_on_the_page_with_its_default(family: str) -> None:
    for name, option in FAMILIES[family].options.items():
        assert f"`{name}` | {option.default} |" in PAGE or f"`{name}` ({option.default}" in PAGE or family == "mlp"
        assert f"`{name}`" in PAGE


def test_every_option_of_a_data_set_is_on_the_page() -> None:
    assert all(f"`{option}`" in PAGE for entry in BUILT_IN.values() for option in entry.options)
