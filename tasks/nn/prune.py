"""Structured pruning: whole channels are removed, with everything that depends on them (torch-pruning's graph).

Which channels go depends on the weights, *how many* go only on the sparsity asked for: every coupled set of layers is
ranked by itself, never against others. So the shapes of a trained, iteratively pruned network are known before it is
trained, which is what lets the gate reject a candidate in seconds.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch_pruning
from torch import Tensor, nn

from tasks.errors import Defect
from tasks.nn.usercode import describe_error

Criterion = Literal["l1", "l2", "random"]
OnRound = Callable[[nn.Module, int], None]
_ROOTS = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sparsity:
    """Share of the channels to remove, 0 <= share < 1: ``by_prefix`` for the modules whose name is the prefix or starts
    with it and a dot (the longest prefix wins), ``default`` for all others."""

    default: float = 0.0
    by_prefix: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, share in (("compression.sparsity", self.default), *self.by_prefix.items()):
            if not 0.0 <= share < 1.0:
                raise ValueError(f"sparsity of {name} is {share}; allowed are 0 to below 1")

    @property
    def is_zero(self) -> bool:
        return self.default == 0.0 and not any(self.by_prefix.values())

    def of_prefix(self, module_name: str) -> float | None:
        """The share asked for by the longest matching prefix, None where none matches."""
        matching = [prefix for prefix in self.by_prefix if is_below(module_name, prefix)]
        return self.by_prefix[max(matching, key=len)] if matching else None

    def of_coupled(self, module_names: list[str]) -> float:
        """The share for layers that must keep the same channels (the ends of a residual connection …): the smallest
        that a prefix asks for one of them, and the default only where no prefix matches any."""
        asked = [share for name in module_names if (share := self.of_prefix(name)) is not None]
        return min(asked) if asked else self.default


def is_below(module_name: str, prefix: str) -> bool:
    """``stage1`` is above ``stage1.0.first.conv`` but not above ``stage10``."""
    return module_name == prefix or module_name.startswith(prefix + ".")


def kept_channels(n_channels: int, share: float) -> int:
    """How many of ``n_channels`` stay when ``share`` of them is removed: rounded up, at least one.

    >>> kept_channels(8, 0.5), kept_channels(3, 0.99), kept_channels(10, 0.7)
    (4, 1, 3)
    """
    return max(1, n_channels - math.floor(n_channels * share + 1e-9))


def prune(
    module: nn.Module,
    example: Tensor,
    sparsity: Sparsity,
    *,
    steps: int = 1,
    criterion: Criterion = "l1",
    seed: int = 0,
    on_round: OnRound = lambda module, round_index: None,
) -> nn.Module:
    """Remove channels from ``module`` (in place) in ``steps`` rounds and return it.

    After each round that removed something ``on_round(module, round_index)`` may fine-tune the weights; parameters are
    new objects by then, so an optimiser must be new too. The outputs of the network are never pruned, nor are grouped
    convolutions (depthwise ones are). The shapes that result depend on ``module``'s shapes and ``sparsity`` only.

    Args:
        example: an input of the module, (n, …).
        seed: orders the channels when ``criterion`` is ``random``.

    Raises:
        Defect: the network's dependencies cannot be traced.
    """
    if not sparsity.is_zero:
        try:
            graph = _trace(module, example)
        except Exception as error:  # the module may be the user's, and tracing runs its forward pass
            text = f"the network cannot be pruned: {describe_error(error)}"
            raise Defect("cannot_prune", text + "; set compression.sparsity to 0 for it") from error
        protected = _output_layers(graph)
        shares = _shares(graph, protected, sparsity)
        for round_index in range(steps):
            rng = torch.Generator().manual_seed(seed * 1_000_003 + round_index)
            if _prune_round(graph, protected, shares, (round_index + 1) / steps, _scorer(criterion, rng)):
                on_round(module, round_index)
    return module


def _trace(module: nn.Module, example: Tensor) -> Any:
    module.eval()
    with torch.enable_grad(), warnings.catch_warnings():
        # Parameters outside of layers are pruned with what they are multiplied by; the library says so each time.
        warnings.filterwarnings("ignore", message="Unwrapped parameters detected")
        return torch_pruning.DependencyGraph().build_dependency(module, example_inputs=example)


def _groups(graph: Any, protected: list[nn.Module]) -> list[Any]:
    """The coupled sets of layers that may be pruned; those with a grouped convolution are left as they are."""
    groups = graph.get_all_groups(ignored_layers=protected, root_module_types=_ROOTS)
    return [group for group in groups if not any(_is_grouped(dependency.target.module) for dependency, _ in group)]


def _is_grouped(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.modules.conv._ConvNd):
        return False
    return layer.groups > 1 and not layer.groups == layer.in_channels == layer.out_channels


def _output_layers(graph: Any) -> list[nn.Module]:
    """The layers whose channels reach the output of the network with no other layer in between."""
    outputs: list[nn.Module] = []
    pending = [node for node in graph.module2node.values() if not node.outputs]
    seen = set(pending)
    while pending:
        node = pending.pop()
        if isinstance(node.module, _ROOTS):
            outputs.append(node.module)
        if isinstance(node.module, nn.Linear) or (
            isinstance(node.module, nn.modules.conv._ConvNd) and not _is_depthwise(node.module)
        ):
            continue
        fresh = [before for before in node.inputs if before not in seen]
        seen.update(fresh)
        pending.extend(fresh)
    return outputs


def _is_depthwise(layer: nn.modules.conv._ConvNd) -> bool:
    return layer.groups == layer.in_channels == layer.out_channels and layer.groups > 1


def _pruned_layers(graph: Any, group: Any) -> list[nn.Module]:
    """The layers of a group that lose outputs."""
    return [
        dependency.target.module
        for dependency, _ in group
        if graph.is_out_channel_pruning_fn(dependency.handler) and isinstance(dependency.target.module, _ROOTS)
    ]


def _shares(graph: Any, protected: list[nn.Module], sparsity: Sparsity) -> dict[nn.Module, tuple[int, float]]:
    """Root layer of each group → its channels before pruning and the share to remove."""
    names = {layer: name for name, layer in graph.model.named_modules()}
    shares = {}
    for group in _groups(graph, protected):
        root = group[0].dep.target.module
        members = [names[layer] for layer in _pruned_layers(graph, group)]
        shares[root] = (graph.get_out_channels(root), sparsity.of_coupled(members))
    return shares


def _scorer(criterion: Criterion, rng: torch.Generator) -> Callable[[Any], Tensor | None]:
    """Importance of each channel of a group, (n channels,); the least important go first."""
    if criterion == "random":
        return lambda group: torch.rand(len(group[0].idxs), generator=rng)
    importance = torch_pruning.importance.GroupMagnitudeImportance(p={"l1": 1, "l2": 2}[criterion])
    return lambda group: importance(group)


def _prune_round(
    graph: Any,
    protected: list[nn.Module],
    shares: Mapping[nn.Module, tuple[int, float]],
    progress: float,
    score: Callable[[Any], Tensor | None],
) -> bool:
    """Whether anything was removed."""
    has_removed = False
    for group in _groups(graph, protected):
        root, handler = group[0].dep.target.module, group[0].dep.handler
        if root not in shares:
            # A depthwise convolution with one channel left looks like an ordinary one and heads a group of its own,
            # which has nothing more to lose.
            continue
        n_before, share = shares[root]
        n_now = graph.get_out_channels(root)
        n_remove = n_now - kept_channels(n_before, share * progress)
        importance = score(group) if n_remove > 0 else None
        if importance is None:
            continue
        # A stable order makes the choice among equals the same on every machine.
        least = torch.argsort(importance, stable=True)[:n_remove]
        graph.get_pruning_group(root, handler, sorted(least.tolist())).prune()
        has_removed = True
    return has_removed
