"""compose.yaml: by the compose specification's schema, by the rules of the house, and by the real command line."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from cli import main
from cli_worker import parse_limit
from mcu_agent.rack import load_rack

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = sorted(name for name, one in SERVICES.items() if one["image"].startswith("edgefront") and "command" in one)
LASTING = sorted(set(SERVICES) - {"secrets", "cli"})


@pytest.mark.skipif(importlib.util.find_spec("check_jsonschema") is None, reason="check-jsonschema is not installed")
def test_the_file_keeps_the_compose_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_bounded_unprivileged_and_pinned(name: str) -> None:
    service = SERVICES[name]
    limits = service["deploy"]["resources"]["limits"]
    assert {"cpus", "memory", "pids"} <= set(limits)
    assert re.fullmatch(r"\d+:\d+", service["user"]) and not service["user"].startswith("0:")
    assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    tag = service["image"].rpartition(":")[2]
    parts = 2 if service["image"].startswith("postgres:") else 3  # PostgreSQL's versions have two
    assert re.match(r"v?\d+" + r"\.\d+" * (parts - 1), tag), f"{service['image']} may change under us"
    assert service["restart"] == ("unless-stopped" if name in LASTING else "no")


@pytest.mark.parametrize("name", LASTING)
def test_every_service_that_stays_has_a_health_check(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] in ("CMD", "CMD-SHELL") and check["interval"] and check["retries"]


def test_volumes_are_named_and_passwords_are_in_no_environment() -> None:
    used = {volume.partition(":")[0] for one in SERVICES.values() for volume in one.get("volumes", ())}
    named = {volume for volume in used if not volume.startswith((".", "/", "$"))}
    assert named == set(COMPOSE["volumes"])
    for service in SERVICES.values():
        for key, value in service.get("environment", {}).items():
            assert "password" not in key.lower() or str(value).startswith("/run/edgefront/")


def test_only_this_machine_reaches_what_is_published() -> None:
    published = [port for one in SERVICES.values() for port in one.get("ports", ())]
    assert published and all(port.startswith("127.0.0.1:") for port in published)


def test_every_name_that_is_waited_for_or_scraped_is_a_service() -> None:
    waited = {other for one in SERVICES.values() for other in one.get("depends_on", ())}
    assert waited <= set(SERVICES)
    jobs = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    places = [target for job in jobs for found in job.get("static_configs", ()) for target in found["targets"]]
    places += [f"{name}:{s['port']}" for job in jobs for s in job.get("dns_sd_configs", ()) for name in s["names"]]
    for place in places:
        name, _, port = place.partition(":")
        words = " ".join(map(str, SERVICES[name]["command"]))
        assert re.search(rf"(--metrics-port |:){port}\b", words), f"{place}: {words}"
    exporters = {name for name in OURS if "--metrics-port" in SERVICES[name]["command"]}
    assert exporters <= {place.partition(":")[0] for place in places}, "nobody reads the metrics of some"


@pytest.mark.parametrize("name", OURS)
def test_the_command_line_takes_every_command(name: str) -> None:
    words = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(word)) for word in SERVICES[name]["command"]]
    context = main.commands[words[0]].make_context(
        words[0], words[1:], parent=click.Context(main, **main.context_settings)
    )
    for option, unit in (("memory_limit", "byte"), ("time_limit", "s")):
        if context.params.get(option):
            assert parse_limit(option, context.params[option], unit) > 0


def test_the_profiles_that_run_unasked_train_build_and_measure() -> None:
    (line,) = [one for one in (ROOT / ".env").read_text().splitlines() if one.startswith("COMPOSE_PROFILES=")]
    profiles = set(line.partition("=")[2].split(","))
    running = {name for name, one in SERVICES.items() if not one.get("profiles") or profiles & set(one["profiles"])}
    assert {"redis", "postgres", "orchestrator", "train-worker", "build-worker", "agent", "grafana"} <= running
    assert {"train-worker-gpu", "rack-agent", "cli"}.isdisjoint(running)


def test_the_virtual_rack_is_a_rack() -> None:
    assert len(load_rack(ROOT / "deploy" / "rack.toml").boards) == 2


def redis_settings() -> dict[str, str]:
    script = SERVICES["redis"]["command"][-1]
    (document,) = re.findall(r"<<END\n(.*?)END\n", script, re.DOTALL)
    return dict(line.split(" ", 1) for line in document.strip().splitlines())


def test_redis_asks_for_a_password_keeps_what_it_has_taken_and_throws_nothing_away() -> None:
    settings = redis_settings()
    assert settings["requirepass"] == "$$(cat /run/edgefront/redis)"
    assert (settings["appendonly"], settings["maxmemory-policy"]) == ("yes", "noeviction")
    assert f"redis:{settings['dir']}" in SERVICES["redis"]["volumes"]


def test_what_must_outlive_a_container_is_in_a_volume() -> None:
    kept = {
        "redis": "/data",
        "postgres": "/var/lib/postgresql/data",
        "prometheus": "/prometheus",
        "grafana": "/var/lib/grafana",
    }
    for name, place in kept.items():
        assert f"{name}:{place}" in SERVICES[name]["volumes"]
    for name in OURS:
        assert "studies:/studies" in SERVICES[name]["volumes"], f"{name} would not find the others' artifacts"


def test_the_gpu_profile_reserves_gpus_and_pins_a_process_to_each() -> None:
    service = SERVICES["train-worker-gpu"]
    assert service["profiles"] == ["gpu"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", "all", ["gpu"])
    assert service["command"][service["command"].index("--gpus") + 1] == "all"
    assert SERVICES["train-worker"]["profiles"] == ["cpu"]
    assert "reservations" not in SERVICES["train-worker"]["deploy"]["resources"]


def test_the_rack_profile_passes_usb_and_serial_devices_through_without_all_rights() -> None:
    service = SERVICES["rack-agent"]
    assert service["profiles"] == ["rack"]
    assert "/dev:/dev" in service["volumes"], "a board that comes back has another node there"
    rules = {rule.split(":")[0] for rule in service["device_cgroup_rules"]}
    assert rules == {"c 189", "c 166", "c 188"}  # USB, CDC-ACM and USB-serial lines, by the kernel's list of devices
    assert service["group_add"] == ["46", "20"] and service["cap_drop"] == ["ALL"]


def test_nothing_is_stopped_before_it_can_leave_in_peace() -> None:
    grace = {name: SERVICES[name].get("stop_grace_period", "10s") for name in LASTING}
    assert grace["orchestrator"] == "1m"  # it gives its studies back, 35 s at most
    assert {grace[name] for name in ("train-worker", "train-worker-gpu", "build-worker")} == {"2m"}  # --drain-limit
    assert grace["agent"] == grace["rack-agent"] == "3m"
