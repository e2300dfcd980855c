"""Artifact stores that are not a folder: how they are opened, how long they may take, what their errors mean."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec

from tasks.errors import Defect, TransientFault

NO_ROOM = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
# An S3 server that does not answer: two rounds of s3fs with three tries of botocore each, 20 s at most.
_S3_ROUNDS = 2
_S3_CONFIG = {
    "connect_timeout": 5,
    "read_timeout": 20,
    "retries": {"max_attempts": 3, "mode": "standard"},
    "max_pool_connections": 20,
}


class StoreUnreachable(TransientFault):
    """The store does not answer, or answers that it cannot right now; the stage waits for it."""

    def __init__(self, url: str, cause: object) -> None:
        super().__init__(
            "store_unreachable", f"artifacts at {url}: {_first_line(cause)}. Is the server up, and its address right?"
        )


class StoreRefused(Defect):
    """The store does not let us in, or there is no such bucket: a person has to change something."""

    def __init__(self, url: str, cause: object) -> None:
        super().__init__(
            "store_refused",
            f"artifacts at {url}: {_first_line(cause)}. Make the bucket, or give this host the right credentials and "
            "address: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL_S3, or ~/.aws",
        )


def _first_line(cause: object) -> str:
    return (str(cause).splitlines() or [type(cause).__name__])[0].rstrip(".")


@contextmanager
def reached(url: str, *, is_local: bool) -> Iterator[None]:
    """Tell what a remote store's errors mean; a folder's pass as they are.

    Raises:
        StoreUnreachable: it does not answer.
        StoreRefused: it does not let us in.
    """
    try:
        yield
    except FileNotFoundError as error:
        if not is_local and "bucket" in str(error).lower():
            raise StoreRefused(url, error) from error
        raise
    except PermissionError as error:
        if is_local:
            raise
        raise StoreRefused(url, error) from error
    except OSError as error:
        if is_local or error.errno in NO_ROOM:
            raise
        raise StoreUnreachable(url, error) from error
    except _remote_errors() as error:
        kind = StoreRefused if "redentials" in type(error).__name__ else StoreUnreachable
        raise kind(url, error) from error


def filesystem_of(url: str) -> tuple[Any, str]:
    """The file system behind an address, and the path on it. One in the cloud is asked anew each time, and not for
    longer than a stage can wait."""
    if not url.startswith(("s3://", "s3a://")):
        return fsspec.core.url_to_fs(url)  # type: ignore[no-any-return]
    own = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    filesystem, root = fsspec.core.url_to_fs(url, use_listings_cache=False, config_kwargs={**_S3_CONFIG, **own})
    filesystem.retries = _S3_ROUNDS
    return filesystem, root


def _remote_errors() -> tuple[type[Exception], ...]:
    """What the libraries behind object stores raise beside ``OSError``; only those that were loaded can."""
    known = (
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("aiohttp", "ClientError"),
    )
    return tuple(getattr(sys.modules[module], name) for module, name in known if module in sys.modules)


def protocols(filesystem: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
