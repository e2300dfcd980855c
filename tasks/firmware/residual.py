"""Sums join the convolution that makes one of their terms: what lies between them is four pixels, not an image."""

from __future__ import annotations

import dataclasses
from collections import Counter

from tasks.firmware.ir import Add, AnyLayer, Conv2d, Graph, op_name


def fuse_additions(graph: Graph) -> Graph:
    """``graph`` with fewer layers and the same bytes at its output.

    A sum joins a convolution that gives one of its terms to it alone, if the other term is there before; of two such
    convolutions the later one. The tensor in between stays in ``tensors`` for its scale.
    """
    users = Counter(name for layer in graph.layers for name in layer.inputs) + Counter([graph.output])
    made = {layer.output: index for index, layer in enumerate(graph.layers)}
    layers: list[AnyLayer | None] = list(graph.layers)
    for index, layer in enumerate(graph.layers):
        if not isinstance(layer, Add):
            continue
        hosts = [made[name] for name in layer.inputs if users[name] == 1 and _takes_sums(layers, made.get(name, -1))]
        host = max(hosts, default=-1)
        others = [name for name in layer.inputs if made.get(name, -1) != host]
        if host < 0 or made.get(others[0], -1) > host:
            continue
        convolution = graph.layers[host]
        assert isinstance(convolution, Conv2d)
        layers[host] = _joined(convolution, layer, others[0])
        layers[index] = None
        made[layer.output] = host
    return dataclasses.replace(graph, layers=tuple(layer for layer in layers if layer is not None))


def _takes_sums(layers: list[AnyLayer | None], index: int) -> bool:
    layer = layers[index] if index >= 0 else None
    return layer is not None and op_name(layer) == "conv2d"


def _joined(convolution: Conv2d, addition: Add, other: str) -> Conv2d:
    """The convolution's result is the sum's first term."""
    own, others = addition.multipliers
    if addition.inputs[0] != convolution.output:
        own, others = others, own
    first = dataclasses.replace(addition, inputs=(convolution.output, other), multipliers=(own, others))
    return dataclasses.replace(
        convolution, inputs=(convolution.inputs[0], other), output=addition.output, addition=first
    )
