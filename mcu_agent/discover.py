"""What is plugged into this host, and a rack file to start from."""

from __future__ import annotations

import importlib
import json
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcu_agent.errors import InventoryError
from mcu_agent.kinds import kinds
from mcu_agent.meters.registry import FoundMeter, found_meters
from mcu_agent.meters.serialport import serial_module

# Where GDB servers listen unless told otherwise; 3333 is both OpenOCD's and pyOCD's.
_GDB_PORTS = {3333: "", 2331: "jlink", 1234: "qemu"}
_BY_ID = Path("/dev/serial/by-id")


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundProbe:
    """A debug probe. ``board`` is the name of the board it sits on, where the probe knows it."""

    serial: str
    description: str
    board: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundPort:
    """A serial port. ``serial`` is the serial number of what it belongs to, a probe's where that has one."""

    device: str
    serial: str
    description: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundServer:
    """A GDB server that listens on this host; ``server`` is the one that usually does at that port."""

    connection: str
    server: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Everything that is plugged in."""

    probes: Sequence[FoundProbe] = ()
    ports: Sequence[FoundPort] = ()
    meters: Sequence[FoundMeter] = ()
    servers: Sequence[FoundServer] = ()

    def rows(self) -> list[dict[str, str]]:
        """For lists: what it is, which one, and what else is known."""
        rows = [("probe", one.serial, f"{one.description} {one.board}".strip()) for one in self.probes]
        rows += [("serial port", one.device, one.description) for one in self.ports]
        rows += [("meter", one.serial or one.port, one.description) for one in self.meters]
        rows += [("GDB server", one.connection, one.server) for one in self.servers]
        return [dict(zip(("what", "which", "about"), row, strict=True)) for row in rows]


def discover(
    *,
    probes: Callable[[], Sequence[FoundProbe]] | None = None,
    ports: Callable[[], Sequence[FoundPort]] | None = None,
    meters: Callable[[], Sequence[FoundMeter]] = found_meters,
    servers: Callable[[], Sequence[FoundServer]] | None = None,
) -> Found:
    """What is plugged in. Libraries that are not installed find nothing; the arguments say how to look, for tests."""
    seen = list(meters())
    taken = {one.serial for one in seen if one.serial} | {one.port for one in seen if one.port}
    return Found(
        probes=(probes or connected_probes)(),
        ports=[one for one in (ports or serial_ports)() if one.serial not in taken and one.device not in taken],
        meters=seen,
        servers=(servers or gdb_servers)(),
    )


def connected_probes() -> list[FoundProbe]:
    """The debug probes that pyOCD sees; none without pyOCD."""
    try:
        adapter = importlib.import_module("mcu_agent.boards.pyocd")  # the one module that needs the library
    except ImportError:
        return []
    try:
        return [_probe(one) for one in adapter.connected_probes()]
    except (OSError, RuntimeError):  # no USB on this host, or no right to use it
        return []


def _probe(probe: Any) -> FoundProbe:
    try:
        info = probe.associated_board_info  # asks the probe, which somebody may be using
    except (OSError, RuntimeError):
        info = None
    return FoundProbe(
        serial=str(probe.unique_id), description=str(probe.description), board=str(info.name) if info else ""
    )


def serial_ports() -> list[FoundPort]:
    """The serial ports of USB devices; none without pyserial. Named by identity, where the system does, because the
    plain names change with the order of plugging in."""
    try:
        listed = serial_module().tools.list_ports.comports()
    except InventoryError:
        return []
    names = {link.resolve(): link for link in sorted(_BY_ID.iterdir())} if _BY_ID.is_dir() else {}
    return [
        FoundPort(
            device=str(names.get(Path(one.device).resolve(), one.device)),
            serial=one.serial_number or "",
            description=one.description or "",
        )
        for one in sorted(listed, key=lambda one: str(one.device))
        if one.vid is not None
    ]


def gdb_servers() -> list[FoundServer]:
    """The GDB servers on this host's usual ports. They are not connected to, which might halt a core."""
    return [
        FoundServer(connection=f"localhost:{port}", server=server)
        for port, server in _GDB_PORTS.items()
        if _is_listened_to(port)
    ]


