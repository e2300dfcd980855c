"""YAML with line numbers: plain data, where each field stands, and keys that are given twice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import UsageError


class _Loader(yaml.SafeLoader):
    """Reads ``1e-3`` as a number, which YAML 1.1 takes for text."""


_Loader.yaml_implicit_resolvers = {
    key: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
    for key, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.[0-9]+(?:[eE][-+]?[0-9]+)?"
               r"|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+0123456789."),
)  # fmt: skip


# A study file has some hundred values; aliases of aliases can make millions of a few lines.
_MOST_VALUES = 20_000


@dataclass
class Lines:
    """Where the fields stand, by their path (``space.network.width.low``); ``duplicates`` are keys given twice."""

    known: dict[str, int] = field(default_factory=dict)
    n_values: int = 0
    duplicates: list[tuple[str, str]] = field(default_factory=list)

    def of(self, path: str) -> int:
        """The line of a field, or of the nearest one around it that is in the file."""
        while path and path not in self.known:
            path = path.rpartition(".")[0]
        return self.known.get(path, 1)

    def path_of(self, location: Sequence[Any]) -> str:
        """The path of one of pydantic's locations, which also name the variants of a union that it tried."""
        path = ""
        for part in location:
            longer = f"{path}.{part}" if path else str(part)
            if longer in self.known:
                path = longer
        return path


def read_yaml(path: Path) -> tuple[dict[str, Any], Lines]:
    """The mapping in the file, and where its fields stand.

    Raises:
        UsageError: no such file, not text, not YAML, or no mapping; with the line where there is one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    data, lines = _parsed(path, text)
    if not isinstance(data, dict):
        found = "nothing" if data is None else f"a {type(data).__name__}"
        raise UsageError(f"{path}:1: a study file is a mapping of fields (name: …, dataset: …); found {found}")
    return data, lines


def _parsed(path: Path, text: str) -> tuple[Any, Lines]:
    lines = Lines()
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            return (_plain(loader, node, "", lines) if node is not None else None), lines
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{where}: is not YAML: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UsageError(
            f"{path}:{line}: is not YAML: the character U+{int(error.character):04X} may not stand there"
        ) from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: is not YAML: {error}") from error
    except RecursionError as error:
        raise UsageError(f"{path}: is nested too deeply, or an alias (*name) contains itself; write it flat") from error


def _plain(loader: _Loader, node: yaml.Node, path: str, lines: Lines) -> Any:
    line = node.start_mark.line + 1
    lines.known.setdefault(path, line)
    lines.n_values += 1
    if lines.n_values > _MOST_VALUES:
        problem = f"holds more than {_MOST_VALUES} values, aliases (*name) included; no study needs that many"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, path, lines)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(loader, item, f"{path}.{index}", lines) for index, item in enumerate(node.value)]
    return _scalar(loader, node)


def _scalar(loader: _Loader, node: yaml.Node) -> Any:
    try:
        return loader.construct_object(node)
    except ValueError as error:  # a date like 2026-13-45
        raise yaml.MarkedYAMLError(problem=f"{node.value!r}: {error}", problem_mark=node.start_mark) from error


def _key(loader: _Loader, node: yaml.Node) -> str:
    """A key as text; what YAML 1.1 takes for true or false (``on:``) is the word that was written."""
    if not isinstance(node, yaml.ScalarNode):
        return "?"
    return str(node.value if node.tag == "tag:yaml.org,2002:bool" else _scalar(loader, node))


def _mapping(loader: _Loader, node: yaml.MappingNode, path: str, lines: Lines) -> dict[str, Any]:
    own = {id(key) for key, _ in node.value}
    loader.flatten_mapping(node)  # puts what << brings in first, so that the node's own keys win
    data: dict[str, Any] = {}
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        key = _key(loader, key_node)
        name = f"{path}.{key}" if path else key
        line = key_node.start_mark.line + 1
        if key in seen and id(key_node) in own:
            lines.duplicates.append((name, f"is given twice, in lines {seen[key]} and {line}; keep one"))
        if id(key_node) in own:
            seen[key] = line
        lines.known[name] = line
        data[key] = _plain(loader, value_node, name, lines)
    return data
