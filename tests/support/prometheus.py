"""A Prometheus server of our own on a free port, with its data in a temporary folder."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from time import monotonic, sleep
from typing import Any

import pytest
import yaml

needs_prometheus = pytest.mark.skipif(
    which("prometheus") is None or which("promtool") is None, reason="prometheus is not installed (Debian: prometheus)"
)


class Prometheus:
    """``url`` is where it answers. Scrapes every half second."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def amounts(self, expr: str, begin: float, end: float) -> list[float]:
        """Every number that the query gives at some second between begin and end; NaN is none."""
        found = self.get("query_range", query=expr, start=str(begin), end=str(end), step="1")["result"]
        values = [float(value) for series in found for _, value in series["values"]]
        return [value for value in values if not math.isnan(value)]


@contextmanager
def prometheus(folder: Path, targets: Mapping[str, str], rules: Path | None = None) -> Iterator[Prometheus]:
    """A server that scrapes ``targets`` (job → host and port)."""
    jobs = [{"job_name": job, "static_configs": [{"targets": [target]}]} for job, target in targets.items()]
    interval = {"scrape_interval": "500ms", "scrape_timeout": "400ms", "evaluation_interval": "1s"}
    settings = {"global": interval, "rule_files": [str(rules)] if rules else [], "scrape_configs": jobs}
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(settings))
    port = free_port()
    command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / 'prometheus'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait_until_ready(f"http://127.0.0.1:{port}/-/ready", process, folder / "prometheus.log")
            yield Prometheus(f"http://127.0.0.1:{port}")
        finally:
            process.terminate()
            process.wait(20)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = monotonic() + 30
    while monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            sleep(0.05)
    raise AssertionError(f"Prometheus does not come up: {log.read_text()}")
