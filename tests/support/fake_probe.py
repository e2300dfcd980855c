"""A debug probe for pyOCD that is wired to an emulated part: the debug port and its memory access port, word by word.

Source: Arm Debug Interface Architecture Specification ADIv5.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pyocd.core import exceptions
from pyocd.probe.debug_probe import DebugProbe

from tests.support.emulated_part import EmulatedPart, MemoryFault

_DPIDR = 0x2BA01477
_AHB_AP_IDR, _CTRL_AP_IDR = 0x24770011, 0x02880000
_CSW, _TAR, _DRW, _BD0, _CFG, _BASE, _IDR = 0x00, 0x04, 0x0C, 0x10, 0xF4, 0xF8, 0xFC
_STICKY_ERROR = 1 << 5


class FakeProbe(DebugProbe):
    """A CMSIS-DAP-like probe. After ``lost_after`` transfers it is unplugged; None for never."""

    def __init__(self, part: EmulatedPart, serial: str = "FAKE01", lost_after: int | None = None) -> None:
        super().__init__()
        self.part = part
        self.lost_after = lost_after
        self.transfers = 0
        self.is_reset = False
        self.frequency = 0.0
        self._serial = serial
        self._is_open = False
        self._protocol: DebugProbe.Protocol | None = None
        self._select = 0
        self._ctrl = 0
        self._csw = 0x23000052
        self._tar = 0

    @property
    def vendor_name(self) -> str:
        return "Edgefront"

    @property
    def product_name(self) -> str:
        return "fake probe"

    @property
    def description(self) -> str:
        return "fake probe"

    @property
    def supported_wire_protocols(self) -> Sequence[DebugProbe.Protocol]:
        return [DebugProbe.Protocol.DEFAULT, DebugProbe.Protocol.SWD]

    @property
    def unique_id(self) -> str:
        return self._serial

    @property
    def wire_protocol(self) -> DebugProbe.Protocol | None:
        return self._protocol

    @property
    def is_open(self) -> bool:
        return self._is_open

    @property
    def capabilities(self) -> set[DebugProbe.Capability]:
        return {DebugProbe.Capability.SWJ_SEQUENCE}

    def open(self) -> None:
        self._transfer()
        self._is_open = True

    def close(self) -> None:
        self._is_open = False

    def connect(self, protocol: DebugProbe.Protocol | None = None) -> None:
        self._transfer()
        self._protocol = DebugProbe.Protocol.SWD

    def disconnect(self) -> None:
        self._protocol = None

    def swj_sequence(self, length: int, bits: int) -> None:
        self._transfer()

    def set_clock(self, frequency: float) -> None:
        self.frequency = frequency

    def reset(self) -> None:
        self._transfer()
        self.part.reset()

    def assert_reset(self, asserted: bool) -> None:
        self._transfer()
        if self.is_reset and not asserted:
            self.part.reset()
        self.is_reset = asserted

    def is_reset_asserted(self) -> bool:
        return self.is_reset

    def flush(self) -> None:
        pass

    def read_dp(self, addr: int, now: bool = True) -> Any:
        self._transfer()
        values = {0x0: _DPIDR, 0x4: self._ctrl | (self._ctrl & 0x50000000) << 1, 0x8: self._select}
        return _later(values.get(addr & 0xC, 0), now)

    def write_dp(self, addr: int, data: int) -> None:
        self._transfer()
        if addr & 0xC == 0x0:
            self._ctrl &= ~_STICKY_ERROR
        elif addr & 0xC == 0x4:
            self._ctrl = data & 0x50000F00 | self._ctrl & _STICKY_ERROR
        elif addr & 0xC == 0x8:
            self._select = data

    def read_ap(self, addr: int, now: bool = True) -> Any:
        return _later(self._read(addr), now)

    def write_ap(self, addr: int, data: int) -> None:
        self._transfer()
        register = self._select & 0xF0 | addr & 0xC
        if self._select >> 24:
            return
        if register == _CSW:
            self._csw = data & ~0x40 | 0x40
        elif register == _TAR:
            self._tar = data
        elif register == _DRW:
            size = 1 << (self._csw & 7)
            self._bus_write(self._tar, data >> 8 * (self._tar & 3), size)
            self._advance(size)
        elif _BD0 <= register < _BD0 + 0x10:
            self._bus_write((self._tar & ~0xF) + register - _BD0, data, 4)

    def read_ap_multiple(self, addr: int, count: int = 1, now: bool = True) -> Any:
        values = [self._read(addr) for _ in range(count)]
        return values if now else lambda: values

    def write_ap_multiple(self, addr: int, values: Sequence[int]) -> None:
        for value in values:
            self.write_ap(addr, value)

    def _read(self, addr: int) -> int:
        self._transfer()
        register, port = self._select & 0xF0 | addr & 0xC, self._select >> 24
        if port == 1:  # Nordic's control port: not protected
            return {_IDR: _CTRL_AP_IDR, 0x0C: 1}.get(register, 0)
        if port:
            return 0
        if register == _DRW:
            size = 1 << (self._csw & 7)
            value = self._bus_read(self._tar, size) << 8 * (self._tar & 3)
            self._advance(size)
            return value
        if _BD0 <= register < _BD0 + 0x10:
            return self._bus_read((self._tar & ~0xF) + register - _BD0, 4)
        return {_CSW: self._csw, _TAR: self._tar, _CFG: 0, _BASE: 0xE00FF003, _IDR: _AHB_AP_IDR}.get(register, 0)

    def _bus_read(self, address: int, size: int) -> int:
        try:
            return self.part.read(address, size)
        except MemoryFault as error:
            self._ctrl |= _STICKY_ERROR
            raise exceptions.TransferFaultError(fault_address=address) from error

    def _bus_write(self, address: int, value: int, size: int) -> None:
        try:
            self.part.write(address, value & (1 << 8 * size) - 1, size)
        except MemoryFault as error:
            self._ctrl |= _STICKY_ERROR
            raise exceptions.TransferFaultError(fault_address=address) from error

    def _advance(self, size: int) -> None:
        if self._csw >> 4 & 3:
            self._tar = self._tar & ~0xFFF | (self._tar + size) & 0xFFF  # this port wraps at 4 KB

    def _transfer(self) -> None:
        self.transfers += 1
        if self.lost_after is not None and self.transfers > self.lost_after:
            raise exceptions.ProbeDisconnected("the probe is not there any more")


def _later(value: int, now: bool) -> int | Callable[[], int]:
    return value if now else lambda: value
