"""The C compilers: zig's clang from the Python package, by default, and Arm's GCC where it is installed.

zig runs as ``python -m ziglang cc``, so nothing has to be on the path. Its caches lie in the user's cache folder; what
is compiled for one candidate goes to a temporary folder and disappears with it, since no other candidate would hit it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from mcu_agent.kinds import BoardKind
from tasks.firmware.errors import ToolchainError, ToolchainInterrupted

TIMEOUT_S = 120.0

WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Werror")
_COMMON = (
    "-std=c11",
    "-g0",  # debug sections hold temporary paths
    *WARNINGS,
    "-ffreestanding",
    "-ffunction-sections",
    "-fdata-sections",
    "-fomit-frame-pointer",
    "-fno-unwind-tables",
    "-fno-asynchronous-unwind-tables",
)
# Plain -O2 unrolls loops of byte loads: a quarter fewer instructions for twice the code. With -Os the code is even
# smaller and faster than -O2 without unrolling (a small residual network: 3244 bytes and 532,000 cycles against 3322
# and 552,000). zig takes its own -Os as a wish to strip the symbols, so clang is told behind its back.
_ZIG_CODE = ("-O2", "-Xclang", "-Os", "-fno-sanitize=undefined", "-fno-stack-protector")
HOST_CODE = ("-O2", "-fno-sanitize=undefined")
_GCC_CODE = ("-O2", "-fno-tree-loop-distribute-patterns")
_LINK = ("-nostdlib", "-Wl,--gc-sections", "-Wl,-e,Reset_Handler", "-Wl,--build-id=none")
# Armv6-M has no wide multiply and no division: the compiler calls functions of its own library, and only there is it
# linked. Elsewhere a missing function is an error, as the network must bring everything with it.
_HELPERS = {"cortex-m0plus": ("-lgcc",)}

_ZIG_FPU = {"": "", "fpv4-sp-d16": "+vfp4d16sp", "fpv5-sp-d16": "+fp_armv8d16sp", "fpv5-d16": "+fp_armv8d16"}


def zig_version() -> str:
    return f"zig cc {metadata.version('ziglang')}"


def zig_flags(kind: BoardKind) -> tuple[str, ...]:
    """Target and CPU. The floating-point unit must be named: without it the compiler quietly emits soft-float code. So
    must the DSP extension where a part may come without it."""
    abi = "eabihf" if kind.fpu else "eabi"
    dsp = ("+dsp" if kind.has_dsp else "-dsp") if kind.core == "cortex-m33" else ""
    return ("-target", f"thumb-freestanding-{abi}", f"-mcpu={kind.core.replace('-', '_')}{_ZIG_FPU[kind.fpu]}{dsp}")


def gcc_flags(kind: BoardKind) -> tuple[str, ...]:
    """The same for Arm's GCC."""
    floats = ("-mfloat-abi=hard", f"-mfpu={kind.fpu}") if kind.fpu else ("-mfloat-abi=soft",)
    dsp = "+nodsp" if kind.core == "cortex-m33" and not kind.has_dsp else ""
    return ("-mthumb", f"-mcpu={kind.core}{dsp}", *floats)


def gcc_path() -> str | None:
    """Arm's GCC, if it is installed."""
    return shutil.which("arm-none-eabi-gcc")


def link_firmware(folder: Path, sources: Sequence[str], kind: BoardKind, compiler: str = "zig") -> bytes:
    """Compile ``sources`` in ``folder`` and link them with its ``link.ld``.

    Returns:
        The ELF file; the same sources give the same bytes.

    Raises:
        ToolchainError: the compiler is missing or refused the sources; ``overflowed`` in its text: too large.
    """
    target = "image.elf"
    if compiler == "gcc":
        path = gcc_path()
        if path is None:
            raise ToolchainError("arm-none-eabi-gcc is not on the path; install it or use the built-in compiler")
        command = [path, *gcc_flags(kind), *_COMMON, *_GCC_CODE]
    else:
        command = [*_zig(), *zig_flags(kind), *_COMMON, *_ZIG_CODE]
    helpers = _HELPERS.get(kind.core, ())
    _execute([*command, "-I.", "-Iboard", *_LINK, "-Wl,-T,link.ld", *sources, *helpers, "-o", target], folder)
    return (folder / target).read_bytes()


def link_shared(folder: Path, sources: Sequence[str], target: str = "network.so") -> Path:
    """Compile ``sources`` in ``folder`` into a shared library for this machine."""
    command = [*_zig(), "-std=c11", *WARNINGS, *HOST_CODE, "-fPIC", "-shared", "-I."]
    _execute([*command, *sources, "-o", target], folder)
    return folder / target


def _zig() -> list[str]:
    return [sys.executable, "-m", "ziglang", "cc"]


def _execute(command: list[str], folder: Path) -> None:
    environment = {
        **os.environ,
        "ZIG_GLOBAL_CACHE_DIR": str(cache_folder()),
        "ZIG_LOCAL_CACHE_DIR": str(folder / ".zig"),
    }
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise ToolchainError(f"the compiler {command[0]} is missing: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise ToolchainInterrupted(f"the compiler took more than {TIMEOUT_S:g} s") from error
    if done.returncode < 0:
        raise ToolchainInterrupted(f"the compiler was ended by signal {-done.returncode}")
    if done.returncode != 0:
        raise ToolchainError(f"the compiler failed ({done.returncode}):\n{done.stderr.strip()[-4000:]}")


@lru_cache(maxsize=1)
def cache_folder() -> Path:
    """Where zig keeps its libraries between runs: the user's cache folder, or a temporary one if that is read-only."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    folder = Path(base) / "edgefront" / "zig"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        owner = getattr(os, "getuid", lambda: "user")()
        folder = Path(tempfile.gettempdir()) / f"edgefront-zig-{owner}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder


@lru_cache(maxsize=1)
def gcc_version() -> str:
    """``arm-none-eabi-gcc 12.2.1``.

    Raises:
        ToolchainError: it is not installed.
    """
    path = gcc_path()
    if path is None:
        raise ToolchainError("arm-none-eabi-gcc is not on the path; install it or use the built-in compiler")
    done = subprocess.run([path, "-dumpfullversion"], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    return f"arm-none-eabi-gcc {done.stdout.strip()}"
