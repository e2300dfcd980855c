"""The rack file: what it describes, and what it says about mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcu_agent.boards.virtual import VirtualBoard
from mcu_agent.drivers import make_board
from mcu_agent.errors import InventoryError, UnknownKind
from mcu_agent.rack import (
    AgentSettings,
    Hub,
    MeterEntry,
    PowerSwitch,
    RackBoard,
    load_rack,
    parse_rack,
    virtual_rack,
)

GOOD = """
# two boards of one kind, one of another
[[board]]
id = "bench"
kind = "nrf52840-dk"
driver = "virtual"
count = 2

[[board]]
id = "fast"
kind = "nucleo-h743zi"
driver = "virtual"
"""


def test_a_rack_file_lists_every_board(tmp_path: Path) -> None:
    path = tmp_path / "rack.toml"
    path.write_text(GOOD)
    rack = load_rack(path)
    assert [board.board_id for board in rack.boards] == ["bench-1", "bench-2", "fast"]
    assert [board.board_id for board in rack.of_kind("nrf52840-dk")] == ["bench-1", "bench-2"]
    assert rack.board_kinds() == ("nrf52840-dk", "nucleo-h743zi")


def test_a_board_is_made_with_its_driver() -> None:
    board = make_board(RackBoard(board_id="b", kind="nrf52-dk", driver="virtual"))
    assert isinstance(board, VirtualBoard)
    assert (board.board_id, board.kind.name) == ("b", "nrf52-dk")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"nucleo-h743zi"', '"nucleo-x"', r"rack.toml:11: board 2: kind: found 'nucleo-x'.*; allowed: nrf52-dk, "),
        ("count = 2", "count = 0", r"rack.toml:7: board 1: count: found 0; allowed: a whole number from 1 to 1000"),
        ("count = 2", "count = true", r"rack.toml:7: board 1: count: found True"),
        ("count = 2", "amount = 2", r"rack.toml:7: board 1: amount: unknown field.*; allowed: id, kind, driver, count"),
        ('driver = "virtual"\n', 'driver = "usb"\n', r"rack.toml:6: board 1: driver: found 'usb'; allowed: virtual"),
        ('id = "fast"', 'id = "a b"', r"rack.toml:10: board 2: id: found 'a b'; allowed: letters"),
        ('id = "fast"\n', "", r"rack.toml:9: board 2: id: missing; a board with driver virtual needs id, kind, driver"),
        ('id = "fast"', 'id = "bench-1"', r"rack.toml:10: board 2: id: two boards are called bench-1"),
        (
            "[[board]]",
            "[[boards]]",
            r"rack.toml:3: unknown entry boards \(did you mean 'board'\?\); allowed: \[\[board\]\]",
        ),
        ("count = 2", "count = = 2", r"rack.toml: not valid TOML"),
    ],
)
def test_a_mistake_is_told_with_line_field_and_allowed_values(old: str, new: str, message: str) -> None:
    with pytest.raises(InventoryError, match=message):
        parse_rack(GOOD.replace(old, new), "rack.toml")


FULL = """
[agent]
name = "pi-1"
metrics_port = 9101
self_test_every = "2h"

[leases]
url = "redis://:sesame@lab:6379/1"

[trust]
artifacts = ["/srv/edgefront", "s3://lab/edgefront"]

[[hub]]
id = "left"
location = "1-1"

[[board]]
id = "desk"
kind = "nucleo-l4r5zi"
driver = "pyocd"
probe = "066AFF3031"
frequency = "2 MHz"
connect = "attach"
uart = "/dev/serial/by-id/usb-desk"
tags = ["fast"]
meter = {driver = "ppk2", serial = "D0", mode = "ampere", trigger = 3, supply = "1800 mV", known_load_ohms = 330}
[board.power]
hub = "left"
port = 2
off = "5 s"

