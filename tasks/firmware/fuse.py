"""Chains of functions of one tensor's bytes become one table.

Exporters write hard-swish as a sigmoid and a product, or as an addition, a clip and two products. All of these are
functions of the same byte, so a table holds them together. The table is made by running the reference on all bytes,
roundings in between included: the network computes the same bytes as before.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from tasks.firmware.ir import INT8_MIN, N_BYTES, Add, AnyLayer, Graph, Int8Array, Lookup, Mul, Rescale, Tensor
from tasks.quant import reference

_BYTES = np.arange(N_BYTES).astype(np.int16) + INT8_MIN
_LINE = (1, 1, N_BYTES)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Function:
    """A tensor as a function of ``root``: ``table[q + 128]`` for its byte ``q``. ``is_table``: it holds a lookup."""

    root: str
    table: Int8Array
    is_table: bool


def fuse_lookups(graph: Graph) -> Graph:
    """``graph`` with fewer layers and the same bytes at its output; layers that no other needs any more are left out.

    Lookups and rescalings that follow each other are joined where nothing else reads what lies between them; a sum or a
    product of functions of one tensor is, where one of the two is a table.
    """
    users = Counter(name for layer in graph.layers for name in layer.inputs) + Counter([graph.output])
    functions: dict[str, _Function] = {}
    layers: list[AnyLayer] = []
    for layer in graph.layers:
        function = _function(layer, graph.tensors, functions, users)
        if function is None:
            layers.append(layer)
            continue
        functions[layer.output] = function
        is_joined = function.is_table and layer.inputs != (function.root,)
        layers.append(_lookup(layer, function) if is_joined else layer)
    return _without_dead(graph, layers, {layer.output for layer in graph.layers})


def _function(
    layer: AnyLayer, tensors: dict[str, Tensor], functions: dict[str, _Function], users: Counter[str]
) -> _Function | None:
    """The layer's output as a function of a single tensor; ``None`` where it is none, or joining gains nothing."""
    if not isinstance(layer, (Lookup, Rescale, Add, Mul)) or len({tensors[name].n_bytes for name in layer.inputs}) > 1:
        return None
    operands = [functions.get(name, _identity(name)) for name in layer.inputs]
    if isinstance(layer, (Lookup, Rescale)):
        if users[layer.inputs[0]] > 1:
            operands = [_identity(layer.inputs[0])]
    elif not any(operand.is_table for operand in operands) or len({operand.root for operand in operands}) > 1:
        return None
    is_table = isinstance(layer, Lookup) or any(operand.is_table for operand in operands)
    table = _run_on_bytes(layer, tensors, [operand.table for operand in operands])
    return _Function(root=operands[0].root, table=table, is_table=is_table)


def _identity(name: str) -> _Function:
    return _Function(root=name, table=_BYTES.astype(np.int8), is_table=False)


def _run_on_bytes(layer: AnyLayer, tensors: dict[str, Tensor], tables: Sequence[Int8Array]) -> Int8Array:
    lines = {name: dataclasses.replace(tensors[name], shape=_LINE) for name in (*layer.inputs, layer.output)}
    return reference.run_layer(layer, lines, [table.reshape(1, *_LINE) for table in tables]).ravel()


def _lookup(layer: AnyLayer, function: _Function) -> Lookup:
    return Lookup(
        name=layer.name, inputs=(function.root,), output=layer.output, clamp=layer.clamp, table=function.table
    )


def _without_dead(graph: Graph, layers: list[AnyLayer], made: set[str]) -> Graph:
    """Leave out what fusing has made useless, and only that."""
    before = _read(graph.layers, graph.output)
    kept = list(layers)
    while True:
        after = _read(kept, graph.output)
        live = [layer for layer in kept if layer.output in after or layer.output not in before]
        if len(live) == len(kept):
            break
        kept = live
    gone = made - {layer.output for layer in kept}
    tensors = {name: tensor for name, tensor in graph.tensors.items() if name not in gone}
    return dataclasses.replace(graph, tensors=tensors, layers=tuple(kept))


def _read(layers: Sequence[AnyLayer], output: str) -> set[str]:
    return {output, *(name for layer in layers for name in layer.inputs)}
