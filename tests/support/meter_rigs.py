"""Every recorder with a board and a meter on the other side, for the tests that all of them must pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import serial

from mcu_agent.meters.fake import FakeRecorder, Fault, Load
from mcu_agent.meters.ina226 import Ina226
from mcu_agent.meters.joulescope import Joulescope
from mcu_agent.meters.ppk2 import Ppk2
from mcu_agent.meters.protocol import Recorder
from mcu_agent.meters.stlpm01 import LPM01A, V3PWR, StPowerMeter
from mcu_agent.windows import Call
from tests.support.meter_devices import FakeInaBus, FakeJoulescopeDriver
from tests.support.meter_ptys import IDLE_A, RUN_A, WAITING_A, FakePowerShield, FakePpk2, PtyMeter

SUPPLY_V = 3.0
TIMING_S = 0.02  # the meters on pseudo-terminals are at most two pieces of 5 ms ahead of their reader
LOOSE_S = 0.5  # Joulescope's runs in real time on a host that may be busy: its timing proves nothing


@dataclass(frozen=True, kw_only=True)
class Rig:
    """A recorder and the other side of it: ``window(idle_s, length_s)`` plays one, the next with a block of readings
    missing after ``drop``; ``busy`` has somebody else hold the meter."""

    recorder: Recorder
    window: Callable[[float, float], Call]
    drop: Callable[[], None]
    unplug: Callable[[], None]
    busy: Callable[[], AbstractContextManager[None]]
    clock: Callable[[], float]
    idle_s: float
    length_s: float


@contextmanager
def ppk2_rig() -> Iterator[Rig]:
    fake = FakePpk2(channel=2)
    recorder = Ppk2(port=fake.path, supply_v=SUPPLY_V, trigger=2, timing_error_s=TIMING_S, clock=fake.clock)
    with _pty_rig(fake, recorder, 700, 0.02, 0.12) as rig:
        yield rig


@contextmanager
def lpm01a_rig() -> Iterator[Rig]:
    fake = FakePowerShield()
    recorder = StPowerMeter(kind=LPM01A, port=fake.path, supply_v=SUPPLY_V, timing_error_s=TIMING_S, clock=fake.clock)
    with _pty_rig(fake, recorder, 200, 0.05, 0.4) as rig:
        yield rig


@contextmanager
def v3pwr_rig() -> Iterator[Rig]:
    fake = FakePowerShield(is_v3pwr=True)
    recorder = StPowerMeter(kind=V3PWR, port=fake.path, supply_v=SUPPLY_V, timing_error_s=TIMING_S, clock=fake.clock)
    with _pty_rig(fake, recorder, 600, 0.15, 0.5) as rig:
        yield rig


@contextmanager
def _pty_rig(fake: PtyMeter, recorder: Recorder, n_dropped: int, idle_s: float, length_s: float) -> Iterator[Rig]:
    @contextmanager
    def busy() -> Iterator[None]:
        with serial.Serial(fake.path, exclusive=True):
            yield

    def drop() -> None:
        fake.drop_next = n_dropped

    try:
        yield Rig(
            recorder=recorder,
            window=fake.window,
            drop=drop,
            unplug=fake.unplug,
            busy=busy,
            clock=fake.clock,
            idle_s=idle_s,
            length_s=length_s,
        )
    finally:
        recorder.close()
        if fake.is_alive():
            fake.unplug()


@contextmanager
def joulescope_rig() -> Iterator[Rig]:
    driver = FakeJoulescopeDriver(channel=1)
    device = driver.device()
    recorder = Joulescope(trigger=1, timing_error_s=LOOSE_S, patience_s=1.0, find=lambda serial: device)

    @contextmanager
    def busy() -> Iterator[None]:
        driver.is_busy = True
        yield
        driver.is_busy = False

    def drop() -> None:
        driver.drop_next = 800

    def unplug() -> None:
        driver.is_gone = True

    try:
        yield Rig(
            recorder=recorder,
            window=driver.window,
            drop=drop,
            unplug=unplug,
            busy=busy,
            clock=time.monotonic,
            idle_s=0.02,
            length_s=0.12,
        )
    finally:
        recorder.close()
        driver.end()


@contextmanager
def ina226_rig() -> Iterator[Rig]:
    bus = FakeInaBus(shunt_ohms=1.0, supply_v=SUPPLY_V)
    recorder = Ina226(shunt_ohms=1.0, smbus=bus, clock=bus.clock)

    @contextmanager
    def busy() -> Iterator[None]:
        bus.is_gone = True
        yield
        bus.is_gone = False

    def drop() -> None:
        bus.stall_next_s = 0.05

    def unplug() -> None:
        bus.is_gone = True

    yield Rig(
        recorder=recorder,
        window=bus.window,
        drop=drop,
        unplug=unplug,
        busy=busy,
        clock=bus.clock,
        idle_s=0.3,
        length_s=1.5,
    )
    recorder.close()


@contextmanager
def fake_rig() -> Iterator[Rig]:
    load = Load(cycles=64_000, clock_hz=64e6, run_a=RUN_A, idle_a=IDLE_A, waiting_a=WAITING_A)
    faults: dict[int, Fault] = {}
    recorder = FakeRecorder(load, supply_v=SUPPLY_V, faults=faults)

    def window(idle_s: float, length_s: float) -> Call:
        began_s = recorder.clock()
        cycles = recorder.run_window(round(length_s * 1000), round(idle_s * 1000))
        return Call(began_s=began_s, returned_s=recorder.clock(), idle_s=idle_s, length_s=cycles / load.clock_hz)

    @contextmanager
    def busy() -> Iterator[None]:
        recorder.is_busy = True
        yield
        recorder.is_busy = False

    def drop() -> None:
        recorder.faults[recorder.n_traces] = Fault.GAP

    def unplug() -> None:
        recorder.faults[recorder.n_traces] = Fault.LOST

    yield Rig(
        recorder=recorder,
        window=window,
        drop=drop,
        unplug=unplug,
        busy=busy,
        clock=recorder.clock,
        idle_s=0.02,
        length_s=0.12,
    )
    recorder.close()


RIGS: dict[str, Callable[[], AbstractContextManager[Rig]]] = {
    "ppk2": ppk2_rig,
    "lpm01a": lpm01a_rig,
    "v3pwr": v3pwr_rig,
    "joulescope": joulescope_rig,
    "ina226": ina226_rig,
    "fake": fake_rig,
}
