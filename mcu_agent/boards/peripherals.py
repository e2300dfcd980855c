"""The peripherals that a firmware's port touches, as an emulated board shows them.

A register is memory, with rules: a ready bit follows its enable bit, a status field the field that was asked for, an
event the task that causes it. Registers that no rule and no port needs do not exist: an access to one is a fault, as on
a board without it. Nothing takes time; an alarm that would wake a sleeping core rings at once.

Values after reset are those of the reference manuals, for the bits a port reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from unicorn import Uc

from mcu_agent.kinds import BoardKind

_WORD = 4
_PAGE = 0x400  # what the emulator maps at least

SYST_CSR, SCB_ICSR = 0xE000E010, 0xE000ED04
NVIC_ISER0 = 0xE000E100


@dataclass(frozen=True, kw_only=True, slots=True)
class Mirror:
    """Each write to ``source`` copies its bits ``mask`` to ``target``, ``shift`` bits higher (or lower, negative)."""

    source: int
    mask: int
    target: int
    shift: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Strobe:
    """Each 1 that is written to the bits ``mask`` of ``source`` sets, or clears, the bit of ``target`` that lies
    ``shift`` bits higher. ``source`` itself keeps nothing."""

    source: int
    target: int
    mask: int = 0xFFFFFFFF
    shift: int = 0
    is_set: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """The registers of ``block`` (1024 bytes) read as 0 and ignore writes until the bits ``mask`` of ``enable`` are
    set."""

    block: int
    enable: int
    mask: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """Wakes a sleeping core when all bits of ``when`` (register, bits) are set; the bits of ``then`` are set by it."""

    when: Sequence[tuple[int, int]]
    then: Sequence[tuple[int, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pin:
    """An output: its bit in the register ``out``, and the bits of ``direction`` that must be ``output``."""

    out: int
    bit: int
    direction: int
    mask: int
    output: int


SYSTICK = Alarm(when=[(SYST_CSR, 0b11)], then=[(SYST_CSR, 1 << 16), (SCB_ICSR, 1 << 26)])  # enabled, with interrupt


@dataclass(frozen=True, kw_only=True, slots=True)
class Peripherals:
    """``registers`` by address, with their values after reset; ``pin`` is the trigger pin."""

    registers: Mapping[int, int] = field(default_factory=dict)
    rules: Sequence[Mirror | Strobe] = ()
    gates: Sequence[Gate] = ()
    alarms: Sequence[Alarm] = (SYSTICK,)
    pin: Pin | None = None


class Bus:
    """The registers of a running board. ``on_level`` is told each change of the trigger pin's level, ``on_stray`` each
    access to a register that does not exist; ``n_wakes`` counts how often an alarm has woken the core."""

    def __init__(
        self, model: Peripherals, on_level: Callable[[bool], None], on_stray: Callable[[int], None] = lambda _: None
    ) -> None:
        self._model = model
        self._values = dict(model.registers)
        self._on_level, self._on_stray = on_level, on_stray
        self._is_high = False
        self.n_wakes = 0

    def attach(self, emulator: Uc) -> None:
        """Map the blocks that hold registers."""
        for page in sorted({address & -_PAGE for address in self._values}):
            emulator.mmio_map(page, _PAGE, self._on_read, page, self._on_write, page)

    def value(self, address: int) -> int:
        """What a register holds; for one behind a closed gate too.

        Raises:
            KeyError: there is no such register.
        """
        return self._values[address]

    def wake(self, emulator: Uc) -> bool:
        """Let the time pass until an alarm rings; False when none is set."""
        for alarm in self._model.alarms:
            if all(self._peek(emulator, address) & mask == mask for address, mask in alarm.when):
                for address, mask in alarm.then:
                    self._poke(emulator, address, self._peek(emulator, address) | mask)
                self.n_wakes += 1
                return True
        return False

    def _on_read(self, _uc: Uc, offset: int, size: int, page: int) -> int:
        address = page + offset
        if not self._is_there(address, size):
            return 0
        return self._values[address] if self._is_open(address) else 0

    def _on_write(self, _uc: Uc, offset: int, size: int, value: int, page: int) -> None:
        address = page + offset
        if not self._is_there(address, size) or not self._is_open(address):
            return
        rules = [rule for rule in self._model.rules if rule.source == address]
        if not any(isinstance(rule, Strobe) for rule in rules):
            self._values[address] = value
        for rule in rules:
            self._apply(rule, value)
        self._look_at_pin()

    def _apply(self, rule: Mirror | Strobe, value: int) -> None:
        bits, mask = _shifted(value & rule.mask, rule.shift), _shifted(rule.mask, rule.shift)
        old = self._values[rule.target]
        if isinstance(rule, Mirror):
            self._values[rule.target] = old & ~mask | bits
        else:
            self._values[rule.target] = old | bits if rule.is_set else old & ~bits

    def _is_there(self, address: int, size: int) -> bool:
        if size == _WORD and address in self._values:
            return True
        self._on_stray(address)
        return False

    def _is_open(self, address: int) -> bool:
        gates = [gate for gate in self._model.gates if gate.block == address & -_PAGE]
        return all(self._values[gate.enable] & gate.mask == gate.mask for gate in gates)

    def _look_at_pin(self) -> None:
        pin = self._model.pin
        if pin is None:
            return
        is_output = self._values[pin.direction] & pin.mask == pin.output
        is_high = is_output and bool(self._values[pin.out] & pin.bit)
        if is_high != self._is_high:
            self._is_high = is_high
            self._on_level(is_high)

    def _peek(self, emulator: Uc, address: int) -> int:
        """A register of a peripheral or, in plain memory, of the core."""
        if address in self._values:
            return self._values[address]
        return int.from_bytes(emulator.mem_read(address, _WORD), "little")

    def _poke(self, emulator: Uc, address: int, value: int) -> None:
        if address in self._values:
            self._values[address] = value
        else:
            emulator.mem_write(address, value.to_bytes(_WORD, "little"))


def peripherals_of(kind: BoardKind) -> Peripherals:
    """What a board of ``kind`` has of peripherals: what its port needs, or the core's timer alone."""
    return _FAMILIES[kind.port](*kind.trigger) if kind.port else Peripherals()


