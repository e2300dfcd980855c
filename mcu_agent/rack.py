"""The inventory: which boards there are, from ``rack.toml``.

.. code-block:: toml

    [[board]]
    id = "bench"            # with count = 2 the boards are bench-1 and bench-2
    kind = "nrf52840-dk"    # an entry of the catalogue
    driver = "virtual"      # an emulated board
    count = 2

    [[board]]
    id = "desk"
    kind = "nucleo-l4r5zi"
    driver = "pyocd"        # behind a debug probe
    probe = "066AFF3031"    # its serial number
    power = {hub = "1-1.4", port = 2}
    meter = {driver = "ppk2", trigger = 0, supply = "1800 mV"}

``docs/rack.md`` lists every field.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcu_agent.errors import InventoryError
from mcu_agent.kinds import load_kind
from mcu_agent.rackfields import MAX_COUNT, hertz, seconds, volts
from mcu_agent.rackfile import Mistake, read_tables, report

_METER_FIELDS = ("driver", "serial", "port", "mode", "trigger", "supply")
_INA226_BUS, _INA226_ADDRESS = 1, 0x40  # where the rack file names none
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerSwitch:
    """How a board's USB port is switched off and on: by ``uhubctl`` (``hub``, as in ``1-1.4``, and ``port``), or by a
    command of the user's own (its arguments, run without a shell)."""

    hub: str = ""
    port: int = 0
    command: tuple[str, ...] = ()
    off_s: float = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class MeterEntry:
    """The power meter of a board. ``serial`` or ``port`` says which one it is, ``trigger`` the logic input that the
    board's trigger pin is wired to, ``mode`` whether it supplies the board (``source``) or only measures (``ampere``).
    """

    driver: str
    serial: str = ""
    port: str = ""
    mode: str = "source"
    trigger: int = 0
    supply_v: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class RackBoard:
    """One board of the inventory. ``emulator`` belongs to virtual boards, ``connection`` (``host:port``) and ``server``
    to those behind a GDB server, ``probe`` (its serial number) to those behind a debug probe."""

    board_id: str
    kind: str
    driver: str
    emulator: str = "unicorn"
    probe: str = ""
    connection: str = ""
    server: str = ""
    connect: str = "under-reset"
    frequency_hz: int = 4_000_000
    uart: str = ""
    power: PowerSwitch | None = None
    meter: MeterEntry | None = None
    tags: tuple[str, ...] = ()

    @property
    def rig(self) -> str:
        """What is locked: two boards behind one probe or one server cannot be used at once."""
        return self.probe or self.connection or self.board_id


@dataclass(frozen=True, kw_only=True, slots=True)
class Hub:
    """A USB hub that boards hang on, so that its outage is told from many bad boards."""

    hub_id: str
    location: str


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentSettings:
    """How the agent of this host runs. ``name`` is empty for the host's own, ``metrics_port`` 0 for any free one."""

    name: str = ""
    metrics_port: int = 0
    metrics_address: str = "127.0.0.1"
    self_test_every_s: float = 6 * 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Rack:
    """All boards of a host. ``leases_url`` is the Redis through which hosts that share probes exclude each other, empty
    where none do; ``artifact_stores`` are the places that images may come from, empty where any may."""

    boards: tuple[RackBoard, ...]
    hubs: tuple[Hub, ...] = ()
    agent: AgentSettings = field(default_factory=AgentSettings)
    leases_url: str = field(default="", repr=False)  # may hold a password
    artifact_stores: tuple[str, ...] = ()

    def of_kind(self, kind: str) -> tuple[RackBoard, ...]:
        """The boards of one kind, in the order of the file."""
        return tuple(board for board in self.boards if board.kind == kind)

    def board_kinds(self) -> tuple[str, ...]:
        """The kinds there are boards of, in alphabetical order."""
        return tuple(sorted({board.kind for board in self.boards}))

    def board(self, board_id: str) -> RackBoard:
        """The board of that name.

        Raises:
            InventoryError: the rack has none.
        """
        for board in self.boards:
            if board.board_id == board_id:
                return board
        known = ", ".join(board.board_id for board in self.boards)
        raise InventoryError(f"no board is called {board_id!r}; there are {known}")

    def hub_of(self, board: RackBoard) -> Hub | None:
        """The hub that the board's power switch is on; None where the file does not say."""
        location = board.power.hub if board.power else ""
        return next((hub for hub in self.hubs if hub.location == location), None)

    def on_hub(self, hub: Hub) -> tuple[RackBoard, ...]:
        """The boards on a hub, in the order of the file."""
        return tuple(board for board in self.boards if self.hub_of(board) == hub)


