"""A hash of the code that a result depends on, to notice results of other code.

It covers the run's own modules and those of its proposer with all they import of this project, the proposer's options
and how the registry makes it; so a change to one method leaves the results of the others valid.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from orchestrator.proposers import registry

_OURS = ("orchestrator", "bench")
# It knows every proposer; which one is used is said apart.
_HUB = "orchestrator.proposers.registry"
_RUN = "bench.searching.run"


@cache
def fingerprint(proposer: str) -> str:
    """Of a run of ``proposer``, a name or ``name:option=value``."""
    name, _, options = proposer.partition(":")
    modules = _closure(_RUN) | _closure(registry.module(name))
    wiring = [registry.defaults(name), options, registry.wiring(name)]
    digest = hashlib.sha256(json.dumps(wiring).encode())
    for module in sorted(modules - {_HUB}):
        digest.update(module.encode() + _path(module).read_bytes())
    return digest.hexdigest()[:12]


def _closure(module: str) -> set[str]:
    """The module and all of ours that it imports, directly or not, except through the registry."""
    found, waiting = {module}, [module]
    while waiting:
        new = set(_imports(waiting.pop())) - found - {_HUB}
        found |= new
        waiting += sorted(new)
    return found


@cache
def _imports(module: str) -> tuple[str, ...]:
    tree = ast.parse(_path(module).read_text(encoding="utf-8"))
    named = (name for node in ast.walk(tree) for name in _named(node))
    return tuple(name for name in named if name.split(".")[0] in _OURS)


def _named(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (item.name for item in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        submodules = (f"{node.module}.{item.name}" for item in node.names)
        if node.module.split(".")[0] in _OURS:
            yield from (name for name in submodules if _is_module(name))


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _path(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin)
