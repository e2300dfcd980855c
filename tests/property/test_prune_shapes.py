"""The shapes after pruning follow from the sparsity alone: the gate relies on it."""

from __future__ import annotations

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from orchestrator.studyfile import Network
from tasks.nn.families import build_network
from tasks.nn.prune import Sparsity, prune

SHAPES = {"resnet2d": (1, 8, 8), "resnet1d": (3, 16), "dscnn": (1, 8, 8), "mlp": (1, 4, 4)}
shares = st.floats(0.0, 0.99)


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def scramble(module: nn.Module, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))


@settings(max_examples=40, deadline=None)
@given(
    family=st.sampled_from(sorted(SHAPES)),
    width=st.integers(1, 9),
    depth=st.integers(1, 2),
    default=shares,
    stage1=shares,
    stage2=shares,
    steps=st.integers(1, 5),
    criterion=st.sampled_from(["l1", "l2", "random"]),
    seed=st.integers(0, 1000),
)
# A depthwise convolution is down to one channel before the last round.
@example(family="dscnn", width=1, depth=2, default=0.0, stage1=0.0, stage2=0.75, steps=3, criterion="l1", seed=0)
def test_iterative_pruning_with_any_weights_ends_in_the_shapes_of_one_untrained_shot(
    family: str,
    width: int,
    depth: int,
    default: float,
    stage1: float,
    stage2: float,
    steps: int,
    criterion: str,
    seed: int,
) -> None:
    inputs = torch.zeros(2, *SHAPES[family])
    params = {"width": width, "depth": depth}
    sparsity = Sparsity(default=default, by_prefix={"stage1": stage1, "stage2": stage2})
    untrained = build_network(Network(family=family), params, SHAPES[family], 4, 0)
    trained = build_network(Network(family=family), params, SHAPES[family], 4, seed)
    scramble(trained, seed)
    prune(untrained, inputs, sparsity)
    prune(
        trained,
        inputs,
        sparsity,
        steps=steps,
        criterion=criterion,  # type: ignore[arg-type]
        seed=seed,
        on_round=lambda module, index: scramble(module, index),
    )
    assert shapes(trained) == shapes(untrained)
    assert trained.eval()(inputs).shape == (2, 4)
    assert min(min(shape, default=1) for shape in shapes(trained).values()) >= 1
