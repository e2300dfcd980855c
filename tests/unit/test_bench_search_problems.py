"""The problems on which search methods are compared."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from botorch.test_functions.multi_objective import DTLZ2, CarSideImpact, VehicleSafety
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from bench.searching import catalogue, reference, tinyml
from bench.searching.problem import Problem, adopt, load
from bench.searching.standard import car_side_impact, dtlz2, vehicle_safety
from orchestrator.errors import UsageError

DOC = Path(__file__).parents[2] / "docs" / "own-problem.md"
SPACE = tinyml.tinyml().space


def params_at(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return SPACE.decode(SPACE.at_quantiles(rng.random((1, len(SPACE.axes))))[0])


def plain(**changes: Any) -> SimpleNamespace:
    """The least a problem of one's own has to have."""
    fields: dict[str, Any] = {
        "name": "plain",
        "parameters": {"x": {"type": "float", "low": 0.0, "high": 1.0}, "fixed": 3},
        "objectives": ["a", "b"],
        "limits": [2, 10],
        "evaluate": lambda params, seed: {"a": params["x"], "b": 10 * (1 - params["x"])},
    }
    return SimpleNamespace(**(fields | changes))


@pytest.mark.parametrize(
    ("built", "function"),
    [
        (dtlz2, DTLZ2(dim=8, num_objectives=4)),
        (vehicle_safety, VehicleSafety()),
        (car_side_impact, CarSideImpact()),
    ],
)
def test_a_standard_problem_gives_the_values_of_botorch(built: Any, function: Any) -> None:
    problem = built()
    point = np.random.default_rng(1).random((1, len(problem.space.axes)))
    params = problem.space.decode(problem.space.at_quantiles(point)[0])
    low, high = function.bounds.double()
    expected = function.evaluate_true(low + (high - low) * torch.as_tensor(point))[0]
    assert list(problem.truth(params).values()) == pytest.approx(expected.tolist(), rel=1e-6)
    assert problem.limits == pytest.approx(function.ref_point.tolist())
    assert problem.evaluate(params, 1) == problem.truth(params)


@pytest.mark.parametrize("built", [vehicle_safety, car_side_impact])
def test_no_value_of_a_standard_problem_is_below_its_floor(built: Any) -> None:
    problem = built()
    corners = problem.space.at_quantiles(np.random.default_rng(0).random((200, len(problem.space.axes))).round())
    shares = np.array([problem.vector(problem.truth(problem.space.decode(corner))) for corner in corners])
    assert shares.min() >= -1e-9


def test_a_linear_share_is_0_at_the_floor_and_1_at_the_limit() -> None:
    problem = adopt(plain(floors=[1, 0]), "p")
    assert problem.vector({"b": 5, "a": 2}).tolist() == [1.0, 0.5]


def test_a_log_share_halves_a_decade_at_its_geometric_middle() -> None:
    problem = adopt(plain(scale="log", floors=[0.02, 0.1]), "p")
    assert problem.vector({"a": 0.2, "b": 0.01}).tolist() == pytest.approx([0.5, -0.5])


def test_the_score_is_the_hypervolume_in_the_unit_box() -> None:
    problem = adopt(plain(), "p")
    # Two boxes of 1/2 × 3/4 and 3/4 × 1/2, overlapping in 1/2 × 1/2; one point outside and one below the floor.
    points = np.array([[0.5, 0.25], [0.25, 0.5], [1.5, 0.1]])
    assert problem.score(points) == pytest.approx(0.5)
    assert problem.score(np.array([[-1.0, -1.0]])) == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limits": [1]}, "found 1 limits for 2 objectives"),
        ({"limits": ["x", 1]}, "allowed are numbers"),
        ({"objectives": []}, "name at least one"),
        ({"objectives": ["a", "a"]}, "same name twice"),
        ({"scale": "cubic"}, "allowed are linear, log"),
        ({"scale": "log"}, "needs floors"),
        ({"scale": "log", "floors": [0, 1]}, "must be above 0"),
        ({"floors": [5, 0]}, "the limit must be the larger"),
        ({"known": {"c"}, "known_values": dict}, "known names c"),
        ({"known": {"a"}}, "known_values"),
        ({"parameters": {"x": {"type": "flot"}}}, "parameters"),
    ],
)
def test_a_wrong_problem_is_refused_with_what_is_allowed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        adopt(plain(**changes), "mine:problem")


def test_a_problem_without_an_evaluation_is_told_what_it_lacks() -> None:
    with pytest.raises(UsageError, match="missing are limits, evaluate"):
        adopt(SimpleNamespace(name="n", parameters={}, objectives=()), "mine:problem")


