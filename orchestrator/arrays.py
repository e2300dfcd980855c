"""Array types, and the one helper that checks documented shapes at public entries."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from orchestrator.errors import ShapeError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
ParamArray = npt.NDArray[np.generic]
"""The values of one parameter of many candidates: numbers, texts, or objects where choices are of several kinds."""


def check_shape(name: str, array: npt.NDArray[np.generic], *expected: int | None) -> None:
    """Refuse an array without the expected shape; ``None`` stands for any length.

    Raises:
        ShapeError: naming the array, the shape it has and the shape it should have.
    """
    matches = array.ndim == len(expected) and all(
        want is None or have == want for have, want in zip(array.shape, expected, strict=True)
    )
    if not matches:
        wanted = ", ".join("any" if length is None else str(length) for length in expected)
        raise ShapeError(f"{name} has shape {array.shape}, expected ({wanted})")
