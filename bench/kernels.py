"""What the generated kernels cost: whole layers alone, and the networks of MLPerf Tiny.

    python bench/kernels.py [--json] [--core cortex-m4] [--compiler gcc,zig] [--emulator unicorn,qemu]
                            [--layers] [--networks]

Every layer is compiled into a firmware of its own, runs on random inputs, and must give the integer reference's outputs
bit for bit. Counted is what runs between entry and exit of its function. Without --layers and --networks both are
measured. QEMU is driven by what the tests use (tests/support/qemu.py), so this runs from a checkout only. Exit code 1:
our C did not compile somewhere, and rows are missing for that.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench import zoo  # noqa: E402
from bench.layers import CASES, Case, graph_of  # noqa: E402
from mcu_agent.boards.protocol import Counts  # noqa: E402
from mcu_agent.kinds import load_kind  # noqa: E402
from mcu_agent.latency import median_index  # noqa: E402
from tasks.compile import profile_compiled, random_inputs, rom_by_layer  # noqa: E402
from tasks.firmware.compiler import Compiled, compile_graph, compile_network  # noqa: E402
from tasks.firmware.errors import ToolchainError  # noqa: E402
from tasks.firmware.toolchain import gcc_path  # noqa: E402
from tasks.quant import reference  # noqa: E402
from tests.support import qemu  # noqa: E402

# The F446 is the Cortex-M4 that QEMU has a machine for; at zero wait states every board of a core counts the same.
BOARDS = {"cortex-m4": qemu.KIND, "cortex-m7": "nucleo-h743zi"}
COMPILERS, EMULATORS = ("gcc", "zig"), ("unicorn", "qemu")
N_INPUTS, SEED = 3, 0

CYCLES_GOALS = {"resnet-8": 1.45, "ds-cnn": 1.7, "mobilenet-v1-0.25": 1.6, "autoencoder": 1.9}
ARENA_GOAL, RUNTIME_GOAL_BYTES, STACK_GOAL_BYTES, COMPILE_GOAL_S = 1.02, 2048, 1024, 5.0


_T = TypeVar("_T")


class WrongOutputs(Exception):
    """An emulated layer gave other bytes than the integer reference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One layer by one compiler on one emulator. ``rom_bytes``: its code and tables; ``scratch_bytes``: what it has in
    the arena beside input and output. Instructions are exact for the emulated run, cycles by the cost table."""

    layer: str
    core: str
    compiler: str
    emulator: str
    macs: int
    instructions: int
    cycles: int
    rom_bytes: int
    scratch_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkRow:
    """One network by one compiler, emulated by Unicorn. ``stack_bytes`` is the deepest use seen; ``compile_s`` is wall
    clock from the ONNX bytes to the ELF file."""

    name: str
    core: str
    compiler: str
    emulator: str
    macs: int
    instructions: int
    cycles: int
    arena_bytes: int
    arena_lower_bound_bytes: int
    weights_bytes: int
    code_bytes: int
    runtime_bytes: int
    stack_bytes: int
    compile_s: float


def layer_row(case: Case, core: str, compiler: str, emulator: str) -> Row:
    """Compile and measure one layer.

    Raises:
        ToolchainError: the C compiler failed.
        BitMismatch, WrongOutputs: an output is not the reference's.
    """
    kind = load_kind(BOARDS[core])
    compiled = compile_graph(graph_of(case, SEED), kind, compiler=compiler)
    counts = _COUNTED[emulator](compiled, core)
    rom = rom_by_layer(compiled.image.elf, kind)
    return Row(
        layer=case.name,
        core=core,
        compiler=compiler,
        emulator=emulator,
        macs=compiled.macs,
        instructions=counts.instructions,
        cycles=counts.cycles,
        rom_bytes=sum(layer.code_bytes + layer.weights_bytes for layer in rom.values()),
        scratch_bytes=compiled.plan.scratch_bytes.get(0, 0),
    )


def on_unicorn(compiled: Compiled, core: str) -> Counts:
    """What the layers cost in the median run, without what belongs to no layer."""
    found = profile_compiled(compiled, load_kind(BOARDS[core]), n_inputs=N_INPUTS, seed=SEED)
    return Counts(
        instructions=sum(layer.instructions for layer in found.layers),
        cycles=sum(layer.cycles for layer in found.layers),
    )


def on_qemu(compiled: Compiled, core: str) -> Counts:
    """The same for a network of one layer; cycles are those of the cost table over QEMU's blocks.

    Raises:
        WrongOutputs: an output is not the reference's.
    """
    (layer,) = compiled.layers_json()
    inputs = random_inputs(compiled, N_INPUTS, SEED)
    span = qemu.layer_span(compiled.image.elf, layer["symbol"])
    with tempfile.TemporaryDirectory(prefix="edgefront-bench-") as folder:
        outputs, counts = qemu.run_on_qemu(compiled.image.elf, inputs.reshape(N_INPUTS, -1), Path(folder), span)
    if not np.array_equal(outputs, reference.output_of(compiled.graph, inputs)):
        raise WrongOutputs(f"layer {layer['name']!r}: QEMU's outputs are not those of the integer reference")
    return counts[median_index([one.cycles for one in counts])]


_COUNTED: dict[str, Callable[[Compiled, str], Counts]] = {"unicorn": on_unicorn, "qemu": on_qemu}


def network_row(name: str, core: str, compiler: str, extra_macs: float = 0.0) -> NetworkRow:
    """Compile and run one network of the zoo; raises as :func:`layer_row`."""
    kind, data = load_kind(BOARDS[core]), zoo.quantised(name, SEED)
    started = time.monotonic()
    compiled = compile_network(data, kind, compiler=compiler, extra_macs=extra_macs)
    compile_s = time.monotonic() - started
    found = profile_compiled(compiled, kind, n_inputs=N_INPUTS, seed=SEED)
    rom = compiled.image.rom
    return NetworkRow(
        name=name,
        core=core,
        compiler=compiler,
        emulator="unicorn",
        macs=compiled.macs,
        instructions=found.instructions or 0,
        cycles=round(found.cycles.median),
        arena_bytes=compiled.image.ram.arena_bytes,
        arena_lower_bound_bytes=compiled.plan.lower_bound_bytes,
        weights_bytes=rom.weights_bytes,
        code_bytes=rom.code_bytes,
        runtime_bytes=rom.runtime_bytes,
        stack_bytes=found.stack_used_bytes,
        compile_s=round(compile_s, 3),
    )


def missing(core: str, compilers: Sequence[str], emulators: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, why) of each chosen compiler and emulator that cannot be used here."""
    if "gcc" in compilers and gcc_path() is None:
        yield "gcc", "arm-none-eabi-gcc is not on the path"
    if "qemu" in emulators:
        why = "its machine has a Cortex-M4" if core != "cortex-m4" else qemu.why_not()
        if why:
            yield "qemu", why


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """What to measure, without what is missing; ``extra_macs``: the share that networks may spend on less RAM."""

    core: str
    compilers: tuple[str, ...]
    emulators: tuple[str, ...]
    cases: tuple[Case, ...]
    networks: tuple[str, ...]
    extra_macs: float = 0.0

    @property
    def n_rows(self) -> int:
        """How many rows that is, where everything compiles."""
        return len(self.compilers) * (len(self.cases) * len(self.emulators) + len(self.networks))


