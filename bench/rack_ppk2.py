"""How well energy is measured with a Power Profiler Kit II, without one.

    python bench/rack_ppk2.py [--json] [--traces 1000] [--seed 0]

Every trace is a whole measurement as a rack makes it, nine windows of about 0.11 s, from synthetic bytes through the
real decoder, checks and statistics: everything but USB. The board's current goes up and down across a change of range
many times in a window, with errors while the kit's shunts switch, white noise, a slow drift of the supply current, and
windows that differ. Bytes arrive as from USB, late by chance. The truth is the energy of an inference at the current
that all this varies around. One window of every trace is then read again with a block of readings dropped; multiples of
64 are what the kit's counter cannot show. (Blocks of up to a thousandth of the readings are counted and allowed.)
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mcu_agent.energy import WindowPlan, measure_energy  # noqa: E402
from mcu_agent.errors import MeterError  # noqa: E402
from mcu_agent.meters.ppk2_encode import TYPICAL, encode, logic_of  # noqa: E402
from mcu_agent.meters.ppk2_stream import RATE_HZ, decode  # noqa: E402
from mcu_agent.meters.protocol import Trace, WindowBy  # noqa: E402
from mcu_agent.meters.timing import END_S, arrival_span  # noqa: E402
from mcu_agent.windows import Call, check_trace, cut  # noqa: E402

SUPPLY_V = 3.0
CLOCK_HZ = 64e6
CYCLES = 96_000.0  # of one inference: 1.5 ms
BURST_S = CYCLES / CLOCK_HZ / 6  # three up and down an inference
LOW_A, HIGH_A, IDLE_A, WAITING_A = 4.0e-3, 7.0e-3, 12e-6, 3.1e-3
NOISE_SHARE, WINDOW_SHARE, DRIFT_SHARE, SWITCHING_SHARE = 0.02, 0.003, 0.005, 0.3
TRIGGER = 3
PLAN = WindowPlan(n_warm_up=0, idle_ms=10)
PIECE_S, JITTER_S, STALL_S = 0.001, 0.0002, 0.01
DROPPED = (32, 63, 64, 65, 127, 128, 129, 192, 640, 6400)
TRUE_J = SUPPLY_V * (LOW_A + HIGH_A) / 2 * CYCLES / CLOCK_HZ

Words = npt.NDArray[np.uint32]


@dataclass
class Bench:
    """A kit and a board on a clock of their own; see ``mcu_agent.meters.protocol.Recorder``."""

    rng: np.random.Generator
    name: str = "synthetic PPK2"
    accuracy: str = "none"
    rate_hz: float = RATE_HZ
    window_by: WindowBy = WindowBy.PIN
    recorded: list[tuple[Words, Call]] = field(default_factory=list)
    _now_s: float = 0.0
    _words: Words | None = None

    def __post_init__(self) -> None:
        self._slope = self.rng.uniform(-DRIFT_SHARE, DRIFT_SHARE)
        self._wave = self.rng.uniform(0, 2 * np.pi)
        # Seconds of the kit in one of the host: crystals are good to some 50 ppm.
        self._tempo = 1 + self.rng.normal(0, 30e-6)

    def clock(self) -> float:
        return self._now_s

    def open(self) -> None: ...

    def close(self) -> None: ...

    def start(self) -> None:
        self._words = None

    def run_window(self, repeats: int, idle_ms: int) -> int:
        """The board's side: idling, the window and idling again, with commands before and after."""
        cycles = round(repeats * CYCLES)
        began = self._now_s
        current, high = self._current(cycles / CLOCK_HZ, idle_ms / 1000)
        self._words = encode(
            current,
            logic_of(high, TRIGGER),
            TYPICAL,
            supply_v=SUPPLY_V,
            first_count=int(self.rng.integers(64)),
            switching_error=SWITCHING_SHARE,
        )
        self._now_s += len(current) / RATE_HZ
        call = Call(began_s=began, returned_s=self._now_s, idle_s=idle_ms / 1000, length_s=cycles / CLOCK_HZ)
        self.recorded.append((self._words, call))
        return cycles

    def stop(self) -> Trace:
        assert self._words is not None
        return self.received(self._words)

    def received(self, words: Words, n_dropped: int = 0, at: int = 0) -> Trace:
        """What the agent makes of ``words``, of which ``n_dropped`` from ``at`` on do not arrive."""
        kept = np.concatenate([words[:at], words[at + n_dropped :]])
        taken_s = np.concatenate([np.arange(at), np.arange(at + n_dropped, len(words))]) / RATE_HZ
        n_pieces = max(1, int(taken_s[-1] / PIECE_S))
        edges_s = (np.arange(n_pieces) + 1) * PIECE_S
        counts = np.searchsorted(taken_s, edges_s, side="right")
        delays = self.rng.exponential(JITTER_S, n_pieces) + STALL_S * (self.rng.random(n_pieces) < 0.01)
        times = np.maximum.accumulate(edges_s * self._tempo + delays)
        started_s, seconds = arrival_span(times.tolist(), counts.tolist(), RATE_HZ)
        decoded = decode(kept[: counts[-1]].tobytes(), TYPICAL, supply_v=SUPPLY_V, trigger=TRIGGER)
        return Trace(
            current_a=decoded.current_a,
            trigger=decoded.trigger,
            saturated=decoded.saturated,
            rate_hz=RATE_HZ,
            supply_v=SUPPLY_V,
            seconds=seconds,
            n_lost=decoded.n_lost,
            started_s=started_s,
        )

    def _current(self, length_s: float, idle_s: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        lead = float(self.rng.uniform(END_S, END_S + 0.002))
        total = round((2 * (lead + idle_s) + length_s) * RATE_HZ)
        t = np.arange(total) / RATE_HZ - lead
        high = (t >= idle_s) & (t < idle_s + length_s)
        current = np.where((t >= 0) & (t < 2 * idle_s + length_s), IDLE_A, WAITING_A)
        bursts = np.floor((t - idle_s) / BURST_S).astype(np.int64) % 2
        current[high] = np.where(bursts[high] == 0, LOW_A, HIGH_A)
        n_windows = PLAN.n_windows
        place = len(self.recorded) / (n_windows - 1) - 0.5  # -0.5 to 0.5 over the measurement
        drift = 1 + self._slope * 2 * place + DRIFT_SHARE / 4 * np.sin(self._wave + 2 * np.pi * (place + t))
        current *= drift * (1 + self.rng.normal(0, WINDOW_SHARE))
        return np.abs(current * (1 + NOISE_SHARE * self.rng.standard_normal(total))), high


def ppk2_report(n_traces: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Largest error of the energy, share of intervals that hold the truth (both in %), and bad traces believed."""
    errors, n_covering, n_accepted, n_refused = [], 0, 0, 0
    for number in range(n_traces):
        rng = np.random.default_rng([seed, number])
        bench = Bench(rng)
        try:
            reading = measure_energy(
                bench, bench.run_window, PLAN, cycles=CYCLES, clock_hz=CLOCK_HZ, supply_v=SUPPLY_V, clock=bench.clock
            )
        except MeterError:
            n_refused += 1
            continue
        errors.append(abs(reading.energy_j / TRUE_J - 1) * 100)
        low, high = reading.interval_j or (0.0, 0.0)
        n_covering += low <= TRUE_J <= high
        n_accepted += _is_accepted(bench, number)
    return {
        "error_pct": round(max(errors), 3),
        "coverage_pct": round(100 * n_covering / n_traces, 1),
        "bad_traces_accepted": n_accepted,
        "good_traces_refused": n_refused,
        "traces": n_traces,
    }


def _is_accepted(bench: Bench, number: int) -> bool:
    """Whether a window with a block dropped is believed. The lengths take turns, random ones among them."""
    words, call = bench.recorded[number % len(bench.recorded)]
    lengths = (*DROPPED, int(bench.rng.integers(20, 5000)))
    n_dropped = lengths[number % len(lengths)]
    # Anywhere in what is measured; before and after it lies what shows how late the bytes come.
    end = round(END_S * RATE_HZ)
    at = int(bench.rng.integers(end, len(words) - end - n_dropped))
    trace = bench.received(words, n_dropped, at)
    try:
        check_trace(trace, SUPPLY_V)
        cut(trace, call, bench.window_by)
    except MeterError:
        return False
    return True


def decoder_report(n_readings: int = 100_000, seed: int = 0) -> dict[str, float]:
    """Milliseconds for one second of stream, ours and ppk2-api's, and how many times faster ours is."""
    from ppk2_api.ppk2_api import PPK2_API

    rng = np.random.default_rng(seed)
    current = np.where(np.arange(n_readings) // 50 % 2, HIGH_A, LOW_A) * (
        1 + NOISE_SHARE * rng.standard_normal(n_readings)
    )
    data = encode(current, np.zeros(n_readings, dtype=np.uint8), TYPICAL, supply_v=SUPPLY_V).tobytes()
    theirs = PPK2_API(None)  # no port: only its decoder is used
    theirs.current_vdd = SUPPLY_V * 1000
    started = time.perf_counter()
    theirs.get_samples(data)
    theirs_s = time.perf_counter() - started
    ours = []
    for _ in range(5):
        started = time.perf_counter()
        decode(data, TYPICAL, supply_v=SUPPLY_V, trigger=0)
        ours.append(time.perf_counter() - started)
    ours_s = sorted(ours)[len(ours) // 2]
    return {
        "decode_ms": round(ours_s * 1e3, 2),
        "ppk2_api_ms": round(theirs_s * 1e3, 1),
        "times_faster": round(theirs_s / ours_s, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--traces", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.perf_counter()
    report = {**ppk2_report(args.traces, args.seed), **decoder_report()}
    report["seconds"] = round(time.perf_counter() - started, 1)
    if args.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:22} {value}")


if __name__ == "__main__":
    main()
