"""Compose file, Prometheus and Grafana set-up, as data: what they name must exist."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
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


def test_images_are_pinned_and_nothing_listens_beyond_this_machine() -> None:
    for service in compose()["services"].values():
        assert re.search(r":v?\d+\.\d+", service["image"])
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def stages_of_the_image() -> dict[str, str]:
    parts = re.split(r"^FROM \S+ AS (\w+)$", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_parts_that_are_installed_exist() -> None:
    known = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    )
    script = (DEPLOY / "setup.sh").read_text(encoding="utf-8")
    (chosen,) = re.findall(r"^EXTRAS=\$\{EXTRAS:-(.*)\}$", script, re.MULTILINE)
    assert {"search", "boards", "virtual", "dev"} <= set(chosen.split(",")) <= known
    assert set(compose()["services"]["agent"]["build"]["args"]["EXTRAS"].split(",")) <= known


def test_prometheus_scrapes_the_port_that_the_orchestrator_serves() -> None:
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    (target,) = scraped["scrape_configs"][0]["static_configs"][0]["targets"]
    service, port = target.split(":")
    assert port in compose()["services"][service]["expose"]
    assert port in compose()["services"][service]["command"]


def test_the_rack_of_the_compose_file_is_one_that_the_agent_takes() -> None:
    rack = load_rack(DEPLOY / "rack.toml")
    example = yaml.safe_load((ROOT / "examples" / "digits.yaml").read_text(encoding="utf-8"))
    assert example["board"] in rack.board_kinds()


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
