"""The profile stage: run the firmware on a board of the study's kind and report what it costs there.

With several kinds the stage is there once for each, ``profile@<kind>``, and so are its values and the image it reads.

Values: ``ram`` (static data and the deepest stack), ``stack``, ``instructions``, ``cycles``, ``latency``, ``energy``.
On a virtual board all but the energy are *emulated*: instructions are counted exactly, but on an emulated core, and
cycles follow a cost table; energy is *estimated* from cycles.

How things go wrong: a rig that fails, and firmware that does not come back in time (which an overloaded machine or a
flaky board can cause), may be tried again; firmware that faults, an image the board does not report, and outputs that
are not the reference's bit for bit are defects of ours.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import util

import numpy as np
import numpy.typing as npt

from mcu_agent.calibration import Calibration
from mcu_agent.errors import AgentError, BitMismatch
from mcu_agent.kinds import BoardKind, load_kind
from mcu_agent.profiling import Profile
from mcu_agent.session import Job, Layer
from orchestrator.boards import kind_of, named
from orchestrator.records import Json, Source, StageRequest, Value
from orchestrator.studyfile import StudyFile
from tasks.errors import Defect, Infeasible, TransientFault
from tasks.firmware.image import measure
from tasks.onboard import profile_on_rack
from tasks.stage import StageContext, StageOutput
from tasks.studyboards import boards_of, limits_of


def run(request: StageRequest, context: StageContext) -> StageOutput:
    """Profile the trial's image on a leased board.

    Raises:
        Infeasible: RAM with the stack, latency or energy are over the study's limit.
        TransientFault: no board was free, the board was lost, or the firmware did not come back in time.
        Defect: the firmware is wrong; the detail names the first differing layer or where it faulted.
    """
    study = StudyFile.from_json(request.study)
    kind = _kind(request, study)
    try:
        job = _job(request, context, study, kind)
        result = _bit_exact(request, context, study, job, kind)
        found = _values(result, job, load_kind(kind))
        found |= _estimates(result, study.profiling.calibration)
    except AgentError as error:
        raise _classified(error) from error
    values = {named(name, kind, study.kinds): value for name, value in found.items()}
    _check_limits(study, values)
    return StageOutput(values=values, notes=_notes(result))


def _kind(request: StageRequest, study: StudyFile) -> str:
    """The board kind this profile is of: the stage names it where the study has several."""
    kind = kind_of(request.stage) or study.kinds[0]
    if named("profile", kind, study.kinds) != request.stage or kind not in study.kinds:
        raise Defect("unknown_stage", f"no stage of this study is called {request.stage!r}; it is for {study.kinds}")
    return kind


def _bit_exact(request: StageRequest, context: StageContext, study: StudyFile, job: Job, kind: str) -> Profile:
    """The profile; on a mismatch that the first input does not explain, once more with the one that does, where the
    integer reference is installed that knows what its layers should give.

    Raises:
        BitMismatch: names the first differing layer, as far as that can be known here.
    """
    try:
        return profile_on_rack(request, context, study, job, kind)
    except BitMismatch as error:
        if error.layer or "onnx" not in request.inputs:
            raise
        reference_layers = _reference()
        if reference_layers is None:
            text = f"{error}; which layer differs first is known only where Edgefront's extra search is installed"
            raise BitMismatch(text, "", error.index) from error
        one = slice(error.index, error.index + 1)
        onnx = context.artifacts.get_bytes(request.inputs["onnx"])
        layers = reference_layers(onnx, job.inputs[one], study.firmware.extra_macs)
        alone = replace(job, inputs=job.inputs[one], expected=job.expected[one], layer_outputs=layers)
        try:
            profile_on_rack(request, context, study, alone, kind)
        except BitMismatch as again:
            text = f"{error}; of input {error.index} the first differing layer: {again.layer or 'unknown'}"
            raise BitMismatch(text, again.layer, error.index) from error
        raise BitMismatch(f"{error}; run alone, input {error.index} gives what it should", "", error.index) from error


_ReferenceLayers = Callable[[bytes, npt.NDArray[np.int8], float], dict[int, npt.NDArray[np.int8]]]


def _reference() -> _ReferenceLayers | None:
    """:func:`tasks.mismatch.reference_layers`, or None on a host that has boards and no compiler."""
    if util.find_spec("onnx") is None:
        return None
    from tasks.mismatch import reference_layers  # the compiler's front end; only a mismatch needs it

    return reference_layers


def _job(request: StageRequest, context: StageContext, study: StudyFile, kind: str) -> Job:
    """What to run, from the artifacts of the build stage."""
    names = (named("elf", kind, study.kinds), named("layers", kind, study.kinds), "vectors")
    missing = [name for name in names if name not in request.inputs]
    if missing:
        raise Defect("missing_artifact", f"profile needs the artifacts {', '.join(names)}; missing: {missing}")
    elf, layers, vectors = (context.artifacts.get_bytes(request.inputs[name]) for name in names)
    try:
        arrays = _arrays(vectors)
        records = [Layer.from_json(item) for item in json.loads(layers)]
        inputs, outputs = arrays["inputs"], arrays["outputs"]
    except (*_UNREADABLE, zipfile.BadZipFile) as error:
        raise Defect("bad_artifact", f"layers or vectors cannot be read: {error!r}") from error
    n = min(len(inputs), study.profiling.samples)
    return Job(
        elf=elf,
        inputs=inputs[:n].reshape(n, -1),
        expected=outputs[:n].reshape(n, -1),
        layers=records,
        layer_outputs=_layer_outputs(arrays),
        timeout_s=study.profiling.timeout,
    )


# What reading arrays and JSON of anybody's making ends with; a shape beyond all memory and endless nesting among it.
_UNREADABLE = (KeyError, TypeError, ValueError, OSError, EOFError, MemoryError, RecursionError, NotImplementedError)
_MOST_UNPACKED_BYTES = 256_000_000


def _arrays(data: bytes) -> dict[str, npt.NDArray[np.int8]]:
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        unpacked = sum(item.file_size for item in packed.infolist())
    if unpacked > _MOST_UNPACKED_BYTES:
        raise ValueError(f"{unpacked} bytes unpacked; allowed are {_MOST_UNPACKED_BYTES}")
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {name: archive[name].astype(np.int8) for name in archive.files if name != "labels"}


def _layer_outputs(arrays: Mapping[str, npt.NDArray[np.int8]]) -> dict[int, npt.NDArray[np.int8]]:
    prefix = "layer_"
    return {int(name[len(prefix) :]): array for name, array in arrays.items() if name.startswith(prefix)}


def _classified(error: AgentError) -> TransientFault | Defect:
    """The pipeline's error for the agent's."""
    if error.is_transient:
        return TransientFault(error.reason, str(error))
    return Defect(error.reason, str(error))


def _values(result: Profile, job: Job, kind: BoardKind) -> dict[str, Value]:
    found = Source(result.cycles_source)
    static = measure(job.elf, kind)[1].static_bytes
    cycles = result.cycles
    spread = f"median of {result.n_runs} inputs, {cycles.minimum:,.0f} to {cycles.maximum:,.0f} cycles"
    runs = spread if cycles.spread else f"{cycles.minimum:,.0f} cycles for each of {result.n_runs} inputs"
    where = f"{result.board_id}, {result.clock_hz / 1e6:g} MHz"
    bound = " at zero wait states, a lower bound" if found is Source.EMULATED else ""
    values = {
        "ram": Value(
            amount=static + result.stack_used_bytes,
            unit="byte",
            source=found,
            note=f"{static:,} bytes static and at most {result.stack_used_bytes:,} bytes of stack, {where}",
        ),
        "stack": Value(
            amount=result.stack_used_bytes,
            unit="byte",
            source=found,
            note=f"deepest of {result.n_runs} runs, {result.stack_reserved_bytes} bytes reserved",
        ),
        "cycles": Value(amount=cycles.median, unit="1", source=found, note=f"{runs}, {where}{bound}"),
        "latency": Value(amount=result.latency_s, unit="s", source=found, note=f"{runs}, {where}{bound}"),
        "energy": Value(
            amount=result.energy.energy_j, unit="J", source=Source(result.energy_source), note=result.energy.basis
        ),
    }
    if result.instructions is not None:
        note = "exact count of an emulated run" if found is Source.EMULATED else where
        values["instructions"] = Value(amount=result.instructions, unit="1", source=found, note=note)
    return values


def _estimates(result: Profile, calibrations: Sequence[str | Json]) -> dict[str, Value]:
    """Latency and, where it is known, energy of a virtual board as its kind's calibration has them; empty on a device,
    and for a kind without one.

    Raises:
        Defect: the calibration in the study cannot be read.
    """
    try:
        records = [Calibration.from_json(data) for data in calibrations if isinstance(data, dict)]
    except ValueError as error:
        raise Defect("bad_study", f"profiling.calibration: {error}") from error
    record = next((one for one in records if one.kind == result.kind and result.emulator), None)
    if record is None:
        return {}
    cycles = result.cycles.median
    latency = Value(amount=record.latency_s(cycles), unit="s", source=Source.ESTIMATED, note=record.basis)
    energy_j = record.energy_j(cycles)
    if energy_j is None:
        return {"latency": latency}
    note = f"{record.nj_per_cycle:.3f} nJ a cycle by {record.meter}; {record.basis}"
    return {"latency": latency, "energy": Value(amount=energy_j, unit="J", source=Source.ESTIMATED, note=note)}


def _check_limits(study: StudyFile, values: Mapping[str, Value]) -> None:
    violations = limits_of(study, boards_of(study)).violations(values)
    if violations:
        raise Infeasible(*violations, values=values)


PHASES = ("flash_s", "run_s", "measure_s", "total_s")


def _notes(result: Profile) -> Json:
    """The board, the operating point and the table of layers, for people and reports."""
    return {
        "board_id": result.board_id,
        "board_kind": result.kind,
        "emulator": result.emulator,
        "image_id": result.image_id,
        "clock_hz": result.clock_hz,
        "supply_v": result.supply_v,
        "meter": result.meter,
        "phases": {name: round(getattr(result.phases, name), 6) for name in PHASES},
        "energy": _energy_notes(result),
        "temperature_c": result.temperature_c,
        "n_inputs": len(result.outputs),
        "bit_exact": True,
        "stack_reserved_bytes": result.stack_reserved_bytes,
        "cycles": {"minimum": result.cycles.minimum, "maximum": result.cycles.maximum, "spread": result.cycles.spread},
        "layers": [
            {
                "index": layer.index,
                "name": layer.name,
                "op": layer.op,
                "macs": layer.macs,
                "instructions": layer.instructions,
                "cycles": layer.cycles,
                "source": layer.source,
            }
            for layer in result.layers
        ],
        "glue": {"instructions": result.glue.instructions, "cycles": result.glue.cycles} if result.glue else None,
    }


def _energy_notes(result: Profile) -> Json | None:
    """What a meter measured, window by window; None for an estimate."""
    energy = result.energy
    if not energy.is_measured:
        return None
    return {
        "interval_j": list(energy.interval_j or ()),
        "net_j": energy.net_j,
        "idle_w": energy.idle_w,
        "windows_j": list(energy.windows_j),
        "outliers": list(energy.outliers),
    }
