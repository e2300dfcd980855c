"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer: nothing outside a layer's own buffers and tables
is touched, and nothing undefined is done."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.firmware.ir import Graph
from tasks.quant import reference
from tests.support import sanitised
from tests.support.graphs import separable_cnn
from tests.support.layers import KINDS, layers
from tests.support.networks import drawn, random_inputs, random_networks

pytestmark = pytest.mark.skipif(bool(sanitised.why_not()), reason=sanitised.why_not() or "the sanitisers are there")


def check(graphs: tuple[Graph, ...], n_samples: int) -> None:
    inputs = [random_inputs(graph, n_samples) for graph in graphs]  # all -128, all 127, then random
    for graph, x, found in zip(graphs, inputs, sanitised.run(graphs, inputs), strict=True):
        np.testing.assert_array_equal(found, reference.output_of(graph, x).reshape(n_samples, -1), str(graph.layers))


def test_random_networks_stay_inside_their_buffers_and_do_nothing_undefined() -> None:
    check(random_networks(20), 6)


def test_every_operator_stays_inside_its_buffers_and_does_nothing_undefined() -> None:
    check(tuple(graph for kind in KINDS for graph in drawn(layers(kind), 3)), 4)


@pytest.mark.parametrize(
    ("file", "code", "broken", "report"),
    [
        ("ef_dwconv2d_s8.h", "n_taps = shape", "n_taps = 1 + shape", "global-buffer-overflow"),
        ("ef_dwconv2d_s8.h", "out[i] = ef", "out[i + 300] = ef", "use-after-poison"),
        ("ef_columns_s8.h", "shape.input_height;", "shape.input_height + 1;", "use-after-poison"),
        ("ef_common.h", "1 << quant.left_shift", "1 << (quant.left_shift + 40)", "shift exponent 40 is too large"),
    ],
)
def test_a_broken_kernel_is_caught(file: str, code: str, broken: str, report: str) -> None:
    graph = separable_cnn()
    sources = sanitised.sources_of([graph])
    text = sources[f"kernels/{file}"]
    assert text.count(code) == 1
    sources[f"kernels/{file}"] = text.replace(code, broken)
    with pytest.raises(sanitised.Caught, match=report):
        sanitised.run([graph], [random_inputs(graph, 3)], sources)
