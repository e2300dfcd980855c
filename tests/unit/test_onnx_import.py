"""Models as ONNX Runtime understands them, against the integer network that the importer and the lowering make."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from tasks.firmware.errors import FirmwareError, Unsupported
from tasks.firmware.ir import Graph, Rescale, op_name
from tasks.firmware.lower import lower
from tasks.firmware.onnx_import import import_onnx
from tasks.quant import reference
from tests.support.qdq import QdqModel, run_float

RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """Each test draws the same numbers whichever tests ran before it in the process."""
    RNG.bit_generator.state = np.random.default_rng(5).bit_generator.state


def weights_of(*shape: int) -> np.ndarray:
    return RNG.integers(-127, 128, size=shape).astype(np.int8)


def convolution(model: QdqModel, source: str, shape: tuple[int, ...], **attributes: object) -> str:
    scales = RNG.uniform(0.001, 0.01, size=shape[0])
    bias = model.constant(RNG.normal(size=shape[0]).astype(np.float32))
    return model.node("Conv", [source, model.weights(weights_of(*shape), scales), bias], **attributes)


def compiled(model: bytes) -> Graph:
    return lower(import_onnx(model))


def assert_agrees_with_onnxruntime(model: bytes, dims: tuple[int, ...]) -> Graph:
    """Equal but for ties (half up here, half to even there) and float32 noise: one step at most, and that seldom."""
    graph = compiled(model)
    x = RNG.normal(size=(64, *dims)).astype(np.float32) * 3
    q = reference.output_of(graph, reference.quantise_input(x, graph.input_tensor))
    reals = run_float(model, x)
    if reals.ndim == 4:
        reals = reals.transpose(0, 2, 3, 1)
    elif reals.ndim == 3:
        reals = reals.transpose(0, 2, 1)
    steps = np.abs(q - (reals.reshape(len(x), -1) / graph.output_tensor.scale + graph.output_tensor.zero_point))
    assert steps.max() < 1.01
    assert (steps > 0.5).mean() < 0.01
    return graph


def conv_2d(model: QdqModel) -> None:
    model.quantised(convolution(model, model.last, (6, 3, 3, 3), pads=[1, 1, 1, 1]), 0.2)


def conv_asymmetric(model: QdqModel) -> None:
    out = convolution(model, model.last, (5, 3, 3, 2), pads=[0, 1, 2, 0], strides=[2, 1], dilations=[2, 1])
    model.quantised(out, 0.2, -10)


def conv_same_upper(model: QdqModel) -> None:
    model.quantised(convolution(model, model.last, (4, 3, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2]), 0.2)


def conv_grouped(model: QdqModel) -> None:
    model.quantised(convolution(model, model.last, (6, 1, 3, 3), group=3, pads=[1, 1, 1, 1]), 0.1)


def conv_relu6(model: QdqModel) -> None:
    out = convolution(model, model.last, (4, 3, 1, 1))
    bounds = [model.constant(np.array(value, np.float32)) for value in (0, 6)]
    model.quantised(model.node("Clip", [out, *bounds]), 6 / 255, -128)


def padded_by_a_node(model: QdqModel) -> None:
    amounts = model.constant(np.array([0, 0, 1, 2, 0, 0, 0, 1], np.int64))
    model.quantised(convolution(model, model.node("Pad", [model.last, amounts]), (4, 3, 3, 3)), 0.2)


def residual(model: QdqModel) -> None:
    source = model.last
    branch = model.quantised(convolution(model, source, (3, 3, 3, 3), pads=[1, 1, 1, 1]), 0.13, 7)
    # a coarser scale than the branch's, so that a tie there stays within one step
    model.quantised(model.node("Relu", [model.node("Add", [branch, source])]), 0.1937, -128)


def pools(model: QdqModel) -> None:
    first = model.node("MaxPool", [model.last], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    pooled = model.quantised(first, 0.05, 3)
    model.quantised(model.node("AveragePool", [pooled], kernel_shape=[2, 2], pads=[1, 0, 0, 1]), 0.0437, 1)


def average_counting_padding(model: QdqModel) -> None:
    out = model.node("AveragePool", [model.last], kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
    model.quantised(out, 0.03)


def max_pool_to_another_scale(model: QdqModel) -> None:
    model.quantised(model.node("MaxPool", [model.last], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1), 0.0831, 9)


def relu_alone(model: QdqModel) -> None:
    model.quantised(model.node("Relu", [model.last]), 0.0437, -100)


def flattened_into_dense(model: QdqModel) -> None:
    flat = model.quantised(model.node("Flatten", [model.last]), 0.05, 3)
    matrix = model.weights(weights_of(10, 3 * 7 * 6), RNG.uniform(0.001, 0.01, size=10))
    model.quantised(model.node("Gemm", [flat, matrix], transB=1), 0.8)


def averaged_into_matmul(model: QdqModel) -> None:
    axes = model.constant(np.array([2, 3], np.int64))
    mean = model.quantised(model.node("ReduceMean", [model.last, axes], keepdims=0), 0.0193)  # few means are ties
    matrix = model.weights(weights_of(3, 5), RNG.uniform(0.001, 0.01, size=5), axis=1)
    model.quantised(model.node("MatMul", [mean, matrix]), 0.02)


def number(model: QdqModel, value: float) -> str:
    return model.constant(np.array(value, np.float32))


def difference(model: QdqModel) -> None:
    source = model.last
    branch = model.quantised(model.node("Relu", [source]), 0.0437, -128)
    model.quantised(model.node("Sub", [source, branch]), 0.0613, 20)


def product_of_equals(model: QdqModel) -> None:
    source = model.last
    branch = model.quantised(model.node("Relu", [source]), 0.0437, -100)
    model.quantised(model.node("Mul", [branch, source]), 0.0933, 20)


def excited(model: QdqModel, first: bool) -> None:
    source = model.last
    mean = model.quantised(model.node("GlobalAveragePool", [source]), 0.0193, 3)
    weights = model.quantised(model.node("HardSigmoid", [mean], alpha=1 / 6), 1 / 255, -128)
    model.quantised(model.node("Mul", [weights, source] if first else [source, weights]), 0.0313, -4)


def excited_from_the_left(model: QdqModel) -> None:
    excited(model, True)


def excited_from_the_right(model: QdqModel) -> None:
    excited(model, False)


def excited_through_dense_layers(model: QdqModel) -> None:
    source = model.last
    mean = model.quantised(model.node("GlobalAveragePool", [source]), 0.0193, 3)
    flat = model.node("Reshape", [mean, model.constant(np.array([-1, 3], np.int64))])
    dense = model.quantised(model.node("MatMul", [flat, model.weights(weights_of(3, 3), 0.01, axis=1)]), 0.0331)
    tall = model.node("Unsqueeze", [dense, model.constant(np.array([2, 3], np.int64))])
    model.quantised(model.node("Mul", [source, tall]), 0.0713, -4)


def multiplied_by_numbers(model: QdqModel) -> None:
    more = model.quantised(model.node("Mul", [number(model, 1.7), model.last]), 0.0937, -5)
    less = model.quantised(model.node("Mul", [more, number(model, -0.5)]), 0.0413, 2)
    model.quantised(model.node("Div", [less, number(model, 0.3)]), 0.1717, 2)


def shifted_by_numbers(model: QdqModel) -> None:
    more = model.quantised(model.node("Add", [model.last, number(model, 1.5)]), 0.0613, -5)
    less = model.quantised(model.node("Sub", [number(model, 1.25), more]), 0.0931, 2)
    model.quantised(model.node("Sub", [less, number(model, -0.75)]), 0.0917, 2)


def hard_swish_in_pieces(model: QdqModel) -> None:
    bounds = [number(model, 0), number(model, 6)]
    clipped = model.node("Clip", [model.node("Add", [model.last, number(model, 3)]), *bounds])
    model.quantised(model.node("Div", [model.node("Mul", [model.last, clipped]), number(model, 6)]), 0.0283, -110)


def hard_swish_in_quantised_pieces(model: QdqModel) -> None:
    source = model.last
    three = model.node("DequantizeLinear", [model.constant(np.array(127, np.int8)), number(model, 3 / 255),
                                            model.constant(np.array(-128, np.int8))])  # fmt: skip
    more = model.quantised(model.node("Add", [source, three]), 0.0511, -70)
    clipped = model.quantised(model.node("Clip", [more, number(model, 0), number(model, 6)]), 6 / 255, -128)
    gate = model.quantised(model.node("Mul", [clipped, number(model, 1 / 6)]), 1 / 255, -128)
    model.quantised(model.node("Mul", [source, gate]), 0.0283, -110)


def gated_by_a_real_sigmoid(model: QdqModel) -> None:
    model.quantised(model.node("Mul", [model.node("Sigmoid", [model.last]), model.last]), 0.0283, -110)


def joined(model: QdqModel) -> None:
    source = model.last
    # finer scales than the output's, so that a tie there stays within one step
    first = model.quantised(convolution(model, source, (4, 3, 1, 1)), 0.0437, -128)
    second = model.quantised(convolution(model, source, (2, 3, 3, 3), pads=[1, 1, 1, 1]), 0.0777, 5)
    model.quantised(model.node("Concat", [first, source, second], axis=1), 0.0977, 10)


def largest_of_all(model: QdqModel) -> None:
    model.quantised(model.node("GlobalMaxPool", [model.last]), 0.0437, 10)


def largest_of_all_by_reduction(model: QdqModel) -> None:
    axes = model.constant(np.array([-1, -2], np.int64))
    model.quantised(model.node("ReduceMax", [model.last, axes], keepdims=0), 0.05, 3)


def shares_of_channels(model: QdqModel) -> None:
    model.quantised(model.node("Softmax", [model.last], axis=1), 1 / 256, -128)


def padded(model: QdqModel) -> str:
    amounts = model.constant(np.array([0, 0, 1, 2, 0, 0, 0, 1], np.int64))
    return model.quantised(model.node("Pad", [model.last, amounts]), 0.05, 3)


def padded_output(model: QdqModel) -> None:
    padded(model)


def padded_to_another_scale(model: QdqModel) -> None:
    amounts = model.constant(np.array([0, 0, 1, 2, 0, 0, 0, 1], np.int64))
    model.quantised(model.node("Pad", [model.last, amounts]), 0.0613, 7)


def padded_before_a_maximum(model: QdqModel) -> None:
    below_zero = model.quantised(model.node("Clip", [model.last, "", number(model, -0.5)]), 0.05, 3)
    assert below_zero == model.last  # zeros win where the frame is seen
    model.quantised(model.node("MaxPool", [padded(model)], kernel_shape=[2, 2], strides=[2, 2]), 0.05, 3)


def relu_padded_before_a_maximum(model: QdqModel) -> None:
    source = model.quantised(model.node("Relu", [model.last]), 0.05, 3)
    assert source == model.last
    model.quantised(model.node("MaxPool", [padded(model)], kernel_shape=[3, 3], strides=[2, 2]), 0.05, 3)


def padded_before_a_wide_average(model: QdqModel) -> None:
    pooled = model.node("AveragePool", [padded(model)], kernel_shape=[3, 4], pads=[1, 0, 0, 1], count_include_pad=1)
    model.quantised(pooled, 0.0437, 1)


def padded_before_an_average_that_does_not_count(model: QdqModel) -> None:
    pooled = model.node("AveragePool", [padded(model)], kernel_shape=[3, 4], pads=[1, 0, 0, 1])
    model.quantised(pooled, 0.0437, 1)


def padded_before_averages(model: QdqModel) -> None:
    source = padded(model)
    small = model.quantised(model.node("AveragePool", [source], kernel_shape=[2, 2]), 0.0437, 1)
    assert small == model.last
    whole = model.quantised(model.node("GlobalAveragePool", [source]), 0.0193, 3)
    model.quantised(model.node("Mul", [small, whole]), 0.0213, 3)


def padded_for_two(model: QdqModel) -> None:
    source = padded(model)
    branch = model.quantised(convolution(model, source, (3, 3, 1, 1)), 0.13, 7)
    model.quantised(model.node("Add", [branch, source]), 0.1937, -8)


MODELS = [
    conv_2d, conv_asymmetric, conv_same_upper, conv_grouped, conv_relu6, padded_by_a_node, residual, pools,
    average_counting_padding, max_pool_to_another_scale, relu_alone, flattened_into_dense, averaged_into_matmul,
    difference, product_of_equals, excited_from_the_left, excited_from_the_right, excited_through_dense_layers,
    multiplied_by_numbers, shifted_by_numbers, hard_swish_in_pieces, hard_swish_in_quantised_pieces,
    gated_by_a_real_sigmoid, joined, largest_of_all, largest_of_all_by_reduction, shares_of_channels, padded_output,
    padded_to_another_scale, padded_before_a_maximum, padded_before_averages, padded_for_two,
    relu_padded_before_a_maximum,
    padded_before_a_wide_average, padded_before_an_average_that_does_not_count,
]  # fmt: skip


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_a_model_computes_what_onnxruntime_computes(build: Callable[[QdqModel], None]) -> None:
    model = QdqModel((3, 7, 6))
    build(model)
    assert_agrees_with_onnxruntime(model.serialised(), (3, 7, 6))


def test_one_dimensional_convolutions_run_along_the_width() -> None:
    model = QdqModel((4, 20))
    out = model.quantised(convolution(model, model.last, (8, 4, 5), pads=[2, 2], strides=[2]), 0.3)
    mean = model.quantised(model.node("GlobalAveragePool", [out]), 0.0973)  # few means are ties
    shape = model.constant(np.array([1, -1], np.int64))
    flat = model.node("Reshape", [mean, shape])
    model.quantised(model.node("Gemm", [flat, model.weights(weights_of(3, 8), 0.01)], transB=1), 0.3)
    graph = assert_agrees_with_onnxruntime(model.serialised(), (4, 20))
    assert graph.input_tensor.shape == (1, 20, 4)
    assert [op_name(layer) for layer in graph.layers] == ["conv2d", "avgpool", "dense"]


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("Elu", {"alpha": 0.7}),
        ("HardSigmoid", {}),
        ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.4}),
        ("HardSwish", {}),
        ("LeakyRelu", {"alpha": 0.1}),
        ("LeakyRelu", {}),
        ("Sigmoid", {}),
        ("Tanh", {}),
    ],
)
def test_an_activation_function_is_a_table(operator: str, attributes: dict[str, float]) -> None:
    model = QdqModel((3, 7, 6))
    model.quantised(model.node(operator, [model.last], **attributes), 0.0283, -60)
    graph = assert_agrees_with_onnxruntime(model.serialised(), (3, 7, 6))
    assert [op_name(layer) for layer in graph.layers] == ["lookup"]


def test_shares_of_classes_are_a_softmax_over_a_vector() -> None:
    model = QdqModel((10,))
    model.quantised(model.node("Softmax", [model.last]), 1 / 255, -128)
    graph = assert_agrees_with_onnxruntime(model.serialised(), (10,))
    assert [op_name(layer) for layer in graph.layers] == ["softmax"]


def test_a_signal_is_squeezed_joined_and_padded_like_an_image() -> None:
    model = QdqModel((4, 20))
    source = model.last
    mean = model.quantised(model.node("GlobalAveragePool", [source]), 0.0193, 3)
    gate = model.quantised(model.node("Sigmoid", [mean]), 1 / 255, -128)
    weighed = model.quantised(model.node("Mul", [gate, source]), 0.0313, -4)
    both = model.quantised(model.node("Concat", [weighed, source], axis=1), 0.0517, 3)
    framed = model.node("Pad", [both, model.constant(np.array([0, 0, 3, 0, 0, 1], np.int64))])
    model.quantised(model.node("MaxPool", [framed], kernel_shape=[2], strides=[2]), 0.0517, 3)
    graph = assert_agrees_with_onnxruntime(model.serialised(), (4, 20))
    assert [op_name(layer) for layer in graph.layers] == ["avgpool", "lookup", "mul", "concat", "pad", "maxpool"]
    assert graph.output_tensor.shape == (1, 12, 8)


def test_a_function_in_pieces_is_one_table() -> None:
    for build in (hard_swish_in_pieces, hard_swish_in_quantised_pieces, gated_by_a_real_sigmoid):
        model = QdqModel((3, 7, 6))
        build(model)
        assert [op_name(layer) for layer in compiled(model.serialised()).layers] == ["lookup"]


def test_a_positive_factor_is_a_rescaling() -> None:
    model = QdqModel((3,), scale=0.05)
    model.quantised(model.node("Mul", [model.last, number(model, 0.5)]), 0.1)
    (layer,) = compiled(model.serialised()).layers
    assert isinstance(layer, Rescale)
    assert layer.multiplier * 2.0 ** (layer.left_shift - 32) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("build", "operators"),
    [
        (padded_by_a_node, ["conv2d"]),
        (relu_padded_before_a_maximum, ["rescale", "maxpool"]),
        (padded_before_a_wide_average, ["avgpool"]),
        (padded_before_a_maximum, ["rescale", "pad", "maxpool"]),
        (padded_before_an_average_that_does_not_count, ["pad", "avgpool"]),
    ],
)
def test_padding_is_a_layer_where_its_reader_cannot_take_it_in(
    build: Callable[[QdqModel], None], operators: list[str]
) -> None:
    model = QdqModel((3, 7, 6))
    build(model)
    assert [op_name(layer) for layer in compiled(model.serialised()).layers] == operators


def test_amounts_that_the_graph_works_out_from_constants_are_constants() -> None:
    model = QdqModel((3, 7, 6))
    none = model.node("ConstantOfShape", [model.constant(np.array([4], np.int64))],
                      value=numpy_helper.from_array(np.array([0], np.int64)))  # fmt: skip
    ends = model.node("Cast", [model.constant(np.array([0, 0, 1, 2], np.float32))], to=TensorProto.INT64)
    framed = model.node("Pad", [model.last, model.node("Concat", [ends, none], axis=0)])
    model.quantised(framed, 0.05, 3)
    graph = assert_agrees_with_onnxruntime(model.serialised(), (3, 7, 6))
    assert graph.output_tensor.shape == (8, 8, 3)


def test_one_frame_serves_all_who_read_it() -> None:
    model = QdqModel((3, 7, 6))
    padded_before_averages(model)
    assert [op_name(layer) for layer in compiled(model.serialised()).layers] == ["pad", "avgpool", "avgpool", "mul"]


def test_a_real_input_may_be_flattened_before_it_is_quantised() -> None:
    model = QdqModel((2, 3))
    model.nodes.clear()
    model.quantised(model.node("Flatten", ["input"]), 0.05, 3)
    matrix = model.weights(weights_of(4, 6), 0.01)
    model.quantised(model.node("Gemm", [model.last, matrix], transB=1), 0.0731)
    graph = assert_agrees_with_onnxruntime(model.serialised(), (2, 3))
    assert graph.input_tensor.shape == (1, 1, 6)


def test_uint8_activations_are_int8_ones_moved_by_128() -> None:
    model = QdqModel((3, 7, 6), zero_point=131, dtype=np.uint8)
    model.quantised(convolution(model, model.last, (4, 3, 3, 3)), 0.2, 128)
    graph = compiled(model.serialised())
    assert (graph.input_tensor.zero_point, graph.output_tensor.zero_point) == (3, 0)


def test_an_int32_bias_in_the_accumulators_scale_is_taken_to_the_bit() -> None:
    model = QdqModel((3,), scale=0.05)
    bias = np.array([123_456_789, -987_654_321], np.int32)
    scales = np.array([0.01, 0.02], np.float32)
    bias_scales = model.constant(np.float32(0.05) * scales)
    real_bias = model.node("DequantizeLinear", [model.constant(bias), bias_scales], axis=0)
    gemm = model.node("Gemm", [model.last, model.weights(weights_of(2, 3), scales), real_bias], transB=1)
    model.quantised(gemm, 1.0)
    assert compiled(model.serialised()).layers[0].bias.tolist() == bias.tolist()


def test_relu_between_equal_scales_stays_one_layer_of_clamping() -> None:
    model = QdqModel((3, 7, 6))
    model.quantised(model.node("Relu", [convolution(model, model.last, (4, 3, 3, 3))]), 0.2, -5)
    graph = compiled(model.serialised())
    assert len(graph.layers) == 1
    assert (graph.layers[0].clamp.low, graph.layers[0].clamp.high) == (-5, 127)


def test_pairs_listed_after_their_users_are_put_in_order() -> None:
    model = QdqModel((3, 7, 6))
    residual(model)
    model.nodes = model.nodes[::-1]
    assert [op_name(layer) for layer in compiled(model.serialised()).layers] == ["conv2d_add"]


def test_nodes_that_lead_nowhere_are_left_out() -> None:
    model = QdqModel((3, 7, 6))
    kept = model.quantised(convolution(model, model.last, (4, 3, 3, 3)), 0.2)
    model.quantised(model.node("Relu", [kept]), 0.5)
    assert len(compiled(model.serialised(kept)).layers) == 1


def exponential(model: QdqModel) -> None:
    model.quantised(model.node("Exp", [model.last]))


def real_softmax(model: QdqModel) -> None:
    model.last = model.node("Softmax", [model.last], axis=1)


def softmax_over_width(model: QdqModel) -> None:
    model.quantised(model.node("Softmax", [model.last]))


def factor_for_each_channel(model: QdqModel) -> None:
    model.quantised(model.node("Mul", [model.last, model.constant(np.ones((1, 3, 1, 1), np.float32))]))


def divided_by_a_tensor(model: QdqModel) -> None:
    model.quantised(model.node("Div", [model.last, model.last]))


def weighed_pixels(model: QdqModel) -> None:
    source = model.last
    plane = model.quantised(convolution(model, source, (1, 3, 1, 1)))
    model.quantised(model.node("Mul", [source, plane]))


def real_product_of_two(model: QdqModel) -> None:
    source = model.last
    branch = model.quantised(convolution(model, source, (3, 3, 1, 1)))
    model.quantised(model.node("Mul", [model.node("Sigmoid", [branch]), source]))


def activation_of_a_real_convolution(model: QdqModel) -> None:
    model.quantised(model.node("HardSwish", [convolution(model, model.last, (3, 3, 1, 1))]))


def joined_rows(model: QdqModel) -> None:
    model.quantised(model.node("Concat", [model.last, model.last], axis=2))


def joined_with_another_size(model: QdqModel) -> None:
    source = model.last
    smaller = model.quantised(convolution(model, source, (3, 3, 3, 3)))
    model.quantised(model.node("Concat", [source, smaller], axis=1))


def impossible_constant(model: QdqModel) -> None:
    ends = [model.constant(np.zeros(size, np.float32)) for size in (2, 3)]
    model.quantised(model.node("Add", [model.last, model.node("Add", ends)]))


def partial_maximum(model: QdqModel) -> None:
    model.quantised(model.node("ReduceMax", [model.last, model.constant(np.array([3], np.int64))]))


def unquantised_between(model: QdqModel) -> None:
    hidden = convolution(model, model.last, (4, 3, 1, 1))
    model.quantised(convolution(model, hidden, (4, 4, 1, 1)))


def added_constant(model: QdqModel) -> None:
    model.quantised(model.node("Add", [model.last, model.constant(np.ones((1, 3, 1, 1), np.float32))]))


def broadcast_addition(model: QdqModel) -> None:
    source = model.last
    mean = model.quantised(model.node("GlobalAveragePool", [source]))
    model.quantised(model.node("Add", [source, mean]))


def float_weights(model: QdqModel) -> None:
    model.quantised(model.node("Conv", [model.last, model.constant(np.ones((2, 3, 1, 1), np.float32))]))


def partial_mean(model: QdqModel) -> None:
    model.quantised(model.node("ReduceMean", [model.last, model.constant(np.array([3], np.int64))]))


def too_large_a_window(model: QdqModel) -> None:
    model.quantised(convolution(model, model.last, (2, 3, 9, 9)))


def float_output(model: QdqModel) -> None:
    model.last = convolution(model, model.last, (2, 3, 1, 1))


@pytest.mark.parametrize(
    ("build", "operator", "remedy"),
    [
        (exponential, "Exp", "these can: Add"),
        (real_softmax, "Softmax", "leave it out"),
        (softmax_over_width, "Softmax", "only a softmax over the channels"),
        (factor_for_each_channel, "Mul", "fold the factors into the weights"),
        (divided_by_a_tensor, "Div", "divide by a constant number"),
        (weighed_pixels, "Mul", "multiply equal shapes"),
        (real_product_of_two, "Mul", "put a QuantizeLinear"),
        (activation_of_a_real_convolution, "HardSwish", "put a QuantizeLinear"),
        (joined_rows, "Concat", "only channels"),
        (joined_with_another_size, "Concat", "join images of one size"),
        (impossible_constant, "Add", "store its result as an initialiser"),
        (partial_maximum, "ReduceMax", "maximum over all spatial axes"),
        (unquantised_between, "Conv", "put a QuantizeLinear"),
        (added_constant, "Add", "fold the constant into the bias"),
        (broadcast_addition, "Add", "make them equal"),
        (float_weights, "Conv", "quantise the weights"),
        (partial_mean, "ReduceMean", "mean over all spatial axes"),
        (too_large_a_window, "Conv", "use a smaller kernel"),
        (float_output, "graph", "end it with QuantizeLinear"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_compiled_is_named_with_a_remedy(
    build: Callable[[QdqModel], None], operator: str, remedy: str
) -> None:
    model = QdqModel((3, 7, 6))
    build(model)
    with pytest.raises(Unsupported, match=remedy) as caught:
        compiled(model.serialised())
    assert caught.value.operator == operator
    assert caught.value.node in str(caught.value)


def test_bytes_that_are_no_model_are_refused() -> None:
    with pytest.raises(FirmwareError, match="no ONNX model"):
        import_onnx(b"not a model")