def _shifted(bits: int, shift: int) -> int:
    return (bits << shift if shift >= 0 else bits >> -shift) & 0xFFFFFFFF


def _block(base: int, registers: Iterable[tuple[int, int]]) -> dict[int, int]:
    return {base + offset: value for offset, value in registers}


def _stm32_gpio(origin: int, port: int, pin: int, mode: int) -> tuple[dict[int, int], list[Strobe], Pin, int]:
    """MODER, ODR and BSRR of one port; ``mode`` is MODER after reset. Last, the address of the block."""
    base = origin + 0x400 * port
    moder, odr, bsrr = base, base + 0x14, base + 0x18
    rules = [
        Strobe(source=bsrr, mask=0x0000FFFF, target=odr),
        Strobe(source=bsrr, mask=0xFFFF0000, target=odr, shift=-16, is_set=False),
    ]
    trigger = Pin(out=odr, bit=1 << pin, direction=moder, mask=3 << 2 * pin, output=1 << 2 * pin)
    return {moder: mode, odr: 0, bsrr: 0}, rules, trigger, base


def _stm32l4(port: int, pin: int) -> Peripherals:
    """STM32L4+; RM0432."""
    gpio, rules, trigger, block = _stm32_gpio(0x48000000, port, pin, 0xFFFFFFFF)
    rcc, pwr, flash = 0x40021000, 0x40007000, 0x40022000
    cr, cfgr, ahb2enr, apb1enr1 = rcc, rcc + 0x08, rcc + 0x4C, rcc + 0x58
    registers = {cr: 0x63, cfgr: 0, rcc + 0x0C: 0x1000, ahb2enr: 0, apb1enr1: 0x400, pwr + 0x80: 0x100, flash: 0x600}
    return Peripherals(
        registers=registers | gpio,
        rules=[
            *rules,
            Mirror(source=cr, mask=1 << 8, target=cr, shift=2),  # HSION → HSIRDY
            Mirror(source=cr, mask=1 << 24, target=cr, shift=1),  # PLLON → PLLRDY
            Mirror(source=cfgr, mask=0b11, target=cfgr, shift=2),  # SW → SWS
        ],
        gates=[
            Gate(block=block, enable=ahb2enr, mask=1 << port),
            Gate(block=pwr, enable=apb1enr1, mask=1 << 28),
        ],
        pin=trigger,
    )


def _stm32f4(port: int, pin: int) -> Peripherals:
    """STM32F446; RM0390."""
    gpio, rules, trigger, block = _stm32_gpio(0x40020000, port, pin, 0)
    rcc, pwr, flash = 0x40023800, 0x40007000, 0x40023C00
    cr, cfgr, ahb1enr, apb1enr = rcc, rcc + 0x08, rcc + 0x30, rcc + 0x40
    registers = {cr: 0x83, cfgr: 0, rcc + 0x04: 0x24003010, ahb1enr: 0x00100000, apb1enr: 0, flash: 0}
    return Peripherals(
        registers=registers | {pwr: 0xC000, pwr + 4: 0x4000} | gpio,
        rules=[
            *rules,
            Mirror(source=cr, mask=1 << 24, target=cr, shift=1),  # PLLON → PLLRDY
            Mirror(source=cfgr, mask=0b11, target=cfgr, shift=2),  # SW → SWS
            Mirror(source=pwr, mask=3 << 16, target=pwr + 4),  # ODEN → ODRDY, ODSWEN → ODSWRDY
        ],
        gates=[
            Gate(block=block, enable=ahb1enr, mask=1 << port),
            Gate(block=pwr, enable=apb1enr, mask=1 << 28),
        ],
        pin=trigger,
    )


