"""How far estimates of a board kind are off, fitted on one real board and kept with where it came from.

Emulated cycles come from instruction costs at zero wait states; a real part waits for its flash and its buses. One
factor for a board kind takes most of that away. What it leaves is told with every estimate: the error that layers had
which were predicted from the others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from mcu_agent.errors import CalibrationError, InventoryError

VERSION = 1
_FEWEST_LAYERS = 3
_PLAUSIBLE = (0.5, 20.0)  # a part that waits longer than this for its memory is set up wrongly


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What is known of a board kind from one board of it.

    ``cycle_factor``: measured cycles = factor × emulated cycles. ``residual``: the relative error (root mean square,
    weighted by cycles) of layers predicted from the others. ``nj_per_cycle``, with its 95 % interval, is None where no
    meter was there. ``image_id`` is the hash of the firmware it was fitted on, ``at`` a UTC stamp.
    """

    kind: str
    board_id: str
    at: str
    image_id: str
    clock_hz: int
    supply_v: float
    n_layers: int
    cycle_factor: float
    residual: float
    worst: float
    nj_per_cycle: float | None = None
    nj_interval: tuple[float, float] | None = None
    meter: str = ""

    def to_json(self) -> dict[str, Any]:
        """The record as it is kept."""
        return {"version": VERSION, **asdict(self)}

    @staticmethod
    def from_json(data: Any) -> Calibration:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: another version, a field missing or unknown, or a value that none can have.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"found a {type(data).__name__}; a calibration is a JSON object")
        if data.get("version") != VERSION:
            raise ValueError(f"calibration has version {data.get('version')!r}; this program reads {VERSION}")
        given = {name: value for name, value in data.items() if name != "version"}
        known = {field.name for field in fields(Calibration)}
        if unknown := sorted(set(given) - known):
            raise ValueError(f"unknown fields {', '.join(unknown)}; allowed: {', '.join(sorted(known))}")
        needed = [field.name for field in fields(Calibration) if field.default is MISSING]
        if missing := [name for name in needed if name not in given]:
            raise ValueError(f"without {', '.join(missing)}; a calibration has {', '.join(needed)}")
        try:
            interval = given.get("nj_interval")
            record = Calibration(**{**given, "nj_interval": tuple(interval) if interval else None})
            _check(record)
        except TypeError as error:
            raise ValueError(f"a field has a value of the wrong type: {error}") from error
        return record

    def latency_s(self, emulated_cycles: float) -> float:
        """Estimated time of a run of so many emulated cycles."""
        return emulated_cycles * self.cycle_factor / self.clock_hz

    def energy_j(self, emulated_cycles: float) -> float | None:
        """Estimated energy of the same; None where no meter was there."""
        if self.nj_per_cycle is None:
            return None
        return emulated_cycles * self.cycle_factor * self.nj_per_cycle * 1e-9

    @property
    def basis(self) -> str:
        """Where estimates come from and how far they are off, in words."""
        return (
            f"emulated cycles x {self.cycle_factor:.3f}, calibrated on {self.board_id} on {self.at[:10]} "
            f"({self.n_layers} layers, ±{100 * self.residual:.1f} % a layer, at worst {100 * self.worst:.1f} %)"
        )

    @property
    def energy_text(self) -> str:
        """The energy of a cycle in words."""
        if self.nj_per_cycle is None or self.nj_interval is None:
            return "energy of a cycle: not measured, the board has no meter"
        low, high = self.nj_interval
        return f"energy of a cycle: {self.nj_per_cycle:.3f} nJ ({low:.3f} to {high:.3f}), by {self.meter}"


def estimates(record: Calibration, kind: str, cycles: float, *, is_emulated: bool) -> dict[str, Any]:
    """What ``cycles`` of a virtual board of ``kind`` would take on a real one: latency, energy (None without a meter)
    and where that comes from.

    Raises:
        InventoryError: the calibration is of another kind, or the cycles were measured on a device already.
    """
    if record.kind != kind:
        raise InventoryError(f"the calibration is of {record.kind}, the board is a {kind}")
    if not is_emulated:
        raise InventoryError("a calibration corrects emulated cycles; these were measured on a device")
    energy = record.energy_j(cycles)
    return {
        "latency_s": record.latency_s(cycles),
        "energy_j": energy,
        "residual": record.residual,
        "basis": record.basis,
    }


def fit(emulated: Sequence[float], measured: Sequence[float]) -> tuple[float, float, float]:
    """(factor, residual, worst) from the cycles of layers, emulated and measured, in the same order.

    The factor is the mean of the ratios, weighted by emulated cycles, in logarithms: ratios are what layers share, and
    large layers are what latency consists of. The residual is out of sample: every layer is predicted by the factor of
    the others.

    Raises:
        CalibrationError: too few layers, or cycles that are none.
    """
    before, after = np.asarray(emulated, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    if before.shape != after.shape or before.ndim != 1 or len(before) < _FEWEST_LAYERS:
        raise CalibrationError(
            f"{len(before)} emulated and {len(after)} measured layers; at least {_FEWEST_LAYERS} of each are needed"
        )
    if not (np.all(before > 0) and np.all(after > 0) and np.all(np.isfinite(before)) and np.all(np.isfinite(after))):
        raise CalibrationError(f"layers without cycles: emulated {before.tolist()}, measured {after.tolist()}")
    weights, ratios = before / before.sum(), np.log(after / before)
    factor = float(np.exp(weights @ ratios))
    others = (weights @ ratios - weights * ratios) / (1 - weights)
    errors = np.exp(ratios - others) - 1
    return factor, math.sqrt(float(weights @ errors**2)), float(np.max(np.abs(errors)))


def load_calibration(path: Path) -> Calibration:
    """A calibration from its file.

    Raises:
        InventoryError: there is none, or it cannot be used; the text says why.
    """
    try:
        return Calibration.from_json(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InventoryError(
            f"{path}: cannot be read: {error.strerror}; edgefront rack calibrate writes one"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InventoryError(f"{path}: {error}; edgefront rack calibrate writes a new one") from error


def save_calibration(record: Calibration, path: Path) -> None:
    """Write a calibration to its file, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(record.to_json(), indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def _check(record: Calibration) -> None:
    low, high = _PLAUSIBLE
    if not low <= record.cycle_factor <= high:
        raise ValueError(f"cycle_factor is {record.cycle_factor}; allowed: {low:g} to {high:g}")
    for name in ("residual", "worst"):
        if not 0 <= getattr(record, name) < math.inf:
            raise ValueError(f"{name} is {getattr(record, name)}; allowed: 0 or more")
    if record.clock_hz <= 0 or record.supply_v <= 0:
        raise ValueError(f"clock_hz is {record.clock_hz} and supply_v {record.supply_v}; both must be above 0")
    if record.nj_per_cycle is not None and not 0 < record.nj_per_cycle < math.inf:
        raise ValueError(f"nj_per_cycle is {record.nj_per_cycle}; it must be above 0")
