"""The stage ``final``: the error on the test split, once, for a network of the final front."""

from __future__ import annotations

from orchestrator.boards import named
from orchestrator.records import StageRequest
from orchestrator.studyfile import StudyFile
from tasks.build import unpack_sources
from tasks.deployment import classification_error, exact, host_network, input_artifact, integer_graph
from tasks.firmware.planner import plan_memory
from tasks.nn.sources import data_for
from tasks.stage import StageContext, StageOutput


def run(request: StageRequest, context: StageContext) -> StageOutput:
    """Measure the deployed integer network on the test split.

    Inputs: ``onnx`` and ``sources``: the C that was shipped is the C that is run; with several boards that of the
    first, since the stage build has found that all of them answer alike. Values: ``test_error``, exact.

    Raises:
        Defect: an artifact is missing or damaged.
        TransientFault: the compiler was killed or ran out of time.
    """
    study = StudyFile.from_json(request.study)
    graph = integer_graph(input_artifact(request, context, "onnx"), study.firmware.extra_macs)
    shipped = named("sources", study.kinds[0], study.kinds)
    sources = unpack_sources(input_artifact(request, context, shipped))
    network = host_network(sources, graph, plan_memory(graph))
    test = data_for(request, study).test
    error = classification_error(network, graph, test)
    value = exact(error, "1", "test split, deployed integer network")
    return StageOutput(values={"test_error": value}, notes={"test_samples": len(test)})
