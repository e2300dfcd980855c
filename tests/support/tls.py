"""TLS in front of a Redis that has none, and the certificates of docs/security.md."""

from __future__ import annotations

import asyncio
import re
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]


def documented(language: str, path: str = "docs/security.md") -> list[str]:
    """The blocks of a page in this language."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def make_certificates(folder: Path, broker: str) -> None:
    """Run the commands of the page: ``ca``, ``agent-1`` and one named as the broker."""
    folder.mkdir()
    (script,) = documented("sh")
    command = ["/bin/sh", "-euc", script]
    environment = {"BROKER": broker, "PATH": "/usr/local/bin:/usr/bin:/bin"}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, timeout=30)


@contextmanager
def tls_front(socket_path: str, certificates: Path, broker: str) -> Iterator[int]:
    """A port of this machine where the Redis on ``socket_path`` answers in TLS, to clients with a certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates / "ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificates / f"{broker}.crt", certificates / f"{broker}.key")
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _, __: None)  # clients that are refused are the point
    thread = threading.Thread(target=loop.run_forever, name="tls", daemon=True)
    thread.start()

    async def serve() -> asyncio.Server:
        return await asyncio.start_server(lambda *streams: _join(socket_path, *streams), "127.0.0.1", 0, ssl=context)

    async def end(server: asyncio.Server) -> None:
        server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    server = asyncio.run_coroutine_threadsafe(serve(), loop).result(10)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(end(server), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _join(socket_path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    inner_reader, inner_writer = await asyncio.open_unix_connection(socket_path)
    try:
        await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))
    finally:
        for one in (inner_writer, writer):
            one.transport.abort()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()
    sink.transport.abort()
