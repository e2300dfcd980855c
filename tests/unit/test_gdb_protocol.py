"""Packets of the GDB remote protocol, and what follows from a server that misbehaves."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcu_agent.boards.gdb import GdbBoard
from mcu_agent.boards.gdb_protocol import (
    FlashRegion,
    Packet,
    crc,
    escape,
    expand,
    frame,
    parse_features,
    parse_memory_map,
    parse_registers,
    parse_stop,
    take,
)
from mcu_agent.boards.gdb_remote import erase_ranges
from mcu_agent.errors import (
    AgentError,
    BoardLost,
    FirmwareFault,
    FirmwareHang,
    InventoryError,
    MemoryRefused,
    ProgrammingFailed,
    TransferCorrupt,
    VerifyFailed,
)
from mcu_agent.health import Fault, fault_of
from mcu_agent.image import Image, Segment, read_image
from mcu_agent.kinds import load_kind
from tests.support import boards, gdb_servers
from tests.support.gdb_servers import ScriptedServer

KIND = load_kind("nrf52-dk")
_MAP = (
    '<?xml version="1.0"?><!DOCTYPE memory-map PUBLIC "+//IDN gnu.org//DTD GDB Memory Map V1.0//EN" "http://x/y.dtd">'
    '<memory-map><memory type="flash" start="0x0" length="0x80000"><property name="blocksize">0x1000</property>'
    "</memory>"
    '<memory type="ram" start="0x20000000" length="0x10000"/></memory-map>'
)


@pytest.fixture
def image() -> Image:
    return read_image(boards.firmware(), KIND)


@given(st.binary(max_size=200))
def test_whatever_is_framed_comes_out_again(data: bytes) -> None:
    item, rest = take(frame(escape(data)) + b"+")
    assert item == Packet(payload=data, is_intact=True)
    assert rest == b"+"


def test_packets_in_parts_wait_for_the_rest() -> None:
    whole = frame(b"OK")
    for end in range(1, len(whole)):
        assert take(whole[:end]) == (None, whole[:end])


def test_a_wrong_checksum_is_seen() -> None:
    item, _ = take(b"$OK#00")
    assert isinstance(item, Packet)
    assert not item.is_intact


def test_notifications_and_noise_are_left_out() -> None:
    assert take(b"\r\n%Stop:T05#00$OK#9a")[0] == Packet(payload=b"OK", is_intact=True)


def test_run_lengths_are_written_out() -> None:
    assert expand(b"0* ") == b"0000"  # the example of GDB's manual: a space stands for three more


def test_the_checksum_of_memory_is_gdbs() -> None:
    assert crc(b"123456789") == 0x0376E6E7  # CRC-32/MPEG-2, catalogue of parametrised CRC algorithms


def test_what_a_server_can_do_is_read() -> None:
    found = parse_features(b"PacketSize=4000;QStartNoAckMode+;qXfer:memory-map:read-;vContSupported+")
    assert found["PacketSize"] == "4000"
    assert (found["QStartNoAckMode"], found["qXfer:memory-map:read"]) == ("+", "-")


def test_flash_is_read_from_a_memory_map() -> None:
    assert parse_memory_map(_MAP) == [FlashRegion(start=0, size=0x80000, block=0x1000)]


def test_registers_without_a_number_follow_the_one_before() -> None:
    text = '<target><reg name="r0" bitsize="32"/><reg name="r1" bitsize="32"/><reg name="xPSR" regnum="25"/></target>'
    assert parse_registers(text) == {"r0": 0, "r1": 1, "xpsr": 25}


@pytest.mark.parametrize("reader", [parse_memory_map, parse_registers])
def test_documents_that_are_none_are_refused(reader: Any) -> None:
    with pytest.raises(ValueError, match="no "):
        reader("<memory-map>")


def test_stop_replies_are_told_from_others() -> None:
    assert parse_stop(b"T05thread:1;") is not None
    assert parse_stop(b"OK") is None
    ended = parse_stop(b"W00")
    assert ended is not None
    assert ended.has_ended


def test_every_block_of_flash_is_erased_once() -> None:
    flash = [FlashRegion(start=0, size=0x4000, block=0x1000), FlashRegion(start=0x10000, size=0x1000, block=0x400)]
    segments = [
        Segment(address=0x0800, data=bytes(0x900)),
        Segment(address=0x1F00, data=bytes(0x10)),
        Segment(address=0x10010, data=bytes(4)),
        Segment(address=0x20000000, data=bytes(4)),
    ]
    assert erase_ranges(flash, segments) == [(0, 0x2000), (0x10000, 0x400)]


def _load(server: ScriptedServer, image: Image, name: str = "openocd") -> GdbBoard:
    board = GdbBoard("b1", KIND, server.address, server=name, reply_timeout_s=0.3)
    board.load(image)
    return board


def test_the_image_is_written_where_the_server_has_no_flash(image: Image) -> None:
    with ScriptedServer() as server:
        board = _load(server, image)
        assert bytes(server.memory[at] for at in range(8)) == image.segments[0].data[:8]
        assert b"qRcmd," + b"reset halt".hex().encode() in server.asked
        board.close()


def test_flash_that_holds_the_image_is_left_alone(image: Image) -> None:
    with ScriptedServer() as server:
        board = _load(server, image)
        asked = len(server.asked)
        board.load(image)
        assert board.loads_skipped == 1
        assert not any(command.startswith(b"M") for command in server.asked[asked:])
        board.close()


def test_flash_is_erased_programmed_and_ended(image: Image) -> None:
    asked: list[bytes] = []
    answers = _flash_answers() | {b"qCRC:": _then_right(image, asked)}
    with ScriptedServer(answers) as server:
        _load(server, image).close()
        commands = [command.split(b":")[0] for command in server.asked if command.startswith(b"vFlash")]
    assert commands[0] == b"vFlashErase"
    assert commands[-1] == b"vFlashDone"
    assert set(commands[1:-1]) == {b"vFlashWrite"}


def _flash_answers() -> dict[bytes, Any]:
    return {
        b"qSupported": b"PacketSize=400;qXfer:memory-map:read+",
        b"qXfer:memory-map:read::0,": b"l" + _MAP.encode(),
        b"vFlash": b"OK",
    }


def _then_right(image: Image, asked: list[bytes]) -> Any:
    """Checksums that are those of the image, in the order in which its segments are asked for."""

    def answer() -> bytes:
        asked.append(b"")
        return b"C%08x" % crc(image.segments[(len(asked) - 1) % len(image.segments)].data)

    return answer


def test_a_failed_verify_names_address_and_bytes(image: Image) -> None:
    with ScriptedServer({b"M0,": b"OK"}) as server, pytest.raises(VerifyFailed, match="0x00000000: ffffffff") as caught:
        _load(server, image)
    assert caught.value.is_transient
    assert caught.value.address == 0


@pytest.mark.parametrize("command", [b"vFlashErase", b"vFlashWrite", b"vFlashDone"])
def test_flash_that_does_not_take_it_is_the_rigs_fault(image: Image, command: bytes) -> None:
    with ScriptedServer(_flash_answers() | {command: b"E01"}) as server, pytest.raises(ProgrammingFailed, match="E01"):
        _load(server, image)


@pytest.mark.parametrize(
    ("answers", "error", "message"),
    [
        ({b"qRcmd,": None}, BoardLost, "closed the connection"),
        ({b"qRcmd,": b"E01"}, BoardLost, "fails at its command 'reset halt'"),
        ({b"m": bytearray(b"+$dead")}, BoardLost, "has not answered"),
        ({b"m": bytearray(b"+$00#ff"), b"QStart": b""}, TransferCorrupt, "wrong checksum"),
        ({b"m": bytearray(b"+$00#ff")}, TransferCorrupt, "wrong checksum"),
        ({b"?": bytearray(b"-")}, TransferCorrupt, "received '\\?' damaged 3 times"),
        ({b"m": b"E01"}, MemoryRefused, r"bytes at 0x\w+ cannot be read \('E01'\); check the wires"),
        ({b"M": b"E01"}, MemoryRefused, r"refuses \d+ bytes for 0x\w+ \('E01'\); check the wires"),
        ({b"P": b"E01"}, BoardLost, "cannot set register sp"),
        ({b"p19": b"E01"}, BoardLost, "cannot read register xpsr"),
    ],
    ids=[
        "closes",
        "refuses",
        "mid-packet",
        "checksum",
        "checksum-no-ack",
        "nak",
        "read",
        "write",
        "set-register",
        "register",
    ],
)
def test_a_server_that_misbehaves_is_the_rigs_fault(
    image: Image, answers: dict[bytes, Any], error: type[AgentError], message: str
) -> None:
    if b"?" in answers:
        answers = {b"qSupported": b"PacketSize=400", **answers}
    with ScriptedServer(answers) as server, pytest.raises(error, match=message) as caught:
        _load(server, image)
    assert caught.value.is_transient
    assert fault_of(caught.value) is Fault.RIG


def test_nobody_listening_is_a_lost_board(image: Image) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    board = GdbBoard("b1", KIND, f"127.0.0.1:{port}", server="openocd")
    with pytest.raises(BoardLost, match=f"no GDB server at 127.0.0.1:{port} .*refused.*start it"):
        board.load(image)


@pytest.mark.parametrize("connection", ["", "localhost", "localhost:", ":3333", "localhost:0", "h:99999", "unix:"])
def test_connections_that_are_none_are_refused(connection: str) -> None:
    with pytest.raises(InventoryError, match="allowed: host:port"):
        GdbBoard("b1", KIND, connection)


def test_unknown_servers_are_refused() -> None:
    with pytest.raises(InventoryError, match="server is 'gdb'; allowed: pyocd, openocd, jlink, qemu"):
        GdbBoard("b1", KIND, "localhost:1", server="gdb")


def test_nothing_is_sent_while_the_core_runs_and_a_hang_ends(image: Image) -> None:
    with ScriptedServer({b"c": bytearray(b"+"), b"\x03": b"T02"}) as server:
        board = _load(server, image)
        with pytest.raises(FirmwareHang) as caught:
            board.run_until([image.address("edgefront_ready")], 0.05, 0.05)
        assert caught.value.is_transient
        after = server.asked[server.asked.index(b"c") :]
        assert after[:2] == [b"c", b"\x03"]
        board.close()


def test_a_core_that_cannot_be_halted_is_a_lost_board(image: Image) -> None:
    with ScriptedServer({b"c": bytearray(b"+"), b"\x03": bytearray(b"")}) as server:
        board = _load(server, image)
        with pytest.raises(BoardLost, match="cannot be halted"):
            board.run_until([image.address("edgefront_ready")], 0.05)
        board.close()


def test_a_stop_nobody_asked_for_is_a_fault_of_the_firmware(image: Image) -> None:
    with ScriptedServer({b"c": b"T05"}) as server:
        board = _load(server, image)
        with pytest.raises(FirmwareFault, match="halted by itself"):
            board.run_until([image.address("edgefront_ready")], 1.0)
        board.close()


def test_software_breakpoints_serve_where_there_are_no_others(image: Image) -> None:
    with ScriptedServer({b"Z1": b"", b"c": b"T05"}) as server:
        board = _load(server, image)
        with pytest.raises(FirmwareFault):
            board.run_until([image.address("edgefront_ready")], 1.0)
        board.close()
        assert [command[:2] for command in server.asked if command[:1] == b"z"] == [b"z0", b"z0"]


def test_no_breakpoint_at_all_is_a_lost_board(image: Image) -> None:
    with ScriptedServer({b"Z": b"E01"}) as server:
        board = _load(server, image)
        with pytest.raises(BoardLost, match="sets no breakpoint at"):
            board.run_until([image.address("edgefront_ready")], 1.0)
        board.close()


def test_a_server_that_does_not_say_what_it_is_must_be_named(image: Image) -> None:
    with ScriptedServer() as server, pytest.raises(InventoryError, match="set server to one of pyocd, openocd"):
        _load(server, image, name="")


@pytest.mark.parametrize("server", ["", "jlink", "openocd"])
def test_qemu_must_be_called_so_that_nothing_is_taken_for_measured(image: Image, server: str) -> None:
    gdb_servers.require_qemu()
    with gdb_servers.qemu_server() as address, pytest.raises(InventoryError, match='write server = "qemu"'):
        GdbBoard("b1", KIND, address, server=server).load(image)


def test_a_unix_socket_will_do(image: Image, tmp_path: Path) -> None:
    gdb_servers.require_qemu()
    with gdb_servers.qemu_server(path=tmp_path / "gdb") as address:
        board = GdbBoard("b1", KIND, address, server="qemu")
        board.load(image)
        assert board.read(0, 8) == image.segments[0].data[:8]
        board.close()


def test_a_unix_socket_that_is_not_there_is_a_lost_board(image: Image, tmp_path: Path) -> None:
    board = GdbBoard("b1", KIND, f"unix:{tmp_path / 'none'}", server="qemu")
    with pytest.raises(BoardLost, match="No such file"):
        board.load(image)
