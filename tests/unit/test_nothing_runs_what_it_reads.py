"""On a host with boards nothing that was read is ever run: no pickle, no shell, no code from texts."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.closure import ROOT, agent_files

PICKLING = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
RUNNING = {"eval", "exec", "compile", "__import__"}
FORBIDDEN = {"os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "subprocess.getoutput"}
FORBIDDEN |= {"subprocess.getstatusoutput", "asyncio.create_subprocess_shell", "torch.load"}


def offences(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.partition(".")[0] in PICKLING or name in FORBIDDEN:
                yield f"line {node.lineno}: imports {name}"
        if isinstance(node, ast.Call):
            yield from _offences_of_call(node)


def _offences_of_call(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if name in RUNNING or name in FORBIDDEN:
        yield f"line {call.lineno}: calls {name}"
    if "shell" in keywords and ast.unparse(keywords["shell"]) != "False":
        yield f"line {call.lineno}: a shell"
    pickles = ast.unparse(keywords["allow_pickle"]) if "allow_pickle" in keywords else None
    if pickles not in (None, "False") or (name in ("np.load", "numpy.load") and pickles != "False"):
        yield f"line {call.lineno}: arrays that may hold pickles"


@pytest.mark.parametrize("path", agent_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_of_the_agents_path_neither_unpickles_nor_runs_texts(path: Path) -> None:
    assert list(offences(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "from os import system",
        "import os\nos.system('x')",
        "import subprocess\nsubprocess.run('x', shell=True)",
        "subprocess.Popen(x, shell=is_shell)",
        "eval(text)",
        "exec(text)",
        "np.load(file)",
        "np.load(file, allow_pickle=True)",
        "yaml.load(text)",
    ],
)
def test_the_search_finds_what_it_is_for(source: str) -> None:
    assert list(offences(source))
