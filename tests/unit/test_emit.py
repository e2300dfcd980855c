"""The generated C as text."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import numpy as np
import pytest

from tasks.firmware.emit import GENERATOR, emit_network
from tasks.firmware.host import HostNetwork
from tasks.firmware.ir import Add, Clamp, Conv2d, Graph, Pads, Rescale, Tensor, Window
from tasks.firmware.planner import plan_memory
from tasks.quant import reference


def small_graph(name: str = "relu") -> Graph:
    tensors = {
        "x": Tensor(name="x", shape=(1, 2, 3), scale=0.5, zero_point=-1),
        "y": Tensor(name="y", shape=(1, 2, 3), scale=0.25, zero_point=2),
        "z": Tensor(name="z", shape=(1, 2, 3), scale=1.0, zero_point=0),
    }
    layers = (
        Rescale(name=name, inputs=("x",), output="y", clamp=Clamp(low=2), multiplier=2**30, left_shift=3),
        Add(name="sum", inputs=("y", "y"), output="z", multipliers=(5, 6), left_shift=0),
    )
    return Graph(tensors=tensors, layers=layers, input="x", output="z", digest="ab" * 32)


def emitted(graph: Graph, prefix: str = "edgefront") -> dict[str, str]:
    return emit_network(graph, plan_memory(graph), prefix)


def test_the_same_graph_gives_the_same_bytes() -> None:
    assert emitted(small_graph()) == emitted(small_graph())


def test_the_maker_is_this_version_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    assert f"{project['name']} {project['version']}" == GENERATOR


def test_every_generated_file_names_its_maker_and_its_model() -> None:
    for path, text in emitted(small_graph()).items():
        if not path.startswith("kernels/"):
            assert GENERATOR in text.splitlines()[0]
            assert "ab" * 32 in text.splitlines()[0]


def test_the_header_offers_three_functions() -> None:
    header = emitted(small_graph())["edgefront.h"]
    functions = [line for line in header.splitlines() if line.endswith(");")]
    assert functions == [
        "int edgefront_init(void);",
        "int edgefront_run(const int8_t *input, int8_t *output);",
        "const edgefront_sizes_t *edgefront_sizes(void);",
    ]


def test_a_prefix_of_ones_own_replaces_ours_everywhere() -> None:
    files = emitted(small_graph(), "kws")
    assert {"kws.h", "kws.c", "kws_weights.c", "kws_weights.h"} <= set(files)
    for path in ("kws.h", "kws.c", "kws_weights.c", "kws_weights.h"):
        assert "edgefront_" not in files[path].lower()
    assert "void kws_layer_00_rescale(void)" in files["kws.c"]


@pytest.mark.parametrize("prefix", ["", "Net", "1net", "a-b", "a b", "ä"])
def test_a_prefix_that_is_no_c_name_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="lower-case letters"):
        emitted(small_graph(), prefix)


def test_trained_values_stand_in_the_weights_file_only() -> None:
    graph = small_graph()
    tensors = {**graph.tensors, "y": dataclasses.replace(graph.tensors["y"], zero_point=77)}
    layers = (dataclasses.replace(graph.layers[0], multiplier=123, left_shift=1, clamp=Clamp(low=77)), graph.layers[1])
    before, after = emitted(graph), emitted(dataclasses.replace(graph, tensors=tensors, layers=layers))
    assert [path for path in before if before[path] != after[path]] == ["edgefront_weights.c"]


def test_a_node_name_cannot_leave_its_comment() -> None:
    text = emitted(small_graph('a*/ int x; /*\n#error "no" \\'))["edgefront.c"]
    line = next(line for line in text.splitlines() if "int x;" in line)
    assert line.startswith("/** ") and line.endswith(" */")
    assert line.count("*/") == 1 and line.count("/*") == 1 and "\\" not in line


def test_only_the_kernels_in_use_are_shipped() -> None:
    kernels = {path for path in emitted(small_graph()) if path.startswith("kernels/")}
    used = {"ef_options.h", "ef_common.h", "ef_add_s8.h", "ef_add_s8.S", "ef_rescale_s8.h"}
    assert kernels == {f"kernels/{name}" for name in used}


def convolutions(n: int, *, has_sums: bool) -> Graph:
    """``n`` convolutions of one shape behind each other, and a depthwise one of the same."""
    shape, window = (4, 4, 4), Window(kernel=(3, 3), pads=Pads(top=1, left=1, bottom=1, right=1))
    tensors, layers = {"x0": Tensor(name="x0", shape=shape, scale=1.0, zero_point=0)}, []
    for number in range(n + 1):
        name, source = f"x{number + 1}", f"x{number}"
        tensors[name] = Tensor(name=name, shape=shape, scale=1.0, zero_point=0)
        groups = 4 if number == n else 1
        addition = Add(name=name, inputs=(name, source), output=name, multipliers=(2**30, 2**30), left_shift=0)
        convolution = Conv2d(
            name=name,
            inputs=(source, source) if has_sums and groups == 1 else (source,),
            output=name,
            window=window,
            groups=groups,
            weights=np.ones((4, 3, 3, 4 // groups), np.int8),
            bias=np.zeros(4, np.int32),
            multipliers=np.full(4, 2**28, np.int32),
            left_shift=0,
            addition=addition if has_sums and groups == 1 else None,
        )
        layers.append(convolution)
    return Graph(tensors=tensors, layers=tuple(layers), input="x0", output=f"x{n + 1}", digest="ab" * 32)


@pytest.mark.parametrize("has_sums", [False, True])
def test_convolutions_of_one_shape_share_their_code_and_others_keep_theirs(has_sums: bool) -> None:
    text = emitted(convolutions(3, has_sums=has_sums))["edgefront.c"]
    assert text.count("edgefront_conv2d_00(") == 1 + 3
    assert "edgefront_conv2d_01" not in text
    assert text.count("const ef_window_t shape") == 2  # the shared one's and the depthwise layer's
    alone = emitted(convolutions(1, has_sums=has_sums))["edgefront.c"]
    assert "edgefront_conv2d_" not in alone


@pytest.mark.parametrize("has_sums", [False, True])
def test_shared_code_computes_what_each_layer_should(has_sums: bool) -> None:
    graph = convolutions(2, has_sums=has_sums)
    x = np.random.default_rng(0).integers(-128, 128, size=(4, 4, 4, 4)).astype(np.int8)
    plan = plan_memory(graph)
    found = HostNetwork(emit_network(graph, plan), graph, plan).run(x)
    np.testing.assert_array_equal(found, reference.output_of(graph, x))
