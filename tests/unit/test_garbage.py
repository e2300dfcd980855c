"""Artifacts that nobody needs go; whatever a front, a trial under way or a recent result needs stays, in any order."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import cli
import cli_study
from orchestrator.errors import UsageError
from orchestrator.needs import Needs, cutoff, needs_of
from orchestrator.study import Study
from tasks.artifacts import SWEEP_S, ArtifactStore, Stored
from tasks.garbage import check_owners, memos_of, plan, sweep
from tests.support.stored import begin, in_file, run, run_until
from tests.support.studies import check_whole
from tests.support.turns import Turns

DAY = 86400.0
HASHES = [letter * 64 for letter in "abcd"]


def stored(sha256: str = "", modified: float = 0.0, path: str = "") -> Stored:
    return Stored(path=path or f"/store/sha256/{sha256}", sha256=sha256, n_bytes=1, modified=modified)


def memo(name: str, modified: float) -> Stored:
    return stored(path=f"/store/memo/{name}.json", modified=modified)


def age(store: Path | str, seconds: float = 2 * DAY) -> None:
    """All that is in the store was written so long ago."""
    for path in Path(store).rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - seconds,) * 2)


# -- the rule


@given(
    st.sets(st.sampled_from(HASHES)),
    st.lists(st.tuples(st.sampled_from(HASHES), st.floats(0, 10))),
    st.lists(st.tuples(st.sets(st.sampled_from(HASHES), max_size=2), st.floats(0, 10))),
    st.floats(0, 10),
)
def test_what_is_needed_young_or_named_by_a_young_result_stays_and_all_else_goes(
    needed: set[str], files: list[tuple[str, float]], results: list[tuple[set[str], float]], until: float
) -> None:
    artifacts = [stored(sha256, modified, f"/store/sha256/{index}") for index, (sha256, modified) in enumerate(files)]
    memos = [memo(str(index), modified) for index, (_, modified) in enumerate(results)]
    named = {item.path: frozenset(names) for item, (names, _) in zip(memos, results, strict=True)}
    found = plan([*artifacts, *memos], named, needed, until)
    assert {*found.condemned, *found.kept} == {*artifacts, *memos}
    assert not {*found.condemned} & {*found.kept}
    young = set().union(*(names for names, modified in results if modified >= until))
    for item in artifacts:
        assert (item in found.kept) == (item.sha256 in needed | young or item.modified >= until)
    kept = {item.sha256 for item in found.kept if item.sha256}
    for item in memos:
        names = named[item.path]
        if item in found.kept and item.modified < until:  # an old result that stays can still be answered with
            assert names
            assert names & {sha256 for sha256, _ in files} <= kept
        else:
            assert item.modified >= until or not names or not names <= needed | young


def test_the_grace_period_reaches_back_to_the_oldest_attempt_under_way() -> None:
    now = datetime(2026, 3, 10, 12, tzinfo=UTC)
    idle = Needs(named=frozenset(), kept=frozenset())
    busy = Needs(named=frozenset(), kept=frozenset(), working_since="2026-03-01T12:00:00.000+00:00")
    assert cutoff([idle], now, DAY) == now.timestamp() - DAY
    assert cutoff([idle, busy], now, DAY) == now.timestamp() - 9 * DAY


def test_a_store_that_another_study_uses_is_left_alone(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    store.register("one")
    store.register("other")
    check_owners(store, {"one", "other", "third"})
    with pytest.raises(UsageError, match=r"other studies keep artifacts in .*: other\. Name them"):
        check_owners(store, {"one"})


# -- beside studies that run


class Stepped(ArtifactStore):
    """A store whose every touch of a file is a step."""

    step: Callable[[], None] = staticmethod(lambda: None)

    def _renew(self, path: str, data: bytes) -> None:
        self.step()
        super()._renew(path, data)

    def _read(self, path: str) -> bytes | None:
        self.step()
        return super()._read(path)

    def _write(self, path: str, data: bytes) -> None:
        self.step()
        super()._write(path, data)

    def _exists(self, path: str) -> bool:
        self.step()
        return super()._exists(path)

    def _listed(self, folder: str) -> list[str]:
        self.step()
        return super()._listed(folder)

    def modified(self, path: str) -> float | None:
        self.step()
        return super().modified(path)

    def remove(self, path: str) -> None:
        self.step()
        super().remove(path)


def make_old(url: str, path: str) -> None:
    filesystem, _ = fsspec.core.url_to_fs(url)
    if url.startswith("memory"):
        filesystem.store[path].created = datetime(2026, 1, 1, tzinfo=UTC)
    else:
        os.utime(path, (1e9, 1e9))


# Every way to mix six steps of the one with six of the other, every fifth of them: then they take turns to the end.
ORDERS = [
    ["writer" if index in chosen else "sweeper" for index in range(12)]
    for chosen in itertools.islice(itertools.combinations(range(12), 6), 0, None, 5)
]


@pytest.mark.parametrize("kind", ["folder", "memory"])
@pytest.mark.parametrize("act", ["put", "hold"])
def test_whoever_puts_or_holds_an_artifact_beside_its_removal_has_it_afterwards(
    tmp_path: Path, kind: str, act: str
) -> None:
    for index, order in enumerate(ORDERS):
        url = f"memory://sweeps-{act}-{index}" if kind == "memory" else str(tmp_path / str(index))
        store = ArtifactStore(url)
        sha256 = store.put_bytes(b"weights")
        make_old(url, store.path_of(sha256))
        until = time.time() - 100
        turns = race(url, act, sha256, until)
        turns.run(order)
        removed = turns.results["sweeper"]
        if turns.results["writer"] in (sha256, True):
            assert store.get_bytes(sha256) == b"weights", order
        else:
            assert (turns.results["writer"], len(removed)) == (False, 1), (order, turns.results)
        assert store._listed(f"{store._root}/sweeps") == []


def race(url: str, act: str, sha256: str, until: float) -> Turns:
    """Somebody who puts or holds an old artifact, and a sweep that is to remove it."""
    stores = {name: Stepped(url, pause=lambda seconds: None) for name in ("writer", "sweeper")}

    def write() -> Any:
        store = stores["writer"]
        return store.put_bytes(b"weights") if act == "put" else store.hold(sha256)

    def clean() -> Any:
        old = [item for item in ArtifactStore(url).entries() if item.sha256 == sha256]
        return sweep(stores["sweeper"], old, until)

    turns = Turns({"writer": write, "sweeper": clean})
    for name, store in stores.items():
        store.step = lambda name=name: turns.step(name)  # type: ignore[misc]
    return turns


def test_a_sweep_that_died_holds_nobody_up_for_ever(tmp_path: Path) -> None:
    waited: list[float] = []
    store = ArtifactStore(tmp_path, pause=waited.append)
    sha256 = store.put_bytes(b"weights")
    store.announce("dead", [store.path_of(sha256)])
    assert store.put_bytes(b"weights") == sha256
    assert sum(waited) == pytest.approx(2 * SWEEP_S, abs=1)
    waited.clear()
    store.put_bytes(b"something else")
    assert waited == []


def test_a_sweep_that_takes_long_announces_itself_anew_and_looks_again(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    paths = [store.path_of(store.put_bytes(text)) for text in (b"one", b"two", b"three")]
    age(tmp_path)
    ticks = itertools.count(step=SWEEP_S * 0.6)
    items = [item for item in store.entries() if item.sha256]
    removed = sweep(store, items, time.time() - DAY, clock=lambda: next(ticks))
    assert sorted(item.path for item in removed) == sorted(paths)
    assert store.entries() == []


# -- whole studies


def test_after_a_collection_report_export_and_the_rest_of_the_search_are_as_before(tmp_path: Path) -> None:
    study = begin(in_file(tmp_path))
    run_until(study, "stage_finished", 1, trial=3, stage="train")
    lost = ArtifactStore(study.artifacts).put_bytes(b"of a study's past")
    age(study.artifacts)
    before = {item.sha256 for item in ArtifactStore(study.artifacts).entries() if item.sha256}
    removed = cli_study.collect([study], 60.0, is_dry=False)
    gone = {item.sha256 for item in removed.condemned if item.sha256}
    assert lost in gone
    needed = needs_of(study).kept
    assert needed <= before - gone
    run(study)
    check_whole(study, 4)
    store = ArtifactStore(study.artifacts)
    for trial in study.front():
        assert trial.outcome is not None
        assert all(store.has(sha256) for sha256 in trial.outcome.artifacts.values())
    study.close()


def test_artifacts_of_trials_on_no_front_go_and_a_second_collection_finds_nothing(tmp_path: Path) -> None:
    # The larger the error's weight is, the fewer are on the front: with rom alone one is.
    study = begin(in_file(tmp_path), objectives={"rom": {}})
    run(study)
    assert len(study.front()) < 4
    age(study.artifacts)
    kept = needs_of(study).kept
    first = cli_study.collect([study], DAY, is_dry=False)
    assert {item.sha256 for item in first.condemned if item.sha256} == needs_of(study).named - kept
    left = ArtifactStore(study.artifacts).entries()
    assert {item.sha256 for item in left if item.sha256} == kept
    named = memos_of(ArtifactStore(study.artifacts), left)
    assert all(names and names <= kept for names in named.values())
    assert cli_study.collect([study], DAY, is_dry=False).condemned == ()
    study.close()


def test_what_a_worker_has_made_and_the_ledger_does_not_know_yet_stays(tmp_path: Path) -> None:
    study = begin(in_file(tmp_path))
    run_until(study, "stage_queued", 1, stage="train")
    store = ArtifactStore(study.artifacts)
    fresh = store.put_bytes(b"weights of the attempt under way")
    age(study.artifacts, -1)
    assert fresh not in {item.sha256 for item in cli_study.collect([study], 0.0, is_dry=False).condemned}
    assert store.has(fresh)
    study.close()


def test_two_studies_in_one_store_are_collected_together_or_not_at_all(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    studies: list[Study] = []
    for name in ("one", "two"):
        study = begin(in_file(tmp_path, name), seed=len(studies), objectives={"rom": {}})
        (study.folder / "artifacts.url").write_text(f"{shared}\n")
        run(study)
        studies.append(study)
    age(shared)
    with pytest.raises(UsageError, match=f"other studies keep artifacts .*{studies[1].study_id}"):
        cli_study.collect(studies[:1], DAY, is_dry=False)
    cli_study.collect(studies, DAY, is_dry=False)
    left = {item.sha256 for item in ArtifactStore(shared).entries() if item.sha256}
    assert left == needs_of(studies[0]).kept | needs_of(studies[1]).kept
    for study in studies:
        study.close()


def test_the_command_says_what_goes_and_a_dry_run_removes_nothing(tmp_path: Path) -> None:
    study = begin(in_file(tmp_path), objectives={"rom": {}})
    run(study)
    study.close()
    age(study.artifacts)
    n_before = len(ArtifactStore(study.artifacts).entries())
    words = ["study", "gc", "small", "--studies", str(tmp_path)]
    dry = CliRunner().invoke(cli.main, [*words, "--dry-run", "--json"])
    assert len(ArtifactStore(study.artifacts).entries()) == n_before
    wet = CliRunner().invoke(cli.main, [*words, "--json"])
    assert json.loads(dry.output)["artifacts"] == json.loads(wet.output)["artifacts"] > 0
    assert "0 artifacts and 0 remembered results removed" in CliRunner().invoke(cli.main, words).output
    refused = CliRunner().invoke(cli.main, [*words, "--older-than", "5s"])
    assert refused.exit_code == 2
    assert "allowed is 60 s or more" in refused.stderr
    refused = CliRunner().invoke(cli.main, [*words, "--older-than", "-1d"])
    assert refused.exit_code == 2
    assert "found '-1d'; allowed: a number above 0" in refused.stderr and "at least 60 s" in refused.stderr
