"""The generated C, built for this machine and called through ctypes: the deployed integer network without a board."""

from __future__ import annotations

import _ctypes
import ctypes
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tasks.firmware.compiler import PREFIX, write_sources
from tasks.firmware.ir import Graph, Int8Array, layer_symbol
from tasks.firmware.planner import Plan
from tasks.firmware.toolchain import link_shared

_DRIVER = """\
#include "{prefix}.h"

/* Many samples in one call; {prefix}_sizes() says how long each is. */
void {prefix}_host_run(const int8_t *inputs, int8_t *outputs, int32_t n);
void {prefix}_host_run(const int8_t *inputs, int8_t *outputs, int32_t n)
{{
    const {prefix}_sizes_t *sizes = {prefix}_sizes();
    for (int32_t i = 0; i < n; ++i) {{
        (void){prefix}_run(inputs, outputs);
        inputs += sizes->input_bytes;
        outputs += sizes->output_bytes;
    }}
}}
"""


class HostNetwork:
    """A network built for the host from its generated sources (``board/`` left out).

    The library holds one static arena: one owner, not thread-safe. It is unloaded when the object goes: a worker that
    builds thousands of networks must not keep them all.
    """

    def __init__(self, sources: Mapping[str, str], graph: Graph, plan: Plan, prefix: str = PREFIX) -> None:
        self._graph, self._plan, self._prefix = graph, plan, prefix
        with tempfile.TemporaryDirectory(prefix="edgefront-host-", ignore_cleanup_errors=True) as name:
            self._library = build_library([(prefix, sources)], Path(name))
        weakref.finalize(self, _unload, self._library)

    def run(self, x: Int8Array) -> Int8Array:
        """Output bytes (n, k) of input bytes (n, …) in NHWC order.

        Raises:
            ValueError: a sample has another number of bytes than the network's input.
        """
        n_inputs, n_outputs = self._graph.input_tensor.n_bytes, self._graph.output_tensor.n_bytes
        return run_batch(self._library, self._prefix, x, n_inputs, n_outputs)

    def layer_outputs(self, sample: Int8Array) -> dict[str, Int8Array]:
        """What each layer leaves in the arena for one sample, by tensor name, each (1, H, W, C)."""
        arena = (ctypes.c_int8 * self._plan.arena_bytes).in_dll(self._library, f"{self._prefix}_arena")
        view = np.ctypeslib.as_array(arena)
        self._place(view, self._graph.input, sample)
        outputs = {}
        for index, layer in enumerate(self._graph.layers):
            getattr(self._library, layer_symbol(self._prefix, index, layer))()
            tensor = self._graph.tensors[layer.output]
            start = self._plan.offsets[layer.output]
            outputs[layer.output] = view[start : start + tensor.n_bytes].reshape(1, *tensor.shape).copy()
        return outputs

    def _place(self, arena: Int8Array, name: str, sample: Int8Array) -> None:
        start = self._plan.offsets[name]
        arena[start : start + self._graph.tensors[name].n_bytes] = sample.ravel()


def _unload(library: ctypes.CDLL) -> None:
    # ctypes has no public way to unload; where the private one is missing the library stays until the process ends.
    close = getattr(_ctypes, "dlclose", None)
    if close is not None:
        close(library._handle)


def build_library(networks: Sequence[tuple[str, Mapping[str, str]]], folder: Path) -> ctypes.CDLL:
    """Several networks, each with its own prefix, in one shared library: one start of the compiler for all."""
    c_files: list[str] = []
    for prefix, sources in networks:
        portable = {path: text for path, text in sources.items() if not path.startswith("board/") and path != "link.ld"}
        portable[f"{prefix}_host.c"] = _DRIVER.format(prefix=prefix)
        c_files += [path for path in write_sources(portable, folder) if path.endswith(".c")]
    # Each file given to the compiler costs a process, so everything goes into one.
    everything = "".join(f'#include "{path}"\n' for path in c_files)
    (folder / "everything.c").write_text(everything, encoding="utf-8")
    return ctypes.CDLL(str(link_shared(folder, ["everything.c"])))


def run_batch(library: ctypes.CDLL, prefix: str, x: Int8Array, n_inputs: int, n_outputs: int) -> Int8Array:
    """Run the network called ``prefix`` of ``library`` on a batch; see :meth:`HostNetwork.run`."""
    inputs = np.ascontiguousarray(x, np.int8).reshape(len(x), -1)
    if inputs.shape[1] != n_inputs:
        raise ValueError(f"a sample has {inputs.shape[1]} bytes, the network takes {n_inputs}")
    outputs = np.empty((len(x), n_outputs), np.int8)
    pointer = ctypes.POINTER(ctypes.c_int8)
    function = getattr(library, f"{prefix}_host_run")
    function.argtypes, function.restype = [pointer, pointer, ctypes.c_int32], None
    function(inputs.ctypes.data_as(pointer), outputs.ctypes.data_as(pointer), len(x))
    return outputs
