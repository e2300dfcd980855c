"""What a session needs from a power meter, real or modelled."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class EnergyReading:
    """Joules of one inference; ``basis`` says in words how it was obtained.

    Where it was measured: ``interval_j`` is the 95 % interval of repeating the measurement (it says nothing of the
    meter's own accuracy, which ``basis`` names), ``net_j`` the part above idling, ``idle_w`` the power of the idle
    core, ``windows_j`` every window's energy of one inference, ``outliers`` the indices of those flagged as such.
    """

    energy_j: float
    is_measured: bool
    basis: str
    interval_j: tuple[float, float] | None = None
    net_j: float | None = None
    idle_w: float | None = None
    windows_j: tuple[float, ...] = ()
    outliers: tuple[int, ...] = ()


class Meter(Protocol):
    """A model: gives the energy of the inference that took ``cycles`` core cycles without measuring anything."""

    name: str

    def read(self, cycles: float) -> EnergyReading: ...


class WindowBy(StrEnum):
    """How the window is found in a trace.

    ``PIN``: the meter reads the board's trigger pin with every reading. ``END``: it marks the one reading at which the
    pin fell, and the board's cycles give the length. ``HOST``: it does not see the pin; what lies inside the window for
    certain follows from the host's clock and the board's cycles.
    """

    PIN = "pin"
    END = "end"
    HOST = "host"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trace:
    """What a recorder saw between ``start`` and ``stop``.

    ``started_s`` is when the first reading was taken and ``seconds`` how long the readings took, both by the host's
    monotonic clock; ``timing_error_s`` is how wrong the two may be. ``n_lost`` counts readings known to be missing;
    where the meter knows their place they hold the value before them, so that the time axis stays right. ``supply_v``
    is the mean supply voltage, measured or set.

    Shapes:
        current_a: (t,) amperes. voltage_v: (t,) volts, None where the meter does not measure it. trigger: (t,), True as
        :class:`WindowBy` says. saturated: (t,), True where the reading reached the end of the range.
    """

    current_a: FloatArray
    trigger: BoolArray
    saturated: BoolArray
    rate_hz: float
    supply_v: float
    seconds: float
    n_lost: int = 0
    voltage_v: FloatArray | None = None
    started_s: float = 0.0
    timing_error_s: float = 0.0005


class Recorder(Protocol):
    """A meter that records supply current while a board runs.

    Order of calls: ``open`` → (``start`` → ``stop``, any number) → ``close``. ``open`` connects, checks what can be
    checked and, where the meter is the board's supply, switches it on. When ``start`` returns, readings arrive.
    ``close`` may follow any state, twice included, and switches a supply off; ``open`` may follow it. One owner; not
    thread-safe.

    ``name`` is the meter as results name it, with its serial number or port; ``accuracy`` says mode, range and class.
    ``supply_v`` is the voltage that the board must have by the rack file, which every trace is held against; None
    where it is the board kind's.

    Units: amperes, volts, hertz.

    Raises:
        MeterLost: the meter went away, is used by somebody else or does not answer (transient).
        MeterError: what it says cannot be believed; see its subclasses.
        InventoryError: the rack file asks for what the meter cannot do, or the library that speaks to it is missing.
    """

    name: str
    rate_hz: float
    accuracy: str
    window_by: WindowBy

    @property
    def supply_v(self) -> float | None: ...

    def open(self) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> Trace: ...

    def close(self) -> None: ...
