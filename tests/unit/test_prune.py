"""Structured pruning: which channels go, which never do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from orchestrator.studyfile import Network
from tasks.errors import Defect
from tasks.nn.families import build_network
from tasks.nn.prune import Sparsity, kept_channels, prune


def channels(module: nn.Module) -> dict[str, int]:
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    return {name: len(layer.weight) for name, layer in module.named_modules() if isinstance(layer, kinds)}


def resnet(**params: int) -> nn.Module:
    return build_network(Network(family="resnet2d"), {"width": 8, **params}, (1, 8, 8), 10, 0)


IMAGE = torch.zeros(2, 1, 8, 8)


def test_each_stage_loses_its_own_share() -> None:
    module = prune(resnet(), IMAGE, Sparsity(by_prefix={"stage1": 0.5, "stage2": 0.25}))
    found = channels(module)
    assert found["stage1.0.first.conv"] == found["stage1.0.second.conv"] == 4
    assert found["stage2.0.first.conv"] == found["stage2.0.second.conv"] == found["stage2.0.shortcut.conv"] == 12
    assert found["head"] == 10
    assert module(IMAGE).shape == (2, 10)


def test_a_residual_connection_follows_the_prefix_that_names_one_of_its_ends() -> None:
    found = channels(prune(resnet(), IMAGE, Sparsity(default=0.25, by_prefix={"stage1": 0.5})))
    assert found["stem.conv"] == found["stage1.0.second.conv"] == 4, "the stem is tied to stage1"
    assert found["stage2.0.first.conv"] == 12, "the default holds where no prefix does"


def test_of_two_prefixes_on_coupled_layers_the_smaller_share_counts() -> None:
    found = channels(prune(resnet(), IMAGE, Sparsity(by_prefix={"stem": 0.75, "stage1": 0.5})))
    assert found["stem.conv"] == 4


def test_the_longest_prefix_wins_and_only_whole_names_match() -> None:
    sparsity = Sparsity(default=0.1, by_prefix={"stage1": 0.5, "stage1.0.first": 0.75})
    assert sparsity.of_prefix("stage1.0.first.conv") == 0.75
    assert sparsity.of_prefix("stage1.0.second.conv") == 0.5
    assert sparsity.of_prefix("stage10.conv") is None
    assert sparsity.of_coupled(["stage10.conv"]) == 0.1


def test_at_least_one_channel_stays() -> None:
    module = prune(resnet(), IMAGE, Sparsity(default=0.999))
    assert set(channels(module).values()) == {1, 10}
    assert module(IMAGE).shape == (2, 10)


def test_the_classifier_keeps_every_class_even_where_a_norm_follows_it() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10), nn.BatchNorm1d(10), nn.ReLU())
    assert prune(module.eval(), IMAGE, Sparsity(default=0.5))(IMAGE).shape == (2, 10)
    assert channels(module) == {"1": 6, "3": 10}


class TwoHeads(nn.Module):
    """Two layers added at the output, with a dropout behind."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.body = nn.Linear(8, 5), nn.Linear(8, 5), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.body(x.flatten(1)))
        return self.left(x) + self.right(x)  # type: ignore[no-any-return]


def test_layers_added_at_the_output_keep_every_class() -> None:
    assert channels(prune(TwoHeads(), IMAGE, Sparsity(default=0.5))) == {"left": 5, "right": 5, "body": 4}


def test_a_convolutional_classifier_keeps_every_class() -> None:
    module = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert channels(prune(module, IMAGE, Sparsity(default=0.5))) == {"0": 4, "2": 10}


def test_depthwise_convolutions_lose_channels_with_their_input() -> None:
    module = build_network(Network(family="dscnn"), {"width": 8}, (1, 8, 8), 10, 0)
    prune(module, IMAGE, Sparsity(default=0.5))
    assert channels(module)["stage1.0.depthwise.conv"] == 4
    assert module.stage1[0].depthwise.conv.groups == 4  # type: ignore[index,union-attr]
    assert module(IMAGE).shape == (2, 10)


