"""Export and quantisation: the ONNX models compute what the PyTorch module does."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.studyfile import Network
from tasks.errors import Defect
from tasks.nn.families import build_network
from tasks.quant import export
from tasks.quant.export import export_onnx, run_onnx
from tasks.quant.quantise import calibrate, quantisation_summary, quantise
from tasks.quant.tracing import trace_onnx
from tasks.quant.writer import NotTraceable

SHAPES = {"resnet2d": (2, 8, 8), "resnet1d": (3, 32), "dscnn": (2, 9, 7), "mlp": (2, 4, 4)}


def inputs(*shape: int, n: int = 64) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, *shape)).astype(np.float32)


def settled(module: nn.Module) -> nn.Module:
    """Batch norms with statistics that are not the initial ones."""
    rng = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor, low in ((layer.running_mean, -0.5), (layer.running_var, 0.5), (layer.bias, -0.5)):
                assert tensor is not None
                tensor.data = torch.rand(tensor.shape, generator=rng) + low
            layer.weight.data = torch.rand(layer.weight.shape, generator=rng) + 0.5
    return module.eval()


def family(name: str, **params: object) -> nn.Module:
    return settled(build_network(Network(family=name), params, SHAPES[name], 5, 0))  # type: ignore[arg-type]


def outputs(module: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        result: np.ndarray = module(torch.tensor(x)).numpy()
    return result


def kinds(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_every_family_is_exported_the_quick_way_with_its_norms_folded(name: str, activation: str) -> None:
    module, x = family(name, activation=activation), inputs(*SHAPES[name])
    model = trace_onnx(module, torch.tensor(x[:2]))
    assert kinds(model) <= {"Conv", "Relu", "Clip", "Add", "GlobalAveragePool", "Flatten", "Gemm"}
    np.testing.assert_allclose(run_onnx(model, x)[0], outputs(module, x), atol=1e-5)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_the_int8_network_stays_close_to_the_float_one(name: str) -> None:
    module, x = family(name), inputs(*SHAPES[name])
    _, onnx_int8 = quantise(module, x)
    expected, found = outputs(module, x), run_onnx(onnx_int8, x)[0]
    error = np.sqrt(np.mean((found - expected) ** 2)) / expected.std()
    assert error < 0.1
    assert np.mean(found.argmax(axis=1) == expected.argmax(axis=1)) > 0.9


def test_weights_are_symmetric_by_channel_activations_by_tensor_and_biases_wide() -> None:
    _, onnx_int8 = quantise(family("resnet2d"), inputs(*SHAPES["resnet2d"]))
    model = onnx.load_model_from_string(onnx_int8)
    constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    sources = {node.output[0]: node for node in model.graph.node}
    convs = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(convs) == 7
    for node in convs:
        data, weight, bias = (sources[name] for name in node.input)
        assert constants[weight.input[0]].dtype == np.int8
        assert constants[weight.input[0]].min() >= -127
        assert constants[weight.input[1]].shape == (len(constants[weight.input[0]]),)
        assert not constants[weight.input[2]].any()
        assert constants[bias.input[0]].dtype == np.int32
        assert constants[data.input[1]].shape == ()
        assert constants[data.input[2]].dtype == np.int8
        expected_scale = constants[data.input[1]] * constants[weight.input[1]]
        np.testing.assert_allclose(constants[bias.input[1]], expected_scale, rtol=1e-6)


def test_activations_disappear_into_the_range_before_them() -> None:
    _, onnx_int8 = quantise(family("resnet2d"), inputs(*SHAPES["resnet2d"]))
    counts = quantisation_summary(onnx_int8)
    assert "Relu" not in counts
    assert counts["Conv"] == 6
    assert counts["Add"] == 2


def test_the_ranges_cover_zero_and_almost_all_values() -> None:
    module, x = family("resnet2d"), inputs(*SHAPES["resnet2d"])
    ranges = calibrate(export_onnx(module, x[:8]), x)
    assert all(low <= 0.0 <= high for low, high in ranges.values())
    assert ranges["input"][1] == pytest.approx(x.max(), rel=0.2)
    assert ranges["input"][1] < x.max()


def test_a_channel_that_is_always_zero_does_no_harm() -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    with torch.no_grad():
        module[0].weight[1] = 0.0
        module[0].bias[1] = 0.0
        module[3].weight[2] = 0.0
    x = inputs(2, 8, 8)
    _, onnx_int8 = quantise(module, x)
    found = run_onnx(onnx_int8, x)[0]
    assert np.isfinite(found).all()
    assert np.abs(found - outputs(module, x)).max() < 0.1


def test_the_batch_size_stays_free() -> None:
    for model in quantise(family("resnet1d"), inputs(*SHAPES["resnet1d"])):
        assert len(run_onnx(model, inputs(*SHAPES["resnet1d"], n=1))[0]) == 1
        assert len(run_onnx(model, inputs(*SHAPES["resnet1d"], n=7))[0]) == 7


def test_the_same_network_gives_the_same_bytes() -> None:
    x = inputs(*SHAPES["resnet2d"])
    assert quantise(family("resnet2d"), x) == quantise(family("resnet2d"), x)


def test_nothing_is_printed_and_no_file_is_left(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    quantise(family("dscnn"), inputs(*SHAPES["dscnn"]))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""
    assert list(tmp_path.iterdir()) == []


class Own(nn.Module):
    """What users write: functions, methods and layers in many spellings."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.first, self.second = nn.Conv2d(2, 4, 3, padding="same"), nn.Conv2d(4, 4, 1)
        self.before = nn.BatchNorm2d(2)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(4 * 4 * 4, 5)
        self.short = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        x = functional.relu(self.first(x))
        y: Tensor
        if self.spelling == "methods":
            x = x.add(self.second(x).relu())
            x = functional.max_pool2d(x, 2).contiguous()
            y = self.last(x.view(x.size(0), -1))
        elif self.spelling == "functions":
            x = torch.add(x, torch.relu(self.second(x)))
            x = functional.avg_pool2d(x, kernel_size=2)
            y = self.last(torch.flatten(functional.dropout(x, 0.5, self.training), 1))
        elif self.spelling == "shape":
            x = functional.max_pool2d(functional.relu6(x + self.second(x)), 3, stride=2, padding=1)
            y = self.last(x.reshape(x.shape[0], 64))
        elif self.spelling == "mean":
            y = self.short(self.drop(x).mean((2, 3)))
        else:
            x = functional.adaptive_avg_pool2d(x, 1)
            y = self.short(x.flatten(start_dim=1))
        return y


