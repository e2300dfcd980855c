"""An S3-compatible server of one's own, on a free port of this machine."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "lab"


@contextmanager
def s3_server() -> Iterator[str]:
    """Its address; the environment names it, a user's keys and nothing else of S3. It has the bucket ``lab``."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL_S3", address)
        patch.setenv("AWS_ACCESS_KEY_ID", "lab")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        forget_connections()
        fsspec.filesystem("s3").mkdir(BUCKET)
        try:
            yield address
        finally:
            forget_connections()
            server.stop()


def forget_connections() -> None:
    """What is opened next reads the environment anew."""
    fsspec.filesystem("memory")  # loads the registry
    if "s3fs" in sys.modules:
        sys.modules["s3fs"].S3FileSystem.clear_instance_cache()
