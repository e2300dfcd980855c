"""The region in which a further point would improve a front, as disjoint boxes.

The hypervolume a point adds is the volume it dominates inside this region; cut into boxes, that volume, and with
independent outcomes its expectation too, is a sum of products of lengths.

Source: Lacour, Klamroth, Fonseca, Computers & Operations Research 79, 2017: local upper bounds, found point by point
(algorithm 1), and the boxes they stand for (equation 2).

Shapes: n points, m objectives, c boxes. Everything is minimised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from orchestrator.arrays import FloatArray, check_shape
from orchestrator.pareto import non_dominated


@dataclass(frozen=True, kw_only=True, slots=True)
class Boxes:
    """Disjoint boxes from ``lower`` to ``upper``, each (c, m); a lower side may be -inf."""

    lower: FloatArray
    upper: FloatArray

    def __len__(self) -> int:
        return len(self.lower)


def free_boxes(front: FloatArray, reference: FloatArray, *, most: int | None = None) -> Boxes:
    """What lies below ``reference`` and is dominated by no row of ``front``.

    With five objectives and more the boxes multiply. Points are taken in, from one extreme to those farthest from all
    before, until the region has about ``most`` corners (700, or 250 in more than four objectives); what the points left
    out dominate then counts as free.

    Shapes:
        front: (n, m), n ≥ 0; dominated rows and rows beyond the reference add nothing. reference: (m,), finite.
    """
    check_shape("reference", reference, None)
    check_shape("front", front, None, len(reference))
    most = most or (700 if len(reference) <= 4 else 250)
    inside = front[np.all(front < reference, axis=1)]
    inside = np.unique(inside[non_dominated(inside)], axis=0)
    corners, _ = _local_upper_bounds(inside[_spread_out(inside)], reference, most=most)
    # What is free is what lies below a corner. Seen from the other side that is what the corners dominate.
    limit = np.full(len(reference), np.inf)
    bounds, defining = _local_upper_bounds(-corners, limit)
    dominated = _dominated_boxes(bounds, defining, limit)
    return Boxes(lower=-dominated.upper, upper=-dominated.lower)


def _local_upper_bounds(
    points: FloatArray, reference: FloatArray, *, most: float = math.inf
) -> tuple[FloatArray, FloatArray]:
    """Corners (u, m) of the region that no row of ``points`` dominates, and the points (u, m, m) that define them:
    ``[u, j]`` holds corner u in objective j."""
    imagined = np.full((len(reference), len(reference)), -np.inf)
    np.fill_diagonal(imagined, reference)
    bounds, defining = reference[None, :].copy(), imagined[None]
    for point in points:
        bounds, defining = _with_point(bounds, defining, point)
        if len(bounds) > most:
            break
    return bounds, defining


def _with_point(bounds: FloatArray, defining: FloatArray, point: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Replace every bound that ``point`` is strictly below by those it splits into."""
    below = np.all(bounds > point, axis=1)
    split, held = bounds[below], defining[below]
    new_bounds, new_defining = [bounds[~below]], [defining[~below]]
    for j in range(len(point)):
        others = np.delete(held[:, :, j], j, axis=1)
        stays = point[j] >= others.max(axis=1, initial=-np.inf)
        moved, holders = split[stays].copy(), held[stays].copy()
        moved[:, j], holders[:, j] = point[j], point
        new_bounds.append(moved)
        new_defining.append(holders)
    return np.concatenate(new_bounds), np.concatenate(new_defining)


def _dominated_boxes(bounds: FloatArray, defining: FloatArray, reference: FloatArray) -> Boxes:
    lower, upper = np.empty_like(bounds), bounds.copy()
    lower[:, 0], upper[:, 0] = defining[:, 0, 0], reference[0]
    for j in range(1, len(reference)):
        lower[:, j] = defining[:, :j, j].max(axis=1)
    filled = np.all(lower < upper, axis=1)
    return Boxes(lower=lower[filled], upper=upper[filled])


def _spread_out(points: FloatArray) -> list[int]:
    """An order in which every prefix covers the points well: each next one is farthest from those before."""
    if not len(points):
        return []
    order = [int(points[:, 0].argmin())]
    distance = np.full(len(points), np.inf)
    while len(order) < len(points):
        distance = np.minimum(distance, np.abs(points - points[order[-1]]).max(axis=1))
        distance[order] = -1.0
        order.append(int(distance.argmax()))
    return order
