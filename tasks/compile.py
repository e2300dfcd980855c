"""A model file, compiled and measured without a study: ONNX → C and ELF → what each layer costs on a board.

Sizes are exact. On the virtual board instructions, cycles and the stack are those of an emulated core; cycles follow a
cost table at zero wait states and are a lower bound (``docs/boards.md``). Nothing is written before everything has been
measured.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from mcu_agent.boards.protocol import Board
from mcu_agent.boards.virtual import VirtualBoard
from mcu_agent.image import read_image
from mcu_agent.kinds import BoardKind
from mcu_agent.measure import LAYERS_FILE, VECTORS_FILE, pack_vectors
from mcu_agent.profiling import Plan, Profile, profile
from mcu_agent.session import Job, Layer
from orchestrator.errors import UsageError
from orchestrator.records import Json, Source, Value
from tasks.errors import Defect, TransientFault
from tasks.firmware.compiler import PREFIX, Compiled, compile_network, write_sources
from tasks.firmware.emit import Optimise
from tasks.firmware.errors import DoesNotFit, FirmwareError, ToolchainError, ToolchainInterrupted
from tasks.firmware.ir import Int8Array
from tasks.firmware.kernels import has_assembly
from tasks.firmware.toolchain import gcc_path
from tasks.quant import reference

ELF_FILE, REPORT_FILE = "firmware.elf", "report.json"
N_INPUTS = 3
TIMEOUT_S = 600.0

_QUANTISERS = ("QuantizeLinear", "DequantizeLinear")
_INTEGER_OPERATORS = ("QLinear", "QGemm", "ConvInteger", "MatMulInteger")
_HOW_TO_QUANTISE = (
    "quantise it first, for instance with onnxruntime.quantization.quantize_static(…, quant_format=QuantFormat.QDQ, "
    "activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, per_channel=True); a trial that `edgefront export` "
    "writes has its network-int8.onnx"
)
_ONE_PASS = Plan(readings=0, warm_up=0)
KNOWN_ANSWERS = 4
_LAYER_SYMBOL = re.compile(rf"{PREFIX}_layer_(\d+)_")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rom:
    """Bytes of flash that are one layer's own: its functions and its tables."""

    code_bytes: int = 0
    weights_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerReport:
    """One layer. ``path``: ``assembly`` or ``C``, what its inner loop runs in; ``output_shape`` (H, W, C);
    ``live_bytes``: activations (and scratch memory) that are in the arena while it runs. ``macs`` and bytes are exact;
    ``instructions`` (None where the board cannot count) and ``cycles`` are those of the median run and come from
    ``source``."""

    index: int
    name: str
    op: str
    path: str
    output_shape: tuple[int, ...]
    macs: int
    instructions: int | None
    cycles: int
    source: str
    live_bytes: int
    rom: Rom

    @property
    def instructions_per_mac(self) -> float | None:
        """None where the layer multiplies nothing, or instructions were not counted."""
        return self.instructions / self.macs if self.macs and self.instructions is not None else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a compiled network costs on a board kind. ``totals`` carry unit and source; ``largest_layer`` is the index
    of the layer during which most of the arena is in use, which no plan can do without."""

    model: str
    digest: str
    board: str
    core: str
    clock_hz: int
    compiler: str
    optimise: str
    emulator: str
    n_inputs: int
    seed: int
    layers: tuple[LayerReport, ...]
    largest_layer: int
    totals: Mapping[str, Value]

    def to_json(self) -> Json:
        """The same as one JSON object; ``bit_exact`` is always true, because a difference ends in an error."""
        return {
            "model": self.model,
            "sha256": self.digest,
            "board": self.board,
            "core": self.core,
            "clock_hz": self.clock_hz,
            "compiler": self.compiler,
            "optimise": self.optimise,
            "emulator": self.emulator,
            "inputs": {"n": self.n_inputs, "seed": self.seed, "bit_exact": True},
            "layers": [_layer_json(layer) for layer in self.layers],
            "largest_layer": self.largest_layer,
            "totals": {name: value.to_json() for name, value in self.totals.items()},
        }


def _layer_json(layer: LayerReport) -> Json:
    plain = {name: value for name, value in asdict(layer).items() if name not in ("rom", "live_bytes", "output_shape")}
    sizes = {"ram_live_bytes": layer.live_bytes, **asdict(layer.rom)}
    return {**plain, "output_shape": list(layer.output_shape), **sizes}


def read_model(file: Path) -> bytes:
    """The bytes of an int8 QDQ model, checked for what users most often give instead.

    Raises:
        UsageError: no such file, no ONNX model, a model without quantisation, or one whose weights lie elsewhere.
    """
    if file.is_dir():
        raise UsageError(f"{file}: is a folder; give an ONNX model quantised to int8 (QDQ)")
    if not file.is_file():
        raise UsageError(f"{file}: there is no such file; give an ONNX model quantised to int8 (QDQ)")
    data = file.read_bytes()
    try:
        graph = onnx.load_model_from_string(data).graph
    except Exception as error:  # protobuf raises classes of its own, by implementation
        raise UsageError(f"{file}: not an ONNX model: {error}") from error
    if not graph.node:
        raise UsageError(f"{file}: not an ONNX model: it holds no operator")
    operators = {node.op_type for node in graph.node}
    if integer := sorted(name for name in operators if name.startswith(_INTEGER_OPERATORS)):
        raise UsageError(
            f"{file}: quantised with integer operators ({', '.join(integer)}); quantise to the QDQ format instead "
            "(quant_format=QuantFormat.QDQ)"
        )
    if not operators & set(_QUANTISERS):
        raise UsageError(
            f"{file}: not quantised (no QuantizeLinear, no DequantizeLinear); {_HOW_TO_QUANTISE}. If that was done, it "
            f"knows none of its operators ({', '.join(sorted(operators))}), which then cannot be compiled either"
        )
    if outside := [item.name for item in graph.initializer if item.data_location == onnx.TensorProto.EXTERNAL]:
        raise UsageError(
            f"{file}: the values of {outside[0]!r} lie in another file; save the model in one piece "
            "(onnx.save(…, save_as_external_data=False))"
        )
    return data


def compile_model(
    file: Path,
    kind: BoardKind,
    compiler: str = "zig",
    optimise: Optimise = "speed",
    *,
    extra_macs: float = 0.0,
    has_markers: bool = False,
) -> Compiled:
    """The firmware of a model file for a board kind, by ``"zig"`` or ``"gcc"``, with up to the share ``extra_macs`` of
    more multiply-accumulates for less RAM, and with marks around its layers if asked.

    Raises:
        UsageError: the file is none that can be compiled (its operator, node and the remedy are named), it does not
            fit the board, or the compiler asked for is not installed.
        TransientFault: the C compiler was killed or ran out of time.
        Defect: the C compiler refused our code.
    """
    data = read_model(file)
    if compiler == "gcc" and gcc_path() is None:
        raise UsageError("--compiler gcc: arm-none-eabi-gcc is not on the path; install it, or use --compiler zig")
    try:
        return compile_network(
            data, kind, compiler=compiler, optimise=optimise, extra_macs=extra_macs, has_markers=has_markers
        )
    except ToolchainInterrupted as error:
        raise TransientFault("compiler_interrupted", str(error)) from error
    except ToolchainError as error:
        raise Defect("compiler", str(error)) from error
    except DoesNotFit as error:
        advice = "choose a board with more, --optimise size for less code, or --extra-macs 0.2 for less RAM"
        raise UsageError(f"{file}, board {kind.name}: {error}; RAM counts the reserved stack; {advice}") from error
    except FirmwareError as error:
        raise UsageError(f"{file}, board {kind.name}: {error}") from error
    except (ValueError, LookupError, TypeError) as error:
        if fault := invalidity(data):
            raise UsageError(f"{file}: not a valid ONNX model: {fault}") from error
        raise


def invalidity(data: bytes) -> str:
    """What ONNX's own checker finds wrong with a model; empty where nothing is. It also refuses some that compile well,
    so it is asked for an explanation only, never first."""
    try:
        onnx.checker.check_model(data)
    except onnx.checker.ValidationError as error:
        return " ".join(str(error).split())
    return ""


def profile_compiled(
    compiled: Compiled, kind: BoardKind, *, n_inputs: int = N_INPUTS, seed: int = 0, board: Board | None = None
) -> Profile:
    """Run the image on ``board``, by default a virtual one, with random input bytes; expected outputs are the integer
    reference's.

    Raises:
        BitMismatch: an output differs; names the first differing layer.
        AgentError: the firmware faulted or did not come back.
    """
    return profile(job_of(compiled, n_inputs, seed), board or VirtualBoard("virtual", kind), plan=_ONE_PASS)


def job_of(compiled: Compiled, n_inputs: int = N_INPUTS, seed: int = 0) -> Job:
    """``n_inputs`` random inputs with the integer reference's outputs, and every layer's for the first of them."""
    inputs = random_inputs(compiled, n_inputs, seed)
    layers = reference.run(compiled.graph, inputs[:1])
    return Job(
        elf=compiled.image.elf,
        inputs=inputs.reshape(n_inputs, -1),
        expected=reference.output_of(compiled.graph, inputs),
        layers=[Layer.from_json(item) for item in compiled.layers_json()],
        layer_outputs={index: layers[layer.output][0] for index, layer in enumerate(compiled.graph.layers)},
        timeout_s=TIMEOUT_S,
    )


def random_inputs(compiled: Compiled, n: int, seed: int) -> Int8Array:
    """(n, H, W, C) bytes, all values equally likely."""
    shape = (n, *compiled.graph.input_tensor.shape)
    return np.random.default_rng(seed).integers(-128, 128, size=shape).astype(np.int8)


def measure(
    model: str,
    compiled: Compiled,
    kind: BoardKind,
    *,
    n_inputs: int = N_INPUTS,
    seed: int = 0,
    board: Board | None = None,
) -> Report:
    """Run the network on ``board``, by default a virtual one, and put together what it costs; ``model`` is what reports
    call it.

    Raises:
        AgentError: as :func:`profile_compiled`.
    """
    found = profile_compiled(compiled, kind, n_inputs=n_inputs, seed=seed, board=board)
    live = compiled.plan.bytes_alive
    return Report(
        model=model,
        digest=compiled.graph.digest,
        board=kind.name,
        core=kind.core,
        clock_hz=kind.clock_hz,
        compiler=compiled.image.compiler,
        optimise=compiled.optimise,
        emulator=found.emulator,
        n_inputs=n_inputs,
        seed=seed,
        layers=_layers(compiled, kind, found, rom_by_layer(compiled.image.elf, kind)),
        largest_layer=int(np.argmax(live)),
        totals=_totals(compiled, found),
    )


def rom_by_layer(elf: bytes, kind: BoardKind) -> dict[int, Rom]:
    """What each layer has of its own in flash, by layer index, from the sizes of the symbols named after it."""
    found: dict[int, Rom] = {}
    for symbol in read_image(elf, kind).symbols.values():
        match = _LAYER_SYMBOL.match(symbol.name)
        if match is None:
            continue
        index, size = int(match.group(1)), symbol.size
        before = found.get(index, Rom())
        found[index] = Rom(
            code_bytes=before.code_bytes + (size if symbol.is_function else 0),
            weights_bytes=before.weights_bytes + (0 if symbol.is_function else size),
        )
    return found


def _layers(compiled: Compiled, kind: BoardKind, found: Profile, rom: Mapping[int, Rom]) -> tuple[LayerReport, ...]:
    live = compiled.plan.bytes_alive
    return tuple(
        LayerReport(
            index=entry["index"],
            name=entry["name"],
            op=entry["op"],
            path="assembly" if kind.has_dsp and has_assembly(compiled.graph, layer) else "C",
            output_shape=tuple(entry["output_shape"]),
            macs=entry["macs"],
            instructions=counts.instructions,
            cycles=counts.cycles,
            source=counts.source,
            live_bytes=live[entry["index"]],
            rom=rom.get(entry["index"], Rom()),
        )
        for entry, counts, layer in zip(compiled.layers_json(), found.layers, compiled.graph.layers, strict=True)
    )


def _totals(compiled: Compiled, found: Profile) -> dict[str, Value]:
    rom, ram, plan = compiled.image.rom, compiled.image.ram, compiled.plan
    source = Source(found.cycles_source)
    wait_states, bound = (", zero wait states", ": a lower bound") if source is Source.EMULATED else ("", "")
    clock = f"{found.clock_hz / 1e6:g} MHz{wait_states}{bound}"
    runs = f"median of {found.n_runs} random inputs"
    stack = found.stack_used_bytes
    counted: dict[str, Value] = {}
    if found.instructions is not None:
        counted["instructions"] = Value(amount=found.instructions, unit="1", source=source, note=runs)
    return {
        "macs": _exact(compiled.macs, "1"),
        "extra_macs": _exact(compiled.extra_macs, "1", "computed twice, for a smaller arena"),
        "rom": _exact(rom.total_bytes),
        "weights": _exact(rom.weights_bytes, note="weights, biases, multipliers and zero points"),
        "code": _exact(rom.code_bytes, note="layers and the run function"),
        "runtime": _exact(rom.runtime_bytes, note="start-up, harness, vectors, padding"),
        "arena": _exact(ram.arena_bytes),
        "arena_saved": _exact(compiled.saved_bytes, note="by what is computed twice"),
        "arena_lower_bound": _exact(plan.lower_bound_bytes, note="no plan of this network can be smaller"),
        "ram_static": _exact(ram.static_bytes, note="arena, mailbox and other variables, without the stack"),
        "stack_reserved": _exact(ram.stack_reserved_bytes),
        "stack_used": Value(amount=stack, unit="byte", source=source, note=f"deepest of {found.n_runs} runs"),
        "ram": Value(amount=ram.static_bytes + stack, unit="byte", source=source, note="static and used stack"),
        **counted,
        "cycles": Value(amount=found.cycles.median, unit="1", source=source, note=f"{runs}{wait_states}"),
        "latency": Value(amount=found.latency_s, unit="s", source=source, note=f"{runs}, {clock}"),
    }


def _exact(amount: int, unit: str = "byte", note: str = "") -> Value:
    return Value(amount=amount, unit=unit, source=Source.EXACT, note=note)


def check_folder(folder: Path, *, is_forced: bool) -> None:
    """Refuse a folder that holds something, unless told to write into it anyway.

    Raises:
        UsageError: it holds something, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out: {folder} is a file; choose a folder")
    if folder.is_dir() and any(folder.iterdir()) and not is_forced:
        raise UsageError(
            f"--out: {folder} is not an empty folder; choose another, or give --force to replace files of the same name"
        )


_WRITTEN = (f"{PREFIX}*.[chS]", "kernels/ef_*.[hS]")


def write(compiled: Compiled, report: Report, folder: Path) -> None:
    """C sources, ELF file, known answers and report into ``folder``. What a compilation before left there goes, other
    files stay.

    Raises:
        UsageError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--out: {folder} cannot be made ({error.strerror}); choose a folder you may write to"
        ) from error
    for pattern in _WRITTEN:
        for path in folder.glob(pattern):
            path.unlink()
    write_sources(compiled.sources, folder)
    job = job_of(compiled, KNOWN_ANSWERS, report.seed)
    (folder / ELF_FILE).write_bytes(job.elf)
    (folder / VECTORS_FILE).write_bytes(pack_vectors(job))
    (folder / LAYERS_FILE).write_text(json_text(compiled.layers_json()), encoding="utf-8")
    (folder / REPORT_FILE).write_text(json_text(report.to_json()), encoding="utf-8")


def json_text(data: Any) -> str:
    return json.dumps(data, indent=1) + "\n"
