"""A profile as lines for a terminal. Every figure says where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mcu_agent.profiling import LayerCounts, Profile

_PREFIXES = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))


def si(amount: float, unit: str) -> str:
    """``0.0042, "s"`` → ``4.20 ms``: three digits, prefixes down to nano."""
    scale, prefix = next(((s, p) for s, p in _PREFIXES if abs(amount) >= s), _PREFIXES[-1] if amount else _PREFIXES[0])
    scaled = amount / scale
    digits = max(0, 2 - (0 if abs(scaled) < 10 else 1 if abs(scaled) < 100 else 2))
    return f"{scaled:,.{digits}f} {prefix}{unit}"


def lines(found: Profile, known_from: str) -> list[str]:
    """What was found, one subject a line; ``known_from`` is the file of the known answers, empty where there was
    none."""
    rows = [
        ("board", _board(found)),
        ("image", f"{found.image_id[:16]}… programmed and reported by the device"),
        ("outputs", _outputs(found, known_from)),
        ("latency", _latency(found)),
        ("stack", f"{found.stack_used_bytes:,} of {found.stack_reserved_bytes:,} bytes used at most"),
        ("energy", _energy(found)),
    ]
    if found.energy.idle_w is not None:
        rows.append(("idle", f"{si(found.energy.idle_w, 'W')} while the core sleeps (measured)"))
    if found.temperature_c is not None:
        rows.append(("temperature", f"{found.temperature_c:.1f} °C, as the part reports it"))
    phases = found.phases
    rows.append(
        ("took", f"{phases.flash_s:.2f} s flash, {phases.run_s:.2f} s runs, {phases.measure_s:.2f} s energy windows")
    )
    text = [f"{name:<11}  {value}" for name, value in rows]
    return text + (["", *_layer_table(found.layers)] if found.layers else [])


def estimate_lines(estimate: Mapping[str, Any] | None) -> list[str]:
    """What a calibration makes of the cycles, if there is one."""
    if estimate is None:
        return []
    energy = f", {si(estimate['energy_j'], 'J')}" if estimate["energy_j"] is not None else ""
    return [f"{'estimate':<11}  {si(estimate['latency_s'], 's')}{energy} (estimated); {estimate['basis']}"]


def _board(found: Profile) -> str:
    what = found.emulator or "device"
    return f"{found.board_id} ({found.kind}, {what}, {found.clock_hz / 1e6:g} MHz)"


def _outputs(found: Profile, known_from: str) -> str:
    n = len(found.outputs)
    if known_from:
        return f"{n} known answers, right bit for bit ({known_from})"
    return f"not checked against anything: no known answers; {n} random inputs gave the same outputs twice"


def _latency(found: Profile) -> str:
    cycles = found.cycles
    bound = ", zero wait states: a lower bound" if found.cycles_source == "emulated" else ""
    text = f"{si(found.latency_s, 's')}  {cycles.median:,.0f} cycles ({found.cycles_source}{bound})"
    if cycles.n > 1 and cycles.spread:
        text += f", {cycles.minimum:,.0f} to {cycles.maximum:,.0f} in {cycles.n} runs"
    return text


def _energy(found: Profile) -> str:
    energy = found.energy
    text = f"{si(energy.energy_j, 'J')} ({found.energy_source})"
    if energy.interval_j is not None:
        low, high = energy.interval_j
        text += f", 95 % interval {si(low, 'J')} to {si(high, 'J')}"
    if energy.net_j is not None:
        text += f", {si(energy.net_j, 'J')} above idling"
    if energy.outliers:
        text += f"; outliers: windows {', '.join(str(index + 1) for index in energy.outliers)}"
    return f"{text}; {energy.basis}"


def _layer_table(layers: Sequence[LayerCounts]) -> list[str]:
    rows = [("layer", "op", "MACs", "instructions", "cycles", "")]
    for layer in layers:
        instructions = f"{layer.instructions:,}" if layer.instructions is not None else "–"
        rows.append((layer.name, layer.op, f"{layer.macs:,}", instructions, f"{layer.cycles:,}", layer.source))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:>{width}}" if 2 <= i <= 4 else f"{cell:<{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
