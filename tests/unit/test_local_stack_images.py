"""compose.yaml and the Dockerfile, read for a lab without containers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "deploy"))

from localstack import processes  # noqa: E402
from localstack.__main__ import main  # noqa: E402
from localstack.composefile import chosen, read_services  # noqa: E402
from localstack.errors import StackError, WrongCommand  # noqa: E402
from localstack.images import Builder  # noqa: E402
from localstack.processes import Stack  # noqa: E402


def stack(root: Path, profiles: str = "cpu,virtual") -> Stack:
    services = chosen(read_services(ROOT / "compose.yaml", {}), profiles.split(","))
    return Stack(root=root, checkout=ROOT, services=services, builder=builder(ROOT / "deploy" / "Dockerfile"))


def builder(dockerfile: Path, context: Path = ROOT) -> Builder:
    return Builder(dockerfile=dockerfile, context=context, is_quick=True)


def test_a_service_starts_behind_all_that_it_waits_for(tmp_path: Path) -> None:
    names = [service.name for service in stack(tmp_path).services]
    assert names.index("secrets") < names.index("redis") < names.index("orchestrator") < names.index("train-worker")
    assert "rack-agent" not in names and "train-worker-gpu" not in names
    assert "rack-agent" in [service.name for service in stack(tmp_path, "gpu,rack").services]


def test_every_service_has_an_address_of_its_own(tmp_path: Path) -> None:
    addresses = stack(tmp_path).addresses
    assert len(set(addresses.values())) == len(addresses)
    assert all(address.startswith("127.") for address in addresses.values())


def test_paths_and_addresses_of_the_container_become_those_of_this_machine(tmp_path: Path) -> None:
    one = stack(tmp_path)
    redis = next(service for service in one.services if service.name == "redis")
    text = one._placed(redis, redis.command[-1])
    assert f"bind {one.addresses['redis']}" in text
    assert f"dir {tmp_path}/volumes/redis" in text
    assert f"cat {tmp_path}/volumes/secrets/redis" in text
    environment = one._environment(next(service for service in one.services if service.name == "orchestrator"))
    assert environment["REDIS_HOST"] == one.addresses["redis"]
    assert environment["EDGEFRONT_STUDIES"] == f"{tmp_path}/volumes/studies"


def test_a_variable_without_value_and_default_is_named(tmp_path: Path) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text("services: {a: {image: 'x:1', command: ['${PLACE}', '$$HOME', '${NUMBER:-7}']}}")
    with pytest.raises(StackError, match="PLACE"):
        read_services(file, {})
    assert read_services(file, {"PLACE": "here"})["a"].command == ("here", "$HOME", "7")


@pytest.mark.parametrize("line", ["RUN apt-get install gcc", "HEALTHCHECK CMD true"])
def test_a_step_that_nobody_taught_it_is_an_error(tmp_path: Path, line: str) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text(f"FROM python:3.12 AS full\n{line}\n")
    with pytest.raises(StackError, match="Teach"):
        builder(file).build("full", tmp_path / "root", {})


def test_a_file_that_the_dockerfile_copies_must_be_there(tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text("FROM python:3.12 AS full\nWORKDIR /app\nCOPY *.txt ./\n")
    with pytest.raises(StackError, match="no such file"):
        builder(file, tmp_path).build("full", tmp_path / "root", {})
    (tmp_path / "a.txt").write_text("a")
    builder(file, tmp_path).build("full", tmp_path / "root", {})
    assert (tmp_path / "root" / "app" / "a.txt").read_text() == "a"


def test_the_images_command_is_the_installed_one_with_the_passwords_in_its_addresses(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    subprocess.run([ROOT / "deploy/bin/make-secrets", secrets], check=True)
    first = {path.name: path.read_text() for path in secrets.iterdir()}
    subprocess.run([ROOT / "deploy/bin/make-secrets", secrets], check=True)
    assert first == {path.name: path.read_text() for path in secrets.iterdir()}, "drawn anew: nobody would get in"
    assert len(set(first.values())) == 4 and all(len(value) == 48 for value in first.values())
    shown = tmp_path / "program"
    shown.write_text('#!/bin/sh\necho "$EDGEFRONT_BROKER_URL $EDGEFRONT_DATABASE $EDGEFRONT_DASHBOARD_TOKEN $*"\n')
    shown.chmod(0o755)
    settings = {"EDGEFRONT_SECRETS": str(secrets), "EDGEFRONT_PROGRAM": str(shown), "PATH": os.environ["PATH"]}
    hosts = {"REDIS_HOST": "redis", "POSTGRES_HOST": "postgres"}
    done = subprocess.run(
        [ROOT / "deploy/bin/edgefront", "status"], env=settings | hosts, capture_output=True, text=True
    )
    broker, database, token, word = done.stdout.split()
    assert broker == f"redis://:{first['redis']}@redis:6379/0"
    assert database == f"postgresql://edgefront:{first['postgres']}@postgres:5432/edgefront"
    assert (token, word) == (first["dashboard"], "status")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--profiles", "nope", "up"], "--profiles: found nope; allowed are cli, cpu, gpu, rack, virtual"),
        (["--compose", "/nowhere/nope.yaml", "up"], "--compose /nowhere/nope.yaml: it cannot be read: No such file"),
        (["--root", "/proc/nowhere", "up"], "/proc/nowhere: No such file or directory; --root"),
        (["exec", "orchestrator", "ls"], "nothing was built in "),
    ],
)
def test_a_wrong_command_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.setattr(processes, "NETWORK", "127.99.9.")
    assert main(["--root", str(tmp_path / "lab"), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_service_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(WrongCommand, match="exec: found service 'nope'; allowed are secrets, redis"):
        stack(tmp_path).run("nope", ["ls"])
    with pytest.raises(WrongCommand, match="exec: no command for redis"):
        stack(tmp_path).run("redis", [])


def test_an_address_that_is_taken_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "NETWORK", "127.99.9.")
    one = stack(tmp_path)
    one.check_addresses()
    with (
        socket.create_server((one.addresses["redis"], 6379)),
        pytest.raises(WrongCommand, match=r"127\.99\.9\.\d+:6379 is taken.*--root ITS-FOLDER down"),
    ):
        one.check_addresses()
