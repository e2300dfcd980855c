"""The stage ``build``: the int8 network as C and as firmware, its error measured on the very C that ships."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.boards import with_worst
from orchestrator.records import StageRequest, Value
from orchestrator.studyfile import StudyFile
from tasks.deployment import (
    BOARD_FILES,
    by_board,
    classification_error,
    compile_within,
    exact,
    host_network,
    input_artifact,
    integer_graph,
    memory_map,
    refuse_beyond,
    size_values,
)
from tasks.errors import Defect
from tasks.firmware.compiler import Compiled
from tasks.firmware.host import HostNetwork
from tasks.firmware.ir import Int8Array
from tasks.nn.samples import Samples
from tasks.nn.sources import data_for
from tasks.quant import reference
from tasks.stage import StageContext, StageOutput
from tasks.studyboards import boards_of, limits_of

_ZIP_DATE = (1980, 1, 1, 0, 0, 0)


def run(request: StageRequest, context: StageContext) -> StageOutput:
    """Compile one candidate for its boards and measure it on the host.

    Inputs: ``onnx``. Artifacts: ``sources`` (zip of the C), ``elf``, ``layers`` (JSON), ``vectors`` (npz: ``inputs``,
    ``outputs``, ``labels`` and the layers' outputs for the first sample). Values: ``error`` of the deployed integer
    network over the whole validation split, ``rom`` and its parts, ``ram`` (static), ``arena``, ``flops``, ``macs``;
    all exact. Notes: the memory map, the image id.

    With several boards, all but ``vectors``, ``error``, ``flops`` and ``macs`` are there for each of them; the C of
    each answers the vectors alike, so one error is that of all.

    Raises:
        Infeasible: it does not fit a board, or breaks a limit on error, ROM, RAM or FLOPs.
        Defect: the generated C disagrees with the integer reference; names the first differing layer.
        TransientFault: the compiler was killed or ran out of time.
    """
    study = StudyFile.from_json(request.study)
    kinds = boards_of(study)
    objectives = limits_of(study, kinds)
    graph = integer_graph(input_artifact(request, context, "onnx"), study.firmware.extra_macs)
    compiled = compile_within(graph, kinds, objectives, study.firmware.optimise)
    validation = data_for(request, study).validation
    network, vectors = _on_host(tuple(compiled.values()), validation, study.profiling.samples)
    values = {**size_values(compiled), **by_board(compiled, _parts)}
    values["error"] = exact(
        classification_error(network, graph, validation), "1", "validation, deployed integer network"
    )
    refuse_beyond(objectives, values, study.kinds)
    put = context.artifacts.put_bytes
    artifacts = {
        name: put(data) for name, data in {**by_board(compiled, _files), "vectors": _pack_arrays(vectors)}.items()
    }
    notes = by_board(compiled, lambda one: {"memory": memory_map(one), "image_id": one.image.image_id.hex()})
    return StageOutput(values=with_worst(values, study.kinds), artifacts=artifacts, notes=notes)


def _files(compiled: Compiled) -> dict[str, bytes]:
    return {
        "sources": pack_sources(compiled.sources),
        "elf": compiled.image.elf,
        "layers": json.dumps(compiled.layers_json(), indent=1).encode(),
    }


def _on_host(
    boards: Sequence[Compiled], samples: Samples, n_samples: int
) -> tuple[HostNetwork, dict[str, NDArray[np.generic]]]:
    """The network of the first board's C on this machine, and its known answers. Where another board's C differs, that
    is built and compared with the reference, too.

    Raises:
        Defect: host and integer reference differ.
    """
    first, *others = boards
    network = host_network(first.sources, first.graph, first.plan)
    vectors = known_answers(first, network, samples, n_samples)
    seen = [_portable(first)]
    for other in others:
        if _portable(other) not in seen:
            seen.append(_portable(other))
            known_answers(other, host_network(other.sources, other.graph, other.plan), samples, n_samples)
    return network, vectors


def _portable(compiled: Compiled) -> dict[str, str]:
    """What of the sources is compiled for this machine: all but assembly and the board's start-up and harness."""
    return {
        path: text for path, text in compiled.sources.items() if not path.startswith(BOARD_FILES) and path[-2:] != ".S"
    }


def known_answers(
    compiled: Compiled, network: HostNetwork, samples: Samples, n_samples: int
) -> dict[str, NDArray[np.generic]]:
    """``n_samples`` samples (repeated from the start where there are fewer) with the host's outputs, and every layer's
    output for the first one.

    Raises:
        Defect: host and integer reference differ on any of them.
    """
    rows = np.arange(n_samples) % len(samples)
    inputs = reference.quantise_input(samples.x[rows], compiled.graph.input_tensor)
    outputs = network.run(inputs)
    layers = reference.run(compiled.graph, inputs[:1])
    _check_bits(compiled, network, inputs, outputs)
    vectors: dict[str, NDArray[np.generic]] = {"inputs": inputs, "outputs": outputs, "labels": samples.y[rows]}
    return vectors | {f"layer_{index}": layers[layer.output][0] for index, layer in enumerate(compiled.graph.layers)}


def _check_bits(compiled: Compiled, network: HostNetwork, inputs: Int8Array, outputs: Int8Array) -> None:
    differing = np.flatnonzero((reference.output_of(compiled.graph, inputs) != outputs).any(axis=1))
    for row in [0, *differing[:1]]:
        expected = reference.run(compiled.graph, inputs[row : row + 1])
        first = reference.first_difference(compiled.graph, expected, network.layer_outputs(inputs[row]))
        if first is not None:
            raise Defect(
                "host_mismatch",
                f"the generated C and the integer reference differ first in layer {first[0]} ({first[1].name!r}, "
                f"sample {row}); please report this with the ONNX file, sha256 {compiled.graph.digest}",
            )
    if len(differing):
        raise Defect("host_mismatch", f"outputs of sample {differing[0]} differ between two runs of the same C")


def _parts(compiled: Compiled) -> dict[str, Value]:
    rom, ram = compiled.image.rom, compiled.image.ram
    return {
        "arena": exact(ram.arena_bytes, "byte"),
        "stack_reserved": exact(ram.stack_reserved_bytes, "byte"),
        "weights_bytes": exact(rom.weights_bytes, "byte", "weights, biases, multipliers and zero points"),
        "code_bytes": exact(rom.code_bytes, "byte", "layers and the run function"),
        "runtime_bytes": exact(rom.runtime_bytes, "byte", "start-up, harness, vectors, padding"),
    }


def pack_sources(sources: Mapping[str, str]) -> bytes:
    """A zip of text files; the same files give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, text in sorted(sources.items()):
            info = zipfile.ZipInfo(path, _ZIP_DATE)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(info, text.encode())
    return buffer.getvalue()


def unpack_sources(data: bytes) -> dict[str, str]:
    """The files of :func:`pack_sources`."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def _pack_arrays(arrays: Mapping[str, NDArray[np.generic]]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()