@pytest.mark.parametrize(
    ("values", "message"),
    [({"a": 1.0}, "no value for b"), ({"a": math.nan, "b": 1}, "finite"), ({"a": 1.0, "b": math.inf}, "finite")],
)
def test_a_value_that_cannot_be_scored_is_an_error(values: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        adopt(plain(), "p").vector(values)


def test_without_a_truth_the_evaluation_is_the_truth() -> None:
    assert adopt(plain(), "p").truth({"x": 0.25}) == {"a": 0.25, "b": 7.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [("no_such_module_here:x", "cannot import"), ("math:no_such", "has no 'no_such'"), ("math:pi", "a problem needs")],
)
def test_a_name_that_leads_nowhere_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(text)


def test_an_unknown_problem_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"tinyml-log, .*module:attribute"):
        catalogue.problem("tiny")


def test_the_documented_problem_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = re.findall(r"```python\n(# pump.py\n.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "pump.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    problem = catalogue.problem("pump:Pump")
    params = {"speed": 100.0, "blades": 3, "material": "brass", "voltage": 24}
    assert problem.space.fixed == {"voltage": 24}
    assert problem.truth(params) == pytest.approx({"energy": 230.0, "noise": 30.0, "price": 24.0})
    assert problem.shares(problem.known_values(params)) == {"price": pytest.approx(24 / 90)}
    assert problem.evaluate(params, 1) == problem.evaluate(params, 1) != problem.evaluate(params, 2)


# ---- TinyML


def torch_network(params: dict[str, Any]) -> torch.nn.Module:
    """The same network, written independently of its closed form."""

    def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> torch.nn.Module:
        return torch.nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)

    class Block(torch.nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            kind, k = params["network.block"], params["network.kernel"]
            inner = max(1, outputs // 2)
            self.body = torch.nn.Sequential(
                *{
                    "full": lambda: [conv(inputs, outputs, k, stride), conv(outputs, outputs, k)],
                    "separable": lambda: [
                        conv(inputs, inputs, k, stride, inputs),
                        conv(inputs, outputs, 1),
                        conv(outputs, outputs, k, 1, outputs),
                    ],
                    "bottleneck": lambda: [
                        conv(inputs, inner, 1, stride),
                        conv(inner, inner, k),
                        conv(inner, outputs, 1),
                    ],
                }[kind]()
            )
            changes = inputs != outputs or stride == 2
            self.shortcut = conv(inputs, outputs, 1, stride) if changes else torch.nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.body(x) + self.shortcut(x))

    def width(stage: int) -> int:
        full = params["network.width"] * params["network.growth"] ** stage
        return max(1, round(full * (1 - params["compression.sparsity"])))

    parts, channels = [conv(3, width(0), params["network.kernel"])], width(0)
    for stage in range(3):
        for index in range(params[f"network.blocks{stage + 1}"]):
            parts.append(Block(channels, width(stage), 2 if stage > 0 and index == 0 else 1))
            channels = width(stage)
    head = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(channels, 10, bias=False)]
    return torch.nn.Sequential(*parts, *head)


@pytest.mark.parametrize("seed", range(6))
def test_rom_and_flops_of_tinyml_are_those_of_the_network_in_pytorch(seed: int) -> None:
    params = params_at(seed)
    network, size = torch_network(params), params["network.resolution"]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, size, size))
    found = tinyml.cost(params)
    channels = sum(
        module.weight.shape[0] for module in network.modules() if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))
    )
    assert found["flops"] == counter.get_total_flops()
    assert found["rom"] == sum(item.numel() for item in network.parameters()) + 9 * channels + 12_000


def test_the_ram_of_tinyml_is_the_layer_that_needs_most() -> None:
    params = params_at(0) | {
        "network.width": 8,
        "network.blocks1": 1,
        "network.blocks2": 1,
        "network.blocks3": 0,
        "network.growth": 2.0,
        "network.block": "full",
        "network.resolution": 16,
        "compression.sparsity": 0.0,
    }
    # Stage 1 keeps the block's input of 8·16² beside input and output of its second layer; stage 2 needs
    # 8·16² + 16·8² and the shortcut's 16·8² at its first.
    assert tinyml.cost(params)["ram"] == 3 * 8 * 256 + 2048
    assert tinyml.cost(params | {"network.width": 2})["ram"] == 3 * 2 * 256 + 2048


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_every_network_of_tinyml_has_shares_above_0(seed: int) -> None:
    for problem in (tinyml.tinyml(), tinyml.tinyml_log()):
        assert problem.vector(problem.truth(params_at(seed))).min() >= 0


def test_what_tinyml_knows_is_what_it_measures() -> None:
    problem, params = tinyml.tinyml(), params_at(3)
    measured = problem.evaluate(params, 5)
    assert {name: measured[name] for name in problem.known} == problem.known_values(params)
    assert measured == problem.evaluate(params, 5)


