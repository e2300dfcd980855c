"""Networks as a program for this machine under AddressSanitizer and UndefinedBehaviorSanitizer, which end it at the
first access outside an object and the first undefined operation.

All activations lie in one arena, an object of its own to the sanitiser. So before each layer everything in it is
poisoned but what that layer may touch: its inputs, its output and its scratch.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from tasks.firmware.compiler import write_sources
from tasks.firmware.emit import emit_network
from tasks.firmware.ir import AnyLayer, Graph, Int8Array, layer_symbol
from tasks.firmware.planner import Plan, plan_memory

FLAGS = ("-std=c11", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
TIMEOUT_S = 240
Sources = Mapping[str, str]


class Caught(Exception):
    """The sanitiser ended the program; the text is its report."""


@lru_cache
def compiler() -> str | None:
    """A C compiler whose programs run under both sanitisers here."""
    found = (path for name in ("gcc", "clang") if (path := shutil.which(name)))
    return next((path for path in found if _works(path)), None)


def _works(path: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "empty"
        command = [path, *FLAGS, "-x", "c", "-", "-o", str(target)]
        made = subprocess.run(command, input=b"int main(void) { return 0; }", capture_output=True, check=False)
        return made.returncode == 0 and subprocess.run([target], capture_output=True, check=False).returncode == 0


def why_not() -> str:
    """Why the sanitisers cannot be used here; empty when they can."""
    return "" if compiler() else "neither gcc nor clang makes programs with AddressSanitizer here"


def sources_of(graphs: Sequence[Graph]) -> dict[str, str]:
    """The networks' own files, number ``i`` with the prefix ``net<i>``."""
    files: dict[str, str] = {}
    for i, graph in enumerate(graphs):
        files |= emit_network(graph, plan_memory(graph), f"net{i}")
    return files


def run(graphs: Sequence[Graph], inputs: Sequence[Int8Array], sources: Sources | None = None) -> list[Int8Array]:
    """Outputs (samples, bytes) of every network for its inputs (samples, H, W, C).

    Raises:
        Caught: the program was ended.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_sources({**(sources or sources_of(graphs)), "main.c": _program(graphs, inputs)}, folder)
        everything = "".join(f'#include "{path}"\n' for path in files if path.endswith(".c"))
        (folder / "everything.c").write_text(everything)
        command = [compiler() or "", *FLAGS, "-I.", "everything.c", "-o", "program"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=TIMEOUT_S)
        data = b"".join(x.tobytes() for x in inputs)
        done = subprocess.run([folder / "program"], input=data, capture_output=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        raise Caught(done.stderr.decode(errors="replace"))
    sizes = [len(x) * graph.output_tensor.n_bytes for graph, x in zip(graphs, inputs, strict=True)]
    parts = np.split(np.frombuffer(done.stdout, np.int8), np.cumsum(sizes)[:-1])
    return [part.reshape(len(x), -1) for part, x in zip(parts, inputs, strict=True)]


def _program(graphs: Sequence[Graph], inputs: Sequence[Int8Array]) -> str:
    calls = "".join(f"    run_net{i}({len(x)});\n" for i, x in enumerate(inputs))
    parts = [_runner(f"net{i}", graph, plan_memory(graph)) for i, graph in enumerate(graphs)]
    head = "#include <sanitizer/asan_interface.h>\n#include <stdio.h>\n#include <stdlib.h>\n"
    return f"{head}{''.join(parts)}int main(void)\n{{\n{calls}    return 0;\n}}\n"


def _runner(prefix: str, graph: Graph, plan: Plan) -> str:
    arena = f"(int8_t *){prefix}_arena"
    steps = []
    for index, layer in enumerate(graph.layers):
        steps.append(f"        __asan_poison_memory_region({arena}, {plan.arena_bytes});\n")
        for start, n_bytes in touched(graph, plan, index, layer):
            steps.append(f"        __asan_unpoison_memory_region({arena} + {start}, {n_bytes});\n")
        steps.append(f"        {layer_symbol(prefix, index, layer)}();\n")
    source, target = graph.input_tensor.n_bytes, graph.output_tensor.n_bytes
    return f"""
static void run_{prefix}(int n)
{{
    for (; n > 0; --n) {{
        __asan_unpoison_memory_region({arena}, {plan.arena_bytes});
        if (fread({arena} + {plan.offsets[graph.input]}, 1, {source}, stdin) != {source}) {{
            abort();
        }}
{"".join(steps)}        __asan_unpoison_memory_region({arena}, {plan.arena_bytes});
        fwrite({arena} + {plan.offsets[graph.output]}, 1, {target}, stdout);
    }}
}}
"""


def touched(graph: Graph, plan: Plan, index: int, layer: AnyLayer) -> list[tuple[int, int]]:
    """(offset in the arena, bytes) of the layer's inputs, its output and its scratch."""
    ranges = [(plan.offsets[name], graph.tensors[name].n_bytes) for name in (*layer.inputs, layer.output)]
    if index in plan.scratch_offsets:
        ranges.append((plan.scratch_offsets[index], plan.scratch_bytes[index]))
    return ranges
