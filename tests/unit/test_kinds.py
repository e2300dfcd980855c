"""The catalogue of board kinds."""

from __future__ import annotations

import pytest

from mcu_agent.errors import InventoryError, UnknownKind
from mcu_agent.kinds import kinds, load_kind, parse_kind

GOOD = """
description = "a board"
mcu = "part"
core = "cortex-m4"
has_dsp = true
fpu = "fpv4-sp-d16"
flash_origin = 0
flash_bytes = 1024
ram_origin = 0x20000000
ram_bytes = 512
ram_bank = "all"
clock_hz = 1_000_000
datasheet = "sheet"
supply_v = 3
nj_per_cycle = 0.5
nj_per_cycle_source = "estimate: by hand"
port = "stm32l4"
trigger_pin = "PC0"
pyocd_target = "part"
pack = ""
qemu_machine = ""
"""


@pytest.mark.parametrize(
    ("name", "core", "flash_kib", "ram_kib", "mhz"),
    [  # from the data sheets named in the files
        ("nrf52-dk", "cortex-m4", 512, 64, 64),
        ("nrf52840-dk", "cortex-m4", 1024, 256, 64),
        ("nrf5340-dk", "cortex-m33", 1024, 512, 128),
        ("nucleo-f446re", "cortex-m4", 512, 128, 180),
        ("nucleo-h743zi", "cortex-m7", 2048, 512, 480),
        ("nucleo-l4r5zi", "cortex-m4", 2048, 640, 120),
        ("nucleo-u575zi-q", "cortex-m33", 2048, 768, 160),
    ],
)
def test_the_catalogue_holds_the_data_sheets_figures(
    name: str, core: str, flash_kib: int, ram_kib: int, mhz: int
) -> None:
    kind = load_kind(name)
    assert (kind.core, kind.flash_bytes, kind.ram_bytes) == (core, flash_kib * 1024, ram_kib * 1024)
    assert kind.clock_hz == mhz * 1_000_000
    assert kind.datasheet


def test_every_energy_figure_says_whether_it_was_published_or_estimated() -> None:
    published = {name for name, kind in kinds().items() if kind.nj_per_cycle_source.startswith("published:")}
    estimated = {name for name, kind in kinds().items() if kind.nj_per_cycle_source.startswith("estimate:")}
    assert published == {"nucleo-l4r5zi", "nucleo-u575zi-q"}
    assert published | estimated == set(kinds())


def test_an_unknown_kind_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownKind, match=r"'nrf99'; known kinds: nrf52-dk, nrf52840-dk, .*nucleo-l4r5zi"):
        load_kind("nrf99")


def test_a_complete_entry_is_accepted() -> None:
    kind = parse_kind("x", GOOD, "x.toml")
    assert (kind.name, kind.flash_end, kind.ram_end) == ("x", 1024, 0x20000200)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("core = ", 'core = "z80" #'), "core is 'z80'; allowed: 'cortex-m0plus', 'cortex-m3', 'cortex-m4'"),
        (("fpu = ", 'fpu = "x87" #'), "fpu is 'x87'; allowed"),
        (("flash_bytes = ", "flash_bytes = -1 #"), "flash_bytes is -1; it must be above 0"),
        (("clock_hz = ", 'clock_hz = "fast" #'), "clock_hz is 'fast'; it must be of type int"),
        (("has_dsp = ", "has_dsp = 1 #"), "has_dsp is 1; it must be of type bool"),
        (("core = ", 'core = "cortex-m3" #'), "a cortex-m3 has neither DSP extension nor floating-point unit"),
        (("core = ", 'core = "cortex-m0plus" #'), "so has_dsp must be false and fpu empty"),
        (("ram_bytes = ", "ram_byte = "), r"unknown fields: \['ram_byte'\]; missing fields: \['ram_bytes'\]"),
        (('"estimate:', '"guess:'), "it must start with one of published:, estimate:"),
        (("mcu = ", "mcu = = "), "x.toml: not valid TOML"),
        (("stm32l4", "stm32l9"), "port is 'stm32l9'; allowed: '', 'nrf52', 'nrf53', 'stm32f4'"),
        (("PC0", "PC16"), "trigger_pin is 'PC16' and port 'stm32l4'; with a port it must be a pin such as 'PC0'"),
        (("PC0", ""), "trigger_pin is '' and port 'stm32l4'"),
        (("stm32l4", ""), "without one it must be empty"),
    ],
)
def test_a_wrong_entry_is_refused_with_the_field_named(change: tuple[str, str], message: str) -> None:
    with pytest.raises(InventoryError, match=message):
        parse_kind("x", GOOD.replace(*change), "x.toml")


@pytest.mark.parametrize(
    ("pin", "port_and_pin"), [("PA0", (0, 0)), ("PC13", (2, 13)), ("P0.28", (0, 28)), ("P1.05", (1, 5))]
)
def test_a_trigger_pin_is_a_port_and_a_number(pin: str, port_and_pin: tuple[int, int]) -> None:
    assert parse_kind("x", GOOD.replace("PC0", pin), "x.toml").trigger == port_and_pin


def test_every_kind_of_the_catalogue_has_a_port_and_a_part_that_pyocd_can_name() -> None:
    pyocd = pytest.importorskip("pyocd.target.builtin", reason="pyOCD is not installed")
    for kind in kinds().values():
        assert kind.port and kind.pyocd_target == kind.pyocd_target.lower()
        assert (kind.pyocd_target in pyocd.BUILTIN_TARGETS) == (kind.pack == ""), kind.name
