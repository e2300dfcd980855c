"""Non-dominated points and hypervolume. Everything is minimised."""

from __future__ import annotations

import moocore
import numpy as np

from orchestrator.arrays import BoolArray, FloatArray, check_shape


def non_dominated(points: FloatArray) -> BoolArray:
    """Mark the rows that no other row dominates; of equal rows all are marked, and an empty set stays empty.

    Shapes:
        points: (n, m) → (n,).

    Raises:
        ShapeError: ``points`` is not two-dimensional.
        ValueError: a value is NaN.
    """
    check_shape("points", points, None, None)
    _refuse_nan("points", points)
    if not len(points):
        return np.zeros(0, dtype=np.bool_)
    return np.asarray(moocore.is_nondominated(points, keep_weakly=True), dtype=np.bool_)


def hypervolume(points: FloatArray, reference: FloatArray) -> float:
    """Measure the region that ``points`` dominate, cut off at ``reference``; exact.

    A point that fails to beat ``reference`` in even one objective adds nothing, and an empty front measures 0.0.

    Shapes:
        points: (n, m); may contain dominated or repeated rows.
        reference: (m,), same units and order.

    Raises:
        ShapeError: the widths differ or ``points`` is not two-dimensional.
        ValueError: a value is NaN.
    """
    check_shape("reference", reference, None)
    check_shape("points", points, None, len(reference))
    _refuse_nan("points", points)
    _refuse_nan("reference", reference)
    inside = points[np.all(points < reference, axis=1)]
    if not len(inside):
        return 0.0
    return float(moocore.hypervolume(inside, ref=reference))


def _refuse_nan(name: str, array: FloatArray) -> None:
    if np.isnan(array).any():
        raise ValueError(f"{name} holds NaN; only known values can be compared")