[[board]]
id = "served"
kind = "nrf52-dk"
driver = "gdb"
connection = "localhost:3333"
server = "openocd"
power = {command = ["relay", "7"]}
"""


def test_a_real_board_has_a_probe_a_switch_and_a_meter() -> None:
    rack = parse_rack(FULL, "rack.toml")
    assert rack.boards[0] == RackBoard(
        board_id="desk",
        kind="nucleo-l4r5zi",
        driver="pyocd",
        probe="066AFF3031",
        frequency_hz=2_000_000,
        connect="attach",
        uart="/dev/serial/by-id/usb-desk",
        tags=("fast",),
        power=PowerSwitch(hub="1-1", port=2, off_s=5.0),
        meter=MeterEntry(
            driver="ppk2", serial="D0", mode="ampere", trigger=3, supply_v=1.8, options={"known_load_ohms": 330}
        ),
    )
    assert rack.boards[1].power == PowerSwitch(command=("relay", "7"))
    assert [board.rig for board in rack.boards] == ["066AFF3031", "localhost:3333"]


def test_what_concerns_the_whole_host_stands_in_tables_of_its_own() -> None:
    rack = parse_rack(FULL, "rack.toml")
    assert rack.agent == AgentSettings(name="pi-1", metrics_port=9101, self_test_every_s=7200.0)
    assert rack.artifact_stores == ("/srv/edgefront", "s3://lab/edgefront")
    assert rack.leases_url == "redis://:sesame@lab:6379/1"
    assert "sesame" not in repr(rack)
    assert rack.hub_of(rack.boards[0]) == Hub(hub_id="left", location="1-1")
    assert rack.hub_of(rack.boards[1]) is None
    assert rack.on_hub(rack.hubs[0]) == rack.boards[:1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"pyocd"',
            '"pyocdd"',
            r":20: board 1: driver: found 'pyocdd' \(did you mean 'pyocd'\?\); allowed: virtual, gdb",
        ),
        (
            'probe = "066AFF3031"\n',
            "",
            r":17: board 1: probe: missing; a board with driver pyocd needs id, kind, driver",
        ),
        ("probe =", "prob =", r":21: board 1: prob: unknown field \(did you mean 'probe'\?\); allowed: id, kind"),
        ("port = 2", "port = 0", r":29: board 1: power.port: found 0; allowed: a whole number from 1 to 64"),
        ('off = "5 s"', 'off = "5 m"', r":30: board 1: power.off: found '5 m'; allowed: 0.1 s to 60 s"),
        ("port = 2\n", "", r":27: board 1: power: found hub, off; allowed: hub and port, or command"),
        (
            'hub = "left"',
            'hub = "lef"',
            r":28: board 1: power.hub: found 'lef'; allowed: a location .* \[\[hub\]\]: left",
        ),
        (
            "trigger = 3",
            "trigger = 8",
            r":26: board 1: meter.trigger: found 8; allowed for meter ppk2: 0, 1, 2, 3, 4, 5, 6, 7",
        ),
        ('"1800 mV"', '"9 V"', r":26: board 1: meter.supply: found 9.0; allowed for meter ppk2: 0.8 to 5 V"),
        ('supply = "1800 mV"', "supply_v = 1.8", r":26: board 1: meter.supply_v: unknown field .*'supply'"),
        ('"1800 mV"', '"low"', r":26: board 1: meter.supply: found 'low'; allowed for meter ppk2: 0.8 to 5 V"),
        ('driver = "ppk2"', 'driver = "ppk"', r":26: board 1: meter.driver: found 'ppk'; .*did you mean 'ppk2'"),
        (
            'driver = "ppk2", serial = "D0", mode = "ampere", trigger = 3',
            'driver = "ina226"',
            r":26: .*shunt_ohms: missing",
        ),
        (
            "trigger = 3",
            "shunt_ohms = 1",
            r":26: board 1: meter.shunt_ohms: unknown field of meter ppk2; allowed: driver, serial, port, mode",
        ),
        ("localhost:3333", "localhost", r":36: board 2: connection: found 'localhost'; allowed: host:port"),
        ('server = "openocd"', 'probe = "066AFF3031"', r":37: board 2: probe: probe 066AFF3031 is that of board desk"),
        ('server = "openocd"', "count = 2", r":37: board 2: count: does not belong to a board with driver gdb"),
        (
            'server = "openocd"',
            'server = "qemu"\nmeter = {driver = "ppk2"}',
            r":38: board 2: meter: an emulated board draws no current",
        ),
        ('["relay", "7"]', '"relay 7"', r":38: board 2: power.command: found 'relay 7'; allowed: a list of texts"),
        ("metrics_port = 9101", "metrics_port = 0", r":4: \[agent\]: metrics_port: found 0; allowed"),
        ('"2h"', '"2s"', r":5: \[agent\]: self_test_every: found '2s'; allowed: 1 min or more"),
        (
            "redis://",
            "http://",
            r":8: \[leases\]: url: not allowed as it is; allowed: an address that starts with redis",
        ),
        ('location = "1-1"', 'location = "usb"', r":15: hub 1: location: found 'usb'; allowed: as uhubctl shows it"),
        ('artifacts = ["/srv/edgefront", "s3://lab/edgefront"]', "artifacts = []", r":11: \[trust\]: artifacts: found"),
        ("[trust]", "[[trust]]", r"rack.toml:10: trust is no table; write \[trust\] above it"),
    ],
)
def test_a_mistake_in_a_real_rack_is_told_with_its_line(old: str, new: str, message: str) -> None:
    with pytest.raises(InventoryError, match=message) as caught:
        parse_rack(FULL.replace(old, new, 1), "rack.toml")
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ('connection = "127.0.0.1:3333"', "connection localhost:3333 is that of board served already"),
        ('connection = "lab:1"\nuart = "/dev/serial/by-id/usb-desk"', "serial port .*usb-desk is that of board desk"),
        ('connection = "lab:1"\npower = {hub = "1-1", port = 2}', "power switch 1-1 port 2 is that of board desk"),
        ('connection = "lab:1"\npower = {command = ["relay", "7"]}', "power switch relay 7 is that of board served"),
        ('connection = "lab:1"\nmeter = {driver = "ppk2", serial = "D0"}', "meter ppk2 D0 is that of board desk"),
        (
            'connection = "lab:1"\nmeter = {driver = "ppk2"}',
            "which ppk2 it is must be said, because board desk has one",
        ),
    ],
)
def test_what_only_one_board_can_have_is_not_given_to_two(field: str, message: str) -> None:
    third = f'\n[[board]]\nid = "third"\nkind = "nrf52-dk"\ndriver = "gdb"\n{field}\n'
    with pytest.raises(InventoryError, match=message):
        parse_rack(FULL + third, "rack.toml")


def test_several_sensors_may_hang_on_one_bus() -> None:
    board = """
