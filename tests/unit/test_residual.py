"""Sums join convolutions, and nothing changes in the bytes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tasks.firmware.ir import Add, AnyLayer, Conv2d, Graph, Lookup, Pads, Tensor, Window, op_name
from tasks.firmware.kernels import Sharing, kernel_of
from tasks.firmware.planner import plan_memory
from tasks.firmware.residual import fuse_additions
from tasks.quant import reference

SHAPE = (4, 5, 3)


def convolution(source: str, target: str, seed: int = 0) -> Conv2d:
    rng = np.random.default_rng(seed)
    return Conv2d(
        name=target,
        inputs=(source,),
        output=target,
        window=Window(kernel=(3, 3), pads=Pads(top=1, left=1, bottom=1, right=1)),
        groups=1,
        weights=rng.integers(-127, 128, size=(3, 3, 3, 3)).astype(np.int8),
        bias=rng.integers(-500, 500, size=3).astype(np.int32),
        multipliers=rng.integers(2**22, 2**23, size=3).astype(np.int32),
        left_shift=0,
    )


def addition(first: str, second: str, target: str, sign: int = 1) -> Add:
    return Add(name=target, inputs=(first, second), output=target, multipliers=(2**30, sign * 3 * 2**28), left_shift=2)


def table(source: str, target: str) -> Lookup:
    return Lookup(name=target, inputs=(source,), output=target, table=np.arange(127, -129, -1).astype(np.int8))


def graph(*layers: AnyLayer) -> Graph:
    names = ["x", *(layer.output for layer in layers)]
    tensors = {name: Tensor(name=name, shape=SHAPE, scale=1.0, zero_point=len(name) - 4) for name in names}
    return Graph(tensors=tensors, layers=layers, input="x", output=layers[-1].output, digest="")


def ops(net: Graph) -> list[str]:
    return [op_name(layer) for layer in net.layers]


def outputs(net: Graph) -> np.ndarray:
    x = np.random.default_rng(1).integers(-128, 128, size=(5, *SHAPE)).astype(np.int8)
    return reference.output_of(net, x)


RESIDUAL = graph(table("x", "skip"), convolution("skip", "a"), addition("a", "skip", "y"))
PROJECTED = graph(convolution("x", "a"), convolution("x", "b", 1), addition("a", "b", "y"))
SUBTRACTED = graph(table("x", "skip"), convolution("skip", "a"), addition("skip", "a", "y", -1))


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (RESIDUAL, ["lookup", "conv2d_add"]),
        (PROJECTED, ["conv2d", "conv2d_add"]),
        (SUBTRACTED, ["lookup", "conv2d_add"]),
    ],
    ids=["residual", "projected", "subtracted"],
)
def test_a_sum_joins_the_last_convolution_that_feeds_it(net: Graph, expected: list[str]) -> None:
    fused = fuse_additions(net)
    assert ops(fused) == expected
    np.testing.assert_array_equal(outputs(fused), outputs(net))
    assert len(np.unique(outputs(net))) > 20


@pytest.mark.parametrize(
    "net",
    [
        graph(convolution("x", "a"), addition("a", "x", "s"), addition("s", "a", "y")),  # read twice
        graph(convolution("x", "a"), table("a", "skip"), addition("a", "skip", "y")),  # the other term comes later
        graph(table("x", "a"), addition("a", "x", "y")),
        graph(convolution("x", "a"), addition("a", "a", "y")),
    ],
    ids=["read twice", "other term later", "no convolution", "twice the same"],
)
def test_other_sums_stay_layers_of_their_own(net: Graph) -> None:
    assert ops(fuse_additions(net)) == ops(net)


def test_a_convolution_takes_in_one_sum_only() -> None:
    net = graph(convolution("x", "a"), addition("a", "x", "s"), addition("s", "x", "y"))
    assert ops(fuse_additions(net)) == ["conv2d_add", "add"]


def test_the_output_takes_the_place_of_the_term_that_dies() -> None:
    fused = fuse_additions(graph(table("x", "skip"), convolution("x", "a"), addition("a", "skip", "y")))
    assert Sharing(source=1) in kernel_of(fused, fused.layers[1]).sharings
    plan = plan_memory(fused)
    assert "a" not in plan.offsets
    # all that the layer has, but for the 60 bytes that its output need not have of its own
    assert plan.arena_bytes == sum(buffer.n_bytes for buffer in plan.buffers) - 60


def test_one_tensor_as_image_and_as_term_is_left_to_the_windows_rule() -> None:
    fused = fuse_additions(RESIDUAL)
    (sharing,) = kernel_of(fused, fused.layers[1]).sharings
    assert (sharing.source, sharing.low) == (0, None)
    assert sharing.high is not None and sharing.high < 0


def test_the_sums_bounds_hold_at_the_end() -> None:
    net = graph(*RESIDUAL.layers[:2], dataclasses.replace(RESIDUAL.layers[2], clamp=dataclasses.replace(
        RESIDUAL.layers[2].clamp, low=-5, high=9)))  # fmt: skip
    assert (outputs(fuse_additions(net)).min(), outputs(fuse_additions(net)).max()) == (-5, 9)
