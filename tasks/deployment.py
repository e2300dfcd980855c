"""What the stages gate, build and final share: compiling a candidate, and its limits on the board it is meant for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from mcu_agent.errors import AgentError
from mcu_agent.kinds import BoardKind, load_kind
from orchestrator.errors import UsageError
from orchestrator.objectives import Objectives
from orchestrator.records import Source, StageRequest, Value, Violation
from orchestrator.studyfile import StudyFile
from tasks.errors import Defect, Infeasible, TransientFault
from tasks.firmware.compiler import Compiled, compile_graph
from tasks.firmware.emit import Optimise, count_flops
from tasks.firmware.errors import AccumulatorOverflow, DoesNotFit, FirmwareError, ToolchainError, ToolchainInterrupted
from tasks.firmware.host import HostNetwork
from tasks.firmware.ir import Graph
from tasks.firmware.lower import lower
from tasks.firmware.onnx_import import import_onnx
from tasks.firmware.planner import Plan
from tasks.firmware.stream import stream
from tasks.nn.samples import Samples
from tasks.quant import reference
from tasks.stage import StageContext

_QUANTITY_OF = {"FLASH": "rom", "RAM": "ram"}


def board_of(study: StudyFile) -> BoardKind:
    """The board kind the study is for.

    Raises:
        Defect: the catalogue does not have it.
    """
    try:
        return load_kind(study.board)
    except AgentError as error:
        raise Defect("unknown_board", str(error)) from error


def limits_of(study: StudyFile, kind: BoardKind) -> Objectives:
    """The study's objectives with the board's memory as their bounds.

    Raises:
        Defect: the study's objectives are unusable.
    """
    try:
        return Objectives.from_study(study, kind.flash_bytes, kind.ram_bytes)
    except UsageError as error:
        raise Defect("bad_study", str(error)) from error


def input_artifact(request: StageRequest, context: StageContext, name: str) -> bytes:
    """An artifact of an earlier stage.

    Raises:
        Defect: no earlier stage wrote it, or its bytes are not what was written.
    """
    if name not in request.inputs:
        raise Defect("missing_artifact", f"stage {request.stage} needs the artifact {name!r} of an earlier stage")
    return context.artifacts.get_bytes(request.inputs[name])


def integer_graph(onnx_qdq: bytes, extra_macs: float = 0.0) -> Graph:
    """The integer network an int8 model stands for, with up to the share ``extra_macs`` of more multiply-accumulates
    where that makes its arena smaller.

    Raises:
        Defect: the model holds what cannot be compiled; names operator, node and remedy.
        Infeasible: a layer's sums could leave 32 bits.
    """
    try:
        return stream(lower(import_onnx(onnx_qdq)), extra_macs).graph
    except AccumulatorOverflow as error:
        limit = float(2**31 - 1)
        raise Infeasible(
            Violation(quantity="accumulator", amount=error.bound, limit=limit, unit="1", message=str(error))
        ) from error
    except FirmwareError as error:
        raise Defect("unsupported_network", str(error)) from error


def compile_within(graph: Graph, kind: BoardKind, objectives: Objectives, optimise: Optimise) -> Compiled:
    """The candidate's firmware, for speed or for size.

    Raises:
        Infeasible: it does not fit the board, or breaks a limit on ROM, RAM or FLOPs; every broken limit is listed.
        TransientFault: the compiler was killed or ran out of time.
        Defect: the compiler is missing, or refused our C.
    """
    try:
        compiled = compile_graph(graph, kind, optimise=optimise)
    except DoesNotFit as error:
        known = {_QUANTITY_OF[region]: exact(needed, "byte") for region, (needed, _) in error.sizes.items()}
        known["flops"] = exact(sum(count_flops(graph, layer) for layer in graph.layers))
        broken = {violation.quantity: violation for violation in objectives.violations(known)}
        over_board = {_QUANTITY_OF[region]: sizes for region, sizes in error.overflows.items()}
        merged = {name: _over_board(name, sizes, kind) for name, sizes in over_board.items()} | broken
        raise Infeasible(*merged.values(), values=known) from error
    except ToolchainInterrupted as error:
        raise TransientFault("compiler_interrupted", str(error)) from error
    except ToolchainError as error:
        raise Defect("compiler", str(error)) from error
    refuse_beyond(objectives, size_values(compiled))
    return compiled


def refuse_beyond(objectives: Objectives, values: dict[str, Value]) -> None:
    """Raise Infeasible with every limit that ``values`` break."""
    violations = objectives.violations(values)
    if violations:
        raise Infeasible(*violations, values=values)


def size_values(compiled: Compiled) -> dict[str, Value]:
    """``rom``, ``ram``, ``flops`` and ``macs``.

    ``ram`` is the static part alone: how much stack is used is known only once the image has run, and a candidate
    must not be refused for stack that is reserved but never touched. The linker still places the whole reserved stack
    on the board.
    """
    return {
        "rom": exact(compiled.image.rom.total_bytes, "byte"),
        "ram": exact(compiled.image.ram.static_bytes, "byte", "static, without the stack"),
        "flops": exact(compiled.flops),
        "macs": exact(compiled.macs),
    }


def exact(amount: float, unit: str = "1", note: str = "") -> Value:
    return Value(amount=float(amount), unit=unit, source=Source.EXACT, note=note)


def classification_error(network: HostNetwork, graph: Graph, samples: Samples) -> float:
    """The share of ``samples`` whose largest output byte (the first of equals) is not at their class."""
    outputs = network.run(reference.quantise_input(samples.x, graph.input_tensor))
    return float(np.mean(outputs.argmax(axis=1) != samples.y))


def host_network(sources: Mapping[str, str], graph: Graph, plan: Plan) -> HostNetwork:
    """The generated C built for this machine.

    Raises:
        TransientFault, Defect: as :func:`compile_within`.
    """
    try:
        return HostNetwork(sources, graph, plan)
    except ToolchainInterrupted as error:
        raise TransientFault("compiler_interrupted", str(error)) from error
    except ToolchainError as error:
        raise Defect("compiler", str(error)) from error


def memory_map(compiled: Compiled) -> dict[str, object]:
    """What lies where, for people: sections of ROM and RAM, and each buffer's place in the arena. A buffer
    without tensors is scratch memory; an output may lie over an input that dies with its layer."""
    rom, ram, plan = compiled.image.rom, compiled.image.ram, compiled.plan
    return {
        "rom": {
            "total": rom.total_bytes,
            "weights": rom.weights_bytes,
            "code": rom.code_bytes,
            "runtime": rom.runtime_bytes,
        },
        "ram": {"static": ram.static_bytes, "arena": ram.arena_bytes, "stack_reserved": ram.stack_reserved_bytes},
        "arena_lower_bound": plan.lower_bound_bytes,
        "arena_peak_layer": plan.peak_step,
        "arena": [
            {
                "tensors": list(_short(buffer.tensors)),
                "offset": plan.offset_of(buffer),
                "bytes": buffer.n_bytes,
                "first_layer": buffer.first,
                "last_layer": buffer.last,
            }
            for buffer in plan.buffers
        ],
        "compiler": compiled.image.compiler,
        "board": compiled.image.board_kind,
    }


def _short(names: Iterable[str]) -> list[str]:
    return [name.removesuffix("_QuantizeLinear_Output") for name in names]


def _over_board(quantity: str, sizes: tuple[int, int], kind: BoardKind) -> Violation:
    needed, available = sizes
    message = f"{quantity} is {needed} byte, {needed - available} over the {available} of board {kind.name}"
    return Violation(quantity=quantity, amount=needed, limit=available, unit="byte", message=message)
