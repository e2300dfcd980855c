"""The known images of the agent's self-test: one small integer network, compiled for each board kind.

``python -m tasks.selftest [KIND …]`` writes ``mcu_agent/known/KIND.zip``, which the agent ships with. To be run again
whenever the harness, the mailbox or the kernels change; a test says so. Its layers are the common ones – convolutions
3x3 and 1x1, depthwise, pools, a sum, fully connected – with marks around each, so that a board's cycles can be compared
layer by layer.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import zipfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcu_agent.boards.virtual import VirtualBoard
from mcu_agent.errors import CyclesUnknown
from mcu_agent.kinds import BoardKind, kinds, load_kind
from mcu_agent.profiling import Profile, profile
from mcu_agent.selftest import FACTS_FILE, IMAGE_FILE, KNOWN_VERSION, LAYERS_FILE, VECTORS_FILE
from mcu_agent.session import Job as ProfileJob
from mcu_agent.session import Layer
from tasks.firmware.compiler import Compiled, compile_graph
from tasks.firmware.ir import Graph, Int8Array, Pads, Tensor, Window
from tasks.firmware.lower import lower
from tasks.firmware.quantised import (
    Addition,
    AnyNode,
    AveragePool,
    Bounds,
    Convolution,
    FullyConnected,
    MaximumPool,
    QuantisedNetwork,
)
from tasks.quant import reference

SEED = 20
N_INPUTS = 4
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
_AROUND = Pads(top=1, left=1, bottom=1, right=1)
_HALF = Window(kernel=(2, 2), stride=(2, 2))


def known_network(seed: int = SEED) -> Graph:
    """The network, 16x16x3 → 10; the same for a seed whatever the board."""
    rng = np.random.default_rng(seed)
    shapes = {
        "x": (16, 16, 3), "conv": (16, 16, 8), "depthwise": (16, 16, 8), "pointwise": (16, 16, 16),
        "largest": (8, 8, 16), "mean": (8, 8, 16), "sum": (8, 8, 16), "strided": (4, 4, 16), "global": (1, 1, 16),
        "y": (1, 1, 10),
    }  # fmt: skip
    # so that the values of every layer spread over the range, with some at its end
    scales = {"x": 0.04, "conv": 0.06, "depthwise": 0.025, "sum": 0.015, "strided": 0.025, "global": 0.01, "y": 0.005}
    scales |= dict.fromkeys(("pointwise", "largest", "mean"), 0.01)
    tensors = {
        name: Tensor(name=name, shape=shape, scale=scales[name], zero_point=-7) for name, shape in shapes.items()
    }
    nodes: tuple[AnyNode, ...] = (
        _convolution(rng, "x", "conv", (8, 3, 3, 3), Window(kernel=(3, 3), pads=_AROUND)),
        _convolution(rng, "conv", "depthwise", (8, 1, 3, 3), Window(kernel=(3, 3), pads=_AROUND), groups=8),
        _convolution(rng, "depthwise", "pointwise", (16, 8, 1, 1), Window(kernel=(1, 1))),
        MaximumPool(name="largest", inputs=("pointwise",), output="largest", window=_HALF),
        AveragePool(name="mean", inputs=("pointwise",), output="mean", window=_HALF, count_padding=True),
        Addition(name="sum", inputs=("largest", "mean"), output="sum"),
        _convolution(rng, "sum", "strided", (16, 16, 3, 3), Window(kernel=(3, 3), stride=(2, 2), pads=_AROUND)),
        AveragePool(
            name="global", inputs=("strided",), output="global", window=Window(kernel=(4, 4)), count_padding=True
        ),
        FullyConnected(
            name="last", inputs=("global",), output="y", weights=_weights(rng, 10, 16), scales=_scales(rng, 10),
            bias=rng.integers(-500, 500, size=10), channels_first=False,
        ),
    )  # fmt: skip
    digest = hashlib.sha256(f"known network {seed}".encode()).hexdigest()
    return lower(QuantisedNetwork(tensors=tensors, nodes=nodes, input="x", output="y", digest=digest))


def _weights(rng: np.random.Generator, *shape: int) -> Int8Array:
    return rng.integers(-127, 128, size=shape).astype(np.int8)


def _scales(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    return rng.uniform(0.001, 0.004, size=n)


def _convolution(
    rng: np.random.Generator,
    source: str,
    target: str,
    shape: tuple[int, int, int, int],
    window: Window,
    groups: int = 1,
) -> Convolution:
    return Convolution(
        name=target, inputs=(source,), output=target, bounds=Bounds(low=0.0), window=window, groups=groups,
        weights=_weights(rng, *shape), scales=_scales(rng, shape[0]), bias=rng.integers(-500, 500, size=shape[0]),
    )  # fmt: skip


def known_image(kind: BoardKind) -> bytes:
    """The zip file of the known image for a board kind; the same compiler gives the same bytes."""
    compiled = compile_graph(known_network(), kind, has_markers=True)
    inputs = _inputs(compiled.graph)
    layers = reference.run(compiled.graph, inputs[:1])
    vectors = {"inputs": inputs, "outputs": reference.output_of(compiled.graph, inputs)}
    vectors |= {f"layer_{index}": layers[layer.output][0] for index, layer in enumerate(compiled.graph.layers)}
    return _zipped(
        {
            IMAGE_FILE: compiled.image.elf,
            VECTORS_FILE: _packed(vectors),
            LAYERS_FILE: _json(compiled.layers_json()),
            FACTS_FILE: _json(_facts(compiled, kind, vectors)),
        }
    )


def _inputs(graph: Graph) -> Int8Array:
    """(n, H, W, C): the two extremes, then random ones."""
    shape = (N_INPUTS, *graph.input_tensor.shape)
    inputs = np.random.default_rng(SEED).integers(-128, 128, size=shape).astype(np.int8)
    inputs[1], inputs[2] = -128, 127
    return inputs


def _facts(compiled: Compiled, kind: BoardKind, vectors: Mapping[str, Int8Array]) -> dict[str, Any]:
    """What the image is, and what it costs on the virtual board; no cycles where that has no cost table of the core."""
    job = ProfileJob(
        elf=compiled.image.elf,
        inputs=vectors["inputs"].reshape(N_INPUTS, -1),
        expected=vectors["outputs"].reshape(N_INPUTS, -1),
        layers=[Layer.from_json(item) for item in compiled.layers_json()],
    )
    facts: dict[str, Any] = {
        "version": KNOWN_VERSION,
        "kind": kind.name,
        "compiler": compiled.image.compiler,
        "image_id": compiled.image.image_id.hex(),
        "macs": compiled.macs,
    }
    try:
        return facts | _costs(profile(job, VirtualBoard("known", kind)))
    except CyclesUnknown:
        return facts | {"cycles": None, "layer_cycles": [], "stack_used_bytes": None, "emulator": ""}


def _costs(found: Profile) -> dict[str, Any]:
    return {
        "cycles": found.cycles.median,
        "layer_cycles": [layer.cycles for layer in found.layers],
        "stack_used_bytes": found.stack_used_bytes,
        "emulator": found.emulator,
    }


def _json(data: object) -> bytes:
    return (json.dumps(data, indent=1) + "\n").encode()


def _packed(arrays: Mapping[str, Int8Array]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name, _ZIP_DATE)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(info, data)
    return buffer.getvalue()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the known images."""
    parser = argparse.ArgumentParser(prog="python -m tasks.selftest", description=main.__doc__)
    parser.add_argument("kind", nargs="*", help="board kinds; all of the catalogue without any")
    parser.add_argument("--to", type=Path, default=Path(str(resources.files("mcu_agent"))) / "known")
    given = parser.parse_args(arguments)
    given.to.mkdir(parents=True, exist_ok=True)
    for name in given.kind or kinds():
        data = known_image(load_kind(name))
        (given.to / f"{name}.zip").write_bytes(data)
        sys.stdout.write(f"{given.to / name}.zip: {len(data):,} bytes\n")


if __name__ == "__main__":
    main()
