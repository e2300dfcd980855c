"""Serves the live page: a few files, and one JSON document a study that the page asks for again and again. Read-only.

Who may look: everybody on this machine when the address is a loopback one; otherwise whoever has the token, in a header
(``Authorization: Bearer …``) or, from the page's own form, in a cookie made from it. The token is in no address, no log
and no page.
"""

from __future__ import annotations

import gzip
import hashlib
import hmac
import ipaddress
import json
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic
from types import TracebackType
from typing import Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.records import Json
from orchestrator.report.page import Asset, live_assets

LEAST_TOKEN = 16
COOKIE = "edgefront"
_COOKIE_KEPT_S = 30 * 86_400
_LARGEST_FORM = 4096
_SLOWEST_CLIENT_S = 20.0
# A page is asked for every two seconds by every screen; the database is read at most once a second, and no more than a
# tenth of the time where reading it takes long.
_READ_EVERY_S = 1.0
_SHARE_OF_TIME = 10
_COMPRESSED_FROM = 1024
# Plotly sets styles on what it draws, which counts as inline style; scripts come from this server alone.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_OPEN_ASSETS = ("/live.css", "/login.js")  # what the page that asks for the token is made of


class Studies(Protocol):
    """What is shown. ``names`` are in the order of the list; ``look`` is called by several threads, never for the same
    study at once."""

    def names(self) -> list[str]: ...

    def look(self, name: str) -> Json:
        """The page's data.

        Raises:
            OrchestratorError: there is no such study, or it cannot be read.
        """
        ...

    def boards(self) -> Json:
        """``{"boards": […], "text": why there are none}``."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """Who may look. ``token`` is empty where everybody who reaches the address may."""

    address: str
    port: int
    token: str = ""

    def __post_init__(self) -> None:
        """
        Raises:
            UsageError: the token is too short, or there is none although others can reach the address.
        """
        if self.token and len(self.token) < LEAST_TOKEN:
            raise UsageError(f"--token: found {len(self.token)} characters; needed are at least {LEAST_TOKEN}")
        if not self.token and not is_loopback(self.address):
            raise UsageError(
                f"--address {self.address} can be reached by others, who could then read the studies: set a token of "
                f"at least {LEAST_TOKEN} characters in EDGEFRONT_DASHBOARD_TOKEN, or leave --address out"
            )

    @property
    def cookie(self) -> str:
        """What a browser keeps in place of the token; the token cannot be had from it."""
        return hmac.new(self.token.encode(), b"edgefront dashboard cookie", hashlib.sha256).hexdigest()

    def admits(self, authorization: str, cookies: str) -> bool:
        """Whether a request with these headers may be answered; takes as long for any wrong token."""
        if not self.token:
            return True
        scheme, _, given = authorization.partition(" ")
        by_header = scheme.lower() == "bearer" and self.is_token(given.strip())
        return hmac.compare_digest(_cookie_of(cookies).encode(), self.cookie.encode()) or by_header

    def is_token(self, given: str) -> bool:
        """Whether this is the token, in constant time."""
        digests = [hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest() for text in (given, self.token)]
        return bool(self.token) and hmac.compare_digest(*digests)

    def is_for_us(self, host: str) -> bool:
        """Whether the ``Host`` header names this server. Without a token, a page elsewhere whose name was made to lead
        here must not read what is only for this machine."""
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        return bool(self.token) or is_loopback(name.strip("[]"))


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches the address."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _cookie_of(text: str) -> str:
    try:
        found = SimpleCookie(text).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found is not None else ""


class DashboardServer:
    """Serves ``studies`` until closed; use as a context manager. ``first`` is the study that ``/`` leads to, empty for
    the list of all.

    Raises:
        UsageError: the port is taken, or the address is not one of this machine.
    """

    def __init__(
        self,
        studies: Studies,
        access: Access,
        *,
        first: str = "",
        links: Mapping[str, str] | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        site = _Site(studies, access, first, dict(links or {}), clock)
        handler = type("Handler", (_Handler,), {"site": site})
        family = {"address_family": socket.AF_INET6} if ":" in access.address else {}
        server_class = type("Server", (_Server,), family)
        try:
            self._server = server_class((access.address, access.port), handler)
        except OSError as error:
            raise UsageError(
                f"cannot serve at {access.address}:{access.port}: {error.strerror}; choose another --port (0: any free "
                "one) or --address"
            ) from error
        self.port: int = self._server.server_port
        shown = f"[{access.address}]" if ":" in access.address else access.address
        self.url = f"http://{shown}:{self.port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, name="dashboard", daemon=True)
        self._thread.start()

    def __enter__(self) -> DashboardServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    body: bytes
    kind: str = "text/html; charset=utf-8"
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] | None = None
    packed: bytes = b""
    tag: str = ""


class _Remembered:
    """The newest look at each study, as it is sent."""

    def __init__(self, studies: Studies, clock: Callable[[], float]) -> None:
        self._studies = studies
        self._clock = clock
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._kept: dict[str, tuple[float, bytes]] = {}

    def get(self, name: str) -> bytes:
        """
        Raises:
            OrchestratorError: there is no such study, or it cannot be read.
        """
        if name not in self._studies.names():
            raise OrchestratorError(f"there is no study {name[:60]!r}; choose one of the list at /")
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            until, body = self._kept.get(name, (-1.0, b""))
            before = self._clock()
            if before < until:
                return body
            body = _encoded(self._studies.look(name))
            took_s = self._clock() - before
            self._kept[name] = (before + max(_READ_EVERY_S, _SHARE_OF_TIME * took_s), body)
            return body


def _encoded(data: Json) -> bytes:
    return json.dumps(data, separators=(",", ":"), allow_nan=False, default=str).encode()


class _Site:
    """Paths and what they lead to; knows no sockets."""

    def __init__(
        self,
        studies: Studies,
        access: Access,
        first: str,
        links: Mapping[str, str],
        clock: Callable[[], float],
    ) -> None:
        self.access = access
        self._studies = studies
        self._first = first
        self._links = links
        self._assets = live_assets()
        self._remembered = _Remembered(studies, clock)

    def get(self, path: str, *, is_admitted: bool) -> _Answer:
        if path in self._assets and (is_admitted or path in _OPEN_ASSETS):
            return _of_asset(self._assets[path])
        if not is_admitted:
            if path.startswith("/api/"):
                return _json({"error": "not admitted: send the token"}, HTTPStatus.UNAUTHORIZED)
            return _Answer(body=self._assets["/login"].body, status=HTTPStatus.UNAUTHORIZED)
        if path == "/" and self._first:
            return _Answer(body=b"", status=HTTPStatus.FOUND, headers={"Location": f"/study/{self._first}"})
        if path == "/":
            return _Answer(body=self._assets["/page"].body)
        if path.startswith("/study/"):  # of one that is not there as well: the page leads to those there are
            is_there = self._is_there(unquote(path.removeprefix("/study/")))
            return _Answer(body=self._assets["/page"].body, status=HTTPStatus.OK if is_there else HTTPStatus.NOT_FOUND)
        return self._data(path) if path.startswith("/api/") else _nothing()

    def _is_there(self, name: str) -> bool:
        """Whether there is such a study; one that cannot be looked for is taken to be there, and the page says why."""
        try:
            return name in self._studies.names()
        except OrchestratorError:
            return True

    def _data(self, path: str) -> _Answer:
        try:
            if path == "/api/boards":
                return _json(self._studies.boards())
            if path == "/api/studies":
                return _json(self._list())
            if path.startswith("/api/study/"):
                body = self._remembered.get(unquote(path.removeprefix("/api/study/")))
                return _Answer(body=body, kind="application/json")
        except OrchestratorError as error:
            return _json({"error": str(error)}, HTTPStatus.NOT_FOUND)
        return _nothing()

    def _list(self) -> Json:
        rows = []
        for name in self._studies.names():
            try:
                whole = json.loads(self._remembered.get(name))
            except OrchestratorError as error:
                rows.append({"name": name, "error": str(error)})
                continue
            rows.append({key: whole[key] for key in ("name", "board", "told", "budget", "state", "figures", "history")})
        return {"studies": rows, "links": dict(self._links)}

    def post(self, path: str, form: bytes) -> _Answer:
        """The form that asks for the token."""
        if path != "/login" or not self.access.token:
            return _nothing()
        given = parse_qs(form.decode("utf-8", "replace")).get("token", [""])[0]
        if not self.access.is_token(given):
            return _json({"error": "this is not the token"}, HTTPStatus.UNAUTHORIZED)
        kept = f"{COOKIE}={self.access.cookie}; Path=/; Max-Age={_COOKIE_KEPT_S}; HttpOnly; SameSite=Strict"
        return _Answer(body=b"{}", kind="application/json", headers={"Set-Cookie": kept})


def _of_asset(asset: Asset) -> _Answer:
    return _Answer(body=asset.body, kind=asset.kind, packed=asset.packed, tag=asset.tag)


def _json(data: Json, status: HTTPStatus = HTTPStatus.OK) -> _Answer:
    return _Answer(body=_encoded(data), kind="application/json", status=status)


def _nothing() -> _Answer:
    return _json({"error": "there is nothing here"}, HTTPStatus.NOT_FOUND)


class _Handler(BaseHTTPRequestHandler):
    """HTTP at the rim: headers, sizes, compression."""

    site: _Site
    protocol_version = "HTTP/1.1"
    server_version = "edgefront"
    sys_version = ""
    timeout = _SLOWEST_CLIENT_S

    def do_GET(self) -> None:
        if self._is_misled():
            return
        path = urlsplit(self.path).path
        admitted = self.site.access.admits(self.headers.get("Authorization", ""), self.headers.get("Cookie", ""))
        self._send(self.site.get(path, is_admitted=admitted))

    do_HEAD = do_GET

    def do_POST(self) -> None:
        if self._is_misled():
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _LARGEST_FORM:
            self.close_connection = True
            self._send(_json({"error": "the form is too large"}, HTTPStatus.REQUEST_ENTITY_TOO_LARGE))
            return
        self._send(self.site.post(urlsplit(self.path).path, self.rfile.read(int(length))))

    def _is_misled(self) -> bool:
        if self.site.access.is_for_us(self.headers.get("Host", "")):
            return False
        self.close_connection = True
        self._send(_json({"error": "this server is asked for by another name"}, HTTPStatus.MISDIRECTED_REQUEST))
        return True

    def _send(self, answer: _Answer) -> None:
        tag = answer.tag or f'"{hashlib.sha256(answer.body).hexdigest()[:24]}"'
        is_fresh = answer.status is HTTPStatus.OK and self.headers.get("If-None-Match") == tag
        status = HTTPStatus.NOT_MODIFIED if is_fresh else answer.status
        body = b"" if is_fresh else answer.body
        headers = {**_HEADERS, "Content-Type": answer.kind, "ETag": tag, "Vary": "Accept-Encoding, Cookie"}
        headers["Cache-Control"] = "private, no-cache" if answer.status is HTTPStatus.OK else "no-store"
        if len(body) > _COMPRESSED_FROM and "gzip" in self.headers.get("Accept-Encoding", ""):
            body = answer.packed or gzip.compress(body, 1)
            headers["Content-Encoding"] = "gzip"
        self.send_response(status)
        for name, value in {**headers, **(answer.headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing is logged: addresses and headers may hold what nobody else should read."""
