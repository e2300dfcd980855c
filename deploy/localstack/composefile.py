"""compose.yaml as data: which services run, in which order, with which words and environment."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from localstack.errors import WrongCommand

_VARIABLE = re.compile(r"\$\$|\$\{(\w+)(?::-([^}]*))?\}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """One service. ``volumes`` maps a path in the container to a named volume or a path of the checkout; ``needs`` to
    the condition waited for."""

    name: str
    image: str
    target: str
    arguments: Mapping[str, str]
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    environment: Mapping[str, str]
    volumes: Mapping[str, str]
    needs: Mapping[str, str]
    health: tuple[str, ...]
    grace_s: float
    profiles: tuple[str, ...] = field(default=())

    @property
    def is_ours(self) -> bool:
        return bool(self.target)


def read_services(file: Path, variables: Mapping[str, str]) -> dict[str, Service]:
    """All services, by name.

    Raises:
        WrongCommand: it is no compose file, or a variable is neither set nor has a default.
    """
    try:
        read = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = getattr(error, "strerror", None) or error
        raise WrongCommand(f"--compose {file}: it cannot be read: {why}") from error
    data = _filled(read, variables)
    if not isinstance(data, dict) or not isinstance(data.get("services"), dict):
        raise WrongCommand(f"--compose {file}: it has no services; allowed is a file such as compose.yaml")
    try:
        return {name: _service(name, entry) for name, entry in data["services"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WrongCommand(f"--compose {file}: its services cannot be read here: {error!r}") from error


def chosen(services: Mapping[str, Service], profiles: Iterable[str]) -> list[Service]:
    """The services of no profile or of one of these, each behind those that it waits for.

    Raises:
        WrongCommand: no service has such a profile.
    """
    wanted = set(filter(None, profiles))
    known = sorted({profile for one in services.values() for profile in one.profiles})
    if unknown := sorted(wanted.difference(known)):
        raise WrongCommand(f"--profiles: found {', '.join(unknown)}; allowed are {', '.join(known) or 'none'}")
    open_names = [name for name, one in services.items() if not one.profiles or wanted & set(one.profiles)]
    ordered: list[Service] = []

    def take(name: str) -> None:
        if services[name] not in ordered:
            for other in services[name].needs:
                take(other)
            ordered.append(services[name])

    for name in open_names:
        take(name)
    return ordered


def _filled(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, variables) for item in value]
    return _VARIABLE.sub(lambda found: _variable(found, variables), value) if isinstance(value, str) else value


def _variable(found: re.Match[str], variables: Mapping[str, str]) -> str:
    if found[0] == "$$":
        return "$"
    value = variables.get(found[1]) or found[2]
    if value is None:
        raise WrongCommand(f"compose.yaml needs the variable {found[1]}; set it")
    return value


def _service(name: str, entry: Mapping[str, Any]) -> Service:
    build = entry.get("build") or {}
    health = entry.get("healthcheck", {}).get("test", [])
    return Service(
        name=name,
        image=str(entry["image"]),
        target=str(build.get("target", "")),
        arguments={key: str(value) for key, value in build.get("args", {}).items()},
        entrypoint=_words(entry.get("entrypoint")),
        command=_words(entry.get("command")),
        environment={key: str(value) for key, value in (entry.get("environment") or {}).items()},
        volumes=dict(_volume(volume) for volume in entry.get("volumes", ())),
        needs={other: str(about["condition"]) for other, about in entry.get("depends_on", {}).items()},
        health=_words(health),
        grace_s=_seconds(str(entry.get("stop_grace_period", "10s"))),
        profiles=tuple(entry.get("profiles", ())),
    )


def _words(value: Any) -> tuple[str, ...]:
    return tuple(shlex.split(value)) if isinstance(value, str) else tuple(str(word) for word in value or ())


def _volume(text: str) -> tuple[str, str]:
    source, target, *_ = text.split(":")
    return target, source


def _seconds(text: str) -> float:
    number, unit = text[:-1], text[-1]
    return float(number) * {"s": 1, "m": 60}[unit]
