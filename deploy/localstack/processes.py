"""The services as processes: started in order, each once those it waits for are healthy, and ended in reverse."""

from __future__ import annotations

import errno
import json
import os
import pwd
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep

import psutil
import yaml

from localstack.composefile import Service
from localstack.errors import StackError, WrongCommand
from localstack.images import Builder, Image

_START_S = 120.0
_LOG_LINES = 25
STATE_FILE = "processes.json"
_PORTS = {"redis": 6379, "postgres": 5432, "prometheus": 9090, "dashboard": 8450}  # those that others use as well
NETWORK = "127.77.0."  # every service has an address of its own here, so that their ports do not meet


@dataclass(kw_only=True)
class Stack:
    """``root`` holds images, volumes and logs; ``services`` are those that shall run, in order."""

    root: Path
    checkout: Path
    services: Sequence[Service]
    builder: Builder
    say: Callable[[str], None] = print
    images: dict[str, Image] = field(default_factory=dict)
    _left_out: set[str] = field(default_factory=set)

    @property
    def addresses(self) -> dict[str, str]:
        return {one.name: f"{NETWORK}{number}" for number, one in enumerate(self.services, start=1)}

    def check_addresses(self) -> None:
        """
        Raises:
            WrongCommand: somebody listens where a service would.
        """
        for name, port in _PORTS.items():
            address = self.addresses.get(name)
            if address is not None and _is_taken(address, port):
                raise WrongCommand(
                    f"{address}:{port} is taken, where {name} would listen. Another local-stack of this host has the "
                    "same addresses: end it by deploy/local-stack --root ITS-FOLDER down. Or it is a server that "
                    f"listens on all addresses: ss -ltnp 'sport = :{port}' names it"
                )

    def build(self) -> None:
        """Make the images of the services, each once."""
        for service in self.services:
            if service.is_ours and service.image not in self.images:
                self.say(f"building {service.image}")
                folder = self.root / "images" / re.sub(r"\W+", "-", service.image)
                self.images[service.image] = self.builder.build(service.target, folder, service.arguments)

    def start(self) -> None:
        """
        Raises:
            StackError: a service ended or did not become healthy; its log is in the text, and all are ended.
        """
        try:
            for service in self.services:
                self._start_one(service)
        except BaseException:
            self.stop()
            raise

    def _start_one(self, service: Service) -> None:
        words = self._words(service)
        if not words:
            self._left_out.add(service.name)
            self.say(f"{service.name}: left out, its program is not installed here")
            return
        self._make_volumes(service)
        before = self._prepare(service)
        if before:
            quiet = subprocess.DEVNULL
            subprocess.run(
                before, check=True, env=self._environment(service), user=self._account(service), stdout=quiet
            )
        log = self.root / "logs" / f"{service.name}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("wb") as stream:
            process = psutil.Popen(
                words,
                cwd=self._folder(service),
                env=self._environment(service),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                user=self._account(service),
            )
        if not service.health:
            if process.wait(60):
                raise StackError(f"{service.name} failed:\n{_tail(log)}")
            return
        self._note(service, process)
        self._wait_until_healthy(service, process, log)
        if before and service.image.startswith("postgres:"):
            self._make_database(service)
        self.say(f"{service.name}: healthy at {self.addresses[service.name]}")

    def _wait_until_healthy(self, service: Service, process: psutil.Popen, log: Path) -> None:
        deadline = monotonic() + _START_S
        kind, *test = service.health
        words = ["sh", "-c", *test] if kind == "CMD-SHELL" else test
        command = [self._placed(service, word) for word in words]
        if command[0] == "wget":  # what the images have; not every machine has it
            command = [
                str(self._any_image().python),
                str(self.checkout / "deploy/bin/healthy"),
                *_url_parts(command[-1]),
            ]
        while monotonic() < deadline:
            if process.poll() is not None:
                raise StackError(f"{service.name} has ended ({process.returncode}):\n{_tail(log)}")
            done = subprocess.run(command, env=self._environment(service), capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return
            sleep(0.1)
        said = (done.stdout + done.stderr).strip()
        raise StackError(f"{service.name} is not healthy after {_START_S:g} s: {said}\n{_tail(log)}")

    def run(self, name: str, words: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
        """A command in a service's environment, as ``docker compose exec`` runs it."""
        service = next((one for one in self.services if one.name == name), None)
        if service is None:
            names = ", ".join(one.name for one in self.services)
            raise WrongCommand(f"exec: found service {name!r}; allowed are {names}")
        if not words:
            raise WrongCommand(f"exec: no command for {name}; allowed: exec {name} COMMAND…")
        environment = self._environment(service)
        program = shutil.which(words[0], path=environment["PATH"]) or words[0]
        return subprocess.run(  # type: ignore[call-overload, no-any-return]
            [program, *words[1:]], cwd=self._folder(service), env=environment, text=True, check=False, **options
        )

    # -- what a service is started with ---------------------------------------------------------------------------

    def _words(self, service: Service) -> list[str]:
        """The whole command; empty where its program is not on this machine."""
        command = [self._placed(service, word) for word in service.command]
        if service.is_ours:
            image = self.images[service.image]
            words = [*(service.entrypoint or image.entrypoint), *(command or image.command)]
            words = [self._placed(service, word) for word in words]
            return [str(_found(words[0], self._environment(service)["PATH"])), *words[1:]]
        foreign = _FOREIGN.get(service.image.partition(":")[0])
        return foreign(self, service, command) if foreign is not None else []

    def _environment(self, service: Service) -> dict[str, str]:
        address = self.addresses[service.name]
        image = self.images.get(service.image)
        path = "/usr/local/bin:/usr/bin:/bin"
        own = {"HEALTHY_HOST": address, "EDGEFRONT_LOCKS": str(self.root / "locks"), "HOME": str(self.root / "home")}
        (self.root / "home").mkdir(exist_ok=True)
        if image is not None:
            venv = image.root / "venv"
            path = f"{venv / 'bin'}:{path}"
            own["EDGEFRONT_PROGRAM"] = str(venv / "bin" / "edgefront")
            own |= {name: self._placed(service, value) for name, value in image.environment.items()}
        placed = {name: self._placed(service, value) for name, value in service.environment.items()}
        found = {**own, **{name: self.addresses.get(value, value) for name, value in placed.items()}}
        found["PATH"] = f"{image.inside('/app/bin')}:{path}" if image is not None else path
        for name, value in service.environment.items():  # where that service is not here, nobody shall look for it
            if value in self._left_out:
                del found[name]
        return found

    def _placed(self, service: Service, text: str) -> str:
        """The text with the container's paths and addresses replaced by those of this machine."""
        address = self.addresses[service.name]
        text = re.sub(r"\b(0\.0\.0\.0|127\.0\.0\.1)\b", address, text)
        for inside in sorted(service.volumes, key=len, reverse=True):
            text = _with_path(text, inside, self._volume(service, inside))
        image = self.images.get(service.image)
        return _with_path(text, "/app", image.inside("/app")) if image is not None else text

    def _volume(self, service: Service, inside: str) -> Path:
        source = service.volumes[inside]
        if inside == "/etc/prometheus":
            return self.root / "prometheus-config"
        return self.checkout / source if source.startswith(".") else self.root / "volumes" / source.replace("/", "_")

    def _make_volumes(self, service: Service) -> None:
        for inside, source in service.volumes.items():
            if not source.startswith((".", "/")):
                self._volume(service, inside).mkdir(parents=True, exist_ok=True)

    def _folder(self, service: Service) -> Path:
        image = self.images.get(service.image)
        return image.inside(".") if image is not None else self.root

    def _any_image(self) -> Image:
        return next(iter(self.images.values()))

    def _prepare(self, service: Service) -> list[str]:
        """What must be done before the first start, as the foreign images' own entry points do."""
        if service.image.startswith("prom/"):
            self._write_prometheus_config(service)
        if service.image.startswith("postgres:"):
            data = self._volume(service, "/var/lib/postgresql/data")
            if account := self._account(service):
                shutil.chown(data, account)
            if not (data / "PG_VERSION").exists():
                password = self._placed(service, service.environment["POSTGRES_PASSWORD_FILE"])
                user = service.environment["POSTGRES_USER"]
                options = [
                    f"--pwfile={password}",
                    f"--username={user}",
                    "--auth=scram-sha-256",
                    "--encoding=UTF8",
                    "--locale=C",
                ]
                return [str(_postgres_program("initdb")), "-D", str(data), *options]
        return []

    def _make_database(self, service: Service) -> None:
        secret = Path(self._placed(service, service.environment["POSTGRES_PASSWORD_FILE"]))
        environment = {**self._environment(service), "PGPASSWORD": secret.read_text(encoding="utf-8")}
        words = ["-h", self.addresses[service.name], "-U", service.environment["POSTGRES_USER"]]
        program = str(_postgres_program("createdb"))
        subprocess.run([program, *words, service.environment["POSTGRES_DB"]], check=True, env=environment)

    def _account(self, service: Service) -> str | None:
        """Another user to run as: PostgreSQL refuses to be root."""
        if not service.image.startswith("postgres:") or os.geteuid() != 0:
            return None
        names = {entry.pw_name for entry in pwd.getpwall()}
        return "postgres" if "postgres" in names else "nobody"

    def _write_prometheus_config(self, service: Service) -> None:
        """The configuration with addresses in place of names, which only the containers' network knows."""
        source = self.checkout / "deploy" / "prometheus"
        target = self._volume(service, "/etc/prometheus")
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        settings = yaml.safe_load((source / "prometheus.yml").read_text(encoding="utf-8"))
        for job in settings["scrape_configs"]:
            for found in job.get("static_configs", ()):
                found["targets"] = [self._address_of(place) for place in found["targets"]]
            for found in job.pop("dns_sd_configs", ()):
                names = [name for name in found["names"] if name in self.addresses]
                targets = [self._address_of(f"{name}:{found['port']}") for name in names]
                job.setdefault("static_configs", []).append({"targets": targets})
        (target / "prometheus.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")

    def _address_of(self, place: str) -> str:
        name, _, port = place.partition(":")
        return f"{self.addresses.get(name, name)}:{port}"

    # -- what runs ------------------------------------------------------------------------------------------------

    def _note(self, service: Service, process: psutil.Popen) -> None:
        known = running(self.root)
        known[service.name] = {"pid": process.pid, "born": process.create_time(), "grace_s": service.grace_s}
        (self.root / STATE_FILE).write_text(json.dumps(known), encoding="utf-8")

    def stop(self) -> None:
        stop(self.root, self.say)


def running(root: Path) -> dict[str, dict[str, float]]:
    """What was noted as started, in that order."""
    file = root / STATE_FILE
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def stop(root: Path, say: Callable[[str], None]) -> None:
    """End everything that was started below ``root``, the last first; what does not end in its time is killed."""
    for name, about in reversed(running(root).items()):
        try:
            process = psutil.Process(int(about["pid"]))
            if abs(process.create_time() - about["born"]) > 1:
                continue  # another process by now
            process.terminate()
            _wait_or_kill(process, about["grace_s"])
        except psutil.NoSuchProcess:
            continue
        say(f"{name}: ended")
    (root / STATE_FILE).unlink(missing_ok=True)


def _wait_or_kill(process: psutil.Process, grace_s: float) -> None:
    try:
        process.wait(grace_s)
    except psutil.TimeoutExpired:
        for one in [*process.children(recursive=True), process]:
            one.kill()
        process.wait(10)


def _redis(stack: Stack, service: Service, command: Sequence[str]) -> list[str]:
    return list(command) if shutil.which("redis-server") else []


def _postgres(stack: Stack, service: Service, command: Sequence[str]) -> list[str]:
    program = _postgres_program("postgres")
    if program is None:
        return []
    data = stack._volume(service, "/var/lib/postgresql/data")
    return [str(program), "-D", str(data), "-h", stack.addresses[service.name], "-k", ""]


def _prometheus(stack: Stack, service: Service, command: Sequence[str]) -> list[str]:
    program = shutil.which("prometheus")
    return [program, *command] if program else []


_FOREIGN: Mapping[str, Callable[[Stack, Service, Sequence[str]], list[str]]] = {
    "redis": _redis,
    "postgres": _postgres,
    "prom/prometheus": _prometheus,
}


def _postgres_program(name: str) -> Path | None:
    """Debian keeps the server's programs off the PATH."""
    places = [
        *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True),
        Path("/usr/local/bin"),
        Path("/usr/bin"),
    ]
    return next((place / name for place in places if (place / name).exists()), None)


def _found(word: str, path: str) -> str:
    found = shutil.which(word, path=path)
    if found is None:
        raise StackError(f"the image has no program {word}")
    return found


def _with_path(text: str, inside: str, outside: Path) -> str:
    return re.sub(rf"(?<![\w./-]){re.escape(inside)}(?![\w.-])", str(outside), text)


def _url_parts(url: str) -> list[str]:
    found = re.fullmatch(r"http://[^:]+:(\d+)(/.*)", url)
    assert found is not None
    return [found[1], found[2]]


def _is_taken(address: str, port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((address, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:])
