"""Network families: from a few options to a PyTorch module made of operators that the compiler knows.

Built in are small residual networks for images and for time series, depthwise separable ones, and dense ones. Their
stages are modules named ``stage1``, ``stage2`` …, so that ``compression.sparsity.stage1`` sets the sparsity of one. A
user's own family is ``module:function``; it gets ``input_shape``, ``n_classes`` and the options as keyword arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.records import ParamValue
from orchestrator.studyfile import Network
from tasks.errors import Defect
from tasks.nn.options import Option, check_options
from tasks.nn.usercode import describe_error, is_reference, load_function

HEAD = "head"


class ConvUnit(nn.Sequential):
    """Convolution, batch norm and, where wanted, an activation; the padding keeps ``size / stride``, rounded up."""

    def __init__(self, n_in: int, n_out: int, kernel_size: int, plan: Plan, **how: Any) -> None:
        stride, groups, activation = how.get("stride", 1), how.get("groups", 1), how.get("activation", True)
        padding = kernel_size // 2
        conv = plan.conv(n_in, n_out, kernel_size, stride=stride, padding=padding, groups=groups, bias=False)
        super().__init__()
        self.add_module("conv", conv)
        self.add_module("norm", plan.norm(n_out))
        if activation:
            self.add_module("act", plan.activation())


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut; the shortcut is a 1x1 convolution where size or channels change."""

    def __init__(self, n_in: int, n_out: int, kernel_size: int, stride: int, plan: Plan) -> None:
        super().__init__()
        self.first = ConvUnit(n_in, n_out, kernel_size, plan, stride=stride)
        self.second = ConvUnit(n_out, n_out, kernel_size, plan, activation=False)
        changes = stride != 1 or n_in != n_out
        self.shortcut = ConvUnit(n_in, n_out, 1, plan, stride=stride, activation=False) if changes else nn.Identity()
        self.act = plan.activation()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.second(self.first(x)) + self.shortcut(x))
        return out


class SeparableBlock(nn.Sequential):
    """A depthwise and a pointwise convolution."""

    def __init__(self, n_in: int, n_out: int, kernel_size: int, stride: int, plan: Plan) -> None:
        super().__init__()
        self.add_module("depthwise", ConvUnit(n_in, n_in, kernel_size, plan, stride=stride, groups=n_in))
        self.add_module("pointwise", ConvUnit(n_in, n_out, 1, plan))


@dataclass(frozen=True, slots=True)
class Plan:
    """Which layer classes a network is made of: one or two spatial dimensions, and its activation."""

    dimensions: int
    activation_name: str

    @property
    def conv(self) -> type[nn.Conv1d] | type[nn.Conv2d]:
        return nn.Conv1d if self.dimensions == 1 else nn.Conv2d

    @property
    def norm(self) -> type[nn.BatchNorm1d] | type[nn.BatchNorm2d]:
        return nn.BatchNorm1d if self.dimensions == 1 else nn.BatchNorm2d

    @property
    def pool(self) -> type[nn.MaxPool1d] | type[nn.MaxPool2d]:
        return nn.MaxPool1d if self.dimensions == 1 else nn.MaxPool2d

    @property
    def global_pool(self) -> type[nn.AdaptiveAvgPool1d] | type[nn.AdaptiveAvgPool2d]:
        return nn.AdaptiveAvgPool1d if self.dimensions == 1 else nn.AdaptiveAvgPool2d

    def activation(self) -> nn.Module:
        return nn.ReLU6() if self.activation_name == "relu6" else nn.ReLU()


_CONVOLUTIONAL: Mapping[str, Option] = {
    "width": Option("int", 8, "channels of the first stage", low=1, high=1024),
    "depth": Option("int", 1, "blocks a stage", low=1, high=16),
    "stages": Option("int", 2, "stages; each after the first halves the size", low=1, high=6),
    "growth": Option("float", 2.0, "factor of the channels from one stage to the next", low=1.0, high=4.0),
    "kernel_size": Option("int", 3, "size of the convolutions", choices=(1, 3, 5, 7, 9, 11)),
    "stem_kernel_size": Option("int", 3, "size of the first convolution", choices=(1, 3, 5, 7, 9, 11)),
    "stem_stride": Option("int", 1, "stride of the first convolution", low=1, high=8),
    "pool": Option("int", 1, "max pooling after the first convolution, 1 for none", low=1, high=8),
    "activation": Option("str", "relu", "activation function", choices=("relu", "relu6")),
}
_DENSE: Mapping[str, Option] = {
    "width": Option("int", 32, "neurons of the first hidden layer", low=1, high=4096),
    "depth": Option("int", 2, "hidden layers", low=1, high=16),
    "shrink": Option("float", 1.0, "factor of the neurons from one hidden layer to the next", low=0.1, high=1.0),
    "activation": Option("str", "relu", "activation function", choices=("relu", "relu6")),
}


