"""Leases between hosts that share probes, kept in a Redis: one key a rig, which lapses unless its holder renews it."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from mcu_agent.errors import InventoryError, LeaseLost, NoBoardFree

_PREFIX = "edgefront:lease:"
_TIMEOUT_S = 2.0
_SILENT_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedLease:
    """The right to use ``rig`` among all hosts; ``token`` is higher than any before, ``value`` what stands in the
    Redis."""

    rig: str
    token: int
    value: bytes = field(repr=False)


_Change = Callable[[Any], Any]


class SharedLeases:
    """Takes, renews and gives back leases at the Redis of ``url``; thread-safe.

    Raises:
        InventoryError: the address is none.
    """

    def __init__(self, url: str, *, lapse_s: float = 15.0) -> None:
        self.lapse_s = lapse_s
        self.place = _without_password(url)
        self._silent_until = 0.0
        address = "unix" + url.removeprefix("redis+socket") if url.startswith("redis+socket://") else url
        try:
            self._client = redis.Redis.from_url(
                address,
                socket_connect_timeout=_TIMEOUT_S,
                socket_timeout=_TIMEOUT_S,
                retry=Retry(NoBackoff(), 1),
            )
        except ValueError as error:
            raise InventoryError(f"[leases] url: {self.place} is no address of a Redis: {error}") from error

    def take(self, rig: str, owner: str, host: str) -> SharedLease | None:
        """The lease, if no host has it; None when one has.

        Raises:
            NoBoardFree: the Redis does not answer, so nobody knows who has it.
        """
        try:
            token = int(self._client.incr(f"{_PREFIX}{rig}:token"))
            content = {
                "owner": owner,
                "host": host,
                "token": token,
                "nonce": secrets.token_hex(8),
                "since": time.time(),
            }
            value = json.dumps(content).encode()
            taken = self._client.set(_PREFIX + rig, value, nx=True, px=self._lapse_ms())
        except redis.RedisError as error:
            raise NoBoardFree(
                f"the Redis of [leases] at {self.place} does not answer ({error}), so it is not known which host has "
                f"{rig}; see that it runs"
            ) from error
        return SharedLease(rig=rig, token=token, value=value) if taken else None

    def holder(self, rig: str) -> str:
        """Who has the rig, as ``owner on host``; empty where nobody has, or the Redis does not answer, which is then
        not asked again for some seconds."""
        if time.monotonic() < self._silent_until:
            return ""
        try:
            found = self._client.get(_PREFIX + rig)
            content = json.loads(found) if isinstance(found, bytes) else {}
        except redis.RedisError:
            self._silent_until = time.monotonic() + _SILENT_S
            return ""
        except ValueError:
            return "somebody"
        return f"{content['owner']} on {content['host']}" if content else ""

    def renew(self, lease: SharedLease) -> bool:
        """Hold the lease for ``lapse_s`` from now; False where the Redis does not answer. One that the Redis has
        forgotten, by a restart, is taken anew if nobody else has; to be called only while the lease holds.

        Raises:
            LeaseLost: it is another host's.
        """
        try:
            if self._client.set(_PREFIX + lease.rig, lease.value, nx=True, px=self._lapse_ms()):
                return True
            return self._while_mine(lease, lambda pipe: pipe.pexpire(_PREFIX + lease.rig, self._lapse_ms()))
        except redis.RedisError:
            return False

    def give_back(self, lease: SharedLease) -> None:
        """Let another host have the rig. Where the Redis does not answer, the lease lapses by itself."""
        try:
            self._while_mine(lease, lambda pipe: pipe.delete(_PREFIX + lease.rig))
        except (redis.RedisError, LeaseLost):
            return

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _while_mine(self, lease: SharedLease, change: _Change) -> bool:
        """Change the key while it holds this lease, by watching it: nobody can take it in between.

        Raises:
            LeaseLost: it holds another, or none.
        """
        key = _PREFIX + lease.rig
        with self._client.pipeline() as pipe:
            pipe.watch(key)  # type: ignore[no-untyped-call]
            if pipe.get(key) != lease.value:
                raise LeaseLost(f"{lease.rig}: the lease {lease.token} at {self.place} has lapsed")
            pipe.multi()
            change(pipe)
            pipe.execute()
        return True

    def _lapse_ms(self) -> int:
        return round(self.lapse_s * 1000)


def _without_password(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return "[leases] url"
    return parts._replace(netloc=parts.netloc.rsplit("@", 1)[-1]).geturl()