Say = Callable[[str], None]


def measure(chosen: Chosen, say: Say) -> tuple[list[Row], list[NetworkRow]]:
    """All rows; one whose C does not compile is left out, and ``say`` is told."""
    rows = [
        row
        for compiler in chosen.compilers
        for case in chosen.cases
        for emulator in chosen.emulators
        for row in attempt(partial(layer_row, case, chosen.core, compiler, emulator), f"{case.name}, {compiler}", say)
    ]
    networks = [
        row
        for compiler in chosen.compilers
        for name in chosen.networks
        for row in attempt(
            partial(network_row, name, chosen.core, compiler, chosen.extra_macs), f"{name}, {compiler}", say
        )
    ]
    return rows, networks


def attempt(make: Callable[[], _T], what: str, say: Say) -> list[_T]:
    """What ``make`` gives, or nothing where the C compiler refuses its code."""
    try:
        return [make()]
    except ToolchainError as error:
        lines = [line for line in str(error).splitlines() if "error" in line]
        say(f"left out: {what}: {lines[0] if lines else error}")
        return []


def json_object(rows: Sequence[Row], networks: Sequence[NetworkRow]) -> dict[str, Any]:
    return {"rows": [asdict(row) for row in rows], "networks": [asdict(row) for row in networks]}


def text(rows: Sequence[Row], networks: Sequence[NetworkRow]) -> str:
    """Two tables: what was reached, the goal, and the figures of the other library."""
    parts = []
    if rows:
        parts.append(aligned([_LAYER_HEAD, *map(layer_cells, rows)], n_left=3))
    if networks:
        parts.append(aligned([_NETWORK_HEAD, *map(network_cells, networks)], n_left=2))
        parts.append(
            f"goals: arena at most {ARENA_GOAL} times its bound, runtime {RUNTIME_GOAL_BYTES} bytes, stack "
            f"{STACK_GOAL_BYTES} bytes, compile {COMPILE_GOAL_S:g} s; * marks what is over its goal"
        )
    return "\n\n".join([*parts, NOTE])


