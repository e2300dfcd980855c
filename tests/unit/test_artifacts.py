"""Content-addressed artifacts: what is put is what comes back, or a clear error."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import UsageError
from tasks import artifacts
from tasks.artifacts import (
    ArtifactAltered,
    ArtifactMissing,
    ArtifactStore,
    ArtifactTooLarge,
    DiskFull,
    check_writable,
)


@given(st.binary(max_size=300))
def test_what_is_put_comes_back_under_its_sha256(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    store = ArtifactStore(tmp_path_factory.mktemp("store"))
    sha256 = store.put_bytes(data)
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert store.get_bytes(sha256) == data


def test_a_memory_url_works_like_a_folder() -> None:
    store = ArtifactStore("memory://a-test-store")
    assert store.get_bytes(store.put_bytes(b"weights")) == b"weights"
    with pytest.raises(ArtifactMissing):
        store.get_bytes("0" * 64)


def test_a_deleted_artifact_is_named_as_missing(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    sha256 = store.put_bytes(b"weights")
    Path(store.path_of(sha256)).unlink()
    with pytest.raises(ArtifactMissing, match=sha256) as caught:
        store.get_bytes(sha256)
    assert caught.value.reason == "artifact_missing"
    assert not store.has(sha256)


def test_an_altered_artifact_is_refused_and_repaired_by_writing_it_again(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    sha256 = store.put_bytes(b"weights")
    Path(store.path_of(sha256)).write_bytes(b"weightz")
    with pytest.raises(ArtifactAltered, match=sha256) as caught:
        store.get_bytes(sha256)
    assert caught.value.reason == "artifact_altered"
    assert store.put_bytes(b"weights") == sha256
    assert store.get_bytes(sha256) == b"weights"


def test_a_write_that_fails_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifacts.os, "fsync", no_room)
    store = ArtifactStore(tmp_path)
    with pytest.raises(DiskFull, match="no space left for 7 bytes") as caught:
        store.put_bytes(b"weights")
    assert caught.value.needed_bytes == 7
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_other_write_errors_pass_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "sha256").write_text("in the way")
    with pytest.raises(OSError, match=r"sha256|Not a directory|exists"):
        ArtifactStore(tmp_path).put_bytes(b"weights")


def test_an_unknown_address_is_refused() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        ArtifactStore("nonsense://bucket")


def test_a_remembered_result_is_replaced_by_a_later_one(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    assert store.recall("ab" * 32) is None
    store.remember("ab" * 32, b"one")
    store.remember("ab" * 32, b"two")
    assert store.recall("ab" * 32) == b"two"


@pytest.mark.parametrize("url", ["nowhere://bucket/studies", "/dev/null/studies"])
def test_an_address_that_cannot_be_written_is_told_before_a_study_begins(url: str) -> None:
    with pytest.raises(UsageError, match=f"artifacts at {url}: "):
        check_writable(url)


def test_an_address_that_can_be_written_passes(tmp_path: Path) -> None:
    check_writable(str(tmp_path / "new"))


@pytest.mark.parametrize("url", ["folder", "memory://a-bounded-store"])
def test_no_more_is_read_of_an_artifact_than_its_reader_takes(tmp_path: Path, url: str) -> None:
    address = url if "://" in url else str(tmp_path / url)
    sha256 = ArtifactStore(address).put_bytes(b"x" * 100)
    assert len(ArtifactStore(address, most_bytes=100).get_bytes(sha256)) == 100
    bounded = ArtifactStore(address, most_bytes=99)
    with pytest.raises(ArtifactTooLarge, match="more than the 99 bytes") as caught:
        bounded.get_bytes(sha256)
    assert caught.value.reason == "artifact_too_large"
    assert not bounded.has(sha256)
    bounded.remember("0" * 64, b"y" * 100)
    assert bounded.recall("0" * 64) is None


@pytest.mark.parametrize("name", ["../../../etc/passwd", "", "0" * 63, "g" * 64, "ab/../" + "c" * 58, "A" * 64])
def test_what_is_no_hash_is_no_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="expected a sha256"):
        ArtifactStore(tmp_path).get_bytes(name)
