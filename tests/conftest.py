"""Settings for every test."""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

# How long an example takes says something about the machine and what else runs on it, nothing about the code. Where
# every change is checked, the same examples are tried each time: a new counter-example must not fail another's change.
settings.register_profile(
    "edgefront",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("edgefront")

# Started in the background by a shell, these processes and all that they start would be deaf to Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
