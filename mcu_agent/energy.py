"""Energy of an inference, pure. Without a meter it is a model: cycles times the energy of one cycle."""

from __future__ import annotations

from mcu_agent.kinds import BoardKind


def estimate_energy_j(cycles: float, kind: BoardKind) -> float:
    """Joules that ``cycles`` core cycles take at the operating point of the catalogue entry.

    Source:
        ``kind.nj_per_cycle_source``. Published figures of one board vary by ±8 % over networks, so this ranks
        networks as latency does; it says nothing about the spread between boards or supply voltages.

    Raises:
        ValueError: ``cycles`` is negative.
    """
    if cycles < 0:
        raise ValueError(f"{cycles} cycles: must not be negative")
    return cycles * kind.nj_per_cycle * 1e-9
