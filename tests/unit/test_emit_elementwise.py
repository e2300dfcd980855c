"""Calls, tables and counts of layers without weights or windows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mcu_agent.kinds import load_kind
from tasks.firmware.compiler import compile_graph
from tasks.firmware.emit import count_flops, count_macs, emit_network
from tasks.firmware.ir import AnyLayer, Clamp, Concat, Graph, Lookup, Mul, Pad, Pads, Softmax, Tensor
from tasks.firmware.planner import plan_memory

EXPONENTS = np.arange(2**20, 2**20 - 256, -1).astype(np.uint32)
LAYERS: list[AnyLayer] = [
    Mul(name="mul", inputs=("x", "v"), output="y", multiplier=77, left_shift=3),
    Lookup(name="table", inputs=("x",), output="y", table=np.arange(-128, 128).astype(np.int8)),
    Concat(name="join", inputs=("x", "x"), output="wide", multipliers=(5, 6), left_shifts=(1, 2)),
    Pad(name="pad", inputs=("x",), output="framed", pads=Pads(top=1, left=2)),
    Softmax(name="shares", inputs=("x",), output="y", exponents=EXPONENTS, output_scale=2**24),
]
SHAPES = {"x": (2, 4, 3), "v": (1, 1, 3), "y": (2, 4, 3), "wide": (2, 4, 6), "framed": (3, 6, 3)}


def graph(layer: AnyLayer, zero_point: int = 2) -> Graph:
    names = dict.fromkeys([*layer.inputs, layer.output])
    tensors = {
        name: Tensor(name=name, shape=SHAPES[name], scale=0.5, zero_point=zero_point + index)
        for index, name in enumerate(names)
    }
    if "v" in tensors:  # made from x before, as every tensor needs a writer
        before = Pad(name="made", inputs=("x",), output="v", pads=Pads())
        return Graph(tensors=tensors, layers=(before, layer), input="x", output=layer.output, digest="")
    return Graph(tensors=tensors, layers=(layer,), input="x", output=layer.output, digest="")


def emitted(net: Graph) -> dict[str, str]:
    return emit_network(net, plan_memory(net))


def flat(text: str) -> str:
    return " ".join(text.split())


def test_each_input_of_a_concatenation_has_its_own_call() -> None:
    files = emitted(graph(LAYERS[2]))
    code = flat(files["edgefront.c"])
    assert "ef_concat_s8(8, 3, 6, edgefront_layer_00_concat_quant, edgefront_layer_00_concat_parts + 0," in code
    assert "ef_concat_s8(8, 3, 6, edgefront_layer_00_concat_quant, edgefront_layer_00_concat_parts + 1," in code
    assert code.count(" + 3);") == 1  # the second input's channels begin at the fourth byte of a pixel
    assert "edgefront_layer_00_concat_parts[2] = {{2, 5, 1}, {2, 6, 2}};" in files["edgefront_weights.c"]


def test_a_frame_is_counted_in_bytes() -> None:
    code = flat(emitted(graph(LAYERS[3]))["edgefront.c"])
    # a row of the output has 18 bytes: before the image one row and two pixels, two pixels between rows, none after
    assert "ef_pad_s8(2, 12, 24, 6, 0, edgefront_layer_00_pad_quant," in code


def test_a_repeated_vector_gives_pixels_and_channels() -> None:
    files = emitted(graph(LAYERS[0]))
    assert "ef_mul_s8(8, 3, edgefront_layer_01_mul_quant, edgefront_layer_01_mul_terms," in flat(files["edgefront.c"])
    assert "edgefront_layer_01_mul_terms = {3, 77};" in files["edgefront_weights.c"]


def test_equal_shapes_are_multiplied_as_one_pixel() -> None:
    layer = dataclasses.replace(LAYERS[0], inputs=("x", "x"))
    assert "ef_mul_s8(1, 24, " in flat(emitted(graph(layer))["edgefront.c"])


def test_a_table_needs_no_rounding() -> None:
    files = emitted(graph(LAYERS[1]))
    assert "edgefront_layer_00_lookup_table[256]" in files["edgefront_weights.c"]
    assert "_quant" not in files["edgefront.c"]


CHANGED: list[AnyLayer] = [
    dataclasses.replace(LAYERS[0], multiplier=78, left_shift=4),
    dataclasses.replace(LAYERS[1], table=np.zeros(256, np.int8)),
    dataclasses.replace(LAYERS[2], multipliers=(2**30, 1), left_shifts=(2, 0)),
    dataclasses.replace(LAYERS[3], clamp=Clamp(low=0)),
    dataclasses.replace(LAYERS[4], exponents=EXPONENTS[::-1].copy(), output_scale=2**31 + 1),
]


@pytest.mark.parametrize(("layer", "changed"), list(zip(LAYERS, CHANGED, strict=True)), ids=lambda layer: layer.name)
def test_what_is_trained_stands_in_the_weights_file_only(layer: AnyLayer, changed: AnyLayer) -> None:
    before, after = emitted(graph(layer)), emitted(graph(changed, zero_point=-5))
    before.pop("edgefront.c"), after.pop("edgefront.c")  # scales and zero points of the ends are part of the interface
    assert [path for path in before if before[path] != after[path]] == ["edgefront_weights.c"]


def test_the_code_of_a_layer_depends_on_shapes_alone() -> None:
    for layer, changed in zip(LAYERS, CHANGED, strict=True):
        before, after = (emitted(graph(each, 0))["edgefront.c"] for each in (layer, changed))
        assert before == after


@pytest.mark.parametrize(("layer", "flops"), list(zip(LAYERS, [24, 24, 48, 0, 48], strict=True)), ids=str)
def test_elements_are_counted_and_no_multiply_accumulates(layer: AnyLayer, flops: int) -> None:
    net = graph(layer)
    assert count_flops(net, layer) == flops
    assert count_macs(net, layer) == 0


# Bytes: 20 for a rounding, 8 for a product's terms, 256 and 4 + 4 · 256 for tables, 12 for each input that is joined.
# The network of the product begins with a padding.
@pytest.mark.parametrize(
    ("layer", "n_bytes"), list(zip(LAYERS, [20 + 20 + 8, 256, 20 + 24, 20, 20 + 1028], strict=True)), ids=str
)
def test_tables_count_as_weights_in_the_image(layer: AnyLayer, n_bytes: int) -> None:
    assert compile_graph(graph(layer), load_kind("nrf52840-dk")).image.rom.weights_bytes == n_bytes
