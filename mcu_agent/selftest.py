"""Is this board well? It runs a known image, of which everything is known in advance.

One image a kind lies in ``mcu_agent/known``, written by ``python -m tasks.selftest`` of the full installation: the ELF
file, inputs with the outputs that must come back, the layers, and what they cost on the virtual board.
"""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from mcu_agent.boards.protocol import Board
from mcu_agent.energy import estimate_energy_j
from mcu_agent.errors import (
    AgentError,
    BitMismatch,
    BoardLost,
    CyclesUnknown,
    FirmwareFault,
    FirmwareHang,
    InventoryError,
    MeterError,
    PowerFault,
    TransferCorrupt,
    WrongBoard,
)
from mcu_agent.kinds import BoardKind
from mcu_agent.meters.protocol import Recorder, Trace
from mcu_agent.profiling import Profile, profile
from mcu_agent.rack import RackBoard
from mcu_agent.session import Job, Layer
from mcu_agent.windows import check_trace

KNOWN_VERSION = 1
IMAGE_FILE, VECTORS_FILE, LAYERS_FILE, FACTS_FILE = "image.elf", "vectors.npz", "layers.json", "facts.json"
TIMEOUT_S = 30.0

# A device takes more cycles than the emulated core, which has no wait states and no bus to wait for, by about 1.3 on
# published boards; a core that runs from slow flash without a cache may take several times as many.
_CYCLES_RATIO = (0.7, 6.0)
# The mean current while the core runs, against the catalogue's; regulators, LEDs and debug probes differ that much.
_CURRENT_RATIO = (0.05, 20.0)