def _is_listened_to(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # so that only a listener is in the way
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False


def guess_kind(board: str) -> str:
    """The kind of the catalogue that a board's name, as its probe knows it, stands for; empty where none does. Variants
    of a board differ in a letter or two at the end of the name."""
    name = board.lower().replace("_", "-").replace(" ", "-")
    fitting = [kind for kind in kinds() if name and (name.startswith(kind) or kind.startswith(name))]
    return max(fitting, key=len, default="")


def rack_text(found: Found) -> str:
    """A rack file of what was found, which :func:`mcu_agent.rack.load_rack` accepts: what is not known is commented
    out, and without a board that is known there is a virtual one."""
    blocks = list(_board_blocks(found))
    if not any("\n[[board]]" in block for block in blocks):
        blocks.append(_virtual_block())
    blocks += [f"# A meter: {_meter_line(one)}" for one in found.meters]
    blocks += list(_server_blocks(found))
    return "\n\n".join([_HEAD, *blocks]) + "\n"


_HEAD = """# The boards of this host, as `edgefront rack discover` found them. Check every entry, complete what is
# commented out, then run `edgefront rack check --rack FILE`. All fields: docs/rack.md"""


def _board_blocks(found: Found) -> Iterator[str]:
    names, serials = dict[str, int](), set[str]()
    for probe in found.probes:
        kind = guess_kind(probe.board)
        base = kind or "board"
        names[base] = names.get(base, 0) + 1
        name = base if names[base] == 1 else f"{base}-{names[base]}"
        lines = ["[[board]]", f"id = {_text(name)}", f"kind = {_text(kind or '?')}", 'driver = "pyocd"']
        lines.append(f"probe = {_text(probe.serial)}")
        uarts = [port.device for port in found.ports if port.serial == probe.serial and port.device.isprintable()]
        lines += [f"uart = {_text(device)}" for device in uarts[:1]]
        lines.append('# power = {hub = "1-1", port = 1}    # as uhubctl lists them')
        about = f"# {_plain(probe.description)} {_plain(probe.board)}".rstrip()
        if probe.serial in serials:
            about += "\n# Another probe has the same serial number, so this one cannot be addressed."
        is_addressable = bool(probe.serial.strip()) and probe.serial.isprintable() and probe.serial not in serials
        is_known = bool(kind) and is_addressable
        serials.add(probe.serial)
        if not kind:
            about += f"\n# Its kind is not known; one of {', '.join(kinds())}."
        yield "\n".join([about, *(lines if is_known else [f"# {line.removeprefix('# ')}" for line in lines])])


def _virtual_block() -> str:
    kind = next(iter(kinds()))
    lines = ["# No board was found that is known; this one is emulated.", "[[board]]", 'id = "virtual"']
    return "\n".join([*lines, f"kind = {_text(kind)}", 'driver = "virtual"'])


def _meter_line(meter: FoundMeter) -> str:
    which = f"serial = {_text(meter.serial)}" if meter.serial else f"port = {_text(meter.port)}"
    line = f"meter = {{driver = {_text(meter.driver)}, {which}}}"
    return f"{_plain(meter.description)}. Add it to the board it is wired to:\n# {line}"


def _server_blocks(found: Found) -> Iterator[str]:
    for server in found.servers:
        lines = [
            "# A GDB server. Which board is behind it is not known:",
            "# [[board]]",
            '# id = "served"',
            '# kind = "?"',
        ]
        lines += ['# driver = "gdb"', f"# connection = {_text(server.connection)}"]
        yield "\n".join(lines + ([f"# server = {_text(server.server)}"] if server.server else []))


def _text(value: str) -> str:
    """A TOML string; what JSON calls one is one, for printable text."""
    return json.dumps(_plain(value), ensure_ascii=False)


def _plain(value: str) -> str:
    """What a device says of itself, on one line whatever it says: it must not write lines of its own into the file."""
    return "".join(letter if letter.isprintable() else "?" for letter in value)