def test_grouped_convolutions_are_left_as_they_are() -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)
    )
    assert channels(prune(module, IMAGE, Sparsity(default=0.5))) == {"0": 8, "1": 8, "2": 3, "5": 3}
    assert module(IMAGE).shape == (2, 3)


def test_dense_layers_after_a_flatten_lose_the_inputs_of_the_channels_removed() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)).eval()
    with torch.no_grad():
        module[0].weight[[1, 2]] = 0.0
        module[0].bias[:] = torch.tensor([0.5, 0.0, 0.0, -0.5])
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = module(x)
    prune(module, x, Sparsity(default=0.5))
    assert module[3].in_features == 128
    torch.testing.assert_close(module(x), expected)


class Wired(nn.Module):
    """A layer used twice, a concatenation and a free parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.side = nn.Conv2d(8, 4, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(1, 4, 1, 1))
        self.dense = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.twice(torch.relu(self.twice(x))))
        joined = torch.cat([x, torch.relu(self.side(x)) * self.gain], 1)
        return self.dense(joined.mean((2, 3)))  # type: ignore[no-any-return]


def test_shared_layers_concatenations_and_free_parameters_are_followed() -> None:
    module = prune(Wired(), IMAGE, Sparsity(default=0.5))
    assert channels(module) == {"first": 4, "twice": 4, "side": 2, "dense": 3}
    assert module.gain.shape == (1, 2, 1, 1)
    assert module.dense.in_features == 6  # type: ignore[union-attr]
    assert module(IMAGE).shape == (2, 3)


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_the_least_important_channels_go_and_what_is_left_computes_the_same(criterion: str) -> None:
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        module[0].weight[::2] = 0.0
        module[0].bias[::2] = 0.0
        module[2].weight[:, ::2] *= 1e-3
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    expected = module(x)
    prune(module, x, Sparsity(default=0.5), criterion=criterion)  # type: ignore[arg-type]
    assert module[0].out_features == 4
    torch.testing.assert_close(module(x), expected)


def test_random_pruning_follows_its_seed_and_not_the_global_state() -> None:
    def kept(seed: int, disturb: int) -> Tensor:
        torch.manual_seed(disturb)
        module = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 3))
        with torch.no_grad():
            module[0].weight[:] = torch.arange(32.0)[:, None]
        prune(module, torch.zeros(2, 1), Sparsity(default=0.5), criterion="random", seed=seed)
        return module[0].weight[:, 0]

    assert torch.equal(kept(1, 5), kept(1, 6))
    assert not torch.equal(kept(1, 5), kept(2, 5))


def test_a_round_is_reported_only_when_it_removed_something() -> None:
    rounds: list[int] = []
    sizes: list[int] = []

    def note(module: nn.Module, index: int) -> None:
        rounds.append(index)
        sizes.append(channels(module)["stage2.0.first.conv"])

    prune(resnet(), IMAGE, Sparsity(by_prefix={"stage2": 0.5}), steps=4, on_round=note)
    assert rounds == [0, 1, 2, 3]
    assert sizes == [14, 12, 10, 8]
    rounds.clear()
    prune(resnet(), IMAGE, Sparsity(default=0.01), steps=3, on_round=note)
    prune(resnet(), IMAGE, Sparsity(), steps=3, on_round=note)
    assert rounds == []


def test_a_network_that_cannot_be_traced_says_so() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no forward today")

    with pytest.raises(
        Defect, match=r"cannot be pruned: RuntimeError: no forward today.*set compression.sparsity to 0"
    ):
        prune(Broken(), IMAGE, Sparsity(default=0.5))


def test_a_share_of_one_or_more_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sparsity of stage1 is 1.0; allowed are 0 to below 1"):
        Sparsity(by_prefix={"stage1": 1.0})


def test_kept_channels_is_not_fooled_by_rounding() -> None:
    assert kept_channels(10, 0.7) == 3
    assert kept_channels(10, 0.1 * 3) == 7
    assert kept_channels(1, 0.9) == 1
