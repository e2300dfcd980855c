"""Compose file, Prometheus and Grafana set-up, as data: what they name must exist."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
import yaml
from click.testing import CliRunner
from redis.backoff import ConstantBackoff
from redis.retry import Retry

import cli
from mcu_agent.rack import load_rack
from tasks.broker import server_executable

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))


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


def copied(stage: str) -> set[str]:
    """What a stage of the image takes from the checkout, patterns filled in."""
    sources = [line.split()[:-1] for line in re.findall(r"^COPY (.+)$", stage, re.MULTILINE)]
    found = {name: [path.name for path in ROOT.glob(name)] for names in sources for name in names}
    assert all(found.values()), found
    return {name for names in found.values() for name in names}


def test_the_image_holds_everything_that_the_package_is_made_of() -> None:
    parts = {path.name for path in ROOT.glob("cli*.py")} | {"orchestrator", "tasks", "mcu_agent", "pyproject.toml"}
    assert len(parts) > 5
    for stage in stages_of_the_image().values():
        assert parts <= copied(stage)


def test_the_agents_image_is_the_small_one_and_the_whole_tool_the_one_by_default() -> None:
    stages = stages_of_the_image()
    assert list(stages) == ["agent", "full"]
    assert "torch" not in stages["agent"].lower()
    assert 'pip install --no-cache-dir ".[${EXTRAS}]"' in stages["agent"]
    assert 'pip install --no-cache-dir ".[search,postgresql]"' in stages["full"]
    services = compose()["services"]
    small = {name for name, service in services.items() if service.get("build", {}).get("target") == "agent"}
    assert small == {"agent", "rack-agent"}
    assert {services[name]["image"] for name in small} == {"edgefront-agent:0.1.0"}
    whole = {name: service for name, service in services.items() if "build" in service and name not in small}
    assert {service["build"]["target"] for service in whole.values()} == {"full"}
    assert {service["image"] for service in whole.values()} == {"edgefront:0.1.0"}


def test_no_password_stands_in_the_hosts_list_of_processes(tmp_path: Path) -> None:
    for service in compose()["services"].values():
        assert "PASSWORD" not in json.dumps([service.get("command"), service.get("healthcheck", {}).get("test")])
    executable = server_executable()
    assert executable is not None
    (tmp_path / "redis-server").symlink_to(executable)
    (tmp_path / "redis").write_text("a-secret")
    shell, option, script = compose()["services"]["redis"]["command"]
    for ours, here in (
        ("$$", "$"),
        ("/run/edgefront/redis", str(tmp_path / "redis")),
        ("dir /data", f"dir {tmp_path}"),
        ("port 6379", "port 0\nunixsocket redis.sock"),
    ):
        assert ours in script
        script = script.replace(ours, here)
    environment = {"PATH": f"{tmp_path}:{os.defpath}"}
    with subprocess.Popen([shell, option, script], env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL) as server:
        try:
            client = redis.Redis(
                unix_socket_path=str(tmp_path / "redis.sock"),
                password="a-secret",
                retry=Retry(ConstantBackoff(0.02), 200),
            )
            assert client.ping()
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("appendonly") == {"appendonly": "yes"}
            client.close()
            shown = psutil.Process(server.pid).cmdline()  # the shell has made way for it
        finally:
            server.kill()
    assert "redis-server" in shown[0]
    assert "a-secret" not in json.dumps(shown)


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
