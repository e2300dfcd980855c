"""Random quantised networks, and several networks behind one firmware."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st

from mcu_agent.kinds import BoardKind
from tasks.firmware.compiler import compile_graph, link_sources
from tasks.firmware.emit import emit_network
from tasks.firmware.errors import AccumulatorOverflow, Unsupported
from tasks.firmware.ir import Graph, Pads, Tensor, Window
from tasks.firmware.lower import lower
from tasks.firmware.planner import plan_memory
from tasks.firmware.quantised import (
    Addition,
    AnyNode,
    AveragePool,
    Bounds,
    Concatenation,
    Convolution,
    Elementwise,
    FullyConnected,
    MaximumPool,
    Multiplication,
    Padding,
    QuantisedNetwork,
    Requantisation,
    SoftmaxOfChannels,
)

OPERATORS = (
    "conv", "depthwise", "grouped", "dense", "add", "rescale", "max", "average", "global", "multiply", "weigh",
    "function", "gate", "concatenate", "pad", "softmax",
)  # fmt: skip


class NetworkBuilder:
    """Grows a random network node by node; ``draw`` decides its structure, a seeded generator its numbers (hypothesis
    alone prefers small numbers, and a network of ones tests little)."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        is_1d = draw(st.booleans())
        shape = (1 if is_1d else self.number(2, 9), self.number(2, 30 if is_1d else 12), self.number(1, 9))
        self.tensors = {"x": self.tensor("x", shape)}
        self.nodes: list[AnyNode] = []

    def number(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def tensor(self, name: str, shape: tuple[int, int, int], scale: float = 0.0) -> Tensor:
        scale = scale or float(np.exp(self.rng.uniform(-4, 1)))
        zero_point = int(self.rng.choice([-128, 127, 0, int(self.rng.integers(-128, 128))]))
        return Tensor(name=name, shape=shape, scale=scale, zero_point=zero_point)

    def grow(self) -> None:
        source = self.tensors[self.draw(st.sampled_from(list(self.tensors)[-3:]))]
        getattr(self, "_" + self.draw(st.sampled_from(OPERATORS)))(source)

    def finish(self) -> Graph:
        digest = hashlib.sha256(repr(self.tensors).encode()).hexdigest()
        output = self.nodes[-1].output
        network = QuantisedNetwork(
            tensors=self.tensors, nodes=tuple(self.nodes), input="x", output=output, digest=digest
        )
        return lower(network)

    def add_node(
        self, make: type, source: Tensor, shape: tuple[int, int, int], scale: float = 0.0, **fields: object
    ) -> None:
        name = f"node_{len(self.nodes)}"
        target = self.tensor(name, shape, scale)
        self.tensors[name] = target
        fields = {"inputs": (source.name,), "bounds": self.bounds(target)} | fields
        self.nodes.append(make(name=name, output=name, **fields))

    def bounds(self, target: Tensor) -> Bounds:
        return self.draw(st.sampled_from([Bounds(), Bounds(low=0.0), Bounds(low=0.0, high=target.scale * 60)]))

    def window(self, source: Tensor, *, is_pool: bool) -> Window:
        height, width, _ = source.shape
        sizes = [self.number(1, min(int(self.rng.choice([3, 3, 5, 9])), size)) for size in (height, width)]
        dilations = [
            self.number(1, 2) if (size - 1) * 2 < limit else 1
            for size, limit in zip(sizes, (height, width), strict=True)
        ]
        reach = [dilation * (size - 1) for size, dilation in zip(sizes, dilations, strict=True)]
        # the whole kernel may lie in the padding of a convolution, never in that of a pool
        room = [most if is_pool else most + 1 for most in reach]
        pads = Pads(
            top=self.number(0, room[0]),
            left=self.number(0, room[1]),
            bottom=self.number(0, room[0]),
            right=self.number(0, room[1]),
        )
        return Window(
            kernel=(sizes[0], sizes[1]),
            stride=(self.number(1, 3), self.number(1, 3)),
            dilation=(dilations[0], dilations[1]),
            pads=pads,
        )

    def weights(self, *shape: int) -> np.ndarray:
        return self.rng.integers(-127, 128, size=shape).astype(np.int8)

    def _convolve(self, source: Tensor, groups: int, n_outputs: int) -> None:
        window = self.window(source, is_pool=False)
        depth = source.shape[2] // groups
        self._matrix(
            Convolution, source, (*window.output_size(*source.shape[:2]), n_outputs),
            self.weights(n_outputs, depth, *window.kernel), window=window, groups=groups,
        )  # fmt: skip

    def _matrix(
        self, make: type, source: Tensor, shape: tuple[int, int, int], weights: np.ndarray, **fields: object
    ) -> None:
        fan_in = weights[0].size
        scales = np.exp(self.rng.uniform(-8, -2, size=len(weights)))
        bias = self.rng.integers(-2000, 2000, size=len(weights))
        # mostly a sensible output range; sometimes everything saturates, or all becomes the zero point
        scale = float(
            source.scale * scales.max() * 60 * np.sqrt(fan_in) * self.rng.choice([1, 1, 1, 1, 1, 1, 0.02, 100])
        )
        self.add_node(make, source, shape, scale, weights=weights, scales=scales, bias=bias, **fields)

    def _conv(self, source: Tensor) -> None:
        self._convolve(source, 1, self.number(1, 9))

    def _depthwise(self, source: Tensor) -> None:
        self._convolve(source, source.shape[2], source.shape[2] * self.number(1, 2))

    def _grouped(self, source: Tensor) -> None:
        divisors = [n for n in range(1, source.shape[2] + 1) if source.shape[2] % n == 0]
        groups = self.draw(st.sampled_from(divisors))
        self._convolve(source, groups, groups * self.number(1, 5))

    def _dense(self, source: Tensor) -> None:
        weights = self.weights(self.number(1, 9), source.n_bytes)
        order = self.draw(st.booleans())
        self._matrix(FullyConnected, source, (1, 1, len(weights)), weights, channels_first=order)

    def _add(self, source: Tensor) -> None:
        partners = [name for name, tensor in self.tensors.items() if tensor.shape == source.shape]
        other = self.tensors[self.draw(st.sampled_from(partners))]
        scale = (source.scale + other.scale) * float(self.rng.choice([1.0, 0.3, 0.001]))
        subtracts = self.draw(st.booleans())
        self.add_node(Addition, source, source.shape, scale, inputs=(source.name, other.name), subtracts=subtracts)

    def _multiply(self, source: Tensor) -> None:
        partners = [name for name, tensor in self.tensors.items() if tensor.shape == source.shape]
        self._product(source, self.tensors[self.draw(st.sampled_from(partners))])

    def _weigh(self, source: Tensor) -> None:
        """Squeeze and excite: each channel times a number made of its mean, on either side of the product."""
        self._global(source)
        small = self.tensors[self.nodes[-1].output]
        self._product(*((source, small) if self.draw(st.booleans()) else (small, source)))

    def _product(self, first: Tensor, second: Tensor) -> None:
        scale = first.scale * second.scale * float(self.rng.choice([1, 50, 100, 200, 0.001]))
        large = max(first, second, key=lambda tensor: tensor.n_bytes)
        self.add_node(Multiplication, first, large.shape, scale, inputs=(first.name, second.name))

    def _function(self, source: Tensor) -> None:
        curve = self.draw(st.sampled_from([np.tanh, np.square, lambda x: np.where(x < 0, 0.1 * x, x)]))
        width = source.scale * self.number(10, 200)
        self.add_node(Elementwise, source, source.shape, 0.01, function=lambda x: curve(x / width))

    def _gate(self, source: Tensor) -> None:
        """A tensor times a function of itself, which lowering makes one table."""
        self._function(source)
        self._product(source, self.tensors[self.nodes[-1].output])

    def _concatenate(self, source: Tensor) -> None:
        partners = [name for name, tensor in self.tensors.items() if tensor.shape[:2] == source.shape[:2]]
        others = self.draw(st.lists(st.sampled_from(partners), min_size=1, max_size=3))
        tensors = [source, *(self.tensors[name] for name in others)]
        shape = (*source.shape[:2], sum(tensor.shape[2] for tensor in tensors))
        scale = float(self.rng.choice([0.0, source.scale, max(tensor.scale for tensor in tensors)]))
        self.add_node(Concatenation, source, shape, scale, inputs=tuple(tensor.name for tensor in tensors))

    def _pad(self, source: Tensor) -> None:
        top, left, bottom, right = (self.number(0, 2) for _ in range(4))
        pads = Pads(top=top, left=left, bottom=bottom, right=right)
        height, width, channels = source.shape
        self._keep_scale(Padding, source, (top + height + bottom, left + width + right, channels), pads=pads)

    def _softmax(self, source: Tensor) -> None:
        scale = float(self.rng.choice([1 / 255, 1 / 256, 0.3, 0.001]))
        self.add_node(SoftmaxOfChannels, source, source.shape, scale)

    def _rescale(self, source: Tensor) -> None:
        self.add_node(Requantisation, source, source.shape)

    def _max(self, source: Tensor) -> None:
        window = self.window(source, is_pool=True)
        shape = (*window.output_size(*source.shape[:2]), source.shape[2])
        self._keep_scale(MaximumPool, source, shape, window=window)

    def _keep_scale(self, make: type, source: Tensor, shape: tuple[int, int, int], **fields: object) -> None:
        name = f"node_{len(self.nodes)}"
        target = Tensor(name=name, shape=shape, scale=source.scale, zero_point=source.zero_point)
        self.tensors[name] = target
        self.nodes.append(make(name=name, inputs=(source.name,), output=name, bounds=self.bounds(target), **fields))

    def _average(self, source: Tensor) -> None:
        window = self.window(source, is_pool=True)
        shape = (*window.output_size(*source.shape[:2]), source.shape[2])
        self.add_node(AveragePool, source, shape, window=window, count_padding=self.draw(st.booleans()))

    def _global(self, source: Tensor) -> None:
        window = Window(kernel=source.shape[:2])
        self.add_node(AveragePool, source, (1, 1, source.shape[2]), window=window, count_padding=True)


@st.composite
def graphs(draw: st.DrawFn, max_layers: int = 7) -> Graph:
    """A random integer network of 2 to ``max_layers`` layers; some of them may lead nowhere. Drawn again where its
    random scales lie further apart than fixed point can bridge, which lowering refuses."""
    builder = NetworkBuilder(draw)
    for _ in range(builder.number(2, max_layers)):
        builder.grow()
    try:
        return builder.finish()
    except (AccumulatorOverflow, Unsupported):
        reject()


@lru_cache
def random_networks(n: int) -> tuple[Graph, ...]:
    """``n`` networks, the same ones every time."""
    return drawn(graphs(), n)


def drawn(strategy: st.SearchStrategy[Graph], n: int) -> tuple[Graph, ...]:
    """``n`` examples, the same ones every time. Hypothesis begins with the simplest one, or a list of copies of it; so
    these are drawn one by one and the first is left out."""
    found: list[Graph] = []

    @settings(
        max_examples=n + 1,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(graph: Graph) -> None:
        found.append(graph)

    collect()
    return tuple(found[1 : n + 1])


def random_inputs(graph: Graph, n: int, seed: int = 0) -> np.ndarray:
    """(n, H, W, C) bytes; the first two samples are the extremes."""
    x = np.random.default_rng(seed).integers(-128, 128, size=(n, *graph.input_tensor.shape)).astype(np.int8)
    x[0], x[1] = -128, 127
    return x


def board_bundle(graphs: Sequence[Graph], kind: BoardKind, compiler: str = "zig") -> tuple[bytes, int, int]:
    """One firmware for many networks: the first input byte says which runs on the bytes after it.

    Returns:
        The ELF file, its input bytes and its output bytes (each the longest network's, plus one for the input).
    """
    plans = [plan_memory(graph) for graph in graphs]
    n_inputs = 1 + max(graph.input_tensor.n_bytes for graph in graphs)
    n_outputs = max(graph.output_tensor.n_bytes for graph in graphs)
    sources: dict[str, str] = {}
    for index, (graph, plan) in enumerate(zip(graphs, plans, strict=True)):
        sources |= emit_network(graph, plan, f"net{index}")
    harness = compile_graph(graphs[0], kind).sources
    sources |= {path: text for path, text in harness.items() if path.startswith("board/") or path == "link.ld"}
    sources |= {"edgefront.h": harness["edgefront.h"], "dispatch.c": _dispatcher(len(graphs), n_inputs, n_outputs)}
    return link_sources(sources, kind, compiler=compiler), n_inputs, n_outputs


def _dispatcher(n: int, n_inputs: int, n_outputs: int) -> str:
    includes = "".join(f'#include "net{i}.h"\n' for i in range(n))
    cases = "".join(f"    case {i}: return net{i}_run(buffer_in + 1, buffer_out);\n" for i in range(n))
    return f"""#include "edgefront.h"
{includes}
static int8_t buffer_in[{n_inputs}], buffer_out[{n_outputs}];
static const edgefront_sizes_t layout = {{
    .input_bytes = {n_inputs}, .output_bytes = {n_outputs}, .input = buffer_in, .output = buffer_out,
}};
int edgefront_init(void) {{ return 0; }}
__attribute__((noinline)) int edgefront_run(const int8_t *input, int8_t *output)
{{
    (void)input;
    (void)output;
    switch (buffer_in[0]) {{
{cases}    default: return 1;
    }}
}}
const edgefront_sizes_t *edgefront_sizes(void) {{ return &layout; }}
"""
