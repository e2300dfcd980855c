"""A whole profile on the emulated board, with a hand-written firmware that misbehaves on request."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mcu_agent.boards.virtual import VirtualBoard
from mcu_agent.errors import (
    AgentError,
    BitMismatch,
    CyclesUnknown,
    FirmwareFault,
    FirmwareHang,
    ImageRejected,
    TransferCorrupt,
)
from mcu_agent.kinds import PLAIN_CORES, load_kind
from mcu_agent.profiling import profile
from mcu_agent.session import Job, Layer, run_outputs
from tasks.firmware.compiler import compile_graph
from tasks.quant import reference
from tests.support import boards
from tests.support.boards import make_job
from tests.support.graphs import small_cnn
from tests.support.networks import random_inputs

HANG, OVERFLOW, OUTSIDE, UNDEFINED, WRONG_FIRST, WRONG_SECOND = 101, 102, 103, 104, 105, 106
WRITE_FLASH, SLEEP, OWN_FAULT, JUMP_AWAY, BAD_CRC = 107, 108, 109, 110, 111


def run(job: Job, kind: str = "nrf52-dk"):  # type: ignore[no-untyped-def]
    return profile(job, VirtualBoard("v1", load_kind(kind)))


@pytest.mark.parametrize("kind", ["nrf52-dk", "nucleo-l4r5zi", "nucleo-h743zi"])
def test_a_firmware_that_is_right_is_profiled(kind: str) -> None:
    found = run(make_job(kind=kind), kind)
    assert np.array_equal(found.outputs, make_job().expected)
    assert (found.board_id, found.kind, found.image_id[:4], found.n_runs) == ("v1", kind, "0102", 4)
    assert (found.cycles_source, found.energy_source, found.meter) == ("emulated", "estimated", "model")
    assert 16 <= found.stack_used_bytes <= found.stack_reserved_bytes == boards.STACK_BYTES


def test_the_parts_add_up_to_the_whole() -> None:
    found = run(make_job())
    assert found.glue is not None
    assert [layer.name for layer in found.layers] == ["double", "add"]
    assert found.instructions == found.glue.instructions + sum(layer.instructions for layer in found.layers)
    assert found.cycles.median == found.glue.cycles + sum(layer.cycles for layer in found.layers)
    assert found.latency_s == found.cycles.median / 64e6
    assert found.energy.energy_j == pytest.approx(found.cycles.median * 0.173e-9)
    assert all(layer.instructions >= 16 for layer in found.layers)  # sixteen values each


def test_the_same_image_costs_the_same_every_time() -> None:
    first, second = run(make_job()), run(make_job())
    assert (first.instructions, first.cycles, first.layers) == (second.instructions, second.cycles, second.layers)


@pytest.mark.parametrize("core", PLAIN_CORES)
def test_a_core_without_a_cost_table_gives_outputs_but_no_profile(core: str) -> None:
    kind = dataclasses.replace(load_kind("nrf52-dk"), core=core, fpu="", has_dsp=False)
    graph = small_cnn()
    x = random_inputs(graph, 2)
    expected = reference.output_of(graph, x).reshape(2, -1)
    job = Job(elf=compile_graph(graph, kind).image.elf, inputs=x.reshape(2, -1), expected=expected)
    message = f"the outputs are those expected, but how many cycles a {core} takes is not known"
    with pytest.raises(CyclesUnknown, match=message):
        profile(job, VirtualBoard("v1", kind))
    expected[1] ^= 1
    with pytest.raises(BitMismatch):
        profile(job, VirtualBoard("v1", kind))


@pytest.mark.parametrize(("how", "layer"), [(WRONG_FIRST, "double"), (WRONG_SECOND, "add")])
def test_a_wrong_output_names_the_first_differing_layer(how: int, layer: str) -> None:
    with pytest.raises(BitMismatch, match=f"first differing layer: {layer}") as caught:
        run(make_job(how))
    assert caught.value.layer == layer


def test_an_output_that_only_a_later_input_gets_wrong_is_found_too() -> None:
    job = make_job()
    expected = job.expected.copy()
    expected[2, 5] ^= 1
    with pytest.raises(BitMismatch, match=r"input 2 gives 1 of 16 .* first at 5: .*every layer is right for the first"):
        run(dataclasses.replace(job, expected=expected))
    with pytest.raises(BitMismatch, match="there are no outputs of layers to compare with"):
        run(dataclasses.replace(job, expected=expected, layer_outputs=None))


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        (OVERFLOW, FirmwareFault, r"no memory at 0x1fff.* in recurse.*the stack has overflowed by at least \d+ bytes"),
        (OUTSIDE, FirmwareFault, "no memory at 0x60000000, accessed in edgefront_run"),
        (UNDEFINED, FirmwareFault, "the core faulted at edgefront_run"),
        (WRITE_FLASH, FirmwareFault, "write to flash at 0x"),
        (OWN_FAULT, FirmwareFault, "its own fault handler"),
        (JUMP_AWAY, FirmwareFault, "no memory at 0x70000000"),
        (SLEEP, FirmwareHang, "asleep, with nothing to wake it, in edgefront_run"),
        (BAD_CRC, TransferCorrupt, "checksum is wrong"),
    ],
)
def test_misbehaving_firmware_is_named_with_its_place(how: int, error: type[AgentError], message: str) -> None:
    with pytest.raises(error, match=message):
        run(make_job(how))


def test_a_firmware_that_hangs_ends_within_the_timeout() -> None:
    with pytest.raises(FirmwareHang, match="in edgefront_run"):
        run(make_job(HANG, timeout_s=0.2))


def test_the_board_is_switched_off_whatever_happens() -> None:
    board = VirtualBoard("v1", load_kind("nrf52-dk"))
    with pytest.raises(FirmwareFault):
        profile(make_job(OUTSIDE), board)
    assert board.counter is None


def test_vectors_of_another_size_are_refused() -> None:
    job = make_job()
    wrong = dataclasses.replace(job, inputs=job.inputs[:, :8])
    with pytest.raises(ImageRejected, match="takes 16 and gives 16 bytes; the test vectors have 8 and 16"):
        run(wrong)


def test_a_layer_without_code_in_the_image_is_refused() -> None:
    layer = dataclasses.replace(make_job().layers[0], symbol="edgefront_layer_07_none")
    with pytest.raises(ImageRejected, match="no symbol edgefront_layer_07_none"):
        run(dataclasses.replace(make_job(), layers=[layer]))


def test_a_layer_that_needs_no_code_is_left_out() -> None:
    silent = dataclasses.replace(make_job().layers[0], symbol="", index=2, name="flatten")
    job = make_job()
    found = run(dataclasses.replace(job, layers=[*job.layers, silent]))
    assert [layer.name for layer in found.layers] == ["double", "add"]


def test_outputs_alone_can_be_had_quickly() -> None:
    x = boards.inputs(3)
    found = run_outputs(boards.firmware(), VirtualBoard("v1", load_kind("nrf52-dk")), x, output_bytes=16)
    assert np.array_equal(found, boards.layer_outputs(x)[1])


def test_a_job_without_inputs_is_an_error() -> None:
    empty = np.zeros((0, 16), dtype=np.int8)
    with pytest.raises(ValueError, match="at least one input"):
        dataclasses.replace(make_job(), inputs=empty, expected=empty)
    with pytest.raises(ValueError, match="must be"):
        dataclasses.replace(make_job(), inputs=boards.inputs(3))


def test_a_layer_list_with_a_missing_field_is_refused() -> None:
    with pytest.raises(ImageRejected, match="'macs'"):
        Layer.from_json({key: value for key, value in boards.LAYERS[0].items() if key != "macs"})
