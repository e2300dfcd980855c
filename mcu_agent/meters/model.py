"""The meter of a board without one: energy by model, always labelled as an estimate."""

from __future__ import annotations

from mcu_agent.energy import estimate_energy_j
from mcu_agent.kinds import BoardKind
from mcu_agent.meters.protocol import EnergyReading


class ModelMeter:
    """Computes energy from cycles; see :class:`mcu_agent.meters.protocol.Meter`."""

    name = "model"

    def __init__(self, kind: BoardKind) -> None:
        self._kind = kind

    def read(self, cycles: float) -> EnergyReading:
        """Energy of one inference of ``cycles`` core cycles."""
        kind = self._kind
        return EnergyReading(
            energy_j=estimate_energy_j(cycles, kind),
            is_measured=False,
            basis=f"{cycles:,.0f} cycles x {kind.nj_per_cycle} nJ at {kind.supply_v} V; {kind.nj_per_cycle_source}",
        )
