"""QEMU as the emulator of a virtual board: what it refuses, and that no process is left behind."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from mcu_agent.boards import qemu
from mcu_agent.boards.qemu import QemuBoard
from mcu_agent.errors import ImageRejected, InventoryError
from mcu_agent.image import Image, Symbol, read_image
from mcu_agent.kinds import load_kind
from tests.support import boards
from tests.support.gdb_servers import MACHINE, require_qemu

KIND = load_kind("nrf52-dk")


@pytest.fixture
def image() -> Image:
    return read_image(boards.firmware(), KIND)


@pytest.fixture(autouse=True)
def _there() -> None:
    require_qemu()


def _children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if "qemu" in child.name()]


def test_it_names_itself_with_its_version() -> None:
    assert QemuBoard("b1", KIND, MACHINE).emulator.startswith("QEMU ")


def test_a_kind_without_a_machine_is_refused() -> None:
    with pytest.raises(InventoryError, match=r"no machine of QEMU stands for the kind nrf52-dk.*unicorn"):
        QemuBoard("b1", KIND, "")


def test_a_machine_with_its_memory_elsewhere_is_refused(image: Image) -> None:
    with pytest.raises(InventoryError, match="netduinoplus2 has flash at 0x08000000"):
        QemuBoard("b1", KIND, "netduinoplus2").load(image)


def test_an_image_larger_than_the_machine_is_refused(image: Image) -> None:
    far = Symbol(name="far", address=0x20000000 + (32 << 10), size=4, is_function=False)
    with pytest.raises(
        ImageRejected, match="0x20008004 in RAM; QEMU's machine microbit ends at 0x00040000 and 0x2000400"
    ):
        QemuBoard("b1", KIND, "microbit").load(replace(image, symbols={**image.symbols, "far": far}))


def test_no_process_is_left_after_closing_or_failing(image: Image) -> None:
    board = QemuBoard("b1", KIND, MACHINE)
    board.load(image)
    assert len(_children()) == 1
    board.load(image)
    assert len(_children()) == 1
    board.close()
    assert _children() == []


def test_a_killed_agent_leaves_no_process_behind(tmp_path: Path) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv of util-linux is not installed")
    (tmp_path / "image.elf").write_bytes(boards.firmware())
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from mcu_agent.boards.qemu import QemuBoard\n"
        "from mcu_agent.image import read_image\n"
        "from mcu_agent.kinds import load_kind\n"
        "kind = load_kind('nrf52-dk')\n"
        f"board = QemuBoard('b1', kind, {MACHINE!r})\n"
        "board.load(read_image(Path(sys.argv[1]).read_bytes(), kind))\n"
        "print('loaded', flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "image.elf")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "loaded\n"
        left = psutil.Process(agent.pid).children(recursive=True)
        agent.send_signal(signal.SIGKILL)
        agent.wait(10)
    assert len(left) == 1
    _, alive = psutil.wait_procs(left, timeout=5)
    assert alive == []


def test_a_missing_program_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    qemu.version.cache_clear()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InventoryError, match="qemu-system-arm is not installed; apt-get install"):
        QemuBoard("b1", KIND, MACHINE)
