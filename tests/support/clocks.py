"""What the registers of a part say of its core clock and its flash, read as the reference manuals describe them."""

from __future__ import annotations

from collections.abc import Callable

Read = Callable[[int], int]

_HPRE = {8: 2, 9: 4, 10: 8, 11: 16, 12: 64, 13: 128, 14: 256, 15: 512}  # the same field in every STM32


def stm32l4(read: Read) -> int:
    """RM0432, 6.2 and 6.4."""
    cfgr, pll = read(0x40021008), read(0x4002100C)
    source = {0: 4_000_000, 1: 16_000_000}.get(cfgr >> 2 & 3)  # MSI at its range after reset, HSI16
    if cfgr >> 2 & 3 == 3:
        vco = {1: 4_000_000, 2: 16_000_000}[pll & 3] // ((pll >> 4 & 0xF) + 1) * (pll >> 8 & 0x7F)
        assert pll >> 24 & 1 and vco <= 344_000_000
        source = vco // (2 * ((pll >> 25 & 3) + 1))
    assert source
    return source // _HPRE.get(cfgr >> 4 & 0xF, 1)


def stm32f4(read: Read) -> int:
    """RM0390, 6.2 and 6.3."""
    cfgr, pll = read(0x40023808), read(0x40023804)
    source = {0: 16_000_000}.get(cfgr >> 2 & 3)  # HSI
    if cfgr >> 2 & 3 == 2:
        assert not pll >> 22 & 1
        vco = 16_000_000 // (pll & 0x3F) * (pll >> 6 & 0x1FF)
        assert 1_000_000 <= 16_000_000 // (pll & 0x3F) <= 2_000_000 and 100_000_000 <= vco <= 432_000_000
        source = vco // (2 * ((pll >> 16 & 3) + 1))
    assert source
    core = source // _HPRE.get(cfgr >> 4 & 0xF, 1)
    apb = {4: 2, 5: 4, 6: 8, 7: 16}
    assert core // apb.get(cfgr >> 10 & 7, 1) <= 45_000_000 and core // apb.get(cfgr >> 13 & 7, 1) <= 90_000_000
    return core


def stm32h7(read: Read) -> int:
    """RM0433, 8.5 and 8.7."""
    sws, select, pll, dividers = (read(at) for at in (0x58024410, 0x58024428, 0x5802442C, 0x58024430))
    sws = sws >> 3 & 7
    source = {0: 64_000_000}.get(sws)  # HSI
    if sws == 3:
        assert select & 3 == 0 and pll >> 16 & 1 and not pll & 0b11  # HSI, the output on, wide range, no fraction
        reference = 64_000_000 // (select >> 4 & 0x3F)
        assert pll >> 2 & 3 == 3 and 8_000_000 <= reference <= 16_000_000
        vco = reference * ((dividers & 0x1FF) + 1)
        assert 192_000_000 <= vco <= 960_000_000
        source = vco // ((dividers >> 9 & 0x7F) + 1)
    assert source
    core = source // _HPRE.get(read(0x58024418) >> 8 & 0xF, 1)
    assert core // _HPRE.get(read(0x58024418) & 0xF, 1) <= 240_000_000
    return core


def stm32u5(read: Read) -> int:
    """RM0456, 11.4 and 11.8."""
    sws, pll, dividers = read(0x46020C1C) >> 2 & 3, read(0x46020C28), read(0x46020C34)
    source = {0: 4_000_000, 1: 16_000_000}.get(sws)  # MSIS at its range after reset, HSI16
    if sws == 3:
        assert pll >> 18 & 1 and not pll >> 4 & 1
        reference = {1: 4_000_000, 2: 16_000_000}[pll & 3] // ((pll >> 8 & 0xF) + 1)
        assert (pll >> 2 & 3 == 3) == (reference > 8_000_000)
        vco = reference * ((dividers & 0x1FF) + 1)
        assert 128_000_000 <= vco <= 544_000_000
        source = vco // ((dividers >> 24 & 0x7F) + 1)
    assert source
    return source // _HPRE.get(read(0x46020C20) & 0xF, 1)


def nrf52(_read: Read) -> int:
    """Product Specification, CLOCK: the core's clock is HCLK64M, whichever oscillator it comes from."""
    return 64_000_000


def nrf53(read: Read) -> int:
    """Product Specification, HFCLKCTRL: divided by 1 or 2."""
    return {0: 128_000_000, 1: 64_000_000}[read(0x50005558) & 3]


CLOCKS = {
    "nrf52": nrf52,
    "nrf53": nrf53,
    "stm32f4": stm32f4,
    "stm32h7": stm32h7,
    "stm32l4": stm32l4,
    "stm32u5": stm32u5,
}

# What else a port has to leave behind at full speed: register, bits, their value. Wait states and caches of the flash
# from RM0432 table 13, RM0390 table 5, RM0433 table 17 and RM0456 table 54; crystals, regulators and caches of the nRF.
SETTINGS = {
    "stm32l4": [(0x40022000, 0x70F, 0x705), (0x40007080, 0x100, 0)],
    "stm32f4": [(0x40023C00, 0x70F, 0x705), (0x40007004, 0x30000, 0x30000)],
    "stm32h7": [(0x52002000, 0x3F, 0x24), (0x58024818, 0xC000, 0xC000), (0x5800042C, 1, 1)],
    "stm32u5": [(0x40022000, 0x10F, 0x104), (0x4602080C, 0x7C000, 0x7C000), (0x40030400, 1, 1)],
    "nrf52": [(0x4001E540, 1, 1), (0x40000578, 1, 1), (0x4000040C, 0x10001, 0x10001), (0x40000558, 0xFF, 0x5A)],
    "nrf53": [(0x50001500, 1, 1), (0x50004704, 1, 1), (0x5000540C, 0x10001, 0x10001), (0x50006544, 0xFF, 0xFA)],
}
