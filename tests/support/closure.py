"""The modules that a host with boards loads: what the agent's processes import, and all of mcu_agent."""

from __future__ import annotations

import functools
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import mcu_agent

ROOT = Path(__file__).parents[2]
AGENT_MODULES = (
    "cli",
    "cli_compile",
    "cli_rack",
    "cli_service",
    "cli_status",
    "cli_steer",
    "cli_study",
    "cli_watch",
    "cli_worker",
    "tasks.workers",
    "tasks.app",
    "tasks.profile",
    "tasks.evaluator",
)


@functools.cache
def loaded(*modules: str) -> dict[str, str]:
    """Every module that a fresh interpreter has loaded after these, with its file (empty without one)."""
    code = (
        f"import importlib, json, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        "print(json.dumps({name: getattr(module, '__file__', '') or '' for name, module in sys.modules.items()}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def all_of_mcu_agent() -> tuple[str, ...]:
    return tuple(module.name for module in pkgutil.walk_packages(mcu_agent.__path__, "mcu_agent."))


@functools.cache
def agent_files() -> tuple[Path, ...]:
    """Our own files among them."""
    ours = {
        Path(file) for file in loaded(*AGENT_MODULES).values() if file.startswith(f"{ROOT}/") and file.endswith(".py")
    }
    ours |= set((ROOT / "mcu_agent").rglob("*.py"))
    return tuple(sorted(path for path in ours if ".venv" not in path.parts))
