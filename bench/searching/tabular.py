"""NAS-Bench-Macro: 6,561 networks that were really trained, each three times, as a table.

Su et al., "Prioritized Architecture Sampling with Monto-Carlo Tree Search", CVPR 2021
(xiusu/NAS-Bench-Macro on GitHub, Apache-2.0). The table is not part of this project: ``nas_bench_macro.npz`` is looked
for in the folder that the environment variable EDGEFRONT_DATA names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bench.searching.problem import Problem
from orchestrator.arrays import FloatArray, ParamArray
from orchestrator.errors import UsageError
from orchestrator.records import Params
from orchestrator.studyfile import CategoricalParameter

FILE = "nas_bench_macro.npz"
_LAYERS = tuple(f"layer{index + 1}" for index in range(8))
_CHOICES = ("identity", "k3e3", "k5e6")
_PLACES = len(_CHOICES) ** np.arange(len(_LAYERS))


def table_path() -> Path | None:
    """Where the table is, if it is there."""
    folder = os.environ.get("EDGEFRONT_DATA")
    path = Path(folder) / FILE if folder else None
    return path if path is not None and path.is_file() else None


def nas_bench_macro() -> Problem:
    """The table over its 8 layers, each nothing, or an inverted residual of one of two sizes.

    Error is measured by one of the three trainings, which one the seed says; the truth is their mean. ROM is one byte
    a parameter, RAM the largest activation memory at one byte an element, FLOPs twice the multiply-accumulates; these
    three are known. The limits leave about a third of the networks.

    Raises:
        UsageError: the table is not there.
    """
    path = table_path()
    if path is None:
        raise UsageError(f"problem nas-bench-macro: {FILE} is not in the folder EDGEFRONT_DATA names")
    with np.load(path, allow_pickle=False) as table:
        columns = {key: table[key] for key in ("arch", "test_acc", "params", "macs", "peak_act_elems")}
    row_of = {tuple(arch): row for row, arch in enumerate(columns["arch"].tolist())}
    errors = 1.0 - columns["test_acc"].astype(np.float64) / 100.0

    def row(params: Params) -> int:
        return row_of[tuple(_CHOICES.index(str(params[name])) for name in _LAYERS)]

    def known(params: Params) -> dict[str, float]:
        at = row(params)
        return {
            "rom": float(columns["params"][at]),
            "ram": float(columns["peak_act_elems"][at]),
            "flops": 2.0 * float(columns["macs"][at]),
        }

    of_code = np.zeros(len(_CHOICES) ** len(_LAYERS), dtype=np.intp)
    of_code[columns["arch"].astype(np.intp) @ _PLACES] = np.arange(len(columns["arch"]))

    def known_columns(params: Mapping[str, ParamArray]) -> dict[str, FloatArray]:
        chosen = [np.select([params[name] == item for item in _CHOICES], range(len(_CHOICES))) for name in _LAYERS]
        at = of_code[np.stack(chosen, axis=-1) @ _PLACES]
        values = {
            "rom": columns["params"][at],
            "ram": columns["peak_act_elems"][at],
            "flops": 2.0 * columns["macs"][at],
        }
        return {name: np.asarray(value, dtype=np.float64) for name, value in values.items()}

    def evaluate(params: Params, seed: int) -> Mapping[str, float]:
        training = int(np.random.default_rng(seed).integers(errors.shape[1]))
        return {"error": float(errors[row(params), training]), **known(params)}

    def truth(params: Params) -> Mapping[str, float]:
        return {"error": float(errors[row(params)].mean()), **known(params)}

    return Problem(
        name="nas-bench-macro",
        parameters={name: CategoricalParameter(type="categorical", choices=_CHOICES) for name in _LAYERS},
        objectives=("error", "rom", "ram", "flops"),
        limits=(0.15, 2.0e6, 131_072.0, 1.2e8),
        known=frozenset({"rom", "ram", "flops"}),
        evaluate=evaluate,
        truth=truth,
        known_values=known,
        known_columns=known_columns,
    )
