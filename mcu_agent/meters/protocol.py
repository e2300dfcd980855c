"""What a session needs from a power meter, real or modelled."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trace:
    """What a recorder saw between ``start`` and ``stop``.

    ``seconds`` is the time between the two by the host's monotonic clock, to check the rate against; ``n_lost`` counts
    readings known to be missing; ``supply_v`` is the mean supply voltage, measured or set.

    Shapes:
        current_a: (t,) amperes. trigger: (t,), True while the board holds its trigger pin high. saturated: (t,), True
        where the reading reached the end of the range.
    """

    current_a: FloatArray
    trigger: BoolArray
    saturated: BoolArray
    rate_hz: float
    supply_v: float
    seconds: float
    n_lost: int = 0


class Recorder(Protocol):
    """A meter that records supply current while a board runs.

    Order of calls: ``open`` → (``start`` → ``stop``, any number) → ``close``. ``open`` connects, checks what can be
    checked and, where the meter is the board's supply, switches it on. ``close`` may follow any state, twice included.
    One owner; not thread-safe.

    Units: amperes, volts, hertz.

    Raises:
        MeterLost: the meter went away or does not answer (transient).
        MeterError: what it says cannot be believed; see its subclasses.
    """

    name: str
    rate_hz: float
    accuracy: str

    def open(self) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> Trace: ...

    def close(self) -> None: ...