def _stm32h7(port: int, pin: int) -> Peripherals:
    """STM32H743 of revision V; RM0433. RCC and PWR lie in neighbouring blocks."""
    gpio, rules, trigger, block = _stm32_gpio(0x58020000, port, pin, 0xFFFFFFFF)
    rcc, pwr, syscfg = 0x58024400, 0x58024800, 0x58000400
    cr, cfgr, ahb4enr, apb4enr = rcc, rcc + 0x10, rcc + 0xE0, rcc + 0xF4
    csr1, cr3, d3cr = pwr + 0x04, pwr + 0x0C, pwr + 0x18
    clocks = [(0x18, 0), (0x1C, 0), (0x20, 0), (0x28, 0x02020200), (0x2C, 0x01FF0000), (0x30, 0x01010280)]
    registers = {cr: 0x05, cfgr: 0, ahb4enr: 0, apb4enr: 0x00010000, csr1: 0x4000, cr3: 0x06, d3cr: 0x4000}
    others = {syscfg + 0x2C: 0, 0x52002000: 0x37, 0x5C001000: 0x20036450}
    return Peripherals(
        registers=registers | _block(rcc, clocks) | others | gpio,
        rules=[
            *rules,
            Mirror(source=cr, mask=1 << 24, target=cr, shift=1),  # PLL1ON → PLL1RDY
            Mirror(source=cfgr, mask=0b111, target=cfgr, shift=3),  # SW → SWS
            Mirror(source=cr3, mask=1 << 1, target=csr1, shift=12),  # the supply is chosen → ACTVOSRDY
            Mirror(source=d3cr, mask=1 << 14, target=d3cr, shift=-1),  # VOS → VOSRDY
        ],
        gates=[
            Gate(block=block, enable=ahb4enr, mask=1 << port),
            Gate(block=syscfg, enable=apb4enr, mask=1 << 1),
        ],
        pin=trigger,
    )


def _stm32u5(port: int, pin: int) -> Peripherals:
    """STM32U575; RM0456."""
    gpio, rules, trigger, block = _stm32_gpio(0x42020000, port, pin, 0xFFFFFFFF)
    rcc, pwr, flash, icache = 0x46020C00, 0x46020800, 0x40022000, 0x40030400
    cr, cfgr1, ahb2enr1, ahb3enr = rcc, rcc + 0x1C, rcc + 0x8C, rcc + 0x94
    cr3, vosr, svmsr = pwr + 0x08, pwr + 0x0C, pwr + 0x3C
    registers = {cr: 0x05, cfgr1: 0, rcc + 0x20: 0, rcc + 0x28: 0, rcc + 0x34: 0x01010280, ahb2enr1: 0xC0000000}
    others = {ahb3enr: 0x80000000, cr3: 0, vosr: 0x8000, svmsr: 0x8000, flash: 1, icache: 4, icache + 4: 0}
    return Peripherals(
        registers=registers | others | gpio,
        rules=[
            *rules,
            Mirror(source=cr, mask=1 << 8, target=cr, shift=2),  # HSION → HSIRDY
            Mirror(source=cr, mask=1 << 24, target=cr, shift=1),  # PLL1ON → PLL1RDY
            Mirror(source=cfgr1, mask=0b11, target=cfgr1, shift=2),  # SW → SWS
            Mirror(source=cr3, mask=1 << 1, target=svmsr),  # REGSEL → REGS
            Mirror(source=vosr, mask=1 << 16, target=vosr, shift=-1),  # VOS → VOSRDY
            Mirror(source=vosr, mask=1 << 18, target=vosr, shift=-4),  # BOOSTEN → BOOSTRDY
        ],
        gates=[
            Gate(block=block, enable=ahb2enr1, mask=1 << port),
            Gate(block=pwr, enable=ahb3enr, mask=1 << 2),
        ],
        pin=trigger,
    )


def _nrf_clock(clock: int) -> tuple[dict[int, int], list[Strobe]]:
    """CLOCK of nRF52 and nRF53: the two oscillators' tasks, events and states."""
    high, low = clock, clock + 0x008
    registers = _block(clock, [(0, 0), (8, 0), (0x100, 0), (0x104, 0), (0x40C, 0), (0x418, 0), (0x518, 0)])
    rules = [
        Strobe(source=high, mask=1, target=clock + 0x100),  # HFCLKSTART → HFCLKSTARTED
        Strobe(source=high, mask=1, target=clock + 0x40C),  # the crystal is the source
        Strobe(source=high, mask=1, target=clock + 0x40C, shift=16),  # and runs
        Strobe(source=low, mask=1, target=clock + 0x104),  # LFCLKSTART → LFCLKSTARTED
        Strobe(source=low, mask=1, target=clock + 0x418, shift=16),
    ]
    return registers, rules


