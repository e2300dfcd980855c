"""One image on one board from the command line: what it prints, and what it says when something is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import cli
from mcu_agent.calibration import save_calibration
from mcu_agent.errors import InventoryError
from mcu_agent.measure import find_known_answers, pack_vectors, unpack_vectors
from mcu_agent.measure_view import si
from tests.support import boards
from tests.unit.test_calibration import record


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image with its known answers beside it, as the compiler leaves them."""
    monkeypatch.setenv("EDGEFRONT_LOCKS", str(tmp_path / "locks"))
    monkeypatch.delenv("EDGEFRONT_RACK", raising=False)
    monkeypatch.chdir(tmp_path)
    job = boards.make_job()
    (tmp_path / "firmware.elf").write_bytes(job.elf)
    (tmp_path / "vectors.npz").write_bytes(pack_vectors(job))
    (tmp_path / "layers.json").write_text(json.dumps(boards.LAYERS))
    return tmp_path / "firmware.elf"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, ["measure", *map(str, arguments)], standalone_mode=True)


def test_every_figure_says_where_it_comes_from(image: Path) -> None:
    done = run(image, "--board", "nrf52-dk")
    assert done.exit_code == 0, done.output
    assert "board        virtual-nrf52-dk (nrf52-dk, Unicorn" in done.output
    assert "4 known answers, right bit for bit" in done.output
    assert "cycles (emulated, zero wait states: a lower bound)" in done.output
    assert "(estimated); " in done.output
    assert "temperature" not in done.output
    assert "double  double" in done.output


def test_the_json_holds_the_same(image: Path) -> None:
    found = json.loads(run(image, "--board", "nrf52-dk", "--json").output)
    assert (found["cycles_source"], found["energy"]["is_measured"], found["estimate"]) == ("emulated", False, None)
    assert found["known_answers"].endswith("vectors.npz")
    assert found["phases"]["total_s"] > 0


def test_without_known_answers_it_says_that_nothing_was_checked(image: Path) -> None:
    (image.parent / "vectors.npz").unlink()
    done = run(image, "--board", "nrf52-dk", "--samples", 3)
    assert "not checked against anything" in done.output
    assert "3 random inputs gave the same outputs twice" in done.output


def test_a_board_of_a_rack_and_one_of_its_kind(image: Path) -> None:
    rack = image.parent / "rack.toml"
    rack.write_text('[[board]]\nid = "bench"\nkind = "nrf52-dk"\ndriver = "virtual"\ncount = 2\n')
    assert "board        bench-2 (" in run(image, "--board", "bench-2", "--rack", rack).output
    assert "board        bench-1 (" in run(image, "--board", "bench-1").output  # rack.toml is there
    assert "board        bench-" in run(image, "--board", "nrf52-dk", "--rack", rack).output


def test_a_kind_without_a_rack_file_being_named_is_a_virtual_board(image: Path) -> None:
    rack = image.parent / "rack.toml"
    rack.write_text('[[board]]\nid = "bench"\nkind = "nrf52-dk"\ndriver = "gdb"\nconnection = "localhost:1"\n')
    assert "board        virtual-nrf52-dk (" in run(image, "--board", "nrf52-dk").output
    done = run(image, "--board", "nucleo-l4r5zi", "--rack", rack)
    assert done.exit_code == 2
    assert "and none is of a kind of this name; the rack has bench (nrf52-dk)" in done.stderr


def test_a_calibration_adds_an_estimate(image: Path) -> None:
    save_calibration(record(), image.parent / "bench.json")
    done = run(image, "--board", "nrf52-dk", "--calibration", "bench.json")
    assert "estimate     " in done.output
    assert "(estimated); emulated cycles x 1.250, calibrated on bench" in done.output


