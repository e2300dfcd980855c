"""The agent runs on hosts that have neither PyTorch nor a broker."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import mcu_agent


def test_importing_all_of_the_agent_loads_nothing_of_the_rest() -> None:
    modules = [module.name for module in pkgutil.walk_packages(mcu_agent.__path__, "mcu_agent.")]
    assert "mcu_agent.boards.virtual" in modules
    code = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        "foreign = {name.split('.')[0] for name in sys.modules}\n"
        "print(sorted(foreign & {'torch', 'celery', 'optuna', 'orchestrator', 'tasks', 'cli', 'click', 'pydantic'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
