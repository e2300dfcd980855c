"""Networks of one layer, of every kind and shape that the kernels tell apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from tasks.firmware.ir import Graph, Pads, Tensor, Window
from tasks.firmware.packing import WORD
from tasks.firmware.quantised import Bounds
from tasks.quant import reference
from tests.support.networks import NetworkBuilder, random_inputs

_KERNELS = ((1, 1), (3, 3), (5, 5), (2, 3), (1, 3), (3, 1), (1, 7), (6, 1), (1, 9), (4, 4))
_DEPTHWISE_KERNELS = ((3, 3), (3, 3), (5, 5), (1, 3), (1, 5), (1, 9), (3, 1), (5, 1), (2, 2), (7, 7))
FEWEST_VALUES = 4
_CHANNELS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17, 31, 33)


class LayerBuilder(NetworkBuilder):
    """Makes one layer. Weights of few steps and outputs of few steps make left shifts; bounds cut deep into a byte."""

    def __init__(self, draw: st.DrawFn) -> None:
        super().__init__(draw)
        self.largest_weight = int(self.rng.choice([1, 9, 127, 127]))
        self.tensors, self.nodes = {}, []

    def source(self, height: int, width: int, channels: int = 0) -> Tensor:
        shape = (height, width, channels or self.draw(st.sampled_from(_CHANNELS)))
        self.tensors["x"] = self.tensor("x", shape)
        return self.tensors["x"]

    def image(self) -> Tensor:
        return self.source(self.number(1, 9), self.number(1, 9))

    def weights(self, *shape: int) -> np.ndarray:
        most = self.largest_weight
        return self.rng.integers(-most, most + 1, size=shape).astype(np.int8)

    def bounds(self, target: Tensor) -> Bounds:
        narrow = Bounds(low=-5 * target.scale, high=7 * target.scale)
        half = Bounds(low=0.0) if target.zero_point < 60 else Bounds(high=0.0)  # one of them leaves nothing at the ends
        return self.draw(st.sampled_from([Bounds(), Bounds(), half, narrow]))

    def add_node(
        self, make: type, source: Tensor, shape: tuple[int, int, int], scale: float = 0.0, **fields: object
    ) -> None:
        if "weights" in fields:
            scale *= self.largest_weight / 127 * float(self.rng.choice([1, 1, 0.2]))
        scale = scale or source.scale * float(self.rng.choice([0.3, 1, 1.7]))
        super().add_node(make, source, shape, scale, **fields)

    def convolve(self, kernels: tuple[tuple[int, int], ...], *, groups: int = 0, multiplier: int = 0) -> None:
        """``groups`` 0: one for every input channel; ``multiplier`` 0: any number of output channels."""
        kernel = self.draw(st.sampled_from(kernels))
        dilation = self.draw(st.sampled_from([(1, 1), (1, 1), (1, 1), (2, 1), (1, 2), (3, 2)]))
        reach = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        limits = reach if self.draw(st.booleans()) else [0, 0]
        top, bottom, left, right = (self.number(0, limits[axis]) for axis in (0, 0, 1, 1))
        # The window fits the padded image, but perhaps not the image alone.
        low = [max(1, reach[0] + 1 - top - bottom), max(1, reach[1] + 1 - left - right)]
        source = self.source(self.number(low[0], low[0] + 6), self.number(low[1], low[1] + 9))
        window = Window(
            kernel=kernel,
            dilation=dilation,
            stride=self.draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 2), (2, 1), (3, 3), (1, 3)])),
            pads=Pads(top=top, bottom=bottom, left=left, right=right),
        )
        self.window = lambda _source, *, is_pool: window  # type: ignore[method-assign]
        channels = source.shape[2]
        n_outputs = channels * multiplier if multiplier else self.draw(st.sampled_from(_CHANNELS))
        self._convolve(source, groups or channels, n_outputs)

    def group(self) -> None:
        groups, depth = self.number(2, 4), self.number(1, 5)
        source = self.source(self.number(5, 8), self.number(5, 8), groups * depth)
        self._convolve(source, groups, groups * self.number(1, 5))

    def dense(self, tail: int) -> None:
        """``tail`` inputs fill no word."""
        height = 2 * self.number(0, 1) + 1
        channels = self.draw(st.sampled_from([n for n in (*_CHANNELS, *range(34, 42)) if height * n % WORD == tail]))
        self._dense(self.source(height, 1, channels))

    def point(self, tail: int) -> None:
        """A convolution with a window of one pixel, of whose input channels ``tail`` fill no word."""
        channels = self.draw(st.sampled_from([n for n in _CHANNELS if n % WORD == tail]))
        stride = self.draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 3)]))
        window = Window(kernel=(1, 1), stride=stride)
        self.window = lambda _source, *, is_pool: window  # type: ignore[method-assign]
        source = self.source(self.number(1, 9), self.number(1, 9), channels)
        self._convolve(source, 1, self.draw(st.sampled_from(_CHANNELS)))

    def pair(self, combine: Callable[[Tensor], None]) -> None:
        """Of an image and the same image on another scale."""
        self._rescale(self.image())
        combine(self.tensors[self.nodes[-1].output])

    def pool(self, reduce: Callable[[Tensor], None]) -> None:
        reduce(self.source(self.number(1, 12), self.number(1, 12)))


KINDS: dict[str, Callable[[LayerBuilder], None]] = {
    "conv2d": lambda builder: builder.convolve(_KERNELS, groups=1),
    **{f"pointwise, {tail} over": partial(LayerBuilder.point, tail=tail) for tail in range(WORD)},
    "depthwise": lambda builder: builder.convolve(_DEPTHWISE_KERNELS, multiplier=1),
    "depthwise multiplied": lambda builder: builder.convolve(_DEPTHWISE_KERNELS, multiplier=2),
    "grouped": LayerBuilder.group,
    **{f"dense, {tail} over": partial(LayerBuilder.dense, tail=tail) for tail in range(WORD)},
    "add": lambda builder: builder.pair(builder._add),
    "mul": lambda builder: builder.pair(builder._multiply),
    "mul by a vector": lambda builder: builder._weigh(builder.image()),
    "lookup": lambda builder: builder._function(builder.image()),
    "concat": lambda builder: builder.pair(builder._concatenate),
    "pad": lambda builder: builder._pad(builder.image()),
    "softmax": lambda builder: builder._softmax(builder.image()),
    "maxpool": lambda builder: builder.pool(builder._max),
    "avgpool": lambda builder: builder.pool(builder._average),
    "global avgpool": lambda builder: builder.pool(builder._global),
    "rescale": lambda builder: builder._rescale(builder.image()),
}


@st.composite
def layers(draw: st.DrawFn, kind: str) -> Graph:
    """A network whose last layer is of ``kind``, a key of :data:`KINDS`, and whose outputs are not nearly constant."""
    builder = LayerBuilder(draw)
    KINDS[kind](builder)
    graph = builder.finish()
    assume(len(np.unique(reference.output_of(graph, random_inputs(graph, 4)))) > FEWEST_VALUES)
    return graph