def test_the_noise_of_tinyml_has_the_stated_size_and_no_bias() -> None:
    params = params_at(3)
    mean = tinyml.error(params)
    noise = np.array([tinyml.noisy(params, seed)["error"] for seed in range(600)]) - mean
    assert noise.std() == pytest.approx(tinyml.NOISE * (0.5 + 2 * mean), rel=0.1)
    assert abs(noise.mean()) < 0.15 * noise.std()


def test_tinyml_searches_twelve_parameters_of_all_kinds() -> None:
    assert len(SPACE.axes) == 12
    assert {item.type for item in tinyml.parameters().values()} == {"int", "float", "categorical"}


# ---- NAS-Bench-Macro


def write_table(folder: Path) -> None:
    """All 6,561 architectures with made-up figures."""
    arch = np.array(list(np.ndindex(*(3,) * 8)), dtype=np.uint8)
    size = arch.sum(axis=1)
    np.savez(
        folder / "nas_bench_macro.npz",
        arch=arch,
        test_acc=np.stack([90.0 + 0.1 * size, 90.1 + 0.1 * size, 90.2 + 0.1 * size], axis=1).astype(np.float32),
        params=1000 * (1 + size.astype(np.int64)),
        macs=10 * (1 + size.astype(np.int64)),
        peak_act_elems=np.full(len(arch), 49152, dtype=np.int64),
    )


def test_the_tabular_problem_reads_a_row_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(tmp_path)
    monkeypatch.setenv("EDGEFRONT_DATA", str(tmp_path))
    problem = catalogue.problem("nas-bench-macro")
    params = {f"layer{index + 1}": "identity" for index in range(8)} | {"layer8": "k5e6"}
    assert problem.truth(params) == pytest.approx({"error": 0.097, "rom": 3000, "ram": 49152, "flops": 60}, rel=1e-5)
    trained = {round(problem.evaluate(params, seed)["error"], 6) for seed in range(30)}
    assert trained == {0.096, 0.097, 0.098}
    assert problem.space.size() == 6561


def test_without_its_table_the_tabular_problem_says_where_it_was_sought(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEFRONT_DATA", raising=False)
    assert "nas-bench-macro" not in catalogue.available()
    with pytest.raises(UsageError, match="EDGEFRONT_DATA"):
        catalogue.problem("nas-bench-macro")


# ---- the 100 % line


def test_every_problem_has_a_stored_reference_in_the_unit_box() -> None:
    stored = reference.stored()
    assert set(stored) == set(catalogue.names())
    assert all(0 < value < 1 for value in stored.values())


def test_the_reference_of_dtlz2_is_the_exact_one() -> None:
    assert reference.stored()["dtlz2"] == pytest.approx(DTLZ2(dim=8, num_objectives=4)._max_hv / 1.1**4)


@pytest.mark.parametrize(("built", "function"), [(vehicle_safety, VehicleSafety()), (car_side_impact, CarSideImpact())])
def test_a_stored_reference_agrees_with_the_literature(built: Any, function: Any) -> None:
    problem = built()
    box = math.prod(high - low for low, high in zip(problem.floors, problem.limits, strict=True))
    # BoTorch's figures are themselves those of an approximate front.
    assert reference.stored()[problem.name] == pytest.approx(function._max_hv / box, rel=0.06)


def test_a_small_space_is_listed_in_full() -> None:
    problem = adopt(plain(parameters={"x": {"type": "categorical", "choices": [0.0, 0.5, 1.0]}}), "p")
    entry = reference.make(problem, 100, 0, print)
    # (0, 1), (0.25, 0.5) and (0.5, 0) in shares: 3/4 × 1/2 and 1/2 × 1, overlapping in 1/2 × 1/2.
    assert entry == {"hv": pytest.approx(0.625), "method": "all candidates", "evaluations": 3}


def test_evolution_finds_what_random_search_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    problem: Problem = tinyml.tinyml()
    entry = reference.make(problem, 2500, 0, lambda text: None)
    rng = np.random.default_rng(0)
    points = problem.space.at_quantiles(rng.random((2500, 12)))
    shares = np.array([problem.vector(problem.truth(problem.space.decode(point))) for point in points])
    assert entry["hv_at_half"] < entry["hv"]
    assert entry["hv"] > problem.score(shares) + 0.02


def test_references_of_ones_own_are_kept_beside_the_stored_ones(tmp_path: Path) -> None:
    path = tmp_path / "reference.json"
    reference.store(path, "a:b", {"hv": 0.25})
    reference.store(path, "c:d", {"hv": 0.5})
    assert reference.stored(path) == reference.stored() | {"a:b": 0.25, "c:d": 0.5}
