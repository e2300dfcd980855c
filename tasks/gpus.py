"""The GPUs of this machine as ``nvidia-smi`` tells them, and which of them a worker is to use."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.errors import UsageError

VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"
_FIELDS = ("index", "uuid", "name", "utilization.gpu", "memory.used", "memory.total")
_TIMEOUT_S = 20.0
_MIB = 1024.0**2


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One GPU: its index in the order of the bus, and how it was used when asked; None where the driver does not
    say."""

    index: int
    uuid: str
    name: str
    utilisation: float | None
    used_bytes: float | None
    total_bytes: float | None


_GPU_NAME = re.compile(r"[0-9]+|(GPU|MIG)-[0-9A-Za-z/-]+")


def installed_gpus() -> tuple[Gpu, ...]:
    """All of this machine; none where there is no ``nvidia-smi`` or it finds none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    command = [program, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return parsed(done.stdout) if done.returncode == 0 else ()


def parsed(text: str) -> tuple[Gpu, ...]:
    """The GPUs in what ``nvidia-smi`` printed; lines of another form are passed over."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    return tuple(_gpu(row) for row in rows if len(row) == len(_FIELDS) and row[0].isdigit())


def _gpu(row: Sequence[str]) -> Gpu:
    index, uuid, name, utilisation, used, total = row
    share, used_mib, total_mib = _number(utilisation), _number(used), _number(total)
    return Gpu(
        index=int(index),
        uuid=uuid,
        name=name,
        utilisation=None if share is None else share / 100.0,
        used_bytes=None if used_mib is None else used_mib * _MIB,
        total_bytes=None if total_mib is None else total_mib * _MIB,
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "[N/A]"
        return None


def chosen_gpus(text: str, installed: Sequence[Gpu], environment: Mapping[str, str] = os.environ) -> tuple[Gpu, ...]:
    """``"0,1"`` or ``"all"`` → the GPUs; none where the machine has none. Of a machine whose scheduler has set
    ``CUDA_VISIBLE_DEVICES``, only those.

    Raises:
        UsageError: there is no such GPU, or one is named twice.
    """
    visible = _visible(installed, environment)
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError("--gpus: none given; allowed are indices or uuids of nvidia-smi with commas, or all")
    if names == ["all"]:
        return tuple(visible)
    if unknown := next((name for name in names if not _GPU_NAME.fullmatch(name)), ""):
        raise UsageError(f"--gpus: found {unknown!r}; allowed are indices or uuids of nvidia-smi with commas, or all")
    if not visible:
        return ()
    found = [_named(name, visible) for name in names]
    doubled = [name for name, gpu in zip(names, found, strict=True) if found.count(gpu) > 1]
    if doubled:
        raise UsageError(f"--gpus: {doubled[0]!r} is named twice; a GPU trains one network at a time")
    return tuple(found)


def _visible(installed: Sequence[Gpu], environment: Mapping[str, str]) -> list[Gpu]:
    given = environment.get(VISIBLE_VARIABLE)
    if given is None:
        return list(installed)
    names = [name.strip() for name in given.split(",")]
    return [gpu for gpu in installed if str(gpu.index) in names or gpu.uuid in names]


def _named(name: str, gpus: Sequence[Gpu]) -> Gpu:
    for gpu in gpus:
        if name in (str(gpu.index), gpu.uuid):
            return gpu
    there = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in gpus)
    raise UsageError(f"--gpus: found {name!r}; this machine offers {there}, or all")


def pinned_to(gpu: Gpu) -> dict[str, str]:
    """The environment in which a process sees this GPU alone, numbered as ``nvidia-smi`` does."""
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", VISIBLE_VARIABLE: gpu.uuid or str(gpu.index)}
