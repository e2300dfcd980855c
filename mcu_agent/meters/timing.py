"""How long a stream of readings took, from when its pieces arrived at the host; pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

END_PIECES = 16  # at either end; what vanishes within them may go unnoticed
END_S = 0.02  # so a recorder takes this much more before and after what is measured


def arrival_span(times_s: Sequence[float], counts: Sequence[int], rate_hz: float) -> tuple[float, float]:
    """When the first reading was taken and how long the readings took, both by the host's clock.

    Readings never arrive early, and of several pieces nearly always one arrives at once. The least delay of the first
    pieces and that of the last ones therefore differ by what the stream has fallen behind its nominal rate: by a slow
    clock, or by readings that vanished, also by those that a wrap counter cannot show. A single arrival time would be
    off by as much as the operating system likes.

    Args:
        times_s: when each piece arrived. counts: how many readings had arrived by then, that piece included.

    Returns:
        (seconds on the clock of ``times_s``, seconds); (0, 0) without pieces.
    """
    if not times_s:
        return 0.0, 0.0
    delays = np.asarray(times_s, dtype=np.float64) - np.asarray(counts, dtype=np.float64) / rate_hz
    n_end = max(1, min(len(delays) // 2, END_PIECES))
    early, late = float(delays[:n_end].min()), float(delays[-n_end:].min())
    return early, counts[-1] / rate_hz + late - early
