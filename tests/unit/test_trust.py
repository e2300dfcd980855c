"""What a worker may be asked for, and where artifacts may lie."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.trust import AGENT_ARTIFACT_BYTES, Trust, is_allowed_store, trust_of_queues
from tests.support.entries import task


def test_an_agent_profiles_on_boards_of_its_kinds_and_nothing_else() -> None:
    trust = trust_of_queues(["board.nrf52-dk", "board.nucleo-h743zi"], ["/srv/artifacts"])
    assert trust.is_agent
    assert trust == Trust(
        stages=("profile",),
        board_kinds=("nrf52-dk", "nucleo-h743zi"),
        artifact_stores=("/srv/artifacts",),
        artifact_bytes=AGENT_ARTIFACT_BYTES,
    )


def test_other_workers_run_the_stages_of_their_queues() -> None:
    trust = trust_of_queues(["build", "train"])
    assert not trust.is_agent
    assert trust.stages == ("gate", "build", "final", "train", "compress")
    assert (trust.board_kinds, trust.artifact_bytes) == ((), None)


def test_trust_survives_the_way_to_a_child_process(monkeypatch: pytest.MonkeyPatch) -> None:
    trust = trust_of_queues(["board.nrf52-dk"], ["s3://lab/a,b"])
    monkeypatch.setenv("EDGEFRONT_TRUST", trust.to_text())
    assert Trust.from_environment() == trust
    monkeypatch.setenv("EDGEFRONT_TRUST", "{}")
    with pytest.raises(ValueError, match="set by the program itself"):
        Trust.from_environment()
    monkeypatch.delenv("EDGEFRONT_TRUST")
    assert Trust.from_environment().objection(task("train")) == ""


@pytest.mark.parametrize(
    ("stage", "board", "text"),
    [
        ("profile", "nrf52-dk", ""),
        ("profile@nrf52-dk", "nucleo-h743zi", ""),
        ("train", "nrf52-dk", "stage train is not run here"),
        ("profile", "nucleo-h743zi", "board kind 'nucleo-h743zi' is not offered here; there are nrf52-dk"),
        ("profile@nucleo-h743zi", "nrf52-dk", "board kind 'nucleo-h743zi' is not offered here"),
        ("profile", ["nrf52-dk"], "is not offered here"),
        ("profile", None, "is not offered here"),
    ],
)
def test_what_is_not_allowed_is_said(stage: str, board: object, text: str) -> None:
    objection = trust_of_queues(["board.nrf52-dk"]).objection(task(stage, study={"board": board}))
    assert objection.startswith(text) if not text else text in objection
    assert bool(objection) == bool(text)


@pytest.mark.parametrize(
    ("address", "is_allowed"),
    [
        ("/srv/artifacts", True),
        ("/srv/artifacts/", True),
        ("/srv/artifacts/study/deep", True),
        ("file:///srv/artifacts/study", True),
        ("/srv/artifacts/../artifacts/x", True),
        ("s3://lab/studies", True),
        ("s3://lab/studies/one", True),
        ("/srv/artifacts-of-others", False),
        ("/srv", False),
        ("/srv/artifacts/../secrets", False),
        ("file:///srv/artifacts/../secrets", False),
        ("file://host/srv/artifacts", False),
        ("srv/artifacts", False),
        ("", False),
        ("s3://lab/studies-of-others", False),
        ("s3://lab", False),
        ("s3://lab/studies/../secrets", False),
        ("s3://lab/studies/%2e%2e/secrets", False),
        ("s3://lab2/studies", False),
        ("s3://user@lab/studies", False),
        ("gs://lab/studies", False),
        ("S3://lab/studies", True),
        ("simplecache::s3://lab/studies", False),
        ("zip://x::s3://lab/studies", False),
        ("s3://lab/studies?endpoint=elsewhere", False),
        ("/srv/artifacts\n", False),
        ("/srv/artifacts\x00", False),
    ],
)
def test_a_store_is_compared_by_whole_components(address: str, is_allowed: bool) -> None:
    assert is_allowed_store(address, ("/srv/artifacts", "s3://lab/studies")) is is_allowed


@pytest.mark.parametrize(
    ("address", "is_allowed"),
    [
        ("/anywhere", True),
        ("s3://any/thing", True),
        ("anywhere", False),
        ("http://elsewhere/x", False),
        ("reference://x", False),
        ("github://a:b@main", False),
        ("data:text/plain,x", False),
        ("s3:///x", False),
        ("s3://[", False),
    ],
)
def test_without_a_list_every_place_that_can_hold_artifacts_is_allowed(address: str, is_allowed: bool) -> None:
    assert is_allowed_store(address, ()) is is_allowed


def test_a_link_out_of_an_allowed_folder_is_followed_before_it_is_compared(tmp_path: Path) -> None:
    allowed, secrets = tmp_path / "allowed", tmp_path / "secrets"
    allowed.mkdir()
    secrets.mkdir()
    (allowed / "way-out").symlink_to(secrets)
    (tmp_path / "way-in").symlink_to(allowed)
    assert not is_allowed_store(str(allowed / "way-out"), [str(allowed)])
    assert is_allowed_store(str(tmp_path / "way-in"), [str(allowed)])
    assert is_allowed_store(str(allowed), [str(tmp_path / "way-in")])


def test_a_list_of_nothing_that_is_a_place_allows_nothing() -> None:
    assert not is_allowed_store("/srv", ["srv", "http://x/"])


@given(st.text(alphabet="/.%2ea:s3\\ labstudies\x00", max_size=40), st.sampled_from(["/srv/a/", "s3://lab/studies/"]))
def test_no_suffix_leads_out_of_an_allowed_place(suffix: str, allowed: str) -> None:
    if is_allowed_store(allowed + suffix, [allowed]):
        parts = (allowed + suffix).removeprefix(allowed).split("/")
        depth = 0
        for part in parts:
            depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        assert depth >= 0