def test_an_emulator_that_counts_nothing_has_still_checked_the_outputs(image: Path) -> None:
    pytest.importorskip("mcu_agent.boards.qemu")
    from shutil import which

    if which("qemu-system-arm") is None:
        pytest.skip("qemu-system-arm is not installed")
    rack = image.parent / "rack.toml"
    rack.write_text('[[board]]\nid = "q"\nkind = "nrf52-dk"\ndriver = "virtual"\nemulator = "qemu"\n')
    done = run(image, "--board", "q")
    assert done.exit_code == 0, done.output
    assert "the outputs are right, by " in done.output
    (image.parent / "vectors.npz").unlink()
    done = run(image, "--board", "q", "--samples", 3)
    assert done.exit_code == 0, done.output
    assert "the outputs were not checked against anything" in done.output
    assert "right" not in done.output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("gone.elf", "--board", "nrf52-dk"), 2, "gone.elf: cannot be read"),
        (("layers.json", "--board", "nrf52-dk"), 2, "layers.json: not an ELF file"),
        (("firmware.elf", "--board", "toaster"), 2, "no board kind of this name, and no rack file"),
        (("firmware.elf", "--board", "nrf52-dk", "--rack", "none.toml"), 2, "none.toml: cannot be read"),
        (("firmware.elf", "--board", "nrf52-dk", "--vectors", "none.npz"), 2, "none.npz: cannot be read"),
        (("firmware.elf", "--board", "nrf52-dk", "--vectors", "layers.json"), 2, "no npz file of known answers"),
        (("firmware.elf", "--board", "nrf52-dk", "--calibration", "x.json"), 2, "rack calibrate writes one"),
        (("firmware.elf", "--board", "nrf52-dk", "--samples", "0"), 2, "samples"),
        (("firmware.elf",), 2, "--board"),
    ],
)
def test_what_is_wrong_is_named_without_a_traceback(
    image: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    done = run(*arguments)
    assert done.exit_code == code, done.output
    assert message in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "layers.json: no list of layers; allowed: a JSON list"),
        ('{"a": 1}', "layers.json: no list of layers"),
        ('[{"index": 0}]', "layers.json: the layer list has an entry without 'name'"),
        ("[" * 100_000, "layers.json: "),
        ("not JSON", "layers.json: Expecting value"),
    ],
)
def test_a_wrong_layer_list_is_named_by_its_own_file(image: Path, text: str, message: str) -> None:
    (image.parent / "layers.json").write_text(text)
    done = run(image, "--board", "nrf52-dk")
    assert (done.exit_code, message in done.output) == (2, True), done.output
    assert "edgefront compile and edgefront export write one" in done.output


def test_wrong_answers_end_with_the_layer_that_differs_first(image: Path) -> None:
    job = boards.make_job(106)  # the second layer is wrong for this first byte
    (image.parent / "vectors.npz").write_bytes(pack_vectors(job))
    done = run(image, "--board", "nrf52-dk")
    assert done.exit_code == 1
    assert "first differing layer: add" in done.output


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"inputs": np.zeros((2, 4), np.int8)}, "no array 'outputs'"),
        ({"inputs": np.zeros((2, 4), np.int8), "outputs": np.zeros((1, 4), np.int8)}, "2 inputs and 1 outputs"),
        ({"inputs": np.zeros((2, 4)), "outputs": np.zeros((2, 4), np.int8)}, "'inputs' holds float64; allowed: int8"),
    ],
)
def test_arrays_that_are_no_known_answers_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    file = tmp_path / "vectors.npz"
    np.savez(file, **arrays)
    with pytest.raises(ValueError, match=message):
        unpack_vectors(file.read_bytes())
    with pytest.raises(InventoryError, match=message):
        find_known_answers(tmp_path / "firmware.elf")


@pytest.mark.parametrize(
    ("amount", "shown"),
    [(0.0042, "4.20 ms"), (70.5e-6, "70.5 µs"), (781e-9, "781 nJ"), (1.5, "1.50 s"), (123.4, "123 s"), (0.0, "0.00 J")],
)
def test_numbers_have_three_digits_and_a_prefix(amount: float, shown: str) -> None:
    assert si(amount, shown[-1]) == shown
