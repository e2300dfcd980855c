"""Candidates that are neither told nor pending."""

from __future__ import annotations

import numpy as np

from orchestrator.arrays import FloatArray
from orchestrator.space import SearchSpace

# Spaces up to this size are listed in full, so that the last untried candidate is found for certain.
_LISTED = 20_000
# In larger ones, this many rounds of random draws that hit tried candidates mean that hardly any other is left.
_ROUNDS = 20
_DECIMALS = 9


class Tried:
    """The candidates behind rows of encoded points, whatever their rounding."""

    def __init__(self, space: SearchSpace, *groups: FloatArray) -> None:
        self._space = space
        self._keys = {key for points in groups for key in self._keys_of(points)}

    def first_untried(self, points: FloatArray) -> FloatArray | None:
        """The first of ``points`` (n, d), snapped to its candidate, that was not tried."""
        for point, key in zip(self._space.snap(points), self._keys_of(points), strict=True):
            if key not in self._keys:
                return np.asarray(point)
        return None

    def untried(self, points: FloatArray) -> FloatArray:
        """Those of ``points`` (n, d), snapped to their candidates, that were not tried, in their order; (k, d)."""
        keys = self._keys_of(points)
        return np.asarray(self._space.snap(points)[[key not in self._keys for key in keys]])

    def draw(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Up to ``count`` different untried candidates, uniform over the parameters; tried ones only when none is left.

        Returns:
            (k, d), 1 ≤ k ≤ count.
        """
        found: dict[bytes, FloatArray] = {}
        for _ in range(_ROUNDS):
            self._add_untried(found, self._random(count, rng))
            if len(found) >= count:
                break
        if len(found) < count and self._space.size() <= _LISTED:
            self._add_untried(found, rng.permutation(np.array(list(self._space.all_points()))))
        return np.array(list(found.values())[:count]) if found else self._random(1, rng)

    def _random(self, count: int, rng: np.random.Generator) -> FloatArray:
        return self._space.at_quantiles(rng.random((count, len(self._space.axes))))

    def _add_untried(self, found: dict[bytes, FloatArray], points: FloatArray) -> None:
        for point, key in zip(points, self._keys_of(points), strict=True):
            if key not in self._keys:
                found.setdefault(key, point)

    def _keys_of(self, points: FloatArray) -> list[bytes]:
        # Adding 0.0 turns -0.0 into 0.0, which has other bytes.
        return [row.tobytes() for row in np.round(self._space.snap(points), _DECIMALS) + 0.0]
