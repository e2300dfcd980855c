"""A whole profile on a device, with and without a meter."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from types import SimpleNamespace

import pytest

from mcu_agent import session
from mcu_agent.boards.fake import FakeBoard
from mcu_agent.boards.virtual import VirtualBoard
from mcu_agent.errors import MeterLost, OutOfTime, TraceGap, WrongClock
from mcu_agent.image import Image
from mcu_agent.kinds import load_kind
from mcu_agent.mailbox import COMMAND_OFFSET, COMMAND_WINDOW, IDLE_MS_OFFSET, REPEATS_OFFSET
from mcu_agent.meters.fake import FakeRecorder, Fault, Load
from mcu_agent.profiling import Plan, profile
from mcu_agent.selftest import known_image
from mcu_agent.session import Link
from tests.support import boards
from tests.support.slow_board import SlowBoard

KIND = load_kind("nrf52-dk")


class WiredBoard(SlowBoard):
    """A device whose trigger pin and supply a recorder sees."""

    def __init__(self, recorder: FakeRecorder, factor: float = 1.0) -> None:
        super().__init__("wired", KIND, factor)
        self._recorder = recorder
        self._mailbox = 0
        self._words: dict[int, int] = {}

    def load(self, image: Image) -> None:
        super().load(image)
        self._mailbox = image.address("edgefront_mailbox")

    def write(self, address: int, data: bytes) -> None:
        super().write(address, data)
        self._words[address - self._mailbox] = int.from_bytes(data[:4], "little")

    def run_until(self, addresses: Collection[int], timeout_s: float, quiet_s: float = 0.0) -> int:
        if self._words.pop(COMMAND_OFFSET, None) == COMMAND_WINDOW:
            edges = len(self.trigger_edges)
            found = super().run_until(addresses, timeout_s, quiet_s)
            assert [is_high for _, is_high in self.trigger_edges[edges:]] == [True, False]
            self._recorder.run_window(self._words[REPEATS_OFFSET], self._words[IDLE_MS_OFFSET])
            return found
        return super().run_until(addresses, timeout_s, quiet_s)


def recorder(**options: object) -> FakeRecorder:
    """A recorder on a board that draws 4 mA while it runs the known image."""
    known = known_image("nrf52-dk")
    assert known.cycles is not None
    return FakeRecorder(Load(cycles=known.cycles, clock_hz=KIND.clock_hz, run_a=4e-3), **options)  # type: ignore[arg-type]


def test_on_a_device_latency_is_read_often_and_every_output_checked() -> None:
    board = SlowBoard("b", KIND, 1.25)
    known = known_image("nrf52-dk")
    assert known.cycles is not None
    found = profile(known.job(), board)
    assert (found.n_runs, found.cycles_source) == (31, "measured")
    assert len(found.outputs) == len(known.inputs)
    assert found.cycles.median == pytest.approx(1.25 * known.cycles, rel=0.01)
    assert found.latency_s == pytest.approx(found.cycles.median / 64e6)
    assert found.instructions is None
    assert found.phases.total_s >= found.phases.run_s > 0


def test_an_emulated_board_counts_exactly_and_is_asked_once() -> None:
    found = profile(boards.make_job(n=3), VirtualBoard("v", KIND))
    assert (found.n_runs, found.cycles_source, found.temperature_c) == (3, "emulated", None)


def test_the_energy_is_that_of_the_windows_with_its_interval() -> None:
    meter = recorder()
    found = profile(known_image("nrf52-dk").job(), WiredBoard(meter), meter)
    truth_j = 4e-3 * 3.0 * meter.load.cycles / KIND.clock_hz
    assert (found.energy_source, found.meter) == ("measured", "fake")
    assert found.energy.energy_j == pytest.approx(truth_j, rel=0.01)
    assert found.energy.interval_j is not None
    low, high = found.energy.interval_j
    assert low <= found.energy.energy_j <= high
    assert len(found.energy.windows_j) == Plan().windows.n_windows
    assert found.energy.idle_w == pytest.approx(20e-6 * 3.0, rel=0.05)
    assert found.energy.net_j is not None
    assert found.energy.net_j < found.energy.energy_j
    assert not meter.is_open


def test_energy_windows_have_their_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=lambda: now[0]))
    meter = recorder()
    board = WiredBoard(meter)
    open_meter, job = meter.start, replace(known_image("nrf52-dk").job(), timeout_s=30.0)

    def start_late() -> None:
        now[0] = max(now[0], 29.9)  # the outputs have taken almost all of the job's time
        now[0] += 10.0  # and each window takes its own
        open_meter()

    monkeypatch.setattr(meter, "start", start_late)
    assert profile(job, board, meter).energy_source == "measured"
    assert now[0] > 100.0
    now[0] = 0.0
    monkeypatch.setattr(Link, "allow", lambda self, seconds: None)
    with pytest.raises(OutOfTime):
        profile(job, board, meter)


def test_a_board_at_another_supply_is_held_against_its_own_voltage_and_says_so() -> None:
    meter = recorder(supply_v=1.8)
    found = profile(known_image("nrf52-dk").job(), WiredBoard(meter), meter)
    assert found.supply_v == 1.8
    assert "1.8 V" in found.energy.basis
    assert found.energy.energy_j == pytest.approx(4e-3 * 1.8 * meter.load.cycles / KIND.clock_hz, rel=0.01)


def test_a_trace_with_gaps_is_no_measurement_and_everything_is_closed() -> None:
    meter = recorder(faults=dict.fromkeys(range(1, 9), Fault.GAP))
    board = WiredBoard(meter)
    with pytest.raises(TraceGap):
        profile(known_image("nrf52-dk").job(), board, meter)
    assert not meter.is_open
    with pytest.raises(Exception, match="no power"):
        board.read(KIND.ram_origin, 4)


def test_a_meter_that_is_away_is_told_before_the_board_is_touched() -> None:
    meter = recorder()
    meter.is_busy = True
    with pytest.raises(MeterLost):
        profile(known_image("nrf52-dk").job(), WiredBoard(meter), meter)


def test_a_core_at_another_clock_is_the_rigs_fault() -> None:
    network = boards.fake_network(clock_hz=16_000_000)
    with pytest.raises(WrongClock, match="runs at 16 MHz, the board kind nrf52-dk at 64 MHz; check") as caught:
        profile(boards.make_job(), FakeBoard("b1", KIND, network))
    assert caught.value.is_transient


def test_a_device_tells_its_temperature() -> None:
    assert profile(boards.make_job(), FakeBoard("b1", KIND, boards.fake_network())).temperature_c == 23.5
