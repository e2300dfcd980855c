"""Addresses of a broker: their parts, what of them may be shown, TLS, and what is dangerous about them.

They are written ``redis://host:port/db``, ``rediss://…`` or ``redis+socket:///path``; the last is how Celery spells a
unix socket. ``rediss`` is TLS: the server's certificate and its host name are checked unless the address says
otherwise, and certificates are named in it
(``rediss://user:password@lab:6379/0?ssl_ca_certs=/etc/edgefront/ca.crt``).
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from orchestrator.errors import OrchestratorError

BROKER_VARIABLE = "EDGEFRONT_BROKER_URL"
SOCKET_SCHEME = "redis+socket"


class BrokerError(OrchestratorError):
    """The broker cannot be reached or started; the text names it without its password."""


class BrokerAddressError(BrokerError):
    """``EDGEFRONT_BROKER_URL`` is not set where it must be, or no address of a Redis."""

    exit_code = 2


def without_password(url: str) -> str:
    """The address as it may be shown: ``redis://user:***@host:6379/0``."""
    try:
        parts = urlsplit(url)
    except ValueError:  # an address that cannot even be taken apart
        return re.sub(r"(://[^/@:]*):.*@", r"\1:***@", url)
    query = re.sub(r"(?i)(password=)[^&]*", r"\1***", parts.query)
    if "@" not in parts.netloc:
        return urlunsplit(parts._replace(query=query)) if query != parts.query else url
    account, host = parts.netloc.rsplit("@", 1)
    shown = account.split(":")[0]
    return urlunsplit(parts._replace(netloc=f"{shown}:***@{host}", query=query))


def client_url(url: str) -> str:
    """The same address as redis-py spells it."""
    return "unix" + url[len(SOCKET_SCHEME) :] if url.startswith(SOCKET_SCHEME + "://") else url


def check_database(url: str) -> None:
    """redis-py passes over a database that is no number, and Celery fails at it for ever.

    Raises:
        BrokerAddressError: the address names one.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # whoever connects says so with the whole address
        return
    if parts.scheme in ("redis", "rediss") and not re.fullmatch(r"/?[0-9]*", parts.path):
        raise BrokerAddressError(
            f"{BROKER_VARIABLE}: found the database {parts.path.lstrip('/')!r} in {without_password(url)}; allowed is "
            "a number, for example redis://host:6379/0"
        )


def speaks_plainly(url: str, timeout_s: float = 2.0) -> bool:
    """Whether the port of a ``rediss`` address answers without TLS: a Redis there takes a handshake for half a line and
    waits for the rest."""
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 6379), timeout_s) as plain:
            plain.sendall(b"PING\r\n")
            return plain.recv(1) in (b"+", b"-")
    except (OSError, ValueError):
        return False


def _check_file(name: str, value: str) -> str:
    path = Path(value)
    is_there = path.is_dir() if name == "ssl_ca_path" else path.is_file() and os.access(path, os.R_OK)
    if not is_there:
        what = "folder" if name == "ssl_ca_path" else "file that can be read"
        raise BrokerAddressError(f"{BROKER_VARIABLE}: {name} is {value!r}, and there is no such {what}")
    return value


def _check_choice(name: str, value: str) -> ssl.VerifyMode | bool:
    choices: Mapping[str, ssl.VerifyMode | bool] = _TLS_CHOICES[name]
    if value.lower() not in choices:
        raise BrokerAddressError(f"{BROKER_VARIABLE}: {name} is {value!r}; allowed are {', '.join(choices)}")
    return choices[value.lower()]


_TLS_CHOICES: Mapping[str, Mapping[str, ssl.VerifyMode | bool]] = {
    "ssl_cert_reqs": {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE},
    "ssl_check_hostname": {"true": True, "false": False},
}
_TLS_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")


def split_tls(url: str) -> tuple[str, dict[str, Any] | None]:
    """The address without its options of TLS, and these as redis-py's connections take them; None where it uses none.

    Celery's transport and our own connections are given the same: the transport alone would check no certificate.

    Raises:
        BrokerAddressError: an option is unknown or names a file that cannot be read, or the address is not ``rediss``.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # whoever connects says so with the whole address
        return url, None
    query = parse_qsl(parts.query)
    given = {name: value for name, value in query if name.startswith("ssl_")}
    if parts.scheme != "rediss":
        if given:
            raise BrokerAddressError(
                f"{BROKER_VARIABLE}: {next(iter(given))} needs an address that begins with rediss://"
            )
        return url, None
    options: dict[str, Any] = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
    for name, value in given.items():
        if name not in (*_TLS_CHOICES, *_TLS_FILES):
            allowed = ", ".join((*_TLS_CHOICES, *_TLS_FILES))
            raise BrokerAddressError(f"{BROKER_VARIABLE}: {name} is no option of TLS; allowed are {allowed}")
        options[name] = _check_choice(name, value) if name in _TLS_CHOICES else _check_file(name, value)
    if options["ssl_cert_reqs"] is not ssl.CERT_REQUIRED:
        options["ssl_check_hostname"] = False
    rest = urlencode([(name, value) for name, value in query if name not in given])
    return urlunsplit(parts._replace(query=rest)), options


def exposure(url: str) -> str:
    """What is dangerous about the address, in one line; empty where nothing is: whoever can reach a broker commands its
    workers."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return ""
    has_password = bool(parts.password) or "password=" in parts.query
    if parts.scheme not in ("redis", "rediss") or has_password or _is_loopback(host):
        return ""
    if dict(parse_qsl(parts.query)).get("ssl_certfile"):  # a server that asks for certificates knows who comes
        return ""
    return (
        f"warning: the broker at {without_password(url)} takes commands from anyone who can reach it; "
        "give it a password and TLS (docs/security.md)"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("", "localhost")


_CUT_OFF = ("connection closed", "connection reset", "eof occurred")


def tls_trouble(url: str, error: str) -> str:
    """What went wrong with TLS and what to do; empty where it was something else."""
    if "Hostname mismatch" in error or "IP address mismatch" in error or "not valid for" in error:
        return (
            "its certificate is for another host name. Use a name that stands in the certificate, or make one with "
            "this name (docs/security.md)"
        )
    if "CERTIFICATE_VERIFY_FAILED" in error:
        why = error.partition("certificate verify failed: ")[2].partition(" (_ssl")[0] or "its certificate is not known"
        return f"{why}. Name the CA that signed its certificate: {BROKER_VARIABLE}=rediss://…?ssl_ca_certs=/path/ca.crt"
    is_cut = any(text in error.lower() for text in ("certificate required", "certificate_required", *_CUT_OFF))
    if is_cut and url.startswith("rediss://") and "ssl_certfile=" not in url:
        # In TLS 1.3 a server may end the connection without a word when it has waited for a certificate in vain.
        return (
            f"it ended the connection ({error.rstrip('.')}), as one does that asks for a certificate of yours: add "
            "ssl_certfile=/path/my.crt&ssl_keyfile=/path/my.key to the address"
        )
    if is_cut and url.startswith("redis://"):
        return f"it ended the connection ({error.rstrip('.')}), as a port does that speaks TLS: use rediss://"
    if url.startswith("rediss://") and "timeout" in error.lower() and speaks_plainly(url):
        return "it does not speak TLS on this port; use its TLS port, or redis://"
    if url.startswith("rediss://") and ("WRONG_VERSION_NUMBER" in error or "record layer failure" in error):
        return f"it does not speak TLS on this port ({error.rstrip('.')}); use its TLS port, or redis://"
    return ""
