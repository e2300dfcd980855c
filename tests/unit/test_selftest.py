"""The self-test: known images, and what it says of boards that are well and boards that are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mcu_agent.boards.fake import Script
from mcu_agent.boards.virtual import VirtualBoard
from mcu_agent.errors import LeaseLost, MeterLost
from mcu_agent.image import read_image
from mcu_agent.kinds import kinds, load_kind
from mcu_agent.meters.protocol import Trace, WindowBy
from mcu_agent.rack import MeterEntry, RackBoard
from mcu_agent.selftest import NoKnownImage, SelfTestReport, known_image, self_test
from tasks import selftest
from tasks.firmware.toolchain import zig_version
from tests.support.rigs import KIND, Rig, RigBoard

ENTRY = RackBoard(board_id="b", kind=KIND, driver="pyocd", probe="p")


def virtual(kind: str) -> SelfTestReport:
    return self_test(VirtualBoard("b", load_kind(kind)), RackBoard(board_id="b", kind=kind, driver="virtual"))


@pytest.mark.parametrize("kind", list(kinds()))
def test_the_known_image_of_every_kind_runs_bit_exact_on_the_virtual_board(kind: str) -> None:
    report = virtual(kind)
    assert report.is_ok, report.fault
    assert report.check("answer").found == "4 of 4"
    assert report.check("cycles").found.endswith("1.00 x emulated")


def test_the_shipped_images_are_what_the_command_writes_now(tmp_path: Path) -> None:
    shipped = known_image(KIND)
    if (shipped.compiler, shipped.emulator) != (zig_version(), VirtualBoard("b", load_kind(KIND)).emulator):
        pytest.skip(f"the shipped images are made by {shipped.compiler} and counted by {shipped.emulator}")
    selftest.main([KIND, "--to", str(tmp_path)])
    root = Path(selftest.__file__).parents[1] / "mcu_agent" / "known"
    assert (tmp_path / f"{KIND}.zip").read_bytes() == (root / f"{KIND}.zip").read_bytes(), "python -m tasks.selftest"


def test_the_known_network_has_the_common_layers_with_marks_around_each() -> None:
    known = known_image(KIND)
    assert [layer.op for layer in known.layers] == [
        "conv2d", "dwconv2d", "conv2d", "maxpool", "avgpool", "add", "conv2d", "avgpool", "dense",
    ]  # fmt: skip
    assert "edgefront_marks" in read_image(known.elf, load_kind(KIND)).symbols
    assert len(known.layer_cycles) == len(known.layers)
    assert sum(known.layer_cycles) < known.cycles  # type: ignore[operator]
    for index, values in known.layer_outputs.items():
        assert int(values.max()) - int(values.min()) > 50, known.layers[
            index
        ].name  # a layer that always gives the same tests nothing


def test_a_kind_without_a_known_image_is_told_how_to_get_one() -> None:
    with pytest.raises(NoKnownImage, match=r"nrf99 has no known image .*: python -m tasks\.selftest nrf99"):
        known_image("nrf99")


def test_a_device_that_is_well_passes_with_more_cycles_than_the_emulated_core() -> None:
    report = self_test(RigBoard("b", Rig()), ENTRY)
    assert report.is_ok
    assert report.check("cycles").found.endswith("1.30 x emulated")
    assert report.check("meter").is_ok is None


@pytest.mark.parametrize(
    ("script", "name", "reason", "found"),
    [
        (Script(lost_after=0), "board", "board_lost", "the probe does not answer"),
        (Script(wrong_image_id=True), "image", "wrong_image", "runs image 00000000"),
        (Script(wrong_layer=0), "answer", "bit_mismatch", "differ from the reference"),
        (Script(hang_at="edgefront_run"), "answer", "firmware_hang", "did not reach its next stop"),
        (Script(corrupt_transfer=True), "answer", "transfer_corrupt", "checksum is wrong"),
    ],
)
def test_a_board_that_is_not_well_says_where(script: Script, name: str, reason: str, found: str) -> None:
    report = self_test(RigBoard("b", Rig(test_script=script)), ENTRY)
    assert report.check(name).is_ok is False
    assert (report.is_ok, report.reason) == (False, reason)
    assert report.fault.startswith(f"{name}: ")
    assert found in report.fault
    assert report.to_json()["checks"][name]["ok"] is False


def test_cycles_that_cannot_be_are_a_fault() -> None:
    known = known_image(KIND)
    slow = replace(known, cycles=(known.cycles or 0) / 8)
    report = self_test(RigBoard("b", Rig()), ENTRY, known=slow)
    assert (report.reason, report.check("cycles").is_ok) == ("self_test", False)
    assert "10.40 x emulated; 0.7 to 6.0 x are plausible" in report.fault


def test_a_lease_that_was_lost_says_nothing_of_the_board() -> None:
    class Late(RigBoard):
        def load(self, image: object) -> None:
            raise LeaseLost("too late")

    with pytest.raises(LeaseLost):
        self_test(Late("b", Rig()), ENTRY)


def trace(current_a: float = 0.004, supply_v: float = 3.0, seconds: float = 0.5, n_lost: int = 0) -> Trace:
    n = 500
    return Trace(
        current_a=np.full(n, current_a),
        trigger=np.zeros(n, dtype=bool),
        saturated=np.zeros(n, dtype=bool),
        rate_hz=1000.0,
        supply_v=supply_v,
        seconds=seconds,
        n_lost=n_lost,
    )


class FakeRecorder:
    """A meter that has this trace, or is gone."""

    name, rate_hz, accuracy, window_by = "fake", 1000.0, "none", WindowBy.PIN
    supply_v: float | None = None

    def __init__(self, found: Trace | None) -> None:
        self._found = found
        self.calls: list[str] = []

    def open(self) -> None:
        self.calls.append("open")

    def start(self) -> None:
        self.calls.append("start")

    def stop(self) -> Trace:
        self.calls.append("stop")
        if self._found is None:
            raise MeterLost("the meter does not answer")
        return self._found

    def close(self) -> None:
        self.calls.append("close")


def test_a_meter_records_while_the_known_image_runs() -> None:
    recorder = FakeRecorder(trace())
    report = self_test(RigBoard("b", Rig()), ENTRY, recorder)
    assert recorder.calls == ["open", "start", "stop", "close"]
    assert report.is_ok
    assert report.check("meter").found == "4.00 mA at 3.00 V"


@pytest.mark.parametrize(
    ("found", "reason", "text"),
    [
        (None, "meter_lost", "the meter does not answer"),
        (trace(n_lost=3), "meter_gap", "3 of 500 readings are missing"),
        (trace(current_a=4.0), "meter", r"the mean current is 4e+03 mA while the board runs; 0.18 to 74 mA"),
        (trace(current_a=4e-9), "meter", "the mean current is 4e-06 mA"),
        (trace(seconds=5.0), "meter_drift", "readings were lost unseen"),
        (trace(supply_v=1.8), "wrong_supply", "the supply is 1.800 V, the rack file says 3 V"),
        (replace(trace(), current_a=np.zeros(0)), "meter_gap", "the trace is empty"),
    ],
)
def test_a_meter_that_is_gone_or_not_to_be_believed_is_a_fault(found: Trace | None, reason: str, text: str) -> None:
    report = self_test(RigBoard("b", Rig()), ENTRY, FakeRecorder(found))
    assert (report.reason, report.check("answer").is_ok, report.check("meter").is_ok) == (reason, True, False)
    assert text in report.fault


def test_the_supply_is_that_of_the_rack_file_or_of_the_kind() -> None:
    entry = replace(ENTRY, meter=MeterEntry(driver="ppk2", supply_v=1.8))
    assert self_test(RigBoard("b", Rig()), entry, FakeRecorder(trace(supply_v=1.8))).is_ok
    assert self_test(RigBoard("b", Rig()), entry, FakeRecorder(trace())).reason == "wrong_supply"
