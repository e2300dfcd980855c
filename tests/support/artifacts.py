"""An artifact store in memory."""

from __future__ import annotations

import hashlib


class MemoryArtifacts:
    def __init__(self) -> None:
        self.stored: dict[str, bytes] = {}

    def put_bytes(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        self.stored[sha256] = data
        return sha256

    def get_bytes(self, sha256: str) -> bytes:
        return self.stored[sha256]
