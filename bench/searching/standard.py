"""Standard problems of the literature, by BoTorch's formulas; without noise."""

from __future__ import annotations

import math

import torch
from botorch.test_functions.multi_objective import DTLZ2, CarSideImpact, VehicleSafety

from bench.searching.problem import Problem
from orchestrator.records import Params
from orchestrator.studyfile import FloatParameter

# Each objective's minimum over the box, by L-BFGS-B from 25 random starts.
_VEHICLE_IDEAL = (1661.7078225, 6.1428, 0.0394)
_CAR_IDEAL = (15.576004, 3.58525, 10.61064375, 0.0)


def dtlz2() -> Problem:
    """DTLZ2 with 4 objectives over 8 dimensions. The front is the unit sphere's positive part; the limit is BoTorch's
    reference point, 1.1, so the best score is what the 4-dimensional ball's sixteenth leaves of the box."""
    function = DTLZ2(dim=8, num_objectives=4)
    ball = math.pi**2 / 32
    return _problem("dtlz2", function, floors=(0.0,) * 4, best_hv=1.0 - ball / 1.1**4)


def vehicle_safety() -> Problem:
    """VehicleSafety: mass, acceleration and intrusion of a car over 5 sheet thicknesses."""
    return _problem("vehicle-safety", VehicleSafety(), floors=_VEHICLE_IDEAL)


def car_side_impact() -> Problem:
    """CarSideImpact: 4 objectives, the last the sum of ten broken constraints, over 7 dimensions."""
    return _problem("car-side-impact", CarSideImpact(), floors=_CAR_IDEAL)


def _problem(
    name: str, function: DTLZ2 | VehicleSafety | CarSideImpact, floors: tuple[float, ...], best_hv: float | None = None
) -> Problem:
    names = tuple(f"f{index + 1}" for index in range(function.num_objectives))
    parameters = {
        f"x{index + 1}": FloatParameter(type="float", low=float(low), high=float(high))
        for index, (low, high) in enumerate(function.bounds.T.tolist())
    }

    def truth(params: Params) -> dict[str, float]:
        point = torch.tensor([params[key] for key in parameters], dtype=torch.float64)
        values = function.evaluate_true(point[None])[0]
        return dict(zip(names, values.tolist(), strict=True))

    def evaluate(params: Params, seed: int) -> dict[str, float]:
        return truth(params)

    return Problem(
        name=name,
        parameters=parameters,
        objectives=names,
        limits=tuple(function.ref_point.double().tolist()),
        floors=floors,
        evaluate=evaluate,
        truth=truth,
        best_hv=best_hv,
    )
