"""A study into one file while it runs, and back: into either database, under its name or another."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import cli
from orchestrator.backup import back_up, restore, verify
from orchestrator.errors import StudyError, UsageError
from orchestrator.location import Location
from orchestrator.needs import needs_of
from orchestrator.records import Event
from orchestrator.study import Study
from tasks.artifacts import ArtifactStore
from tests.support.postgres import PostgresServer, postgres_server, why_not
from tests.support.stored import begin, in_file, reader, run, run_until
from tests.support.studies import Recorder, check_whole

_NUMBERS = itertools.count()
_NEEDS_SERVER = pytest.mark.skipif(bool(why_not()), reason=why_not())
pytestmark = pytest.mark.xdist_group("postgres")

WAYS = [
    pytest.param("file", "file", ".tar.gz", id="file to file"),
    pytest.param("file", "postgresql", ".tar.zst", id="file to PostgreSQL", marks=_NEEDS_SERVER),
    pytest.param("postgresql", "file", ".tar.zst", id="PostgreSQL to file", marks=_NEEDS_SERVER),
    pytest.param("postgresql", "postgresql", ".tgz", id="PostgreSQL to PostgreSQL", marks=_NEEDS_SERVER),
]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as started:
        yield started


def url_of(kind: str, request: pytest.FixtureRequest) -> str:
    if kind == "file":
        return ""
    server: PostgresServer = request.getfixturevalue("server")
    return server.make_database(f"b{next(_NUMBERS)}")


@pytest.fixture
def half_way(tmp_path: Path) -> Study:
    """Two trials told, two under way."""
    study = begin(in_file(tmp_path))
    run_until(study, "stage_finished", 1, trial=2, stage="compress")
    return study


@pytest.fixture
def archive(half_way: Study, tmp_path: Path) -> Path:
    path = tmp_path / "small.tar.gz"
    back_up(half_way, path, reader(half_way))
    return path


def bring_back(path: Path, studies: Path, name: str = "", url: str = "") -> Study:
    return Study.open(restore(path, studies, ArtifactStore, name=name, url=url))


@pytest.mark.parametrize(("source", "target", "suffix"), WAYS)
def test_a_study_backed_up_as_it_runs_goes_on_from_there(
    tmp_path: Path, request: pytest.FixtureRequest, source: str, target: str, suffix: str
) -> None:
    archive = tmp_path / f"small{suffix}"
    seen = 0

    def take(event: Event) -> None:
        nonlocal seen
        seen += event.name == "trial_ended"
        if event.name == "trial_ended" and seen == 2:  # in the middle of the run, from another connection
            other = Study.open(place)
            back_up(other, archive, reader(other))
            other.close()

    place = Location(folder=tmp_path / "small", name="small", url=url_of(source, request))
    study = begin(place)
    run(study, Recorder(take))
    restored = bring_back(archive, tmp_path / "there", url=url_of(target, request))
    assert restored.study_id == study.study_id
    told = [trial for trial in restored.trials() if trial.told is not None]
    assert 0 < len(told) < 4
    assert [trial.outcome for trial in told] == [study.trials()[trial.number].outcome for trial in told]
    run(restored)
    check_whole(restored, 4)
    assert [trial.params for trial in restored.trials()[: len(told)]] == [trial.params for trial in told]
    assert all(ArtifactStore(restored.artifacts).has(sha256) for sha256 in needs_of(restored).named)
    study.close()
    restored.close()


def test_rows_after_a_restore_into_postgresql_get_new_numbers(
    tmp_path: Path, request: pytest.FixtureRequest, archive: Path
) -> None:
    if why_not():
        pytest.skip(why_not())
    restored = bring_back(archive, tmp_path / "there", url=url_of("postgresql", request))
    n_events = len(restored.events())
    run(restored)
    assert len(restored.events()) > n_events
    again = tmp_path / "again.tar.gz"
    back_up(restored, again, reader(restored))
    restored.close()
    copy = bring_back(again, tmp_path / "copy")
    assert len(copy.trials()) == 4
    copy.close()


def test_under_another_name_it_is_another_study(tmp_path: Path, half_way: Study, archive: Path) -> None:
    restored = bring_back(archive, tmp_path, name="again")
    assert (restored.file.name, restored.optuna.study_name) == ("again", "again")
    assert restored.study_id != half_way.study_id
    assert (restored.folder / "study.yaml").read_text(encoding="utf-8").startswith("name: again\n")
    run(restored)
    run(half_way)
    check_whole(restored, 4)
    check_whole(half_way, 4)
    restored.close()


def test_artifacts_of_the_fronts_and_of_what_is_under_way_are_enough_to_go_on(tmp_path: Path) -> None:
    study = begin(in_file(tmp_path), objectives={"rom": {}})
    run_until(study, "stage_finished", 1, trial=3, stage="train")
    whole = back_up(study, tmp_path / "whole.tar.gz", reader(study))
    front = back_up(study, tmp_path / "front.tar.gz", reader(study), front_only=True)
    assert front.n_artifacts == len(needs_of(study).kept) < whole.n_artifacts == len(needs_of(study).named)
    restored = bring_back(tmp_path / "front.tar.gz", tmp_path / "there")
    run(restored)
    check_whole(restored, 4)
    restored.close()
    study.close()


def test_artifacts_that_are_gone_are_named_and_the_rest_is_kept(half_way: Study, tmp_path: Path) -> None:
    lost = sorted(needs_of(half_way).named)[0]
    store = ArtifactStore(half_way.artifacts)
    store.remove(store.path_of(lost))
    made = back_up(half_way, tmp_path / "b.tar.gz", reader(half_way))
    assert made.missing == verify(tmp_path / "b.tar.gz").missing == (lost,)
    restored = bring_back(tmp_path / "b.tar.gz", tmp_path / "there")
    assert lost in needs_of(restored).named
    restored.close()


def test_artifacts_go_where_those_of_a_new_study_would(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFRONT_ARTIFACTS", str(tmp_path / "shared"))
    restored = bring_back(archive, tmp_path / "there")
    assert restored.artifacts == f"{tmp_path}/shared/small-{restored.study_id[:8]}"
    assert all(ArtifactStore(restored.artifacts).has(sha256) for sha256 in needs_of(restored).kept)
    restored.close()


def test_nothing_is_overwritten(half_way: Study, archive: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"small\.tar\.gz exists"):
        back_up(half_way, archive, reader(half_way))
    with pytest.raises(UsageError, match=r"small exists and is not empty.*--name"):
        restore(archive, tmp_path, ArtifactStore)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "small.tar.gz"]
    assert half_way.trials()


@pytest.mark.parametrize("name", ["../up", ".hidden", "a/b", "x" * 101])
def test_a_name_that_is_none_is_refused(archive: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be called"):
        restore(archive, tmp_path / "there", ArtifactStore, name=name)
    assert list((tmp_path / "there").iterdir()) == []


def test_an_archive_that_was_cut_off_is_refused_wherever_the_cut_is(archive: Path, tmp_path: Path) -> None:
    content = archive.read_bytes()
    cut = tmp_path / "cut.tar.gz"
    for length in (*range(0, len(content), len(content) // 25), len(content) - 8, len(content) - 1):
        cut.write_bytes(content[:length])
        with pytest.raises(StudyError, match=r"cut\.tar\.gz: .*(cut off|damaged)"):
            restore(cut, tmp_path / "there", ArtifactStore)
    assert list((tmp_path / "there").iterdir()) == []


def rewrite(archive: Path, change: dict[str, bytes | None], extra: tuple[str, bytes] | None = None) -> Path:
    """The same archive with members replaced, left out or added."""
    target = archive.with_name("changed.tar.gz")
    with tarfile.open(archive) as old, tarfile.open(target, "w:gz") as new:
        for entry in old.getmembers():
            data = old.extractfile(entry).read()  # type: ignore[union-attr]
            kept = change.get(entry.name, data) if entry.name in change else data
            if kept is not None:
                add(new, entry.name, kept)
            if extra and entry.name == "study.db":
                add(new, *extra)
    return target


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def members_of(archive: Path) -> list[str]:
    with tarfile.open(archive) as opened:
        return opened.getnames()


def test_an_altered_member_is_named(archive: Path, tmp_path: Path) -> None:
    artifact = next(name for name in members_of(archive) if name.startswith("artifacts/"))
    for member in (artifact, "study.yaml", "study.db"):
        changed = rewrite(archive, {member: b"something else"})
        with pytest.raises(StudyError, match=f"{member} was altered"):
            restore(changed, tmp_path / "there", ArtifactStore)
        with pytest.raises(StudyError, match=f"{member} is missing or unknown"):
            verify(rewrite(archive, {member: None}))
    with pytest.raises(StudyError, match="without a manifest"):
        verify(rewrite(archive, {"manifest.json": None}))


@pytest.mark.parametrize(
    "name", ["../study.db", "/etc/passwd", "artifacts/../x", "logs/a.txt", f"artifacts/{'A' * 64}"]
)
def test_a_member_that_no_backup_has_is_refused(archive: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(StudyError, match="which no backup of a study does"):
        restore(rewrite(archive, {}, (name, b"x")), tmp_path / "there", ArtifactStore)


def test_a_manifest_of_another_version_or_program_is_refused(archive: Path, tmp_path: Path) -> None:
    with tarfile.open(archive) as opened:
        manifest = json.load(opened.extractfile("manifest.json"))  # type: ignore[arg-type]
    for change, part in (({"version": 9}, "of version 9"), ({"format": "other"}, "no backup of a study")):
        changed = rewrite(archive, {"manifest.json": json.dumps({**manifest, **change}).encode()})
        with pytest.raises(StudyError, match=part):
            verify(changed)
    other = tmp_path / "other.tar.gz"
    other.write_bytes(gzip.compress(b"no archive at all" * 100))
    with pytest.raises(StudyError, match="no backup"):
        verify(other)
    wrong = CliRunner().invoke(cli.main, ["study", "restore", str(other), "--studies", str(tmp_path / "there")])
    assert wrong.exit_code == 2
    with pytest.raises(UsageError, match="does not exist"):
        verify(tmp_path / "nothing.tar.gz")


def test_a_failed_restore_leaves_nothing_and_can_be_repeated(
    archive: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if why_not():
        pytest.skip(why_not())
    url = url_of("postgresql", request)

    class Full(ArtifactStore):
        def put_bytes(self, data: bytes) -> str:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        restore(archive, tmp_path / "there", Full, url=url)
    assert list((tmp_path / "there").iterdir()) == []
    bring_back(archive, tmp_path / "there", url=url).close()
    shutil.rmtree(tmp_path / "there")
    with pytest.raises(UsageError, match=r"PostgreSQL .* holds a study small; nothing is overwritten"):
        restore(archive, tmp_path / "there", ArtifactStore, url=url)


def test_the_commands_do_it(half_way: Study, tmp_path: Path) -> None:
    half_way.close()
    runner, file = CliRunner(), tmp_path / "digits.tar.zst"
    words = ["--studies", str(tmp_path)]
    made = runner.invoke(cli.main, ["study", "backup", "small", "--to", str(file), *words, "--json"])
    assert json.loads(made.output)["study"] == "small"
    checked = runner.invoke(cli.main, ["study", "restore", str(file), "--check"])
    assert "is whole: study small of 20" in checked.output
    done = runner.invoke(cli.main, ["study", "restore", str(file), "--name", "again", *words])
    assert done.output.splitlines()[0] == f"again  in {tmp_path}/again/study.db"
    assert "2/4 trials told" in runner.invoke(cli.main, ["status", "again", *words]).output
    wrong = runner.invoke(cli.main, ["study", "backup", "small", "--to", "small.zip", *words])
    assert (wrong.exit_code, "allowed are names that end in .tar.gz" in wrong.stderr) == (2, True)