[[board]]
id = "{0}"
kind = "nrf52-dk"
driver = "gdb"
connection = "lab:{1}"
meter = {{driver = "ina226", bus = 1, address = {1}, shunt_ohms = 0.1}}
"""
    rack = parse_rack(board.format("a", 64) + board.format("b", 65), "rack.toml")
    assert [board.meter.options["address"] for board in rack.boards if board.meter] == [64, 65]
    with pytest.raises(InventoryError, match="board 2: meter: meter ina226 1 64 is that of board a already"):
        parse_rack(board.format("a", 64) + board.format("b", 64).replace("lab:64", "lab:65"), "rack.toml")


@given(st.text(max_size=400) | st.lists(st.sampled_from(FULL.splitlines()), max_size=30).map("\n".join))
@settings(derandomize=True, max_examples=150)
def test_whatever_a_file_holds_it_is_a_rack_or_a_mistake_in_words(text: str) -> None:
    try:
        assert parse_rack(text, "rack.toml").boards
    except InventoryError as error:
        assert str(error).startswith("rack.toml")


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(InventoryError) as caught:
        parse_rack(GOOD.replace("virtual", "usb"), "rack.toml")
    assert len(str(caught.value).splitlines()) == 2


def test_an_empty_or_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match=r"no boards; add a table \[\[board\]\]"):
        parse_rack("", "rack.toml")
    with pytest.raises(InventoryError, match="cannot be read"):
        load_rack(tmp_path / "none.toml")


def test_a_host_without_a_rack_file_has_virtual_boards() -> None:
    assert [b.board_id for b in virtual_rack("nrf52-dk", 2).boards] == ["virtual-nrf52-dk-1", "virtual-nrf52-dk-2"]
    assert [b.board_id for b in virtual_rack("nrf52-dk", 1).boards] == ["virtual-nrf52-dk"]
    with pytest.raises(UnknownKind):
        virtual_rack("nrf99", 1)
    with pytest.raises(InventoryError, match="allowed are 1 to 1000"):
        virtual_rack("nrf52-dk", 0)
