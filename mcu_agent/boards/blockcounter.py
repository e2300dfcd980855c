"""Counts basic blocks on an emulator: natively where a C compiler is at hand, in Python else.

Both counters are told regions (address ranges), stop the emulator at chosen addresses or at a deadline, and hand out
how often every distinct block ran in every region. The native one runs at emulator speed; the Python one is about 50
times slower and exists so that nothing but pip is needed.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from importlib import resources, util
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from unicorn import UC_HOOK_BLOCK, Uc
from unicorn.unicorn_py3.unicorn import uclib

log = logging.getLogger(__name__)

ENTRY = np.dtype(
    [
        ("address", "<u4"),
        ("size", "<u4"),
        ("region_before", "<u4"),
        ("region", "<u4"),
        ("next", "<u4"),
        ("is_stop", "<u4"),
        ("count", "<u8"),
        ("taken", "<u8"),
    ]
)
_CLOCK_EVERY = 1024


class Halt(IntEnum):
    """Why the counter stopped the emulator; ``NONE`` when it did not."""

    NONE = 0
    AT_STOP = 1
    PAST_DEADLINE = 2
    OUT_OF_MEMORY = 3


@dataclass(frozen=True, slots=True)
class Range:
    """Blocks that start in [start, end) belong to ``region``."""

    start: int
    end: int
    region: int


class BlockCounter(Protocol):
    """Set regions, then arm before each start of the emulator; ``entries`` only ever grows between two
    ``set_regions``.
    """

    def set_regions(self, ranges: Sequence[Range]) -> None: ...

    def arm(self, stops: Collection[int], timeout_s: float, resume_at: int | None) -> None: ...

    def halt(self) -> tuple[Halt, int]: ...

    def entries(self) -> np.ndarray[Any, np.dtype[np.void]]: ...

    def close(self) -> None: ...


def attach_counter(emulator: Uc) -> BlockCounter:
    """The fastest counter this machine offers, hooked into ``emulator``."""
    library = native_library()
    return NativeCounter(emulator, library) if library else PythonCounter(emulator)


class NativeCounter:
    """Block counting in C, called by the emulator without going through Python."""

    def __init__(self, emulator: Uc, library: ctypes.CDLL) -> None:
        self._library = library
        stop = ctypes.cast(uclib.uc_emu_stop, ctypes.c_void_p)
        self._state = ctypes.c_void_p(library.edgefront_hook_create(stop))
        if not self._state:
            raise MemoryError("no memory for the block counter")
        hook = ctypes.c_size_t()
        callback = ctypes.cast(library.edgefront_hook_block, ctypes.c_void_p)
        # uclib's prototype takes begin > end as "every address"
        status = uclib.uc_hook_add(emulator._uch, ctypes.byref(hook), UC_HOOK_BLOCK, callback, self._state, 1, 0)
        if status:
            raise OSError(f"the emulator refused the block hook with error {status}")

    def set_regions(self, ranges: Sequence[Range]) -> None:
        triples = [word for item in ranges for word in (item.start, item.end, item.region)]
        words = (ctypes.c_uint32 * len(triples))(*triples)
        if not self._library.edgefront_hook_regions(self._state, words, len(ranges)):
            raise MemoryError("no memory for the block counter")

    def arm(self, stops: Collection[int], timeout_s: float, resume_at: int | None) -> None:
        words = (ctypes.c_uint32 * len(stops))(*stops)
        is_resuming = int(resume_at is not None)
        if not self._library.edgefront_hook_arm(self._state, words, len(stops), int(timeout_s * 1e9), is_resuming):
            raise MemoryError("no memory for the block counter")

    def halt(self) -> tuple[Halt, int]:
        return Halt(self._library.edgefront_hook_state(self._state)), self._library.edgefront_hook_stopped_at(
            self._state
        )

    def entries(self) -> np.ndarray[Any, np.dtype[np.void]]:
        if not self._state:
            raise ValueError("the counter is closed; read it before the board is switched off")
        count = self._library.edgefront_hook_n_entries(self._state)
        address = self._library.edgefront_hook_entries(self._state)
        return np.frombuffer(ctypes.string_at(address, count * ENTRY.itemsize), dtype=ENTRY)

    def close(self) -> None:
        """Free the counter. The emulator must not run afterwards."""
        if self._state:
            self._library.edgefront_hook_destroy(self._state)
            self._state = ctypes.c_void_p()


class PythonCounter:
    """Block counting as a Python callback, the same in every count."""

    def __init__(self, emulator: Uc) -> None:
        self._emulator = emulator
        self._ranges: Sequence[Range] = ()
        self._index: dict[tuple[int, int, int], int] = {}
        self._rows: list[list[int]] = []
        self._stops: frozenset[int] = frozenset()
        self._region = 0
        self._previous: list[int] | None = None
        self._halt = (Halt.NONE, 0)
        self._is_resuming = False
        self._until_clock = _CLOCK_EVERY
        self._deadline = 0.0
        self._hook = emulator.hook_add(UC_HOOK_BLOCK, self._on_block)

    def set_regions(self, ranges: Sequence[Range]) -> None:
        self._ranges = tuple(ranges)
        self._index.clear()
        self._rows.clear()
        self._region = 0
        self._previous = None

    def arm(self, stops: Collection[int], timeout_s: float, resume_at: int | None) -> None:
        self._stops = frozenset(stops)
        self._halt = (Halt.NONE, 0)
        self._is_resuming = resume_at is not None
        self._previous = None
        self._until_clock = _CLOCK_EVERY
        self._deadline = time.monotonic() + timeout_s

    def halt(self) -> tuple[Halt, int]:
        return self._halt

    def entries(self) -> np.ndarray[Any, np.dtype[np.void]]:
        return np.array([tuple(row) for row in self._rows], dtype=ENTRY)

    def close(self) -> None:
        """Nothing to free."""

    def _on_block(self, emulator: Uc, address: int, size: int, _user: object) -> None:
        if self._halt[0] is not Halt.NONE:
            return
        previous = self._previous
        if previous is not None and address != previous[0] + previous[1]:
            previous[7] += 1
        if address in self._stops and not self._is_resuming:
            self._stop(Halt.AT_STOP, address)
            return
        self._is_resuming = False
        self._until_clock -= 1
        if self._until_clock == 0:
            self._until_clock = _CLOCK_EVERY
            if time.monotonic() > self._deadline:
                self._stop(Halt.PAST_DEADLINE, address)
                return
        row = self._find(address, size)
        row[6] += 1
        self._region = row[3]
        self._previous = row

    def _stop(self, halt: Halt, address: int) -> None:
        self._halt = (halt, address)
        self._previous = None
        self._emulator.emu_stop()

    def _find(self, address: int, size: int) -> list[int]:
        key = (address, size, self._region)
        if key not in self._index:
            region = next((r.region for r in self._ranges if r.start <= address < r.end), self._region)
            self._index[key] = len(self._rows)
            self._rows.append([address, size, self._region, region, 0, 0, 0, 0])
        return self._rows[self._index[key]]


@lru_cache(maxsize=1)
def native_library() -> ctypes.CDLL | None:
    """The native counter, compiled once and kept in the user's cache folder; None where that is not possible."""
    source = resources.files("mcu_agent.boards").joinpath("blockhook.c").read_bytes()
    key = hashlib.sha256(source + sysconfig.get_platform().encode()).hexdigest()[:24]
    try:
        return _load_from(cache_folder(), f"blockhook-{key}.so", source)
    except OSError as error:
        log.warning("cannot keep the native block counter in %s: %s", cache_folder(), error)
    # A private folder: a library is never loaded from a place others can write to.
    folder = Path(tempfile.mkdtemp(prefix="edgefront-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        return _load_from(folder, f"blockhook-{key}.so", source)
    except OSError as error:
        log.warning("native block counter not usable, counting in Python (about 50 times slower): %s", error)
    return None


def _load_from(folder: Path, name: str, source: bytes) -> ctypes.CDLL | None:
    path = folder / name
    if not path.exists() and not _compile(source, path):
        return None
    return _load(path)


def cache_folder() -> Path:
    """Where compiled helpers are kept: ``$XDG_CACHE_HOME/edgefront`` or what the system uses in its place."""
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "edgefront"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "edgefront"
    return Path.home() / ".cache" / "edgefront"


def _compilers() -> list[list[str]]:
    """The C compilers of this machine: the package ziglang's, or where that is not installed, any on the PATH."""
    found = [[path] for name in ("cc", "clang", "gcc") if (path := shutil.which(name))]
    if util.find_spec("ziglang"):
        found.insert(0, [sys.executable, "-m", "ziglang", "cc"])
    if not found:
        log.warning(
            "no C compiler for the native block counter, counting in Python (about 50 times slower); "
            "install cc, clang or gcc, or pip install ziglang"
        )
    return found


def _compile(source: bytes, path: Path) -> bool:
    """Compile to a file beside ``path`` and move it there in one step, so that processes starting together do not
    clash.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    environment = {"ZIG_GLOBAL_CACHE_DIR": str(path.parent / "zig"), **os.environ}
    flags = ["-shared", "-O2", "-fPIC", "-std=c11", "-D_POSIX_C_SOURCE=200809L", "-fno-sanitize=undefined"]
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        code, built = Path(folder) / "blockhook.c", Path(folder) / "blockhook.so"
        code.write_bytes(source)
        for compiler in _compilers():
            flags_here = flags if "ziglang" in compiler else [f for f in flags if not f.startswith("-fno-sanitize")]
            command = [*compiler, *flags_here, "-o", str(built), str(code)]
            environment["ZIG_LOCAL_CACHE_DIR"] = folder
            trouble = _run_compiler(command, environment)
            if not trouble:
                built.replace(path)
                return True
            log.warning("compiling the block counter with %s failed: %s", " ".join(compiler), trouble)
    return False


def _run_compiler(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """What went wrong; empty when it worked."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else f"exit code {done.returncode}: {done.stderr[-500:]}"


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.edgefront_hook_create.restype = ctypes.c_void_p
    library.edgefront_hook_create.argtypes = [ctypes.c_void_p]
    library.edgefront_hook_destroy.argtypes = [ctypes.c_void_p]
    words = ctypes.POINTER(ctypes.c_uint32)
    library.edgefront_hook_regions.argtypes = [ctypes.c_void_p, words, ctypes.c_uint32]
    library.edgefront_hook_arm.argtypes = [ctypes.c_void_p, words, ctypes.c_uint32, ctypes.c_int64, ctypes.c_uint32]
    for name in ("state", "stopped_at", "n_entries"):
        function = getattr(library, f"edgefront_hook_{name}")
        function.restype, function.argtypes = ctypes.c_uint32, [ctypes.c_void_p]
    library.edgefront_hook_entries.restype = ctypes.c_void_p
    library.edgefront_hook_entries.argtypes = [ctypes.c_void_p]
    return library