@pytest.mark.parametrize("spelling", ["methods", "functions", "shape", "mean", "adaptive"])
def test_a_users_spelling_of_an_operator_is_understood(spelling: str) -> None:
    module, x = settled(Own(spelling)), inputs(2, 8, 8)
    model = trace_onnx(module, torch.tensor(x[:2]))
    np.testing.assert_allclose(run_onnx(model, x)[0], outputs(module, x), atol=1e-4)
    assert "BatchNormalization" not in kinds(model)


@pytest.mark.parametrize(
    "layers",
    [
        (nn.AvgPool2d(3, 2, 1), nn.Flatten(), nn.Linear(32, 5)),
        (nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.Flatten(), nn.Linear(32, 5)),
        (nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.Flatten(), nn.Linear(50, 5)),
        (nn.MaxPool2d((2, 1)), nn.Hardtanh(-0.5, 0.25), nn.Flatten(), nn.Linear(64, 5)),
        (nn.Flatten(), nn.Linear(128, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 5)),
        (nn.Conv2d(2, 4, (3, 1), (1, 2), (1, 0), groups=2, dilation=(2, 1)), nn.Flatten(), nn.Linear(96, 5)),
    ],
)
def test_sizes_strides_pads_and_groups_arrive(layers: tuple[nn.Module, ...]) -> None:
    torch.manual_seed(0)
    x = inputs(2, 8, 8)
    module = settled(nn.Sequential(*layers))
    model = trace_onnx(module, torch.tensor(x[:2]))
    np.testing.assert_allclose(run_onnx(model, x)[0], outputs(module, x), atol=1e-4)


