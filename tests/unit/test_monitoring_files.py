"""Dashboards and alerts as files: made by the generator, in Grafana's present form, sound by Prometheus' own tools."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from orchestrator import metrics, service_metrics
from tasks import agent_metrics, worker_metrics
from tests.support.prometheus import needs_prometheus

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
# Grafana 12 has no Angular panels (graph, singlestat, table-old, …) any more.
KINDS = {"row", "timeseries", "stat", "gauge", "bargauge", "table"}
EXPORTED = (*metrics.FAMILIES, *service_metrics.FAMILIES, *agent_metrics.FAMILIES, *worker_metrics.FAMILIES)
UNITS = {"short", "none", "s", "bytes", "percentunit", "joule", "bool_yes_no"}


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_dashboards", DEPLOY / "grafana" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_dashboards_are_those_of_the_generator(generator: ModuleType) -> None:
    assert {path.stem for path in DASHBOARDS} == set(generator.DASHBOARDS)
    for path in DASHBOARDS:
        assert path.read_text(encoding="utf-8") == generator.render(path.stem), "run deploy/grafana/generate.py"


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_whole(path: Path) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"][0]
    assert data["schemaVersion"] >= 41
    panels = data["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["type"] in KINDS
        if panel["type"] != "row":
            assert panel["title"] and panel["description"]
            assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
            assert panel["datasource"] == {"type": source["type"], "uid": source["uid"]}
            assert panel["targets"]
    taken = [(x, y) for panel in panels for x, y in _cells(panel["gridPos"])]
    assert len(set(taken)) == len(taken), "panels lie on each other"
    assert max(x for x, _ in taken) < 24


def _cells(place: dict[str, int]) -> list[tuple[int, int]]:
    xs, ys = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
    return [(x, y) for x in xs for y in ys]


def test_every_metric_that_is_asked_for_is_exported() -> None:
    exported = {family.exported_name for family in EXPORTED}
    exported |= {f"{name}{suffix}" for name in exported for suffix in ("_bucket", "_sum", "_count")}
    asked = {
        word for path in [*DASHBOARDS, DEPLOY / "prometheus" / "rules.yml"] for word in _metrics_in(path.read_text())
    }
    assert asked <= exported
    assert len(asked) > 30


def test_dashboards_show_every_metric() -> None:
    asked = {word for path in DASHBOARDS for word in _metrics_in(path.read_text())}
    for family in EXPORTED:
        wire = f"{family.name}_bucket" if family.kind == "histogram" else family.exported_name
        assert wire in asked, f"no dashboard shows {wire}"


def test_names_have_their_unit_and_labels_come_from_closed_sets() -> None:
    bounded = {"study", "state", "stage", "objective", "queue", "reason", "board", "board_kind", "outcome", "phase"}
    bounded |= {"source", "action", "gpu"}
    for family in EXPORTED:
        assert set(family.labels) <= bounded, f"{family.name}: trials and paths are no labels"
        assert family.kind != "histogram" or family.name.endswith(("_seconds", "_joules", "_bytes"))
        assert family.kind == "counter" or not family.name.endswith("_total")
    assert len({family.name for family in EXPORTED}) == len(EXPORTED)


@pytest.mark.parametrize(
    "module", [metrics, service_metrics, agent_metrics, worker_metrics], ids=lambda one: one.__name__
)
def test_the_page_of_metrics_is_what_the_program_says(module: ModuleType) -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert module.describe() in page, "run `make docs`"


def _metrics_in(text: str) -> set[str]:
    return set(re.findall(r"\bedgefront_[a-z_]+[a-z]\b", text))


@needs_prometheus
@pytest.mark.parametrize(
    "words",
    [
        ["check", "rules", "--lint=all", "--lint-fatal", "rules.yml"],
        ["check", "config", "prometheus.yml"],
        ["test", "rules", "rules.test.yml"],
    ],
    ids=" ".join,
)
def test_prometheus_own_tool_finds_nothing_wrong(words: list[str]) -> None:
    done = subprocess.run(["promtool", *words], cwd=DEPLOY / "prometheus", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test_a_severity_and_says_what_to_do() -> None:
    rules: Any = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())
    tests: Any = yaml.safe_load((DEPLOY / "prometheus" / "rules.test.yml").read_text())
    tested = {case["alertname"] for one in tests["tests"] for case in one["alert_rule_test"] if case["exp_alerts"]}
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    assert {rule["alert"] for rule in alerts} == tested
    for rule in alerts:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert len(rule["annotations"]["description"]) > 30
