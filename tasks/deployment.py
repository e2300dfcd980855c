"""What the stages gate, build and final share: compiling a candidate for its boards, and its limits there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from mcu_agent.kinds import BoardKind
from orchestrator.boards import base, named, with_worst
from orchestrator.objectives import Objectives
from orchestrator.records import Source, StageRequest, Value, Violation
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

T = TypeVar("T")

# Of the sources of an image, what is the board's and not the network's.
BOARD_FILES = ("board/", "link.ld")
_QUANTITY_OF = {"FLASH": "rom", "RAM": "ram"}


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


def compile_within(
    graph: Graph, kinds: Mapping[str, BoardKind], objectives: Objectives, optimise: Optimise
) -> dict[str, Compiled]:
    """The candidate's firmware for each of the boards, for speed or for size.

    Raises:
        Infeasible: it does not fit a board, or breaks a limit on ROM, RAM or FLOPs; every broken limit is listed, with
            the board where there are several. The values are those of all boards.
        TransientFault: the compiler was killed or ran out of time.
        Defect: the compiler is missing, or refused our C.
    """
    fits: dict[str, Compiled] = {}
    misfits: dict[str, DoesNotFit] = {}
    for name, kind in kinds.items():
        try:
            fits[name] = _compiled(graph, kind, optimise)
        except DoesNotFit as error:
            misfits[name] = error
    if misfits:
        raise _too_large(graph, kinds, objectives, fits, misfits)
    refuse_beyond(objectives, size_values(fits), tuple(kinds))
    return fits


def _too_large(
    graph: Graph,
    kinds: Mapping[str, BoardKind],
    objectives: Objectives,
    fits: Mapping[str, Compiled],
    misfits: Mapping[str, DoesNotFit],
) -> Infeasible:
    """What the linker says of the boards that are too small; where a lower limit is broken as well, that counts."""
    names = tuple(kinds)
    values: dict[str, Value] = {}
    merged: dict[str, Violation] = {}
    for name, kind in kinds.items():
        known = _sizes(fits[name]) if name in fits else _needed(misfits[name])
        values |= {named(quantity, name, names): value for quantity, value in known.items()}
        overflows = misfits[name].overflows if name in misfits else {}
        for region, sizes in overflows.items():
            quantity = _QUANTITY_OF[region]
            merged[named(quantity, name, names)] = _over_board(quantity, sizes, kind)
    values["flops"] = exact(sum(count_flops(graph, layer) for layer in graph.layers))
    for objective in objectives.names:
        for place in (place for place in values if base(place) == objective):
            for violation in objectives.violations({place: values[place]}):
                merged[place] = violation
    return Infeasible(*merged.values(), values=with_worst(values, names))


def _needed(error: DoesNotFit) -> dict[str, Value]:
    return {_QUANTITY_OF[region]: exact(needed, "byte") for region, (needed, _) in error.sizes.items()}


def _compiled(graph: Graph, kind: BoardKind, optimise: Optimise) -> Compiled:
    try:
        return compile_graph(graph, kind, optimise=optimise)
    except ToolchainInterrupted as error:
        raise TransientFault("compiler_interrupted", str(error)) from error
    except ToolchainError as error:
        raise Defect("compiler", str(error)) from error


def refuse_beyond(objectives: Objectives, values: Mapping[str, Value], kinds: Sequence[str]) -> None:
    """Raise Infeasible with every limit that ``values`` break."""
    violations = objectives.violations(values)
    if violations:
        raise Infeasible(*violations, values=with_worst(values, kinds))


def size_values(compiled: Mapping[str, Compiled]) -> dict[str, Value]:
    """``rom`` and ``ram`` of each board, ``flops`` and ``macs``.

    ``ram`` is the static part alone: how much stack is used is known only once the image has run, and a candidate
    must not be refused for stack that is reserved but never touched. The linker still places the whole reserved stack
    on the board.
    """
    one = next(iter(compiled.values()))
    return {**by_board(compiled, _sizes), "flops": exact(one.flops), "macs": exact(one.macs)}


def by_board(compiled: Mapping[str, Compiled], values_of: Callable[[Compiled], Mapping[str, T]]) -> dict[str, T]:
    """What ``values_of`` says of each board's firmware, under the names that it has in a study of these boards."""
    names = tuple(compiled)
    return {
        named(quantity, name, names): value
        for name, firmware in compiled.items()
        for quantity, value in values_of(firmware).items()
    }


def _sizes(compiled: Compiled) -> dict[str, Value]:
    return {
        "rom": exact(compiled.image.rom.total_bytes, "byte"),
        "ram": exact(compiled.image.ram.static_bytes, "byte", "static, without the stack"),
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
