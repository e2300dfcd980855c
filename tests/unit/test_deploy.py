"""Compose file, Prometheus and Grafana set-up, as data: what they name must exist."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

import cli
from mcu_agent.rack import load_rack
from orchestrator.metrics import FAMILIES

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))


def exported_names() -> set[str]:
    names = {family.exported_name for family in FAMILIES}
    histograms = {family.name for family in FAMILIES if family.kind == "histogram"}
    return names | {f"{name}_{suffix}" for name in histograms for suffix in ("bucket", "count", "sum")}


def dashboards() -> list[Path]:
    return sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))


@pytest.mark.parametrize("service", ["orchestrator", "train-worker", "build-worker", "agent"])
def test_the_command_of_a_service_is_one_that_the_command_line_knows(service: str) -> None:
    command, *arguments = compose()["services"][service]["command"]
    options = {argument for argument in arguments if argument.startswith("--")}
    known = {option for parameter in cli.main.commands[command].params for option in parameter.opts}
    assert options <= known


def test_every_volume_and_dependency_of_a_service_is_defined() -> None:
    found = compose()
    for name, service in found["services"].items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in found["volumes"], (name, volume)
        assert set(service.get("depends_on", ())) <= set(found["services"])


def test_images_are_pinned_and_nothing_listens_beyond_this_machine() -> None:
    for service in compose()["services"].values():
        assert re.search(r":v?\d+\.\d+", service["image"])
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_the_broker_has_no_password_of_its_own() -> None:
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    passwords = re.findall(r"redis://:([^@]*)@", text)
    assert passwords
    assert all(password.startswith("${EDGEFRONT_REDIS_PASSWORD:?") for password in passwords)


def test_prometheus_scrapes_the_port_that_the_orchestrator_serves() -> None:
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    (target,) = scraped["scrape_configs"][0]["static_configs"][0]["targets"]
    service, port = target.split(":")
    assert port in compose()["services"][service]["expose"]
    assert port in compose()["services"][service]["command"]


def test_panels_ask_only_for_metrics_that_exist_and_show_all_of_them() -> None:
    asked: set[str] = set()
    for path in dashboards():
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            for query in panel["targets"]:
                asked |= set(re.findall(r"edgefront_\w+", query["expr"]))
    assert asked <= exported_names()
    shown = {name for family in FAMILIES for name in asked if name.startswith(family.name)}
    assert shown == asked
    assert all(any(name.startswith(family.name) for name in asked) for family in FAMILIES)


def test_panels_use_the_provisioned_data_source_and_do_not_overlap() -> None:
    folder = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text(encoding="utf-8"))["datasources"]
    for path in dashboards():
        taken: set[tuple[int, int]] = set()
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            assert panel["datasource"]["uid"] == source["uid"]
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert not cells & taken
            assert at["x"] + at["w"] <= 24
            taken |= cells


def test_the_rack_of_the_compose_file_is_one_that_the_agent_takes() -> None:
    rack = load_rack(DEPLOY / "rack.toml")
    example = yaml.safe_load((ROOT / "examples" / "digits.yaml").read_text(encoding="utf-8"))
    assert example["board"] in rack.board_kinds()


def test_the_image_holds_everything_that_the_package_is_made_of() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    assert {"cli.py", "orchestrator", "tasks", "mcu_agent", "pyproject.toml"} <= names
    assert all((ROOT / name).exists() for name in names)


def run_setup(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    script = ["/bin/sh", str(DEPLOY / "setup.sh")]
    settings = {"PATH": str(path), "VENV": str(path / "venv"), **environment}
    return subprocess.run(script, env=settings, capture_output=True, text=True, timeout=30, cwd=ROOT)


def fake_python(path: Path, name: str, body: str) -> None:
    (path / name).write_text(f"#!/bin/sh\n{body}\n")
    (path / name).chmod(0o755)


def test_a_machine_without_a_new_enough_python_is_told_so_in_one_line(tmp_path: Path) -> None:
    fake_python(tmp_path, "python3", "exit 1")  # too old: the version check fails
    fake_python(tmp_path, "python3.12", "exit 127")  # a shim of a version that is not there
    done = run_setup(tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "no Python from 3.11 on was found; remedy:" in done.stderr


def test_a_python_without_venv_is_told_with_the_package_to_install(tmp_path: Path) -> None:
    fake_python(tmp_path, "python3", 'case "$*" in *version_info*) echo 3.11;; *) exit 1;; esac')
    done = run_setup(tmp_path)
    assert done.returncode == 1
    assert "apt install python3-venv" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_a_missing_wheel_is_told_with_the_python_to_try(tmp_path: Path) -> None:
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    complaint = "ERROR: No matching distribution found for torch==2.13.0"
    fake_python(
        tmp_path / "venv" / "bin", "python", f'case "$*" in *pip*) echo "{complaint}"; exit 1;; *) echo 3.14;; esac'
    )
    fake_python(tmp_path, "new-python", "echo 3.14")
    done = run_setup(tmp_path, PATH=os.defpath, PYTHON=str(tmp_path / "new-python"))
    assert done.returncode == 1
    assert "no wheel of torch==2.13.0 for Python 3.14" in done.stderr
    assert "make PYTHON=python3.12" in done.stderr


def test_the_command_line_says_which_version_it_is() -> None:
    result = CliRunner().invoke(cli.main, ["--version"])
    assert re.fullmatch(r"edgefront, version \d+\.\d+\.\d+\n", result.output)
