"""Graphs made by hand, with seeded weights."""

from __future__ import annotations

import hashlib

import numpy as np

from tasks.firmware.ir import Graph, Pads, Tensor, Window
from tasks.firmware.lower import lower
from tasks.firmware.quantised import AnyNode, AveragePool, Bounds, Convolution, FullyConnected, QuantisedNetwork


def small_cnn(seed: int = 0, channels: int = 6, zero_point: int = -3) -> Graph:
    """conv 3x3 → depthwise 3x3, stride 2 → global average → dense, 8x8x2 → 5. Shapes depend on ``channels`` only."""
    rng = np.random.default_rng(seed)

    def weights(*shape: int) -> np.ndarray:
        return rng.integers(-127, 128, size=shape).astype(np.int8)

    def scales(n: int) -> np.ndarray:
        return rng.uniform(0.001, 0.004, size=n)

    def bias(n: int) -> np.ndarray:
        return rng.integers(-500, 500, size=n)

    def tensor(name: str, shape: tuple[int, int, int], scale: float) -> Tensor:
        return Tensor(name=name, shape=shape, scale=scale * float(rng.uniform(0.8, 1.2)), zero_point=zero_point)

    around, relu = Pads(top=1, left=1, bottom=1, right=1), Bounds(low=0.0)
    tensors = [
        tensor("x", (8, 8, 2), 0.04), tensor("a", (8, 8, channels), 0.05), tensor("b", (4, 4, channels), 0.04),
        tensor("c", (1, 1, channels), 0.01), tensor("y", (1, 1, 5), 0.01),
    ]  # fmt: skip
    nodes = (
        Convolution(
            name="first", inputs=("x",), output="a", bounds=relu, window=Window(kernel=(3, 3), pads=around), groups=1,
            weights=weights(channels, 2, 3, 3), scales=scales(channels), bias=bias(channels),
        ),
        Convolution(
            name="second", inputs=("a",), output="b", bounds=relu, groups=channels,
            window=Window(kernel=(3, 3), stride=(2, 2), pads=around),
            weights=weights(channels, 1, 3, 3), scales=scales(channels), bias=bias(channels),
        ),
        AveragePool(name="mean", inputs=("b",), output="c", window=Window(kernel=(4, 4)), count_padding=True),
        FullyConnected(
            name="last", inputs=("c",), output="y", weights=weights(5, channels), scales=scales(5), bias=bias(5),
            channels_first=False,
        ),
    )  # fmt: skip
    digest = hashlib.sha256(f"small cnn {seed} {channels} {zero_point}".encode()).hexdigest()
    return lower(
        QuantisedNetwork(
            tensors={tensor.name: tensor for tensor in tensors}, nodes=nodes, input="x", output="y", digest=digest
        )
    )


_SEPARABLE = ((3, 1, 8, False), (3, 1, 8, True), (1, 1, 12, False), (5, 2, 12, True), (1, 1, 5, False))


def separable_cnn(seed: int = 0) -> Graph:
    """conv 3x3 → depthwise 3x3 → conv 1x1 → depthwise 5x5, stride 2 → conv 1x1, 9x10x3 → 5x5x5."""
    rng = np.random.default_rng(seed)
    tensors, nodes = [Tensor(name="t0", shape=(9, 10, 3), scale=0.04, zero_point=7)], list[AnyNode]()
    for index, (kernel, stride, n_outputs, is_depthwise) in enumerate(_SEPARABLE, 1):
        source, half = tensors[-1], kernel // 2
        pads = Pads(top=half, left=half, bottom=half, right=half)
        window = Window(kernel=(kernel, kernel), stride=(stride, stride), pads=pads)
        depth = 1 if is_depthwise else source.shape[2]
        weights = rng.integers(-127, 128, size=(n_outputs, depth, kernel, kernel)).astype(np.int8)
        scales = rng.uniform(0.001, 0.004, size=n_outputs)
        scale = source.scale * float(scales.mean()) * 74 * 74 * weights[0].size ** 0.5 / 40
        shape = (*window.output_size(*source.shape[:2]), n_outputs)
        target = Tensor(name=f"t{index}", shape=shape, scale=scale, zero_point=int(rng.integers(-60, 60)))
        nodes.append(
            Convolution(
                name=f"layer {index}", inputs=(source.name,), output=target.name, window=window, weights=weights,
                groups=n_outputs if is_depthwise else 1, scales=scales, bias=rng.integers(-500, 500, size=n_outputs),
                bounds=Bounds(low=0.0) if is_depthwise else Bounds(),
            )
        )  # fmt: skip
        tensors.append(target)
    digest = hashlib.sha256(f"separable cnn {seed}".encode()).hexdigest()
    named = {tensor.name: tensor for tensor in tensors}
    return lower(
        QuantisedNetwork(tensors=named, nodes=tuple(nodes), input="t0", output=tensors[-1].name, digest=digest)
    )