def _convolutional(
    block: Callable[..., nn.Module], dimensions: int, options: Mapping[str, Any], shape: tuple[int, ...], n_classes: int
) -> nn.Module:
    if len(shape) != dimensions + 1:
        needed = "(channels, time)" if dimensions == 1 else "(channels, rows, columns)"
        raise Defect("bad_network", f"the inputs have the shape {shape}; this network family takes {needed}")
    plan = Plan(dimensions, options["activation"])
    width = options["width"]
    net = nn.Sequential()
    net.add_module("stem", ConvUnit(shape[0], width, options["stem_kernel_size"], plan, stride=options["stem_stride"]))
    if options["pool"] > 1:
        net.add_module("pool", plan.pool(options["pool"]))
    n_in = width
    for stage in range(options["stages"]):
        n_out = max(1, round(width * options["growth"] ** stage))
        blocks = nn.Sequential()
        for index in range(options["depth"]):
            stride = 2 if stage > 0 and index == 0 else 1
            blocks.append(block(n_in, n_out, options["kernel_size"], stride, plan))
            n_in = n_out
        net.add_module(f"stage{stage + 1}", blocks)
    net.add_module("global_pool", plan.global_pool(1))
    net.add_module("flatten", nn.Flatten())
    net.add_module(HEAD, nn.Linear(n_in, n_classes))
    return net


def _resnet2d(options: Mapping[str, Any], shape: tuple[int, ...], n_classes: int) -> nn.Module:
    return _convolutional(ResidualBlock, 2, options, shape, n_classes)


def _resnet1d(options: Mapping[str, Any], shape: tuple[int, ...], n_classes: int) -> nn.Module:
    return _convolutional(ResidualBlock, 1, options, shape, n_classes)


def _dscnn(options: Mapping[str, Any], shape: tuple[int, ...], n_classes: int) -> nn.Module:
    return _convolutional(SeparableBlock, len(shape) - 1, options, shape, n_classes)


def _mlp(options: Mapping[str, Any], shape: tuple[int, ...], n_classes: int) -> nn.Module:
    plan = Plan(1, options["activation"])
    n_in = 1
    for size in shape:
        n_in *= size
    net = nn.Sequential()
    net.add_module("flatten", nn.Flatten())
    for index in range(options["depth"]):
        n_out = max(1, round(options["width"] * options["shrink"] ** index))
        stage = nn.Sequential()
        stage.add_module("dense", nn.Linear(n_in, n_out))
        stage.add_module("act", plan.activation())
        net.add_module(f"stage{index + 1}", stage)
        n_in = n_out
    net.add_module(HEAD, nn.Linear(n_in, n_classes))
    return net


@dataclass(frozen=True, slots=True)
class Family:
    """A family known by name."""

    build: Callable[[Mapping[str, Any], tuple[int, ...], int], nn.Module]
    options: Mapping[str, Option]
    description: str


FAMILIES: Mapping[str, Family] = {
    "resnet2d": Family(_resnet2d, _CONVOLUTIONAL, "small residual network for images"),
    "resnet1d": Family(_resnet1d, _CONVOLUTIONAL, "small residual network for time series"),
    "dscnn": Family(_dscnn, _CONVOLUTIONAL, "depthwise separable convolutions, for images or time series"),
    "mlp": Family(_mlp, _DENSE, "dense layers, for anything"),
}


def family_names() -> tuple[str, ...]:
    """The built-in families."""
    return tuple(FAMILIES)


def family_options() -> dict[str, dict[str, str]]:
    """Family → option → what it means and what is allowed, for ``study check``."""
    return {name: {key: str(option) for key, option in family.options.items()} for name, family in FAMILIES.items()}


def build_network(
    network: Network, params: Mapping[str, ParamValue], input_shape: tuple[int, ...], n_classes: int, seed: int
) -> nn.Module:
    """The untrained network of one candidate; ``seed`` alone fixes its weights.

    ``params`` are the candidate's options (``width``, ``depth`` …, without ``network.``); they win over those fixed in
    the study. Input (n, *input_shape), output (n, n_classes). The global random state is left as it was.

    Raises:
        Defect: the family or an option is unknown, or a user's family does not give such a module.
    """
    options = {**network.options, **params}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if is_reference(network.family):
            module = _build_users(network.family, options, input_shape, n_classes)
        elif network.family in FAMILIES:
            family = FAMILIES[network.family]
            checked = check_options(f"network family {network.family}", family.options, options)
            module = family.build(checked, input_shape, n_classes)
        else:
            allowed = f"allowed are the built-in {', '.join(FAMILIES)}, or module:function"
            raise Defect("unknown_family", f"network family {network.family!r} is unknown; {allowed}")
    return module.eval()


def _build_users(reference: str, options: Mapping[str, Any], input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    where = f"network family {reference!r}"
    function = load_function(reference, "network family")
    try:
        module = function(input_shape=input_shape, n_classes=n_classes, **options)
    except (Exception, SystemExit) as error:  # the user's code runs here; whatever it raises is shown to the user
        raise Defect("bad_user_code", f"{where} failed: {describe_error(error)}") from error
    if not isinstance(module, nn.Module):
        raise Defect("bad_user_code", f"{where} returned {type(module).__name__}; expected a torch.nn.Module")
    try:
        with torch.no_grad():
            output = module.eval()(torch.zeros(2, *input_shape))
    except (Exception, SystemExit) as error:  # as above: the forward pass is the user's code too
        raise Defect(
            "bad_user_code", f"{where}: inputs of shape {input_shape} fail: {describe_error(error)}"
        ) from error
    if not isinstance(output, Tensor) or tuple(output.shape) != (2, n_classes):
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise Defect("bad_user_code", f"{where}: the output for 2 samples is {found}; expected (2, {n_classes})")
    return module
