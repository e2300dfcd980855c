"""The table of cycle counter readings in the device's RAM that an image with markers leaves behind.

Little-endian words at the symbol ``edgefront_marks``: two directly behind each other, the second of them before the
first layer, then one behind every layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

EXTRA = 2  # marks beyond one a layer
_COUNTER = 2**32


def cycles(table: bytes) -> Sequence[int]:
    """Cycles of each layer, without what the mark itself takes; the counter may have come round to zero once a layer.

    Raises:
        ValueError: ``table`` does not hold at least the marks around one layer, in whole words.
    """
    if len(table) % 4 or len(table) < 4 * (EXTRA + 1):
        raise ValueError(f"a table of marks has whole words, at least {EXTRA + 1} of them, not {len(table)} bytes")
    readings = [int(reading) for reading in np.frombuffer(table, dtype="<u4")]
    own, *layers = [(after - before) % _COUNTER for before, after in pairwise(readings)]
    return [max(layer - own, 0) for layer in layers]
