"""A webhook's server: answers as told, and keeps what it was sent."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Received:
    """What came: the content, and what headers and body it came in."""

    def __init__(self, headers: dict[str, str], body: bytes) -> None:
        self.headers, self.body = headers, body
        self.content: dict[str, Any] = json.loads(body)


class Webhooks:
    """The server at ``url``; ``answers`` are the statuses of the first requests, 200 for all after them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.release = threading.Event()
        self._received: queue.Queue[Received] = queue.Queue()

    def next(self) -> Received:
        return self._received.get(timeout=10)

    def count(self) -> int:
        return self._received.qsize()

    def put(self, received: Received) -> None:
        self._received.put(received)


@contextmanager
def webhooks(answers: Sequence[int] = (), *, is_hanging: bool = False) -> Iterator[Webhooks]:
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            served.put(Received(dict(self.headers), body))
            if is_hanging:
                served.release.wait(20)
            self.send_response(left.pop(0) if left else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Webhooks(f"http://127.0.0.1:{server.server_port}/hook")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield served
    finally:
        served.release.set()
        server.shutdown()
        server.server_close()
        thread.join()
