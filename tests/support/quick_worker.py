"""A worker whose beats are quick, so that its death is noticed within seconds: ``python -m tests.support.quick_worker``
takes the arguments of ``python -m tasks.workers``."""

from __future__ import annotations

import sys

from tasks import messages, workers

BEAT_TTL_S, BEAT_EVERY_S = 2, 0.3

if __name__ == "__main__":
    messages.BEAT_TTL_S, messages.BEAT_EVERY_S = BEAT_TTL_S, BEAT_EVERY_S
    sys.exit(workers.main())
