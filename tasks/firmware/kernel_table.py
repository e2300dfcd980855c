"""Which kernel computes each operator on which core: what the compiler would choose, asked of the code that chooses.

An operator is shown by the smallest layer it has, in a graph of that layer alone. Whether assembly takes part is then
what :func:`tasks.firmware.kernels.kernel_of` lists and what emission writes; conditions are found by trying windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tasks.firmware import emit_matrix
from tasks.firmware.ir import (
    Add,
    AnyLayer,
    AvgPool,
    Concat,
    Conv2d,
    Dense,
    Graph,
    Lookup,
    MaxPool,
    Mul,
    Pad,
    Pads,
    Rescale,
    Softmax,
    Tensor,
    Window,
    op_name,
)
from tasks.firmware.kernels import geometry_of, kernel_of

GENERATED = "<prefix>_depthwise.S"
_SIZE, _CHANNELS = 9, 4
_TRIED = range(1, 5)  # of dilations and strides
_ONE = Window(kernel=(1, 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Core:
    """A processor that generated code is compiled for. ``cpu`` is its name for zig, empty for this machine;
    ``has_dsp``: its compiler defines ``__ARM_FEATURE_DSP``, on which ``EF_HAS_DSP`` depends (ef_common.h)."""

    name: str
    cpu: str
    has_dsp: bool


CORES = (
    Core(name="cortex-m0plus", cpu="cortex_m0plus", has_dsp=False),
    Core(name="cortex-m3", cpu="cortex_m3", has_dsp=False),
    Core(name="cortex-m4", cpu="cortex_m4", has_dsp=True),
    Core(name="cortex-m7", cpu="cortex_m7", has_dsp=True),
    Core(name="cortex-m33", cpu="cortex_m33+dsp", has_dsp=True),
    Core(name="cortex-m33 without DSP", cpu="cortex_m33-dsp", has_dsp=False),
    Core(name="host", cpu="", has_dsp=False),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """An operator's files: ``portable`` headers in C, ``assembly`` for the DSP extension, empty where there is none.
    ``condition``: which layers the assembly takes, empty for all."""

    operator: str
    portable: tuple[str, ...]
    assembly: tuple[str, ...]
    condition: str

    def path(self, core: Core) -> str:
        """``"assembly"`` or ``"C"``."""
        return "assembly" if self.assembly and core.has_dsp else "C"

    def to_json(self) -> dict[str, Any]:
        return {
            "operator": self.operator,
            "paths": {core.name: self.path(core) for core in CORES},
            "portable": list(self.portable),
            "assembly": list(self.assembly),
            "condition": self.condition,
        }


def rows() -> list[Row]:
    """One row an operator, those with assembly first."""
    found = [_row(alone(layer)) for layer in sample_layers()]
    return sorted(found, key=lambda row: (not row.assembly, row.operator))


def cells(found: list[Row]) -> list[list[str]]:
    """The table as text, headings first: operator, what each core takes, the kernel in C, the assembly."""
    head = ["operator", *(core.name for core in CORES), "in C", "in assembly"]
    return [head, *([*_paths(row), row.portable[-1], ", ".join(row.assembly) or "–"] for row in found)]


def _paths(row: Row) -> list[str]:
    return [row.operator, *("asm" if row.path(core) == "assembly" else "C" for core in CORES)]


def conditions(found: list[Row]) -> list[str]:
    """Which layers of an operator the assembly takes, where it does not take all: a line each."""
    return [f"{row.operator}: {row.condition}; others take the C" for row in found if row.condition]


def _row(graph: Graph) -> Row:
    (layer,) = graph.layers
    kernel = kernel_of(graph, layer)
    generated = (GENERATED,) if emit_matrix.depthwise_geometries(graph) else ()
    return Row(
        operator=op_name(layer),
        portable=kernel.headers,
        assembly=(*kernel.assembly, *generated),
        condition=_depthwise_condition() if generated else "",
    )


def _depthwise_condition() -> str:
    """The dilations and strides that have code of their own."""

    def taken(make: Callable[[int], Window]) -> str:
        return " or ".join(str(n) for n in _TRIED if _has_own_code(make(n)))

    dilation = taken(lambda n: Window(kernel=(2, 2), dilation=(n, n)))
    across = taken(lambda n: Window(kernel=(2, 2), stride=(1, n)))
    down = [n for n in _TRIED if _has_own_code(Window(kernel=(2, 2), stride=(n, 1)))]
    vertical = "any vertical stride" if down == list(_TRIED) else f"vertical stride {' or '.join(map(str, down))}"
    return (
        f"dilation {dilation}, horizontal stride {across}, {vertical}; channels, rows and windows small enough for an "
        "instruction's offset"
    )


def _has_own_code(window: Window) -> bool:
    graph = alone(_convolution(window, groups=_CHANNELS))
    layer = graph.layers[0]
    assert isinstance(layer, Conv2d)
    return geometry_of(graph, layer).is_supported


def _convolution(window: Window, groups: int, outputs: int = _CHANNELS) -> Conv2d:
    return Conv2d(
        **_ends(),
        window=window,
        groups=groups,
        weights=np.ones((outputs, *window.kernel, _CHANNELS // groups), np.int8),
        bias=np.zeros(outputs, np.int32),
        multipliers=np.full(outputs, 2**24, np.int32),
        left_shift=0,
    )


def _with_sum(layer: Conv2d) -> Conv2d:
    """``x`` added to what the convolution gives, which has the scale of ``x``."""
    addition = Add(**{**_ends(), "inputs": ("x", "x")}, multipliers=(2**30, 2**30), left_shift=0)
    return replace(layer, inputs=("x", "x"), addition=addition)


def _ends(n_inputs: int = 1) -> dict[str, Any]:
    return {"name": "layer", "inputs": tuple("x" for _ in range(n_inputs)), "output": "y"}


def sample_layers() -> Iterator[AnyLayer]:
    """A small layer of every operator, from ``x`` to ``y``."""
    weights, ones = np.ones((4, _SIZE * _SIZE * _CHANNELS), np.int8), np.full(4, 2**24, np.int32)
    yield _convolution(_ONE, groups=1)
    yield _with_sum(_convolution(_ONE, groups=1))
    yield _convolution(_ONE, groups=_CHANNELS)
    yield _convolution(_ONE, groups=2)
    yield Dense(**_ends(), weights=weights, bias=np.zeros(4, np.int32), multipliers=ones, left_shift=0)
    yield Add(**_ends(2), multipliers=(2**30, 2**30), left_shift=0)
    yield Rescale(**_ends(), multiplier=2**30, left_shift=0)
    yield MaxPool(**_ends(), window=_ONE)
    yield AvgPool(**_ends(), window=_ONE, multipliers=(2**30,), left_shift=0)
    yield Mul(**_ends(2), multiplier=2**24, left_shift=0)
    yield Lookup(**_ends(), table=np.arange(-128, 128).astype(np.int8))
    yield Concat(**_ends(2), multipliers=(2**30, 2**30), left_shifts=(0, 0))
    yield Pad(**_ends(), pads=Pads(top=1))
    yield Softmax(**_ends(), exponents=np.full(256, 2**20, np.uint32), output_scale=2**24)


def alone(layer: AnyLayer) -> Graph:
    """A network of one layer, whose tensors are called ``x`` and ``y``."""
    source = Tensor(name="x", shape=(_SIZE, _SIZE, _CHANNELS), scale=1.0, zero_point=0)
    target = Tensor(name="y", shape=_output_shape(layer), scale=1.0, zero_point=0)
    return Graph(tensors={"x": source, "y": target}, layers=(layer,), input="x", output="y", digest="0" * 64)


def _output_shape(layer: AnyLayer) -> tuple[int, int, int]:
    if isinstance(layer, (Conv2d, MaxPool, AvgPool)):
        return (*layer.window.output_size(_SIZE, _SIZE), _CHANNELS)
    if isinstance(layer, Dense):
        return (1, 1, len(layer.weights))
    if isinstance(layer, Concat):
        return (_SIZE, _SIZE, _CHANNELS * len(layer.inputs))
    return (_SIZE + 1, _SIZE, _CHANNELS) if isinstance(layer, Pad) else (_SIZE, _SIZE, _CHANNELS)
