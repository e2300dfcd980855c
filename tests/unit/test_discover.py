"""What is plugged in, and the rack file written of it."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcu_agent import discover as module
from mcu_agent.discover import (
    Found,
    FoundPort,
    FoundProbe,
    FoundServer,
    connected_probes,
    discover,
    gdb_servers,
    guess_kind,
    rack_text,
    serial_ports,
)
from mcu_agent.meters.registry import FoundMeter
from mcu_agent.rack import RackBoard, parse_rack

NUCLEO = FoundProbe(serial="066AFF", description="STM32 STLink", board="NUCLEO-L4R5ZI")
JLINK = FoundProbe(serial="683000001", description="J-Link OB")
UART = FoundPort(device="/dev/serial/by-id/usb-ST-066AFF", serial="066AFF", description="STLink VCP")
PPK2 = FoundMeter(driver="ppk2", serial="D7C5", port="/dev/ttyACM1", description="Power Profiler Kit II")


@pytest.mark.parametrize(
    ("board", "kind"),
    [
        ("NUCLEO-L4R5ZI", "nucleo-l4r5zi"),
        ("NUCLEO-L4R5ZI-P", "nucleo-l4r5zi"),
        ("NUCLEO-H743ZI2", "nucleo-h743zi"),
        ("nRF52-DK", "nrf52-dk"),
        ("nRF52840-DK", "nrf52840-dk"),
        ("NUCLEO-F030R8", ""),
        ("", ""),
    ],
)
def test_the_kind_of_a_board_is_guessed_from_the_name_its_probe_knows(board: str, kind: str) -> None:
    assert guess_kind(board) == kind


def test_a_board_that_is_known_becomes_an_entry_with_its_serial_port() -> None:
    text = rack_text(Found(probes=[NUCLEO], ports=[UART], meters=[PPK2]))
    assert parse_rack(text, "rack.toml").boards == (
        RackBoard(board_id="nucleo-l4r5zi", kind="nucleo-l4r5zi", driver="pyocd", probe="066AFF", uart=UART.device),
    )
    assert '# meter = {driver = "ppk2", serial = "D7C5"}' in text


def test_what_is_not_known_is_commented_out_and_a_virtual_board_stands_in() -> None:
    text = rack_text(Found(probes=[JLINK], servers=[FoundServer(connection="localhost:2331", server="jlink")]))
    assert [board.driver for board in parse_rack(text, "rack.toml").boards] == ["virtual"]
    assert '# probe = "683000001"' in text
    assert "# Its kind is not known; one of nrf52-dk, " in text
    assert '# connection = "localhost:2331"' in text
    completed = text.replace('# kind = "?"', 'kind = "nrf52-dk"', 1)
    for line in ("[[board]]", 'id = "board"', 'driver = "pyocd"', 'probe = "683000001"'):
        completed = completed.replace(f"# {line}", line, 1)
    assert "683000001" in [board.probe for board in parse_rack(completed, "rack.toml").boards]


def test_boards_of_one_kind_get_names_of_their_own_and_one_serial_number_is_used_once() -> None:
    other = FoundProbe(serial="066BFF", description="STM32 STLink", board="NUCLEO-L4R5ZI")
    text = rack_text(Found(probes=[NUCLEO, other, NUCLEO]))
    assert [board.board_id for board in parse_rack(text, "rack.toml").boards] == ["nucleo-l4r5zi", "nucleo-l4r5zi-2"]
    assert "# Another probe has the same serial number, so this one cannot be addressed." in text


@given(
    st.lists(st.tuples(st.text(max_size=12), st.sampled_from(["nRF52-DK", "NUCLEO-F446RE", "", "x"])), max_size=5),
)
@settings(derandomize=True, max_examples=80)
def test_whatever_is_plugged_in_the_file_is_one_that_is_accepted(found: Sequence[tuple[str, str]]) -> None:
    probes = [FoundProbe(serial=text, description=text, board=board) for text, board in found]
    ports = [FoundPort(device=text, serial=text, description=text) for text, _ in found]
    meters = [FoundMeter(driver="ppk2", serial=text, port="p", description=text) for text, _ in found]
    assert parse_rack(rack_text(Found(probes=probes, ports=ports, meters=meters)), "rack.toml").boards


def test_a_device_writes_no_lines_of_its_own_into_the_file() -> None:
    evil = 'x\n[[board]]\nid = "evil"\nkind = "nrf52-dk"\ndriver = "virtual"\n#'
    text = rack_text(Found(probes=[FoundProbe(serial=evil, description=evil, board="nRF52-DK" + evil)]))
    assert [board.board_id for board in parse_rack(text, "rack.toml").boards] == ["virtual"]


def test_the_port_of_a_meter_is_no_serial_port_of_a_board() -> None:
    ports = [UART, FoundPort(device="/dev/ttyACM1", serial="D7C5", description="PPK2")]
    found = discover(probes=lambda: [NUCLEO], ports=lambda: ports, meters=lambda: [PPK2], servers=list)
    assert found.ports == [UART]
    assert [row["what"] for row in found.rows()] == ["probe", "serial port", "meter"]
    assert found.rows()[0] == {"what": "probe", "which": "066AFF", "about": "STM32 STLink NUCLEO-L4R5ZI"}


def test_a_gdb_server_is_noticed_without_a_word_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(module, "_GDB_PORTS", {port: "openocd"})
        assert gdb_servers() == [FoundServer(connection=f"localhost:{port}", server="openocd")]
        server.settimeout(0.0)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert gdb_servers() == []


def give_probes(monkeypatch: pytest.MonkeyPatch, probes: list[object] | Exception) -> None:
    def listed() -> list[object]:
        if isinstance(probes, Exception):
            raise probes
        return probes

    adapter = ModuleType("mcu_agent.boards.pyocd")
    adapter.connected_probes = listed  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "mcu_agent.boards.pyocd", adapter)


class Silent:
    """A probe that does not say which board it sits on."""

    unique_id, description = "683000001", "J-Link OB"

    @property
    def associated_board_info(self) -> None:
        raise RuntimeError("somebody has opened it")


def test_probes_are_those_that_pyocd_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    info = SimpleNamespace(name="NUCLEO-L4R5ZI")
    known = SimpleNamespace(unique_id="066AFF", description="STM32 STLink", associated_board_info=info)
    give_probes(monkeypatch, [known, Silent()])
    assert connected_probes() == [NUCLEO, JLINK]
    give_probes(monkeypatch, OSError("no USB here"))
    assert connected_probes() == []
    monkeypatch.setitem(__import__("sys").modules, "mcu_agent.boards.pyocd", None)
    assert connected_probes() == []


def test_serial_ports_have_the_names_that_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device, by_id = tmp_path / "ttyACM0", tmp_path / "by-id"
    device.touch()
    by_id.mkdir()
    (by_id / "usb-ST").symlink_to(device)
    port = SimpleNamespace(device=str(device), serial_number="066AFF", description="STLink VCP", vid=0x0483)
    built_in = SimpleNamespace(device="/dev/ttyS0", serial_number=None, description="n/a", vid=None)
    listing = SimpleNamespace(tools=SimpleNamespace(list_ports=SimpleNamespace(comports=lambda: [built_in, port])))
    monkeypatch.setattr(module, "serial_module", lambda: listing)
    monkeypatch.setattr(module, "_BY_ID", by_id)
    assert serial_ports() == [FoundPort(device=str(by_id / "usb-ST"), serial="066AFF", description="STLink VCP")]
