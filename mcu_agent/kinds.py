"""The catalogue of board kinds: what a board is, from its data sheet.

One TOML file a kind lies in ``mcu_agent/catalogue``; the file names the source of every number it holds.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib import resources

from mcu_agent.errors import InventoryError, UnknownKind

CORES = ("cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33")
PLAIN_CORES = ("cortex-m0plus", "cortex-m3")  # without DSP extension and floating-point unit, whatever the part
FPUS = ("", "fpv4-sp-d16", "fpv5-sp-d16", "fpv5-d16")
PORTS = ("", "nrf52", "nrf53", "stm32f4", "stm32h7", "stm32l4", "stm32u5")
_ENERGY_BASES = ("published:", "estimate:")
_PIN = re.compile(r"P(?:([A-K])([0-9]|1[0-5])|([01])\.([0-2][0-9]|3[01]))")  # PC0 or P0.28


@dataclass(frozen=True, kw_only=True, slots=True)
class BoardKind:
    """A kind of board: memory map, clock and energy figures of one operating point.

    ``flash_*`` and ``ram_*`` describe the one contiguous region of each that firmware is linked to; where a part has
    more RAM banks, ``ram_bank`` says which are used. ``nj_per_cycle`` is the energy of one core clock cycle at
    ``supply_v`` and ``clock_hz``; its source starts with ``published:`` (measured by its source on this board) or
    ``estimate:`` (computed from data-sheet currents).

    ``port`` is the family whose clock set-up and trigger pin the firmware has; without one it runs at the clock after
    reset, and there is no ``trigger_pin`` (``PC0``, ``P0.28``). ``pyocd_target`` is pyOCD's name of the part, and
    ``pack`` the CMSIS pack that brings it, empty where pyOCD has it. ``qemu_machine`` is the machine of QEMU whose
    memory lies where this board's does; empty where there is none. The firmware's size is not limited by it.

    Units: bytes, hertz, volts, nanojoules.
    """

    name: str
    description: str
    mcu: str
    core: str
    has_dsp: bool
    fpu: str
    flash_origin: int
    flash_bytes: int
    ram_origin: int
    ram_bytes: int
    ram_bank: str
    clock_hz: int
    supply_v: float
    nj_per_cycle: float
    nj_per_cycle_source: str
    datasheet: str
    port: str
    trigger_pin: str
    pyocd_target: str
    pack: str
    qemu_machine: str

    def __post_init__(self) -> None:
        _require(self, "core", self.core, CORES)
        _require(self, "fpu", self.fpu, FPUS)
        _require(self, "port", self.port, PORTS)
        if self.core in PLAIN_CORES and (self.has_dsp or self.fpu):
            raise InventoryError(
                f"board kind {self.name}: a {self.core} has neither DSP extension nor floating-point unit, so has_dsp "
                "must be false and fpu empty"
            )
        for name in ("flash_bytes", "ram_bytes", "clock_hz", "supply_v", "nj_per_cycle"):
            if getattr(self, name) <= 0:
                raise InventoryError(f"board kind {self.name}: {name} is {getattr(self, name)}; it must be above 0")
        if not self.nj_per_cycle_source.startswith(_ENERGY_BASES):
            raise InventoryError(
                f"board kind {self.name}: nj_per_cycle_source starts with {self.nj_per_cycle_source[:20]!r}; "
                f"it must start with one of {', '.join(_ENERGY_BASES)}"
            )

        is_pin_right = bool(_PIN.fullmatch(self.trigger_pin)) if self.port else not self.trigger_pin
        if not is_pin_right:
            raise InventoryError(
                f"board kind {self.name}: trigger_pin is {self.trigger_pin!r} and port {self.port!r}; with a port it "
                "must be a pin such as 'PC0' or 'P0.28', and without one it must be empty"
            )

    @property
    def trigger(self) -> tuple[int, int]:
        """The trigger pin as the number of its GPIO port, from 0, and of its pin; (0, 0) where there is none."""
        found = _PIN.fullmatch(self.trigger_pin)
        if found is None:
            return 0, 0
        letter, pin, number, other_pin = found.groups()
        return (ord(letter) - ord("A"), int(pin)) if letter else (int(number), int(other_pin))

    @property
    def flash_end(self) -> int:
        """First address after the flash."""
        return self.flash_origin + self.flash_bytes

    @property
    def ram_end(self) -> int:
        """First address after the RAM."""
        return self.ram_origin + self.ram_bytes


def _require(kind: BoardKind, field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InventoryError(f"board kind {kind.name}: {field} is {value!r}; allowed: {', '.join(map(repr, allowed))}")


def parse_kind(name: str, text: str, file: str) -> BoardKind:
    """One board kind from the text of its catalogue file.

    Raises:
        InventoryError: the text is no TOML, or a field is missing, unknown, of the wrong type or out of range.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InventoryError(f"{file}: not valid TOML: {error}") from error
    wanted = {field.name: field.type for field in fields(BoardKind) if field.name != "name"}
    unknown, missing = sorted(set(data) - set(wanted)), sorted(set(wanted) - set(data))
    if unknown or missing:
        raise InventoryError(f"{file}: unknown fields: {unknown or 'none'}; missing fields: {missing or 'none'}")
    for field, kind in wanted.items():
        allowed = {"str": (str,), "bool": (bool,), "int": (int,), "float": (int, float)}[str(kind)]
        if not isinstance(data[field], allowed) or (isinstance(data[field], bool) and kind != "bool"):
            raise InventoryError(f"{file}: {field} is {data[field]!r}; it must be of type {kind}")
    return BoardKind(name=name, **data)


@lru_cache(maxsize=1)
def kinds() -> dict[str, BoardKind]:
    """All board kinds of the catalogue, by name, in alphabetical order."""
    folder = resources.files("mcu_agent.catalogue")
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".toml")), key=lambda entry: entry.name)
    return {
        entry.name.removesuffix(".toml"): parse_kind(
            entry.name.removesuffix(".toml"), entry.read_text(encoding="utf-8"), entry.name
        )
        for entry in files
    }


def load_kind(name: str) -> BoardKind:
    """The board kind called ``name``.

    Raises:
        UnknownKind: the catalogue has no such kind; the text lists those it has.
    """
    known = kinds()
    if name not in known:
        raise UnknownKind(f"unknown board kind {name!r}; known kinds: {', '.join(known)}")
    return known[name]
