"""A board behind a debug probe that pyOCD drives: CMSIS-DAP, ST-LINK, J-Link. The one module that imports pyOCD."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyocd.core import exceptions
from pyocd.core.helpers import ConnectHelper
from pyocd.core.session import Session
from pyocd.core.target import Target
from pyocd.flash.loader import MemoryLoader

from mcu_agent.boards.debug import check_readable, check_writable, holds, run_to, start_at_reset, vectors, verify
from mcu_agent.boards.protocol import Counter
from mcu_agent.errors import BoardLost, InventoryError, MemoryRefused, ProgrammingFailed, WrongBoard
from mcu_agent.image import Image
from mcu_agent.kinds import BoardKind

CONNECT_MODES: Mapping[str, str] = {"normal": "halt", "under-reset": "under-reset", "attach": "attach"}
_CPUID = 0xE000ED00
_CORES = {0xC20: "cortex-m0", 0xC60: "cortex-m0plus", 0xC23: "cortex-m3", 0xC24: "cortex-m4", 0xC27: "cortex-m7"} | {
    0xD21: "cortex-m33",
    0xD22: "cortex-m55",
}  # part numbers of CPUID, from the technical reference manuals
_FIRST_POLL_S, _LONGEST_POLL_S = 0.0005, 0.02
_LOCK_FILE = "edgefront-probes.lock"

# Without a handler of its own, pyOCD's warnings would reach the terminal through logging's last resort.
logging.getLogger("pyocd").addHandler(logging.NullHandler())


class PyOcdBoard:
    """See :class:`mcu_agent.boards.protocol.Board`.

    ``probe`` is the serial number of the probe, whole; ``target`` pyOCD's name of the part; ``connect`` one of
    :data:`CONNECT_MODES`; ``erase`` ``sector``, ``chip`` or ``auto``. Pages that hold what they shall are not
    programmed again; ``loads_skipped`` counts the loads that needed none.

    Raises:
        InventoryError: probe or target is missing, or pyOCD does not know the target.
    """

    is_emulated = False
    emulator = ""
    counter: Counter | None = None

    def __init__(
        self,
        board_id: str,
        kind: BoardKind,
        probe: str,
        target: str,
        *,
        connect: str = "under-reset",
        frequency_hz: int = 4_000_000,
        erase: str = "sector",
        probes: Callable[[], Sequence[Any]] | None = None,
    ) -> None:
        if not probe:
            raise InventoryError(f"board {board_id}: probe is missing: the serial number of its debug probe")
        if not target:
            raise InventoryError(
                f"board {board_id}: the kind {kind.name} has no pyocd_target; `pyocd list --targets` prints the names"
            )
        if connect not in CONNECT_MODES:
            raise InventoryError(f"board {board_id}: connect is {connect!r}; allowed: {', '.join(CONNECT_MODES)}")
        self.board_id = board_id
        self.kind = kind
        self.loads_skipped = 0
        self._probe = probe
        self._target = target
        self._erase = erase
        self._options = _options(target, CONNECT_MODES[connect], frequency_hz)
        self._probes = probes or connected_probes
        self._session: Session | None = None
        self._port: _Port | None = None
        self._image: Image | None = None
        self._halted_at: int | None = None

    def load(self, image: Image) -> None:
        """Programme the image unless the flash holds it, verify it, and halt at the reset handler.

        Raises:
            BoardLost: the probe or the part does not answer (transient).
            WrongBoard: the part has another core than the board's kind (transient; but only a person can help).
            ProgrammingFailed, VerifyFailed: the flash does not take the image (transient).
            ImageRejected: the vector table does not point into RAM and flash.
            InventoryError: no probe has this serial number, or pyOCD does not know the target.
        """
        vectors(image, self.kind)
        self.close()
        try:
            with self._mapped():
                port = self._open()
                self._check_core(port)
                port.reset()
                if holds(image, port.read, lambda part: port.read(part.address, len(part.data)) == part.data):
                    self.loads_skipped += 1
                else:
                    self._program(image)
                    port.reset()
                    for segment in image.segments:
                        verify(self.board_id, segment, port.read(segment.address, len(segment.data)))
                start_at_reset(port, image, self.kind)
        except BaseException:
            self.close()
            raise
        self._port, self._image, self._halted_at = port, image, None

    def run_until(self, addresses: Collection[int], timeout_s: float, quiet_s: float = 0.0) -> int:
        """Run to the first of ``addresses``; the probe is not used for ``quiet_s``."""
        port, image = self._powered()
        with self._mapped():
            self._halted_at = run_to(
                port,
                image,
                self.kind,
                addresses,
                timeout_s,
                quiet_s,
                is_transient=True,
                halted_at=self._halted_at,
            )
        return self._halted_at

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes of the device's memory."""
        port, _ = self._powered()
        check_readable(self.kind, address, size)
        with self._mapped():
            return port.read(address, size)

    def write(self, address: int, data: bytes) -> None:
        """Write into the device's RAM."""
        port, _ = self._powered()
        check_writable(self.kind, address, len(data))
        with self._mapped():
            port.write(address, data)

    def close(self) -> None:
        """Leave the core halted, without breakpoints, and give the probe back, whatever state they are in."""
        session, self._session = self._session, None
        self._port = self._image = None
        if session is None:
            return
        try:
            session.close()
        except (exceptions.Error, OSError) as error:  # the probe may be gone, which is why we are closing
            logging.getLogger(__name__).info("board %s: closing its session: %s", self.board_id, error)
        finally:
            with contextlib.suppress(exceptions.Error, OSError):
                if session.probe is not None and session.probe.is_open:
                    session.probe.close()

    def _open(self) -> _Port:
        probe = self._find_probe()
        try:
            self._session = Session(probe, auto_open=False, options=self._options)
            # The description of the part's peripherals is of no use here, and reading it costs a thread and a second.
            self._session.board.target._svd_location = None
            self._session.open()
        except exceptions.TargetSupportError as error:
            raise InventoryError(
                f"board {self.board_id}: pyOCD knows no target {self._target!r} ({error}); `pyocd list --targets` "
                "prints those it knows, `pyocd pack install` adds others"
            ) from error
        return _Port(self._session.board.target, self.board_id)

    def _find_probe(self) -> Any:
        found = list(self._probes())
        ours = [probe for probe in found if probe.unique_id.lower() == self._probe.lower()]
        if len(ours) == 1:
            return ours[0]
        there = ", ".join(f"{probe.unique_id} ({probe.description})" for probe in found) or "none"
        if ours:
            raise InventoryError(
                f"board {self.board_id}: {len(ours)} probes have the serial number {self._probe}; give one another"
            )
        raise BoardLost(
            self.board_id,
            f"no probe with the serial number {self._probe} is plugged in; there are: {there}. Check cable and "
            "permissions (deploy/ has udev rules)",
        )

    def _check_core(self, port: _Port) -> None:
        part = int.from_bytes(port.read(_CPUID, 4), "little") >> 4 & 0xFFF
        found = _CORES.get(part, f"an unknown core ({part:#05x})")
        if found != self.kind.core:
            raise WrongBoard(
                self.board_id,
                f"the part behind probe {self._probe} has a {found}; {self.kind.name} has a {self.kind.core}: check "
                "which board the probe is wired to, and kind and probe in the rack file",
            )

    def _program(self, image: Image) -> None:
        try:
            loader = MemoryLoader(self._session, chip_erase=self._erase, smart_flash=True, trust_crc=False)
            for segment in image.segments:
                loader.add_data(segment.address, list(segment.data))
            loader.commit()
        except ValueError as error:  # what the loader raises for addresses outside pyOCD's memory map
            raise InventoryError(
                f"board {self.board_id}: pyOCD's target {self._target!r} has no flash for the image: {error}; is it "
                f"the part of {self.kind.name}?"
            ) from error

    def _powered(self) -> tuple[_Port, Image]:
        if self._port is None or self._image is None:
            raise BoardLost(self.board_id, "it has no power; load an image first")
        return self._port, self._image

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        """Turn pyOCD's errors into ours."""
        try:
            yield
        except exceptions.FlashFailure as error:
            raise ProgrammingFailed(self.board_id, f"the flash cannot be programmed: {error}") from error
        except (exceptions.Error, OSError) as error:
            raise BoardLost(
                self.board_id,
                f"probe {self._probe} or its part does not answer ({type(error).__name__}: {error}); check cables and "
                "supply, and unplug the probe and plug it in again",
            ) from error