def virtual_rack(kind: str, count: int) -> Rack:
    """A rack of ``count`` virtual boards of one kind, for hosts without a rack file.

    Raises:
        UnknownKind: the catalogue has no such kind.
        InventoryError: ``count`` is out of range.
    """
    load_kind(kind)
    if not 1 <= count <= MAX_COUNT:
        raise InventoryError(f"{count} virtual boards: allowed are 1 to {MAX_COUNT}")
    name = f"virtual-{kind}"
    return Rack(boards=tuple(RackBoard(board_id=one, kind=kind, driver="virtual") for one in _names(name, count)))


def load_rack(path: Path) -> Rack:
    """The rack described by a TOML file.

    Raises:
        InventoryError: the file is missing or wrong; the text lists every mistake with its line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InventoryError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return parse_rack(text, str(path))


def parse_rack(text: str, file: str) -> Rack:
    """The rack described by ``text``; ``file`` is its name in messages.

    Raises:
        InventoryError: as :func:`load_rack`.
    """
    data = read_tables(text, file)
    hubs = tuple(Hub(hub_id=table["id"], location=table["location"]) for table in data.get("hub", []))
    places = {hub.hub_id: hub.location for hub in hubs}
    boards = [(index, board) for index, table in enumerate(data["board"]) for board in _boards(table, places)]
    report(
        [*_doubled_hubs(hubs), *_unknown_hubs(data["board"], places), *_shared(boards), *_unnamed_meters(boards)],
        text,
        file,
    )
    return Rack(
        boards=tuple(board for _, board in boards),
        hubs=hubs,
        agent=_agent(data.get("agent", {})),
        leases_url=data.get("leases", {}).get("url", ""),
        artifact_stores=tuple(data.get("trust", {}).get("artifacts", ())),
    )


def _names(board_id: str, count: int) -> Iterator[str]:
    yield from [board_id] if count == 1 else (f"{board_id}-{number}" for number in range(1, count + 1))


def _boards(table: Mapping[str, Any], hubs: Mapping[str, str]) -> Iterator[RackBoard]:
    plain = {name: table[name] for name in _PLAIN if name in table}
    if "frequency" in table:
        plain["frequency_hz"] = round(hertz(table["frequency"]) or 0)
    for name in _names(table["id"], table.get("count", 1)):
        yield RackBoard(
            board_id=name,
            power=_power(table["power"], hubs) if "power" in table else None,
            meter=_meter(table["meter"]) if "meter" in table else None,
            tags=tuple(table.get("tags", ())),
            **plain,
        )


_PLAIN = ("kind", "driver", "emulator", "probe", "connection", "server", "connect", "uart")


def _power(table: Mapping[str, Any], hubs: Mapping[str, str]) -> PowerSwitch:
    hub = table.get("hub", "")
    return PowerSwitch(
        hub=hubs.get(hub, hub),
        port=table.get("port", 0),
        command=tuple(table.get("command", ())),
        off_s=seconds(table.get("off", PowerSwitch().off_s)) or 0.0,
    )


def _meter(table: Mapping[str, Any]) -> MeterEntry:
    given = {name: table[name] for name in _METER_FIELDS[:-1] if name in table}
    options = {name: value for name, value in table.items() if name not in _METER_FIELDS}
    return MeterEntry(supply_v=volts(table["supply"]) if "supply" in table else None, options=options, **given)


def _agent(table: Mapping[str, Any]) -> AgentSettings:
    given = {name: value for name, value in table.items() if name != "self_test_every"}
    if "self_test_every" in table:
        given["self_test_every_s"] = seconds(table["self_test_every"])
    return AgentSettings(**given)


def _doubled_hubs(hubs: Sequence[Hub]) -> Iterator[Mistake]:
    for name in ("hub_id", "location"):
        seen: dict[str, str] = {}
        for index, hub in enumerate(hubs):
            value = getattr(hub, name)
            if value in seen:
                path = (name.removeprefix("hub_"),)
                text = f"{value!r} is hub {seen[value]} already; give every hub its own"
                yield Mistake(table="hub", index=index, path=path, text=text)
            seen[value] = hub.hub_id


def _unknown_hubs(tables: Sequence[Mapping[str, Any]], hubs: Mapping[str, str]) -> Iterator[Mistake]:
    for index, table in enumerate(tables):
        hub = table.get("power", {}).get("hub", "")
        if hub and hub not in hubs and not hub[0].isdigit():
            known = ", ".join(hubs) or "none"
            text = (
                f"found {hub!r}; allowed: a location as uhubctl shows it, like '1-1.4', or the id of a [[hub]]: {known}"
            )
            yield Mistake(table="board", index=index, path=("power", "hub"), text=text)


def _shared(boards: Sequence[tuple[int, RackBoard]]) -> Iterator[Mistake]:
    """What two boards claim that only one can have."""
    owners: defaultdict[tuple[str, object], list[str]] = defaultdict(list)
    for index, board in boards:
        for path, what, key in _claims(board):
            others = owners[what, key]
            if others and board.board_id not in others:
                text = f"{what} {_text(key)} is that of board {others[0]} already; give every board its own"
                yield Mistake(table="board", index=index, path=path, text=text)
            elif others and what == "name":
                text = f"two boards are called {board.board_id}; give every board its own id"
                yield Mistake(table="board", index=index, path=path, text=text)
            others.append(board.board_id)


def _unnamed_meters(boards: Sequence[tuple[int, RackBoard]]) -> Iterator[Mistake]:
    """Meters without a name beside others of the driver that have one: which of them is meant, nobody can say."""
    for index, board in boards:
        if board.meter is None or board.meter.driver in ("model", "ina226") or _meter_name(board.meter):
            continue
        driver = board.meter.driver
        named = [
            one.board_id for _, one in boards if one.meter and one.meter.driver == driver and _meter_name(one.meter)
        ]
        if named:
            text = f"which {driver} it is must be said, because board {named[0]} has one, too; give it a serial"
            yield Mistake(table="board", index=index, path=("meter",), text=text)


def _meter_name(meter: MeterEntry) -> str:
    return meter.serial or meter.port


def _text(key: object) -> str:
    return " ".join(str(part) for part in key if part != "") if isinstance(key, tuple) else str(key)


def _claims(board: RackBoard) -> Iterator[tuple[tuple[str, ...], str, object]]:
    """(field, what it is, which one). A meter that is not named is the one that is plugged in; several sensors may
    hang on one I²C bus."""
    yield ("id",), "name", board.board_id
    if board.probe:
        yield ("probe",), "probe", board.probe
    if board.connection:
        yield ("connection",), "connection", _same_connection(board.connection)
    if board.uart:
        yield ("uart",), "serial port", board.uart
    if board.power:
        switch = board.power
        yield ("power",), "power switch", switch.command or (switch.hub, "port", switch.port)
    if board.meter and board.meter.driver != "model":
        meter = board.meter
        place = (
            (meter.options.get("bus", _INA226_BUS), meter.options.get("address", _INA226_ADDRESS))
            if meter.driver == "ina226"
            else ()
        )
        yield ("meter",), "meter", (meter.driver, _meter_name(meter), *place)


def _same_connection(connection: str) -> str:
    """One spelling for all names of this host."""
    if connection.startswith("unix:"):
        return connection
    host, port = connection.lower().rsplit(":", 1)
    return f"{'localhost' if host in _LOCAL_HOSTS else host}:{int(port)}"
