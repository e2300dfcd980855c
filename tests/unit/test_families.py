"""Network families: the shapes, names and errors that a study relies on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from orchestrator.records import ParamValue
from orchestrator.studyfile import Network
from tasks.errors import Defect
from tasks.nn.families import FAMILIES, build_network, family_names, family_options

SHAPES = {"resnet2d": (3, 8, 6), "resnet1d": (4, 32), "dscnn": (2, 8, 8), "mlp": (2, 5)}


def build(family: str, shape: tuple[int, ...] | None = None, seed: int = 0, **params: ParamValue) -> nn.Module:
    return build_network(Network(family=family), params, shape or SHAPES[family], 5, seed)


@pytest.mark.parametrize("family", sorted(SHAPES))
def test_every_family_gives_one_score_a_class(family: str) -> None:
    assert set(SHAPES) == set(family_names())
    module = build(family, depth=2)
    assert module(torch.zeros(3, *SHAPES[family])).shape == (3, 5)
    assert not module.training


@pytest.mark.parametrize("family", sorted(SHAPES))
def test_the_weights_follow_the_seed_and_leave_the_global_state_alone(family: str) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first, again, other = (build(family, seed=seed).state_dict() for seed in (7, 7, 8))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("family", sorted(SHAPES))
def test_every_option_changes_the_network_and_stays_runnable(family: str) -> None:
    base = build(family)
    for name, option in FAMILIES[family].options.items():
        value: ParamValue
        if option.choices:
            value = next(choice for choice in option.choices if choice != option.default)
        else:
            value = option.default + 1 if name not in ("shrink",) else 0.5
        module = build(family, **{name: value})
        assert module(torch.zeros(2, *SHAPES[family])).shape == (2, 5)
        assert repr(module) != repr(base), f"option {name} does nothing"


def test_stages_are_named_so_that_their_sparsity_can_be_set() -> None:
    names = [name for name, _ in build("resnet2d", stages=3).named_children()]
    assert names == ["stem", "stage1", "stage2", "stage3", "global_pool", "flatten", "head"]
    assert [name for name, _ in build("mlp", depth=2).named_children()] == ["flatten", "stage1", "stage2", "head"]


def test_width_and_growth_set_the_channels_of_each_stage() -> None:
    state = build("resnet2d", width=6, growth=1.5, stages=3).state_dict()
    assert [len(state[f"stage{i}.0.second.conv.weight"]) for i in (1, 2, 3)] == [6, 9, 14]


def test_an_integral_float_is_taken_for_a_whole_number() -> None:
    assert len(build("resnet2d", width=6.0).state_dict()["stem.conv.weight"]) == 6


def test_fixed_options_of_the_study_yield_to_the_candidates() -> None:
    network = Network(family="mlp", options={"width": 7, "depth": 1})
    assert build_network(network, {}, (4, 2), 3, 0)[1].dense.out_features == 7  # type: ignore[index,union-attr]
    assert build_network(network, {"width": 9}, (4, 2), 3, 0)[1].dense.out_features == 9  # type: ignore[index,union-attr]


@pytest.mark.parametrize(
    ("family", "params", "text"),
    [
        ("resnet2d", {"widht": 8}, "option 'widht' is unknown; allowed: width, depth"),
        ("resnet2d", {"width": 0}, "option 'width' is 0; allowed: 1 to 1024"),
        ("resnet2d", {"width": 2.5}, "option 'width' is 2.5"),
        ("resnet2d", {"width": True}, "option 'width' is True"),
        ("resnet2d", {"kernel_size": 4}, "option 'kernel_size' is 4; allowed: 1, 3, 5"),
        ("mlp", {"activation": "gelu"}, "option 'activation' is 'gelu'; allowed: 'relu', 'relu6'"),
        ("vgg", {}, "'vgg' is unknown; allowed are the built-in resnet2d, resnet1d, dscnn, mlp"),
    ],
)
def test_a_wrong_option_says_what_is_allowed(family: str, params: Mapping[str, ParamValue], text: str) -> None:
    with pytest.raises(Defect, match=text):
        build_network(Network(family=family), params, (1, 8, 8), 5, 0)


def test_an_image_family_refuses_time_series() -> None:
    with pytest.raises(Defect, match=r"the inputs have the shape \(4, 32\); .* takes \(channels, rows, columns\)"):
        build("resnet2d", (4, 32))
    with pytest.raises(Defect, match=r"takes \(channels, time\)"):
        build("resnet1d", (4, 8, 8))


def test_family_options_describe_kind_default_and_allowed_values() -> None:
    text = family_options()["resnet2d"]["width"]
    assert "int" in text
    assert "default 8" in text
    assert "1 to 1024" in text


GOOD = """
from torch import nn
def net(input_shape, n_classes, width=4):
    n = input_shape[0] * input_shape[1]
    return nn.Sequential(nn.Flatten(), nn.Linear(n, width), nn.ReLU(), nn.Linear(width, n_classes))
"""


def test_a_users_family_gets_shape_classes_and_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_family_good.py").write_text(GOOD)
    monkeypatch.setenv("EDGEFRONT_IMPORT_PATH", str(tmp_path))
    module = build_network(Network(family="own_family_good:net"), {"width": 6}, (2, 3), 4, 0)
    assert module(torch.zeros(5, 2, 3)).shape == (5, 4)
    again = build_network(Network(family="own_family_good:net"), {"width": 6}, (2, 3), 4, 0)
    assert torch.equal(module[1].weight, again[1].weight)  # type: ignore[index]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("return 3", "returned int; expected a torch.nn.Module"),
        ("return nn.Flatten()", r"the output for 2 samples is \(2, 6\); expected \(2, 4\)"),
        ("return nn.Conv2d(9, 1, 3)", r"inputs of shape \(2, 3\) fail: RuntimeError"),
        ("return nn.Linear('a', 2)", "failed: TypeError"),
    ],
)
def test_a_users_family_that_is_wrong_is_told_why(
    body: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"own_family_{len(body)}_bad"
    (tmp_path / f"{name}.py").write_text(f"from torch import nn\ndef net(input_shape, n_classes):\n    {body}\n")
    monkeypatch.setenv("EDGEFRONT_IMPORT_PATH", str(tmp_path))
    with pytest.raises(Defect, match=text):
        build_network(Network(family=f"{name}:net"), {}, (2, 3), 4, 0)


def test_an_option_that_a_users_family_does_not_take_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_family_more.py").write_text(GOOD)
    monkeypatch.setenv("EDGEFRONT_IMPORT_PATH", str(tmp_path))
    with pytest.raises(Defect, match="unexpected keyword argument 'depth'"):
        build_network(Network(family="own_family_more:net"), {"depth": 6}, (2, 3), 4, 0)
