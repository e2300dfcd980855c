"""Artifacts behind an S3-compatible server that is really there: kept, checked, removed, and out of reach."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner

import cli
import cli_study
from orchestrator.backup import back_up, restore
from orchestrator.errors import UsageError
from orchestrator.needs import needs_of
from orchestrator.study import Study
from tasks import remote
from tasks.artifacts import ArtifactAltered, ArtifactMissing, ArtifactStore, ArtifactTooLarge, check_writable
from tasks.garbage import sweep
from tasks.remote import StoreRefused, StoreUnreachable
from tests.support.s3 import BUCKET, forget_connections, s3_server
from tests.support.stored import begin, in_file, reader, run
from tests.support.studies import check_whole


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def url(server: str, request: pytest.FixtureRequest) -> str:
    forget_connections()
    return f"s3://{BUCKET}/{request.node.name}"


@pytest.fixture
def fresh(server: str) -> Iterator[None]:
    """Connections of other settings are not kept."""
    forget_connections()
    yield
    forget_connections()


def test_artifacts_are_kept_checked_and_found_again(url: str) -> None:
    store = ArtifactStore(url)
    sha256 = store.put_bytes(b"weights")
    assert ArtifactStore(url).get_bytes(sha256) == b"weights"
    assert (store.has(sha256), store.hold(sha256), store.hold("0" * 64)) == (True, True, False)
    with pytest.raises(ArtifactMissing, match="0" * 64):
        store.get_bytes("0" * 64)
    fsspec.filesystem("s3").pipe_file(store.path_of(sha256), b"weightz")
    with pytest.raises(ArtifactAltered):
        store.get_bytes(sha256)
    assert store.put_bytes(b"weights") == sha256
    assert store.get_bytes(sha256) == b"weights"
    with pytest.raises(ArtifactTooLarge):
        ArtifactStore(url, most_bytes=6).get_bytes(sha256)
    store.remember("ab" * 32, b"one")
    store.remember("ab" * 32, b"two")
    assert store.recall("ab" * 32) == b"two"
    assert store.recall("cd" * 32) is None


def test_what_is_written_elsewhere_is_seen_at_once(url: str) -> None:
    """No list of what is there is kept from one call to the next."""
    one, other = ArtifactStore(url), ArtifactStore(url)
    assert one.entries() == []
    sha256 = other.put_bytes(b"new")
    assert [item.sha256 for item in one.entries()] == [sha256]
    other.remove(other.path_of(sha256))
    assert not one.has(sha256)
    assert one.modified(one.path_of(sha256)) is None


def test_a_reader_sees_all_of_an_artifact_or_nothing(url: str) -> None:
    data = os.urandom(3_000_000)
    store = ArtifactStore(url)
    writer = threading.Thread(target=store.put_bytes, args=(data,))
    seen: set[int] = set()
    path = store.path_of(hash_of(data))
    writer.start()
    while writer.is_alive() or not seen:
        found = ArtifactStore(url)._read(path)
        seen.add(len(found) if found is not None else -1)
    writer.join()
    assert seen <= {-1, len(data)}


def hash_of(data: bytes) -> str:
    return ArtifactStore("memory://hash").put_bytes(data)


def test_a_study_runs_is_collected_and_restored_there(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFRONT_ARTIFACTS", url)
    study = begin(in_file(tmp_path), objectives={"rom": {}})
    run(study)
    check_whole(study, 4)
    assert study.artifacts == f"{url}/small-{study.study_id[:8]}"
    back_up(study, tmp_path / "small.tar.gz", reader(study))
    store = ArtifactStore(study.artifacts)
    old = [item for item in store.entries() if item.sha256 not in needs_of(study).kept]
    # Times cannot be changed there: the sweep is told that all of it is old.
    removed = sweep(store, old, time.time() + 3600)
    assert {item.path for item in removed} == {item.path for item in old}
    assert {item.sha256 for item in store.entries()} == needs_of(study).kept
    assert store._listed(f"{store._root}/sweeps") == []
    assert cli_study.collect([study], 60.0, is_dry=False).condemned == ()
    report = CliRunner().invoke(cli.main, ["report", "small", "--studies", str(tmp_path)])
    assert report.exit_code == 0, report.output
    monkeypatch.setenv("EDGEFRONT_ARTIFACTS", f"{url}/again")
    restored = Study.open(restore(tmp_path / "small.tar.gz", tmp_path / "there", ArtifactStore))
    assert all(ArtifactStore(restored.artifacts).has(sha256) for sha256 in needs_of(restored).named)
    study.close()
    restored.close()


def test_the_times_of_files_are_the_servers(url: str) -> None:
    store = ArtifactStore(url)
    path = store.path_of(store.put_bytes(b"now"))
    modified = store.modified(path)
    assert modified is not None
    assert abs(datetime.fromtimestamp(modified, UTC) - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_bucket_that_is_not_there_is_a_persons_business(url: str) -> None:
    store = ArtifactStore("s3://nobody-made-this/studies")
    for act in (lambda: store.put_bytes(b"x"), lambda: store.get_bytes("0" * 64), lambda: store.recall("0" * 64)):
        with pytest.raises(StoreRefused, match=r"bucket does not exist.*Make the bucket, or give this host") as caught:
            act()
        assert caught.value.reason == "store_refused"
    with pytest.raises(UsageError, match="nothing can be written there"):
        check_writable("s3://nobody-made-this/studies")


@pytest.mark.usefixtures("fresh")
def test_a_host_without_credentials_is_told_where_they_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StoreRefused, match=r"credentials.*AWS_ACCESS_KEY_ID"):
        ArtifactStore(f"s3://{BUCKET}/x").put_bytes(b"x")


@pytest.mark.usefixtures("fresh")
def test_a_server_that_is_away_is_waited_for_by_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free.getsockname()[1]}")
        monkeypatch.setitem(remote._S3_CONFIG, "retries", {"max_attempts": 1, "mode": "standard"})
        with pytest.raises(StoreUnreachable, match=r"Could not connect .*Is the server up") as caught:
            ArtifactStore(f"s3://{BUCKET}/x").put_bytes(b"x")
    assert caught.value.reason == "store_unreachable"


@pytest.mark.usefixtures("fresh")
def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(remote._S3_CONFIG, "read_timeout", 0.1)
    monkeypatch.setitem(remote._S3_CONFIG, "retries", {"max_attempts": 1, "mode": "standard"})
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(StoreUnreachable, match=r"(?i)time"):
            ArtifactStore(f"s3://{BUCKET}/x").get_bytes("0" * 64)
        assert time.monotonic() - began < 20
