"""The stage ``gate``: what the candidate will need of its boards, known before any of it is trained."""

from __future__ import annotations

from orchestrator.boards import with_worst
from orchestrator.records import StageRequest
from orchestrator.studyfile import StudyFile
from tasks.deployment import by_board, compile_within, integer_graph, memory_map, size_values
from tasks.nn.candidate import pruned_untrained
from tasks.nn.fit import calibration_inputs, reproducible
from tasks.nn.sources import data_for
from tasks.quant.quantise import quantise
from tasks.stage import StageContext, StageOutput
from tasks.studyboards import boards_of, limits_of

# Ranges need not be good here: sizes depend on shapes alone.
CALIBRATION_SAMPLES = 8


def run(request: StageRequest, context: StageContext) -> StageOutput:
    """Size up one candidate: built untrained, pruned to its final shapes, quantised, compiled and linked.

    Values: ``rom``, ``ram`` (static), ``flops``, ``macs``, all exact: they are those of the trained
    network. Notes: the memory map. Writes no artifact. With several boards, ``rom``, ``ram`` and the map are there for
    each of them.

    Raises:
        Infeasible: it does not fit a board or breaks a limit; the violations hold the exact excess.
        Defect: the study names what does not exist, or the network cannot be built, pruned or compiled.
        TransientFault: the compiler was killed or ran out of time.
    """
    study = StudyFile.from_json(request.study)
    kinds = boards_of(study)
    data = data_for(request, study)
    with reproducible(request.seed, 1):
        module = pruned_untrained(study, request.params, request.seed, data)
        _, onnx_int8 = quantise(module, calibration_inputs(data, CALIBRATION_SAMPLES, study.seed))
    graph = integer_graph(onnx_int8, study.firmware.extra_macs)
    compiled = compile_within(graph, kinds, limits_of(study, kinds), study.firmware.optimise)
    maps = by_board(compiled, lambda one: {"memory": memory_map(one)})
    return StageOutput(values=with_worst(size_values(compiled), study.kinds), notes=maps)
