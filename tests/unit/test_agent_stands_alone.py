"""The agent runs on hosts without PyTorch and compiler, and what it imports is in its small installation."""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from orchestrator.extras import EXTRAS
from tests.support.closure import AGENT_MODULES, ROOT, agent_files, all_of_mcu_agent, loaded

SEARCH_ONLY = set(EXTRAS["search"])
OURS = {
    "mcu_agent",
    "orchestrator",
    "tasks",
    "cli",
    "cli_background",
    "cli_compile",
    "cli_dashboard",
    "cli_launch",
    "cli_rack",
    "cli_service",
    "cli_status",
    "cli_steer",
    "cli_study",
    "cli_watch",
    "cli_worker",
}


def project() -> dict[str, list[str]]:
    """The distributions (normalised names) of the base (``""``) and of each extra."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"": data["dependencies"], **data["optional-dependencies"]}
    return {
        name: [normalised(re.split(r"[^A-Za-z0-9._-]", line)[0]) for line in group] for name, group in groups.items()
    }


def normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


@functools.cache
def _distributions() -> dict[str, set[str]]:
    found = metadata.packages_distributions()  # reads every installed file's name: once is enough
    return {module: {normalised(name) for name in names} for module, names in found.items()}


def distributions_of(module: str) -> set[str]:
    return _distributions().get(module, set())


def imports(tree: ast.AST, *, is_deep: bool) -> Iterator[str]:
    """The top names of what a module imports when it is loaded; with ``is_deep``, what its functions import, too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0]
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif is_deep or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports(node, is_deep=is_deep)


def third_party(path: Path, *, is_deep: bool = False) -> set[str]:
    found = set(imports(ast.parse(path.read_text(encoding="utf-8")), is_deep=is_deep))
    return found - OURS - set(sys.stdlib_module_names)


def test_importing_all_of_the_agent_loads_nothing_of_the_rest() -> None:
    assert "mcu_agent.boards.virtual" in all_of_mcu_agent()
    foreign = {name.partition(".")[0] for name in loaded(*all_of_mcu_agent())}
    assert foreign & {"torch", "celery", "optuna", "orchestrator", "tasks", "cli", "click", "pydantic"} == set()


def test_what_an_agents_processes_import_loads_nothing_of_the_search() -> None:
    names = {name.partition(".")[0] for name in loaded(*AGENT_MODULES)}
    # PyYAML is loaded by kombu where it is there, without need.
    assert names & (SEARCH_ONLY | {"unicorn", "ziglang", "pandas", "matplotlib"}) <= {"yaml"}


def test_what_an_agents_processes_import_is_in_the_small_installation() -> None:
    base = set(project()[""])
    names = set().union(*(third_party(path) for path in agent_files() if "mcu_agent" not in path.parts))
    assert {"celery", "redis", "numpy", "pydantic"} <= names
    assert {name for name in names if not distributions_of(name) & base} == set()


def asked_for(distributions: list[str]) -> set[str]:
    """These distributions and all that they ask for, and so on, without extras but those that they name."""
    found: set[str] = set()
    waiting = list(distributions)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            requirements = [Requirement(line) for line in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue
        waiting += [
            normalised(one.name) for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})
        ]
    return found


def test_what_an_agents_processes_load_in_the_end_comes_with_the_small_installation() -> None:
    """Also what other packages import without asking for it, which a larger installation hides."""
    files = loaded(*AGENT_MODULES)
    names = {name.partition(".")[0] for name, file in files.items() if "site-packages" in file}
    known = asked_for(project()[""])
    foreign = {name for name in names - OURS if distributions_of(name) and not distributions_of(name) & known}
    # Imported where they are there, and done without elsewhere.
    assert foreign <= {"yaml", "cffi", "cryptography", "greenlet", "zstandard", "_distutils_hack", "setuptools"}


def test_what_drivers_import_is_in_the_small_installation_or_in_an_extra_of_theirs() -> None:
    allowed = set().union(*(project()[group] for group in ("", "virtual", "boards", "joulescope", "ina226")))
    names = set().union(*(third_party(path, is_deep=True) for path in (ROOT / "mcu_agent").rglob("*.py")))
    assert {"numpy", "unicorn", "elftools"} <= names
    assert {name for name in names if not distributions_of(name) & allowed} == set()


def test_the_small_installation_asks_for_nothing_of_the_search() -> None:
    groups = project()
    assert not {"torch", "onnx", "optuna", "scipy", "scikit-learn", "unicorn", "ziglang"} & {
        *groups[""],
        *groups["boards"],
    }


def test_every_module_of_an_extra_is_known_with_its_extra() -> None:
    groups = project()
    for extra, modules in EXTRAS.items():
        unknown = {module for module in modules if not distributions_of(module) & set(groups[extra])}
        assert unknown == set(), extra
    known = {
        distribution for modules in EXTRAS.values() for module in modules for distribution in distributions_of(module)
    }
    assert set().union(*(groups[extra] for extra in EXTRAS)) == known


BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {modules!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
import cli
sys.argv = ["edgefront", *{arguments!r}]
cli.main()
"""


def edgefront(*arguments: str, without: set[str] = SEARCH_ONLY, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in an installation that lacks these modules."""
    code = BLOCKED.format(modules=without, arguments=arguments)
    settings = {**os.environ, "EDGEFRONT_BROKER_URL": "redis://127.0.0.1:1/0", **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, env=settings)


@pytest.mark.parametrize(
    "arguments",
    [
        ("boards",),
        ("boards", "--json"),
        ("kernels",),
        ("agent", "--help"),
        ("measure", "--help"),
        ("rack", "discover"),
        ("rack", "calibrate", "--help"),
        ("--help",),
    ],
    ids=" ".join,
)
def test_commands_for_boards_work_without_the_search(arguments: tuple[str, ...]) -> None:
    done = edgefront(*arguments, without=SEARCH_ONLY | set(EXTRAS["virtual"]))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "examples/digits.yaml"),
        ("study", "check", "examples/digits.yaml"),
        ("status", "digits"),
        ("report", "digits"),
        ("compile", "x.onnx", "--board", "nrf52-dk", "--out", "build"),
        ("worker", "--queues", "train"),
    ],
    ids=" ".join,
)
def test_commands_of_the_search_say_what_is_missing_and_how_to_get_it(arguments: tuple[str, ...]) -> None:
    done = edgefront(*arguments)
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(
        r'edgefront: this needs \w+, which is not installed; pip install "edgefront\[search\]"\n', done.stderr
    )


def test_a_module_that_no_extra_brings_is_a_defect_and_shows_its_traceback() -> None:
    done = edgefront("boards", without={"elftools", "mcu_agent"})
    assert done.returncode == 1
    assert "Traceback" in done.stderr
