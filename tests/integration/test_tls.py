"""A broker behind TLS: who gets through, and what the others are told."""

from __future__ import annotations

import shutil
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from orchestrator.records import Ending
from tasks.address import BrokerAddressError, split_tls
from tasks.app import make_app
from tasks.artifacts import ArtifactStore
from tasks.broker import BrokerError, EmbeddedBroker, check_reachable
from tasks.evaluator import CeleryEvaluator
from tests.support.entries import task
from tests.support.serving import serving
from tests.support.studies import BOARD
from tests.support.tls import make_certificates, tls_front

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")

HOST = "localhost"


@dataclass(frozen=True)
class Lab:
    port: int
    password: str
    certificates: Path

    def url(self, *, host: str = HOST, ca: str = "ca.crt", own: str = "agent-1", more: str = "") -> str:
        options = [f"ssl_ca_certs={self.certificates / ca}"] if ca else []
        if own:
            options += [
                f"ssl_{kind}file={self.certificates / own}.{kind[:4].replace('cert', 'crt')}"
                for kind in ("cert", "key")
            ]
        return f"rediss://:{self.password}@{host}:{self.port}/0?{'&'.join(filter(None, [*options, more]))}"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("tls")
    make_certificates(folder / "certificates", HOST)
    make_certificates(folder / "others", HOST)
    shutil.copy(folder / "others" / "ca.crt", folder / "certificates" / "other.crt")
    broker = EmbeddedBroker(folder / "broker", folder / "broker.log")
    broker.start()
    with tls_front(broker._socket, folder / "certificates", HOST) as port:
        yield Lab(port, broker._password, folder / "certificates")
    broker.stop()


def test_stages_run_over_tls(lab: Lab, tmp_path: Path) -> None:
    elf = ArtifactStore(tmp_path).put_bytes(b"firmware")
    with serving(f"board.{BOARD}", lab.url(), tmp_path / "log"):
        evaluator = CeleryEvaluator(url=lab.url(), study_id="study", artifacts=tmp_path)
        evaluator.submit(task(inputs={"elf": elf}).request)
        (result,) = evaluator.collect(20.0)
        evaluator.close()
    assert result.ending is Ending.COMPLETE
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert lab.password not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"ca": "other.crt"}, "Name the CA that signed its certificate"),
        ({"ca": ""}, "Name the CA that signed its certificate"),
        ({"host": "127.0.0.1"}, "its certificate is for another host name"),
        ({"own": ""}, "asks for a certificate of yours: add ssl_certfile="),
    ],
    ids=["another CA", "the system's CAs", "another name", "no certificate"],
)
def test_a_connection_that_is_not_safe_is_refused_with_the_remedy(lab: Lab, options: dict[str, str], text: str) -> None:
    with pytest.raises(BrokerError, match=text) as caught:
        check_reachable(lab.url(**options))
    assert lab.password not in str(caught.value)


@pytest.mark.parametrize("options", [{"ca": ""}, {"host": "127.0.0.1"}])
def test_celery_checks_the_certificate_as_our_own_connections_do(lab: Lab, options: dict[str, str]) -> None:
    connection = make_app(lab.url(**options)).connection_for_write()
    with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        connection.channel()
    connection.close()


def test_what_is_not_to_be_checked_must_be_said(lab: Lab) -> None:
    check_reachable(lab.url(host="127.0.0.1", more="ssl_check_hostname=false"))
    check_reachable(lab.url(host="127.0.0.1", ca="", more="ssl_cert_reqs=none"))
    assert split_tls("rediss://host:1/0?ssl_cert_reqs=none") == (
        "rediss://host:1/0",
        {"ssl_cert_reqs": ssl.CERT_NONE, "ssl_check_hostname": False},
    )


def test_options_of_tls_without_tls_are_a_mistake() -> None:
    with pytest.raises(BrokerAddressError, match="ssl_ca_certs needs an address that begins with rediss://"):
        check_reachable("redis://host/0?ssl_ca_certs=/ca.crt")


def test_a_port_that_speaks_tls_is_told_from_one_that_is_away(lab: Lab) -> None:
    with pytest.raises(BrokerError, match="as a port does that speaks TLS: use rediss://"):
        check_reachable(f"redis://:{lab.password}@{HOST}:{lab.port}/0")


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("ssl_ca_certs=/nowhere/ca.crt", "ssl_ca_certs is '/nowhere/ca.crt', and there is no such file"),
        ("ssl_ca_path=/nowhere", "no such folder"),
        ("ssl_cert_reqs=maybe", "ssl_cert_reqs is 'maybe'; allowed are required, optional, none"),
        ("ssl_verify=no", "ssl_verify is no option of TLS; allowed are ssl_cert_reqs"),
    ],
)
def test_a_mistake_in_the_options_is_told_before_anything_connects(query: str, text: str) -> None:
    with pytest.raises(BrokerAddressError, match=text) as caught:
        check_reachable(f"rediss://:secret@nowhere.invalid:1/0?{query}")
    assert caught.value.exit_code == 2
    assert "secret" not in str(caught.value)
