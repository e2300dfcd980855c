"""Addresses of a broker: what of them is shown, and which are dangerous."""

from __future__ import annotations

import pytest

from tasks.address import exposure, without_password


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