class _Port:
    """See :class:`mcu_agent.boards.debug.DebugPort`."""

    def __init__(self, target: Any, board_id: str) -> None:
        self._target = target
        self._board_id = board_id
        self._breakpoints: set[int] = set()

    def read(self, address: int, size: int) -> bytes:
        try:
            return bytes(self._target.read_memory_block8(address, size)) if size else b""
        except exceptions.TransferFaultError as error:
            raise MemoryRefused(
                self._board_id, f"{size} bytes at {address:#010x} cannot be read: {error}; check the wires"
            ) from error

    def write(self, address: int, data: bytes) -> None:
        try:
            self._target.write_memory_block8(address, list(data))
            self._target.flush()
        except exceptions.TransferFaultError as error:
            raise MemoryRefused(
                self._board_id, f"{len(data)} bytes at {address:#010x} cannot be written: {error}; check the wires"
            ) from error

    def register(self, name: str) -> int:
        return int(self._target.read_core_register(name))

    def set_register(self, name: str, value: int) -> None:
        self._target.write_core_register(name, value)

    def set_breakpoints(self, addresses: Set[int]) -> None:
        for address in sorted(self._breakpoints - addresses):
            self._target.remove_breakpoint(address)
            self._breakpoints.discard(address)
        for address in sorted(addresses - self._breakpoints):
            if not self._target.set_breakpoint(address, Target.BreakpointType.HW):
                raise BoardLost(
                    self._board_id,
                    f"no breakpoint is left for {address:#010x}; {len(self._breakpoints)} are set: does another "
                    "debugger use them?",
                )
            self._breakpoints.add(address)

    def step(self) -> None:
        self._target.step(disable_interrupts=True)

    def run(self, timeout_s: float, quiet_s: float) -> bool:
        end = time.monotonic() + timeout_s
        self._target.resume()
        time.sleep(min(quiet_s, timeout_s))
        poll_s = _FIRST_POLL_S
        while not self._has_halted():
            left = end - time.monotonic()
            if left <= 0:
                self._target.halt()
                return False
            time.sleep(min(poll_s, left))
            poll_s = min(2 * poll_s, _LONGEST_POLL_S)
        return True

    def reset(self) -> None:
        self._target.reset_and_halt()

    def _has_halted(self) -> bool:
        state = self._target.get_state()
        if state == Target.State.LOCKUP:
            self._target.halt()
        return state in (Target.State.HALTED, Target.State.LOCKUP)


def connected_probes() -> Sequence[Any]:
    """All debug probes that are plugged in, of every make pyOCD drives.

    Looking for them opens every probe for a moment and disturbs whoever is doing the same, so it is done under a lock
    of the host.
    """
    with _enumeration_lock():
        return ConnectHelper.get_all_connected_probes(blocking=False, print_wait_message=False) or ()


@contextmanager
def _enumeration_lock() -> Iterator[None]:
    """Held by one process and thread of this host at a time."""
    folder = Path(os.environ.get("EDGEFRONT_LOCKS") or tempfile.gettempdir())
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / _LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except PermissionError:  # another user's, in a sticky folder: it can be locked without creating it
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _options(target: str, connect_mode: str, frequency_hz: int) -> Mapping[str, Any]:
    return {
        "target_override": target,
        "connect_mode": connect_mode,
        "frequency": frequency_hz,
        "hide_programming_progress": True,
        "resume_on_disconnect": False,
        # What lies in the working folder is nobody's instruction to the agent:
        "no_config": True,
        "user_script": os.devnull,
        "project_dir": str(Path.cwd()),
    }
