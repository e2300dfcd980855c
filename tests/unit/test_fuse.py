"""Tables that take in what stands around them, byte for byte."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.firmware.fuse import fuse_lookups
from tasks.firmware.ir import Add, AnyLayer, Clamp, Graph, Lookup, MaxPool, Mul, Rescale, Tensor, Window, op_name
from tasks.quant import reference

EVERY_BYTE = np.arange(-128, 128).astype(np.int8).reshape(1, 1, 1, 256)
SHAPE = (1, 1, 256)


def tensor(name: str, zero_point: int, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return Tensor(name=name, shape=shape, scale=1.0, zero_point=zero_point)


def lookup(source: str, target: str, seed: int = 0) -> Lookup:
    table = np.random.default_rng(seed).integers(-128, 128, size=256).astype(np.int8)
    return Lookup(name=f"to {target}", inputs=(source,), output=target, table=table)


def rescale(source: str, target: str) -> Rescale:
    return Rescale(
        name=f"to {target}", inputs=(source,), output=target, multiplier=3 * 2**28, left_shift=1, clamp=Clamp(low=-90)
    )


def product(first: str, second: str, target: str) -> Mul:
    return Mul(name=f"to {target}", inputs=(first, second), output=target, multiplier=2**25, left_shift=1)


def total(first: str, second: str, target: str) -> Add:
    return Add(name=f"to {target}", inputs=(first, second), output=target, multipliers=(2**30, -(2**29)), left_shift=1)


def graph(*layers: AnyLayer, output: str = "y") -> Graph:
    names = ["x", *(layer.output for layer in layers)]
    tensors = {name: tensor(name, 7 * index - 5) for index, name in enumerate(names)}
    return Graph(tensors=tensors, layers=layers, input="x", output=output, digest="")


CHAINS = {
    "a tensor times its gate": [lookup("x", "a"), product("x", "a", "y")],
    "its gate times a tensor": [lookup("x", "a"), product("a", "x", "y")],
    "a shifted, clipped and halved tensor times itself": [
        lookup("x", "a"), rescale("a", "b"), rescale("b", "c"), product("x", "c", "y"),
    ],
    "tables behind each other": [lookup("x", "a", 1), lookup("a", "y", 2)],
    "a rescaling before a table": [rescale("x", "a"), lookup("a", "y")],
    "a difference of two tables": [lookup("x", "a", 1), lookup("x", "b", 2), total("a", "b", "y")],
    "a square of a table": [lookup("x", "a"), product("a", "a", "y")],
}  # fmt: skip


@pytest.mark.parametrize("layers", CHAINS.values(), ids=CHAINS)
def test_functions_of_one_byte_become_one_table_with_the_same_bytes(layers: list[AnyLayer]) -> None:
    before = graph(*layers)
    after = fuse_lookups(before)
    assert [op_name(layer) for layer in after.layers] == ["lookup"]
    assert set(after.tensors) == {"x", "y"}
    assert np.array_equal(reference.output_of(after, EVERY_BYTE), reference.output_of(before, EVERY_BYTE))


def test_what_others_read_stays() -> None:
    after = fuse_lookups(graph(lookup("x", "a"), product("x", "a", "b"), total("a", "b", "y")))
    assert [layer.inputs for layer in after.layers] == [("x",)]
    after = fuse_lookups(graph(lookup("x", "a", 1), lookup("a", "b", 2), pool("a", "c"), product("b", "c", "y")))
    assert [layer.inputs for layer in after.layers] == [("x",), ("a",), ("a",), ("b", "c")]


def pool(source: str, target: str) -> MaxPool:
    return MaxPool(name=target, inputs=(source,), output=target, window=Window(kernel=(1, 1)))


@pytest.mark.parametrize(
    "layers",
    [
        [lookup("x", "a"), pool("x", "b"), product("a", "b", "y")],  # two tensors
        [rescale("x", "a"), rescale("a", "y")],  # no table to join
        [rescale("x", "a"), total("x", "a", "y")],
        [lookup("x", "dead"), rescale("x", "y")],  # leads nowhere, and did before
    ],
)
def test_everything_else_is_left_as_it_is(layers: list[AnyLayer]) -> None:
    before = graph(*layers)
    assert fuse_lookups(before).layers == before.layers
    assert fuse_lookups(before).tensors == before.tensors


def test_a_vector_that_multiplies_pixels_is_no_function_of_one_byte() -> None:
    layers = (lookup("v", "a"), product("x", "a", "y"))
    tensors = {
        "x": tensor("x", 0, (2, 1, 4)), "v": tensor("v", 0, (1, 1, 4)), "a": tensor("a", 0, (1, 1, 4)),
        "y": tensor("y", 0, (2, 1, 4)),
    }  # fmt: skip
    before = Graph(tensors=tensors, layers=layers, input="x", output="y", digest="")
    assert fuse_lookups(before).layers == layers
