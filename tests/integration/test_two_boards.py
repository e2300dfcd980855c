"""One study on two boards, from the command line to report and export: trained once, measured on each."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import cli
from orchestrator.pareto import non_dominated

pytestmark = pytest.mark.xdist_group("command line")

KINDS = ("nrf52840-dk", "nucleo-h743zi")
PROFILES = tuple(f"profile@{kind}" for kind in KINDS)
STUDY = """\
name: both
dataset: {source: digits}
network: {family: mlp, options: {depth: 1}}
space:
  network.width: {type: int, low: 4, high: 32}
boards: [nrf52840-dk, nucleo-h743zi]
objectives: {error: {}, rom: {}, latency: {limit: 20 ms}, energy: {limit: 1 mJ}}
budget: {trials: 3}
sampler: {name: random, initial: 2}
training: {epochs: 1}
compression: {finetune_epochs: 0, steps: 1}
"""


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, list(arguments), catch_exceptions=False)


def events_of(done: Result) -> list[dict[str, Any]]:
    assert done.exit_code == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[dict[str, Any]]]]:
    """Two trials by queue and workers, a third by a second run in this process."""
    folder = tmp_path_factory.mktemp("studies")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEFRONT_LOCKS", str(folder / "locks"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("EDGEFRONT_BROKER_URL", raising=False)
        file = folder / "both.yaml"
        file.write_text(STUDY)
        first = events_of(call("run", str(file), "--studies", str(folder), "--trials", "2", "--json"))
        second = events_of(call("run", str(file), "--studies", str(folder), "--inline", "--json"))
    return folder, [first, second]


def status(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(call("status", "both", "--studies", str(folder), "--json").stdout)
    return found


def test_each_trial_is_trained_once_and_measured_on_both_boards_by_their_own_workers(
    runs: tuple[Path, list[list[dict[str, Any]]]],
) -> None:
    folder, (first, second) = runs
    started = Counter((event["trial"], event["stage"]) for event in first + second if event["event"] == "stage_started")
    for trial in range(3):
        for stage in ("gate", "train", "compress", "build", *PROFILES):
            assert started[trial, stage] == 1, (trial, stage)
    workers = {event["stage"]: event["worker"] for event in first if event["event"] == "stage_started"}
    for kind, stage in zip(KINDS, PROFILES, strict=True):
        assert workers[stage].startswith(f"board-{kind}")
    assert {event["board_kind"] for event in first if event["event"] == "board_leased"} == set(KINDS)
    assert max(event["busy"] + event["free"] for event in first if event["event"] == "boards") == len(KINDS)
    assert [event["event"] for event in second if event["event"] == "study_resumed"] == ["study_resumed"]
    assert status(folder)["told"] == 3


def test_the_joint_value_is_the_worst_boards_and_each_keeps_its_own(
    runs: tuple[Path, list[list[dict[str, Any]]]],
) -> None:
    for event in (event for events in runs[1] for event in events if event["event"] == "trial_ended"):
        values = event["values"]
        for name in ("rom", "ram", "stack", "cycles", "latency", "energy"):
            own = {kind: values[f"{name}@{kind}"] for kind in KINDS}
            assert values[name]["amount"] == max(value["amount"] for value in own.values())
            assert values[name]["source"] in {value["source"] for value in own.values()}
        # The same network at 64 and at 480 MHz.
        assert values[f"latency@{KINDS[0]}"]["amount"] > 2 * values[f"latency@{KINDS[1]}"]["amount"]
        assert values["latency"]["note"].startswith(f"on {KINDS[0]}, the worst of 2 boards: ")
        assert not [name for name in values if name.startswith(("error@", "flops@", "macs@"))]


def test_every_front_holds_what_nothing_dominates_there(runs: tuple[Path, list[list[dict[str, Any]]]]) -> None:
    found = status(runs[0])
    assert set(found["fronts"]) == set(KINDS)
    for rows in (found["front"], *found["fronts"].values()):
        points = [[row["values"][name]["amount"] for name in found["objectives"]] for row in rows]
        assert rows
        assert non_dominated(np.array(points)).all()
        assert all("test_error" in row["values"] for row in rows)


def test_report_and_exports_follow(runs: tuple[Path, list[list[dict[str, Any]]]], tmp_path: Path) -> None:
    folder, _ = runs
    page = (folder / "both" / "report.html").read_text(encoding="utf-8")
    assert all(f'data-view="{kind}"' in page for kind in KINDS)
    best = str(status(folder)["front"][0]["trial"])
    asked = ("export", "both", "--studies", str(folder), "--trial", best, "--to")
    refused = call(*asked, str(tmp_path / "none"))
    assert refused.exit_code == 2
    assert f"name the one to export for, one of {', '.join(KINDS)}" in refused.stderr
    for kind in KINDS:
        assert call(*asked, str(tmp_path / kind), "--board", kind).exit_code == 0
        assert json.loads((tmp_path / kind / "figures.json").read_text())["board"] == kind
    images = [(tmp_path / kind / "firmware" / "firmware.elf").read_bytes() for kind in KINDS]
    assert images[0] != images[1]
