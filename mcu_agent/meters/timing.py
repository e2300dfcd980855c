"""How long a stream of readings took, from when its pieces arrived at the host; pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def arrival_span(times_s: Sequence[float], counts: Sequence[int], rate_hz: float) -> tuple[float, float]:
    """When the first reading was taken and how long the readings took, both by the host's clock.

    Readings never arrive early, and nearly always some piece arrives at once. The least delay of the first quarter of
    the pieces and that of the last quarter therefore differ by what the stream has fallen behind its nominal rate: by a
    slow clock, or by readings that vanished, also by those that a wrap counter cannot show. A single arrival time would
    be off by as much as the operating system likes.

    Args:
        times_s: when each piece arrived. counts: how many readings had arrived by then, that piece included.

    Returns:
        (seconds on the clock of ``times_s``, seconds); (0, 0) without pieces.
    """
    if not times_s:
        return 0.0, 0.0
    delays = np.asarray(times_s, dtype=np.float64) - np.asarray(counts, dtype=np.float64) / rate_hz
    quarter = max(1, len(delays) // 4)
    early, late = float(delays[:quarter].min()), float(delays[-quarter:].min())
    return early, counts[-1] / rate_hz + late - early
