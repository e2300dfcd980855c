"""What a session needs from a power meter, real or modelled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class EnergyReading:
    """Joules of one inference; ``basis`` says in words how it was obtained."""

    energy_j: float
    is_measured: bool
    basis: str


class Meter(Protocol):
    """Gives the energy of the inference that took ``cycles`` core cycles."""

    name: str

    def read(self, cycles: float) -> EnergyReading: ...