class Reshaped(nn.Module):
    """Uses a reshape that the quick way does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x.reshape(-1, 8))  # type: ignore[no-any-return]


class Odd(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv1d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "softmax":
            return torch.softmax(x, 1)
        if self.kind == "number":
            return x + 1.0
        if self.kind == "mean":
            return x.mean(1)
        if self.kind == "branch" and x.sum() > 0:
            return -x
        return x.transpose(1, 2)


@pytest.mark.parametrize("kind", ["softmax", "number", "mean", "branch", "transpose"])
def test_the_quick_way_refuses_what_it_does_not_know(kind: str) -> None:
    with pytest.raises(NotTraceable):
        trace_onnx(Odd(kind).eval(), torch.zeros(2, 2, 4))


def test_the_quick_way_refuses_layers_it_would_get_wrong() -> None:
    for layer in (
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
        nn.MaxPool2d(2, dilation=2),
        nn.AvgPool2d(2, divisor_override=3),
        nn.AdaptiveAvgPool2d(2),
        nn.GELU(),
        nn.BatchNorm2d(2, track_running_stats=False),
    ):
        with pytest.raises(NotTraceable):
            trace_onnx(nn.Sequential(layer).eval(), torch.zeros(2, 2, 8, 8))


def test_what_the_quick_way_does_not_know_goes_through_pytorchs_exporter_in_silence(
    capfd: pytest.CaptureFixture[str],
) -> None:
    module, x = Reshaped().eval(), inputs(2, 4)
    model = export_onnx(module, x[:8])
    np.testing.assert_allclose(run_onnx(model, x)[0], outputs(module, x), atol=1e-5)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


class NormAfterActivation(nn.Module):
    """A norm that follows no convolution, in a network that goes through PyTorch's exporter."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        kinds = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d))[rank - 1]
        self.conv, self.norm, self.dense = kinds[0](2, 4, 3), kinds[1](4), nn.Linear(4 * 6**rank, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.norm(torch.relu(self.conv(x))).reshape(-1, self.dense.in_features))  # type: ignore[no-any-return]


@pytest.mark.parametrize("rank", [1, 2])
def test_no_batch_norm_is_left_after_pytorchs_exporter_either(rank: int) -> None:
    module, x = settled(NormAfterActivation(rank)), inputs(2, *[8] * rank)
    with pytest.raises(NotTraceable):
        trace_onnx(module, torch.tensor(x[:2]))
    model = export_onnx(module, x[:8])
    assert "BatchNormalization" not in kinds(model)
    np.testing.assert_allclose(run_onnx(model, x)[0], outputs(module, x), atol=1e-4)
    _, onnx_int8 = quantise(module, x)
    assert np.abs(run_onnx(onnx_int8, x)[0] - outputs(module, x)).max() < 0.1


class InPlace(nn.Module):
    """The traced graph reads the value before the in-place activation, PyTorch the one after."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.dense = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dense(x.flatten(1))
        z = self.act(y)
        return y + z


def test_a_model_that_computes_something_else_than_the_module_is_never_used(monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs(2, 4)
    module = InPlace().eval()
    expected = outputs(module, x)
    assert np.abs(run_onnx(trace_onnx(module, torch.tensor(x[:2])), x)[0] - expected).max() > 0.1
    wrong = trace_onnx(module, torch.tensor(x[:2]))
    monkeypatch.setattr(export, "_torch_onnx", lambda module, example: wrong)
    with pytest.raises(Defect, match="computes something else"):
        export_onnx(module, x[:8])


def test_a_network_that_gives_no_numbers_is_refused() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(8, 5)).eval()
    with torch.no_grad():
        module[1].weight[0, 0] = float("nan")
    with pytest.raises(Defect, match="not finite"):
        quantise(module, inputs(2, 4))


def test_a_network_that_pytorch_cannot_export_is_refused_in_one_line() -> None:
    with pytest.raises(Defect, match="cannot export the network to ONNX") as caught:
        export_onnx(Odd("branch").eval(), inputs(2, 4, n=4))
    assert "\n" not in str(caught.value)
