"""What every layer should give for an input: needed when a board's output is wrong, and only where the compiler is.

Apart from :mod:`tasks.profile`, because reading the network takes ONNX, which a host with boards does not have.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tasks.deployment import integer_graph
from tasks.quant import reference


def reference_layers(onnx: bytes, inputs: npt.NDArray[np.int8], extra_macs: float) -> dict[int, npt.NDArray[np.int8]]:
    """What every layer gives for one input, by the integer reference: the layer's index → its output.

    Shapes:
        inputs: (1, bytes).

    Raises:
        Defect, Infeasible: the network cannot be read, as :func:`tasks.deployment.integer_graph` says.
    """
    graph = integer_graph(onnx, extra_macs)
    outputs = reference.run(graph, inputs.reshape(1, *graph.input_tensor.shape))
    return {index: outputs[layer.output][0] for index, layer in enumerate(graph.layers)}