def _nrf_rtc(rtc: int, interrupt: int) -> tuple[dict[int, int], list[Strobe], Alarm]:
    """A real-time counter with one alarm. TASKS_START reads as 1 while it runs, INTENSET as what is enabled."""
    start, enable, compare = rtc, rtc + 0x304, rtc + 0x140
    names = [(0, 0), (4, 0), (8, 0), (0x140, 0), (0x304, 0), (0x308, 0), (0x508, 0), (0x540, 0)]
    rules = [
        Strobe(source=start, mask=1, target=start),
        Strobe(source=rtc + 4, mask=1, target=start, is_set=False),
        Strobe(source=enable, target=enable),
        Strobe(source=rtc + 0x308, target=enable, is_set=False),
    ]
    alarm = Alarm(when=[(start, 1), (enable, 1 << 16), (NVIC_ISER0, 1 << interrupt)], then=[(compare, 1)])
    return _block(rtc, names), rules, alarm


def _nrf_gpio(base: int, out: int, pin: int) -> tuple[dict[int, int], list[Strobe], Pin]:
    """OUT, OUTSET, OUTCLR, DIR and DIRSET; OUT lies ``out`` bytes into the block."""
    first = base + out
    registers = _block(first, [(0x00, 0), (0x04, 0), (0x08, 0), (0x10, 0), (0x14, 0)])
    rules = [
        Strobe(source=first + 0x04, target=first),
        Strobe(source=first + 0x08, target=first, is_set=False),
        Strobe(source=first + 0x14, target=first + 0x10),
    ]
    return registers, rules, Pin(out=first, bit=1 << pin, direction=first + 0x10, mask=1 << pin, output=1 << pin)


_QUARTERS = 94  # 23.5 °C
_TEMP_TRIM = tuple(range(0x300, 0x311))  # 17 words of calibration, any values


def _nrf52(port: int, pin: int) -> Peripherals:
    """nRF52832 and nRF52840 whose debug port is protected by firmware (build code F0); Product Specifications."""
    clock, clock_rules = _nrf_clock(0x40000000)
    rtc, rtc_rules, alarm = _nrf_rtc(0x4000B000, 11)
    gpio, gpio_rules, trigger = _nrf_gpio(0x50000000 + 0x300 * port, 0x504, pin)
    temp = 0x4000C000
    trims = [(at + 4 * i, 0) for at, n in ((0x520, 6), (0x540, 6), (0x560, 5)) for i in range(n)]
    sensor = _block(temp, [(0, 0), (4, 0), (0x100, 0), (0x508, _QUARTERS), *trims])
    factory = _block(0x10000000, [(0x104, 0x41414630), *((0x404 + 4 * i, word) for i, word in enumerate(_TEMP_TRIM))])
    others = {0x40000558: 0, 0x40000578: 0, 0x4001E540: 0, 0x10001208: 0xFFFFFF5A}
    started = [
        Strobe(source=temp, mask=1, target=temp + 0x100),  # START → DATARDY
        Strobe(source=temp + 4, mask=1, target=temp, is_set=False),
    ]
    return Peripherals(
        registers=clock | rtc | gpio | sensor | factory | others,
        rules=[*clock_rules, *rtc_rules, *gpio_rules, *started],
        alarms=(SYSTICK, alarm),
        pin=trigger,
    )


def _nrf53(port: int, pin: int) -> Peripherals:
    """nRF5340, application core, at secure addresses; Product Specification v1.3.1."""
    clock, clock_rules = _nrf_clock(0x50005000)
    rtc, rtc_rules, alarm = _nrf_rtc(0x50014000, 20)
    gpio, gpio_rules, trigger = _nrf_gpio(0x50842500 + 0x300 * port, 0x004, pin)
    protection = {0x50006544: 0, 0x5000654C: 0, 0x00FF8000: 0x50FA50FA, 0x00FF801C: 0x50FA50FA}
    others = {0x50005558: 1, 0x50001500: 0, 0x50004704: 0}  # HFCLKCTRL: half speed; cache and DC/DC regulator: off
    return Peripherals(
        registers=clock | rtc | gpio | protection | others,
        rules=[*clock_rules, *rtc_rules, *gpio_rules],
        alarms=(SYSTICK, alarm),
        pin=trigger,
    )


_FAMILIES: Mapping[str, Callable[[int, int], Peripherals]] = {
    "nrf52": _nrf52,
    "nrf53": _nrf53,
    "stm32f4": _stm32f4,
    "stm32h7": _stm32h7,
    "stm32l4": _stm32l4,
    "stm32u5": _stm32u5,
}
