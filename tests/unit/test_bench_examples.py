"""The benchmark of the example studies' networks: what its rows hold, and that the documentation has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import examples
from bench.examples import AIMS, main, measure, table
from tests.support.example_networks import CORNERS


def test_rows_are_of_every_corner_and_small_code_is_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "SHAPES", ("digits",))
    rows = measure("nrf52840-dk")
    assert [(row.corner, row.optimise) for row in rows] == [(corner, aim) for corner in CORNERS for aim in AIMS]
    fast, small = rows[0], rows[1]
    assert (small.macs, small.weights_bytes) == (fast.macs, fast.weights_bytes)
    assert small.code_bytes < fast.code_bytes
    assert small.cycles > fast.cycles
    assert fast.rom_bytes >= fast.weights_bytes + fast.code_bytes + fast.runtime_bytes
    page = (Path(__file__).parents[2] / "docs" / "firmware.md").read_text(encoding="utf-8")
    for line in table(rows).splitlines():
        layers, macs = line.split("|")[3:5]
        assert f"|{layers}|{macs}|" in page


def test_an_unknown_board_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--board", "toaster"])
    assert end.value.code == 2
    assert "unknown board kind 'toaster'; known kinds: nrf52-dk" in capsys.readouterr().err