_LAYER_HEAD = ("layer", "compiler", "emulator", "instr/MAC", "goal", "", "CMSIS-NN", "cycles/MAC", "ROM", "scratch")
_NETWORK_HEAD = (
    "network", "compiler", "cycles/MAC", "goal", "", "arena", "bound", "weights", "code", "runtime", "stack", "compile",
)  # fmt: skip
NOTE = """\
instructions are counted and cycles computed by a cost table, both on an emulated core at zero wait states: a lower
bound, no measurement. Calibration factor to published boards: about 1.3, not measured on one.
Goals and CMSIS-NN (2026-07, GCC -O3): instructions a MAC on a Cortex-M4."""


def layer_cells(row: Row) -> list[str]:
    case = next(case for case in CASES if case.name == row.layer)
    per_mac = row.instructions / row.macs
    baseline = "–" if case.baseline is None else f"{case.baseline:.2f}"
    return [
        row.layer,
        row.compiler,
        row.emulator,
        f"{per_mac:.2f}",
        f"{case.goal:.2f}",
        _mark(per_mac, case.goal),
        baseline,
        f"{row.cycles / row.macs:.2f}",
        f"{row.rom_bytes:,}",
        f"{row.scratch_bytes:,}",
    ]


def network_cells(row: NetworkRow) -> list[str]:
    per_mac, goal = row.cycles / row.macs, CYCLES_GOALS[row.name]
    bound = row.arena_lower_bound_bytes
    return [
        row.name,
        row.compiler,
        f"{per_mac:.2f}",
        f"{goal:.2f}",
        _mark(per_mac, goal),
        f"{row.arena_bytes:,}{_mark(row.arena_bytes, ARENA_GOAL * bound)}",
        f"{bound:,}",
        f"{row.weights_bytes:,}",
        f"{row.code_bytes:,}",
        f"{row.runtime_bytes:,}{_mark(row.runtime_bytes, RUNTIME_GOAL_BYTES)}",
        f"{row.stack_bytes:,}{_mark(row.stack_bytes, STACK_GOAL_BYTES)}",
        f"{row.compile_s:.1f} s{_mark(row.compile_s, COMPILE_GOAL_S)}",
    ]


def _mark(amount: float, goal: float) -> str:
    return "*" if amount > goal else ""


def aligned(rows: Sequence[Sequence[str]], n_left: int) -> str:
    """Columns of equal width, the first ``n_left`` of them flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = enumerate(zip(row, widths, strict=True))
        return "  ".join(f"{cell:{'<' if i < n_left else '>'}{width}}" for i, (cell, width) in cells).rstrip()

    return "\n".join(map(line, rows))


def some_of(allowed: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """A parser of comma-separated names."""

    def parse(given: str) -> tuple[str, ...]:
        names = tuple(given.split(","))
        if unknown := [name for name in names if name not in allowed]:
            raise argparse.ArgumentTypeError(f"found {', '.join(unknown)}; allowed are {', '.join(allowed)}")
        return names

    return parse


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", action="store_true", help="print one JSON object")
    made.add_argument("--core", choices=sorted(BOARDS), default="cortex-m4")
    made.add_argument("--compiler", type=some_of(COMPILERS), default=COMPILERS, help="gcc, zig or both")
    made.add_argument("--emulator", type=some_of(EMULATORS), default=EMULATORS, help="unicorn, qemu or both")
    made.add_argument(
        "--extra-macs", type=float, default=0.0, help="share of more MACs to spend on less RAM (networks)"
    )
    made.add_argument("--layers", action="store_true", help="the layers only")
    made.add_argument("--networks", action="store_true", help="the networks only (emulated by Unicorn)")
    return made


def main() -> None:
    given = parser().parse_args()

    def say(message: str) -> None:
        print(message, file=sys.stderr)

    absent = dict(missing(given.core, given.compiler, given.emulator))
    for name, why in absent.items():
        say(f"left out: {name}: {why}")
    both = given.layers == given.networks
    chosen = Chosen(
        core=given.core,
        compilers=tuple(name for name in given.compiler if name not in absent),
        emulators=tuple(name for name in given.emulator if name not in absent),
        cases=CASES if given.layers or both else (),
        networks=tuple(zoo.MLPERF_TINY) if given.networks or both else (),
        extra_macs=given.extra_macs,
    )
    rows, networks = measure(chosen, say)
    print(json.dumps(json_object(rows, networks)) if given.json else text(rows, networks))
    if len(rows) + len(networks) < chosen.n_rows:
        sys.exit(1)


if __name__ == "__main__":
    main()