class NoKnownImage(InventoryError):
    """There is no known image for a board kind, so its boards cannot be tested."""

    reason = "no_known_image"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class KnownImage:
    """A known image. ``cycles`` of one inference and of each layer are emulated ones, None and empty where the virtual
    board has no cost table of the core.

    Shapes:
        as :class:`mcu_agent.session.Job`.
    """

    kind: str
    image_id: str
    compiler: str
    elf: bytes
    inputs: npt.NDArray[np.int8]
    expected: npt.NDArray[np.int8]
    layers: Sequence[Layer]
    layer_outputs: Mapping[int, npt.NDArray[np.int8]]
    cycles: float | None
    layer_cycles: Sequence[int]
    emulator: str

    def job(self, timeout_s: float = TIMEOUT_S) -> Job:
        """What to profile."""
        return Job(
            elf=self.elf,
            inputs=self.inputs,
            expected=self.expected,
            layers=self.layers,
            layer_outputs=self.layer_outputs,
            timeout_s=timeout_s,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing that was looked at. ``is_ok`` is None where it does not apply to the board, or was not reached."""

    name: str
    is_ok: bool | None
    found: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfTestReport:
    """What a self-test found; ``fault`` says what is wrong, and ``reason`` that in a word; both are empty where the
    board is well."""

    board_id: str
    kind: str
    driver: str
    checks: tuple[Check, ...]
    fault: str
    reason: str
    seconds: float

    @property
    def why(self) -> str:
        """Reason and fault, as a board's record holds them; empty where it is well."""
        return f"{self.reason}: {self.fault}" if self.fault else ""

    @property
    def is_ok(self) -> bool:
        """Whether the board passed."""
        return not self.fault

    def check(self, name: str) -> Check:
        """One of the checks; one that was not reached where there is none of that name."""
        return next((one for one in self.checks if one.name == name), Check(name=name, is_ok=None, found=""))

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        checks = {one.name: {"ok": one.is_ok, "found": one.found} for one in self.checks}
        return {
            "board": self.board_id,
            "kind": self.kind,
            "driver": self.driver,
            "ok": self.is_ok,
            "reason": self.reason,
            "fault": self.fault,
            "checks": checks,
            "seconds": round(self.seconds, 3),
        }


CHECKS = ("image", "answer", "stack", "cycles", "meter")


@lru_cache(maxsize=16)
def known_image(kind: str) -> KnownImage:
    """The known image of a board kind.

    Raises:
        NoKnownImage: there is none, or it cannot be read.
    """
    place = resources.files("mcu_agent") / "known" / f"{kind}.zip"
    try:
        with zipfile.ZipFile(io.BytesIO(place.read_bytes())) as archive:
            files = {name: archive.read(name) for name in (IMAGE_FILE, VECTORS_FILE, LAYERS_FILE, FACTS_FILE)}
        return _known(files)
    except FileNotFoundError as error:
        raise NoKnownImage(
            f"board kind {kind} has no known image to test its boards with; write it: python -m tasks.selftest {kind}"
        ) from error
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise NoKnownImage(f"{place}: cannot be read ({error}); write it: python -m tasks.selftest {kind}") from error


def _known(files: Mapping[str, bytes]) -> KnownImage:
    facts = json.loads(files[FACTS_FILE])
    if facts["version"] != KNOWN_VERSION:
        raise ValueError(f"version {facts['version']}, this program reads {KNOWN_VERSION}")
    with np.load(io.BytesIO(files[VECTORS_FILE]), allow_pickle=False) as archive:
        arrays = {name: archive[name].astype(np.int8) for name in archive.files}
    prefix = "layer_"
    return KnownImage(
        kind=facts["kind"],
        image_id=facts["image_id"],
        compiler=facts["compiler"],
        elf=files[IMAGE_FILE],
        inputs=arrays["inputs"].reshape(len(arrays["inputs"]), -1),
        expected=arrays["outputs"].reshape(len(arrays["outputs"]), -1),
        layers=tuple(Layer.from_json(item) for item in json.loads(files[LAYERS_FILE])),
        layer_outputs={int(name[len(prefix) :]): array for name, array in arrays.items() if name.startswith(prefix)},
        cycles=facts["cycles"],
        layer_cycles=tuple(facts["layer_cycles"]),
        emulator=facts["emulator"],
    )


def self_test(
    board: Board, entry: RackBoard, recorder: Recorder | None = None, known: KnownImage | None = None
) -> SelfTestReport:
    """Flash the known image of the board's kind, run it and look at everything that is known of it: identity, answers
    bit by bit, stack, cycles against the emulated ones, and what ``recorder``, if there is one, reads meanwhile. The
    board is closed afterwards.

    Raises:
        NoKnownImage: the kind has none.
        LeaseLost, NoBoardFree: the test could not be carried out; nothing is known of the board.
    """
    image = known or known_image(entry.kind)
    started = time.monotonic()
    checks, reason = list[Check](), "self_test"
    try:
        if recorder is not None:
            recorder.open()  # first, because it may be the board's supply
            recorder.start()
        found = profile(image.job(), board)
        checks += _of_profile(found, image, board)
        if recorder is not None:
            checks.append(_of_trace(recorder.stop(), entry, board.kind))
    except AgentError as error:
        if error.reason in _SAYS_NOTHING:
            raise
        checks += _of_error(error)
        reason = error.reason
    finally:
        if recorder is not None:
            recorder.close()
    failed = [f"{one.name}: {one.found}" for one in checks if one.is_ok is False]
    return SelfTestReport(
        board_id=entry.board_id,
        kind=entry.kind,
        driver=entry.driver,
        checks=tuple(checks),
        fault="; ".join(failed),
        reason=reason if failed else "",
        seconds=time.monotonic() - started,
    )


_NOT_THERE = (BoardLost, WrongBoard, PowerFault, InventoryError)
_SAYS_NOTHING = ("lease_lost", "no_board_free", "no_known_image")


def _of_profile(found: Profile, image: KnownImage, board: Board) -> list[Check]:
    stack_ok = 0 < found.stack_used_bytes < found.stack_reserved_bytes
    stack = f"{found.stack_used_bytes} of {found.stack_reserved_bytes} bytes"
    return [
        Check(name="image", is_ok=True, found=found.image_id[:12]),
        Check(name="answer", is_ok=True, found=f"{len(found.outputs)} of {len(image.inputs)}"),
        Check(name="stack", is_ok=stack_ok, found=stack if stack_ok else f"{stack}, which cannot be"),
        _of_cycles(found, image, board),
    ]


def _of_cycles(found: Profile, image: KnownImage, board: Board) -> Check:
    """Emulated cycles are known exactly, those of a device within limits that a wrong clock set-up breaks."""
    n = found.cycles.median
    if image.cycles is None:
        return Check(name="cycles", is_ok=n > 0, found=f"{n:,.0f}")
    ratio = n / image.cycles
    text = f"{n:,.0f}, {ratio:.2f} x emulated"
    if board.is_emulated and found.emulator == image.emulator:
        is_ok = n == image.cycles
        return Check(name="cycles", is_ok=is_ok, found=text if is_ok else f"{text}; known are {image.cycles:,.0f}")
    low, high = _CYCLES_RATIO
    is_ok = low <= ratio <= high
    allowed = f"; {low} to {high} x are plausible: check wait states, caches and the counter"
    return Check(name="cycles", is_ok=is_ok, found=text if is_ok else text + allowed)


def _of_error(error: AgentError) -> list[Check]:
    """Which check an error belongs to; those before it have passed."""
    text = str(error)
    if isinstance(error, MeterError):
        return [Check(name="meter", is_ok=False, found=text)]
    if isinstance(error, CyclesUnknown):  # raised last, and all an emulator without a cost table can do
        return [
            Check(name="image", is_ok=True, found="as programmed"),
            Check(name="answer", is_ok=True, found="right"),
            Check(name="cycles", is_ok=None, found="no live counter"),
        ]
    if isinstance(error, (BitMismatch, TransferCorrupt, FirmwareHang, FirmwareFault)):
        return [
            Check(name="image", is_ok=True, found="as programmed"),
            Check(name="answer", is_ok=False, found=text),
        ]
    if isinstance(error, _NOT_THERE):  # it never came to the image, or cannot be said to have
        return [Check(name="board", is_ok=False, found=text)]
    return [Check(name="image", is_ok=False, found=text)]


def _of_trace(trace: Trace, entry: RackBoard, kind: BoardKind) -> Check:
    """
    Raises:
        MeterError: the trace cannot be true.
    """
    supply_v = kind.supply_v if entry.meter is None or entry.meter.supply_v is None else entry.meter.supply_v
    check_trace(trace, supply_v)
    mean_a = float(trace.current_a.mean())
    usual_a = estimate_energy_j(1.0, kind) * kind.clock_hz / kind.supply_v
    low_a, high_a = (ratio * usual_a for ratio in _CURRENT_RATIO)
    if not low_a <= mean_a <= high_a:
        raise MeterError(
            f"the mean current is {mean_a * 1e3:.3g} mA while the board runs; {low_a * 1e3:.2g} to "
            f"{high_a * 1e3:.2g} mA are plausible for a {kind.name}: check how the meter is wired"
        )
    return Check(name="meter", is_ok=True, found=f"{mean_a * 1e3:.2f} mA at {trace.supply_v:.2f} V")
