"""Which host a process says it is of, for telling processes that can be looked up from those that cannot."""

from __future__ import annotations

import os
import socket

HOST_VARIABLE = "EDGEFRONT_HOST"


def host_name() -> str:
    """``EDGEFRONT_HOST``, or what the system calls itself. The variable is for hosts of one name – cloned images,
    containers – whose processes must not be looked for in each other's tables."""
    return os.environ.get(HOST_VARIABLE) or socket.gethostname()
