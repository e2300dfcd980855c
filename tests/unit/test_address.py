"""Addresses of a broker: what of them is shown, and which are dangerous."""

from __future__ import annotations

import socketserver
import threading

import pytest

from tasks.address import BrokerAddressError, exposure, tls_trouble, without_password
from tasks.broker import connect


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:secret@host:6379/0", "redis://:***@host:6379/0"),
        ("rediss://agent:secret@host/0?ssl_ca_certs=/ca.crt", "rediss://agent:***@host/0?ssl_ca_certs=/ca.crt"),
        ("redis+socket://:secret@/run/redis.sock", "redis+socket://:***@/run/redis.sock"),
        ("redis://host/0?username=me&password=secret", "redis://host/0?username=me&password=***"),
        ("rediss://host/0?ssl_password=secret&x=1", "rediss://host/0?ssl_password=***&x=1"),
        ("redis://host:6379/0", "redis://host:6379/0"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize(
    "url",
    ["redis://lab:6379/0", "redis://192.168.1.2/0", "rediss://lab/0", "redis://user@lab/0", "redis://[2001:db8::1]/0"],
)
def test_a_broker_that_anybody_can_reach_is_warned_of(url: str) -> None:
    assert "takes commands from anyone who can reach it" in exposure(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:secret@lab/0",
        "redis://lab/0?password=secret",
        "rediss://lab/0?ssl_certfile=/my.crt&ssl_keyfile=/my.key",
        "redis://127.0.0.1/0",
        "redis://127.1.2.3/0",
        "redis://[::1]/0",
        "redis://localhost/0",
        "redis+socket:///run/redis.sock",
        "redis://[",
    ],
)
def test_a_broker_with_a_password_or_on_this_host_is_not(url: str) -> None:
    assert exposure(url) == ""


@pytest.mark.parametrize("url", ["redis://:secret@lab:6411/x", "rediss://:secret@lab/0/1", "redis://:secret@lab/-1"])
def test_a_database_that_is_no_number_is_refused(url: str) -> None:
    with pytest.raises(BrokerAddressError, match=r"found the database '.+' in redis.+allowed is a number") as caught:
        connect(url)
    assert "secret" not in str(caught.value)


class _Plain(socketserver.BaseRequestHandler):
    """Answers as a Redis without TLS does: to whole lines only."""

    def handle(self) -> None:
        if b"\n" in self.request.recv(100):
            self.request.sendall(b"-NOAUTH Authentication required.\r\n")


def test_a_port_that_speaks_no_tls_is_told_from_one_that_is_away() -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), _Plain) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        url = f"rediss://127.0.0.1:{server.server_address[1]}/0"
        assert "does not speak TLS on this port" in tls_trouble(url, "Timeout connecting to server")
    assert tls_trouble(url, "Timeout connecting to server") == ""
