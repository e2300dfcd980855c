"""Studies in a PostgreSQL that is really there: run, locked, interrupted, and looked at."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
import yaml
from click.testing import CliRunner

import cli
from cli_dashboard import ShownStudies
from orchestrator import postgres
from orchestrator.errors import StudyError, UsageError
from orchestrator.location import Location, find_study, location_of, studies_there
from orchestrator.locks import StudyTaken
from orchestrator.postgres import DatabaseAway, check_url, schema_of
from orchestrator.reading import StudyReader
from orchestrator.registry import Entry, LeaseLost, Registry
from orchestrator.study import Study
from tests.support.lab import submission
from tests.support.postgres import PASSWORD, PostgresServer, postgres_server, why_not
from tests.support.stored import begin, in_file, run, run_until
from tests.support.studies import FAKE_STAGES, Recorder, check_whole, study_file

pytestmark = [pytest.mark.skipif(bool(why_not()), reason=why_not()), pytest.mark.xdist_group("postgres")]

_HOLD = """
import sys
from pathlib import Path
from orchestrator.location import Location
from orchestrator.study import Study
study = Study.open(Location(folder=Path(sys.argv[1]), name=sys.argv[2], url=sys.argv[3]))
with study.locked():
    print("held", flush=True)
    sys.stdin.read()
"""


ROOT = Path(__file__).parents[2]
_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as started:
        yield started


@pytest.fixture
def url(server: PostgresServer) -> str:
    """A database of the test's own."""
    return server.make_database(f"t{next(_NUMBERS)}")


@pytest.fixture
def place(url: str, tmp_path: Path) -> Location:
    return Location(folder=tmp_path / "small", name="small", url=url)


def elsewhere(location: Location, folder: Path) -> Location:
    """The same study as another host sees it: another folder, the same database."""
    return Location(folder=folder / location.name, name=location.name, url=location.url)


def test_a_study_runs_as_it_does_in_a_file(place: Location, tmp_path: Path) -> None:
    study, in_a_file = begin(place), begin(in_file(tmp_path / "other"))
    assert run(study) == run(in_a_file)
    check_whole(study, 4)
    assert [trial.params for trial in study.trials()] == [trial.params for trial in in_a_file.trials()]
    assert not (place.folder / "study.db").exists()
    with study.engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
    study.close()
    in_a_file.close()


def test_studies_lie_beside_each_other_each_in_its_schema(place: Location, tmp_path: Path) -> None:
    names = ["small", "Small", "small.1", "small_1", "s" * 100]
    for name in names:
        study = begin(Location(folder=tmp_path / name, name=name, url=place.url))
        study.ledger.record_candidate(len(name), {}, 1, "2026-01-01T00:00:00")
        study.close()
    assert [location.name for location in studies_there(tmp_path, place.url)] == sorted(names)
    for name in names:
        study = Study.open(find_study(name, tmp_path, place.url))
        assert (study.file.name, [trial.number for trial in study.trials()]) == (name, [len(name)])
        study.close()
    with pytest.raises(UsageError, match=r"no study 'none'; .* in PostgreSQL .*: .*Small"):
        find_study("none", tmp_path, place.url)


def test_it_is_looked_at_from_another_host_while_it_runs(place: Location, tmp_path: Path) -> None:
    study = begin(place)
    run_until(study, "trial_ended", 2)
    with study.locked():
        reader = StudyReader.open(elsewhere(place, tmp_path / "there"))
        assert [trial.state for trial in reader.trials()].count("complete") == 1 + bool(reader.front())
        reader.close()
    study.close()


def test_one_process_runs_it_wherever_the_others_are(place: Location, tmp_path: Path) -> None:
    study, other = begin(place), Study.open(elsewhere(place, tmp_path / "there"))
    with study.locked():
        with pytest.raises(StudyTaken, match=r"being run by process \d+ on .*free in \d+ s") as caught:
            other.locked().__enter__()
        assert 0 < (caught.value.left_s or 0) <= 30
    with other.locked(), pytest.raises(StudyTaken):
        study.locked().__enter__()
    with study.locked():
        pass
    study.close()
    other.close()


def test_a_holder_that_was_killed_on_this_machine_is_replaced_at_once(place: Location) -> None:
    study = begin(place)
    words = [sys.executable, "-c", _HOLD, str(place.folder), place.name, place.url]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StudyTaken):
            study.locked().__enter__()
        holder.kill()
        holder.wait(10)
        with study.locked():
            pass
    study.close()


def test_a_holder_on_another_machine_is_replaced_when_its_lease_is_over(place: Location, tmp_path: Path) -> None:
    study, other = begin(place), Study.open(elsewhere(place, tmp_path / "there"))
    with study.locked():
        change(other, "machine = 'far boot pid'")
        with pytest.raises(StudyTaken, match="on far"):
            other.locked().__enter__()
        change(other, "deadline = deadline - 31")
        with other.locked():
            with pytest.raises(StudyTaken, match=r"was taken over by process .*Nothing is lost"):
                study.ledger.record_candidate(0, {}, 1, "2026-01-01T00:00:00")
            assert other.trials() == []
    study.close()
    other.close()


def change(study: Study, what: str) -> None:
    with study.engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE edgefront_holder SET {what}"))


def test_a_holder_whose_lease_ran_out_unseen_goes_on_with_it(place: Location, tmp_path: Path) -> None:
    """After a minute without the database, say, in which nobody else came."""
    study, other = begin(place), Study.open(elsewhere(place, tmp_path / "there"))
    with study.locked():
        change(other, "deadline = 0")
        study.ledger.record_candidate(0, {}, 1, "2026-01-01T00:00:00")
        with pytest.raises(StudyTaken):
            other.locked().__enter__()
    study.close()
    other.close()


def test_a_server_that_crashes_and_comes_back_costs_nothing(server: PostgresServer, place: Location) -> None:
    seen = 0

    def crash(event: Any) -> None:
        nonlocal seen
        seen += 1
        if seen in (3, 20, 33):
            server.stop()
            server.start()

    study = begin(place)
    assert run(study, Recorder(crash)).told == 4
    check_whole(study, 4)
    study.close()


@pytest.mark.parametrize("is_written", [True, False], ids=["written", "not written"])
@pytest.mark.parametrize("nth", [2, 16])
def test_a_connection_that_breaks_in_a_commit_costs_nothing(place: Location, nth: int, is_written: bool) -> None:
    study = begin(place)
    n_commits = 0

    def break_it(connection: sa.Connection) -> None:
        nonlocal n_commits
        n_commits += 1
        if n_commits % 31 == nth:
            raw = connection.connection.dbapi_connection
            assert raw is not None
            if is_written:
                raw.commit()
            raw.close()

    sa.event.listen(study.engine, "commit", break_it)
    sink = Recorder()
    assert run(study, sink).told == 4
    sa.event.remove(study.engine, "commit", break_it)
    assert sink.named("database_lost")
    check_whole(study, 4)
    study.close()


def test_a_server_that_stays_away_ends_the_run_which_goes_on_later(
    server: PostgresServer, place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    def go(event: Any) -> None:
        if event.name == "trial_ended":
            server.stop()

    study = begin(place)
    with monkeypatch.context() as patch:
        patch.setattr(postgres, "PATIENCE_S", 0.0)
        with pytest.raises(DatabaseAway, match="the same command goes on when it is back") as caught:
            run(study, Recorder(go))
    assert PASSWORD not in str(caught.value)
    study.close()
    server.start()
    again = Study.open(place)
    assert run(again).told == 4
    check_whole(again, 4)
    again.close()


def test_the_command_line_finds_it_and_never_shows_the_password(
    server: PostgresServer, place: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = begin(place)
    run(study)
    study.close()
    words = ["--studies", str(tmp_path)]
    runner = CliRunner()
    shown = runner.invoke(cli.main, ["status", "small", *words, "--database", place.url, "--json"])
    assert json.loads(shown.output)["told"] == 4
    monkeypatch.setenv("EDGEFRONT_DATABASE", place.url)
    assert "4/4 trials told" in runner.invoke(cli.main, ["status", "small", *words]).output
    assert runner.invoke(cli.main, ["report", "small", *words]).output.strip() == str(place.folder / "report.html")
    wrong = place.url.replace("%3A", "x")
    for address, part in ((wrong, "password authentication failed"), (server.url("nowhere"), "does not exist")):
        failed = runner.invoke(cli.main, ["status", "small", *words, "--database", address])
        assert failed.exit_code == 2
        assert part in failed.stderr
        assert "Correct EDGEFRONT_DATABASE" in failed.stderr
        assert not {part for part in ("pass:", "pass%", "passx", "w@rd", "w%40rd") if part in failed.stderr}


def test_a_lab_is_run_by_the_option_alone(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("EDGEFRONT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("EDGEFRONT_IMPORT_PATH", "")  # the command line adds to it
    monkeypatch.setenv("EDGEFRONT_STAGES", FAKE_STAGES)
    path = tmp_path / "small.yaml"
    space = {"network.width": {"type": "int", "low": 4, "high": 40}, "network.depth": 2}
    path.write_text(yaml.safe_dump(study_file(space=space).to_json()), encoding="utf-8")
    words = ["--studies", str(tmp_path), "--database", url]

    def call(*arguments: str) -> str:
        done = CliRunner().invoke(cli.main, [*arguments, *words])
        assert done.exit_code == 0, done.output
        return done.stdout

    assert "small is submitted" in call("submit", str(path))
    assert "it has not begun" in call("status", "small")
    assert call("pause", "small") == "small is paused\n"
    assert "goes on" in call("resume", "small")
    assert "taken over when it runs next" in call("edit", "small", "--trials", "5")
    assert not (tmp_path / "lab.db").exists()
    command = [sys.executable, "-m", "cli", "orchestrator", "--metrics-port", "0", "--most", "2", *words]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}) as service:
        try:
            watched = call("watch", "small")
        finally:
            service.terminate()
    assert "study small: 5 trials\n[1/5] trial" in watched
    assert not (tmp_path / "small" / "study.db").exists()
    assert call("status").splitlines()[1].split()[:3] == ["small", "finished", "5/5"]
    assert "finished since" in call("status", "small")
    assert "edited: 5 trials instead of 4" in call("logs", "small")
    with closing(ShownStudies(tmp_path, url)) as shown:
        assert shown.look("small")["state"]["word"] == "ended"


def test_a_user_who_may_not_make_a_schema_is_told_what_to_grant(
    server: PostgresServer, place: Location, tmp_path: Path
) -> None:
    with server.connection() as connection:
        connection.execute("DROP ROLE IF EXISTS guest")
        connection.execute("CREATE ROLE guest LOGIN PASSWORD 'x'")
    url = place.url.replace(place.url.partition("//")[2].partition("@")[0], "guest:x")
    with pytest.raises(StudyError, match=r"permission denied .*GRANT CREATE ON DATABASE \w+ TO guest"):
        begin(Location(folder=tmp_path / "small", name="small", url=url))


def test_optuna_opens_it_by_the_address_in_the_documentation(server: PostgresServer, place: Location) -> None:
    study = begin(place)
    run(study)
    study.close()
    address = place.url.replace("postgresql://", "postgresql+psycopg://")
    storage = optuna.storages.RDBStorage(f"{address}&options=-csearch_path%3D{schema_of('small')}")
    assert len(optuna.load_study(study_name="small", storage=storage).trials) == 4
    storage.engine.dispose()


def test_a_study_of_that_name_in_a_file_is_not_begun_anew_in_the_database(place: Location, tmp_path: Path) -> None:
    begin(in_file(tmp_path)).close()
    with pytest.raises(UsageError, match=r"was begun in .*study\.db, and a database is given"):
        location_of(tmp_path, "small", place.url)
    assert find_study("small", tmp_path, place.url).url == ""


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("mysql://lab:secret@host/db", "found an address of mysql"),
        ("postgresql://lab:secret@host", "without the name of a database"),
        ("lab:secret", "found no address of a database"),
    ],
)
def test_an_address_that_is_none_is_told_without_showing_it(text: str, part: str) -> None:
    with pytest.raises(UsageError, match=part) as caught:
        check_url(text)
    assert "secret" not in str(caught.value)
    assert "postgresql://USER:PASSWORD@HOST/DATABASE" in str(caught.value)


def test_a_list_in_the_database_that_many_open_for_the_first_time_at_once_is_made_once(url: str) -> None:
    gate = threading.Barrier(8)

    def submit(number: int) -> None:
        gate.wait(10)
        opened = Registry(url)
        opened.submit(submission(f"s{number}"))
        opened.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(submit, range(8)))
    opened = Registry(url)
    assert {entry.name for entry in opened.entries()} == {f"s{number}" for number in range(8)}
    opened.close()


def test_of_many_orchestrators_on_one_list_in_the_database_one_takes_a_study(url: str) -> None:
    first = Registry(url)
    first.submit(submission("one"))
    at, others = "2030-01-01T00:00:00+00:00", [Registry(url) for _ in range(8)]
    for turn in range(1, 6):
        seen, gate = [other.entry("one") for other in others], threading.Barrier(len(others))

        def take(number: int, seen: list[Entry] = seen, gate: threading.Barrier = gate) -> int | None:
            gate.wait(10)
            return others[number].take(seen[number], f"orchestrator-{number}", at)

        with ThreadPoolExecutor(len(others)) as pool:
            tokens = list(pool.map(take, range(len(others))))
        winners = [number for number, token in enumerate(tokens) if token is not None]
        assert [tokens[number] for number in winners] == [turn]
        assert first.entry("one").owner == f"orchestrator-{winners[0]}"
        with pytest.raises(LeaseLost):
            first.check_held("one", turn - 1)
        first.check_held("one", turn)
    for opened in (first, *others):
        opened.close()


def test_the_live_page_shows_studies_of_the_database_and_of_the_folder(place: Location, tmp_path: Path) -> None:
    study, in_a_file = begin(place), begin(Location(folder=tmp_path / "filed", name="filed"))
    run(study)
    with closing(ShownStudies(tmp_path, place.url)) as shown:
        assert sorted(shown.names()) == ["filed", "small"]
        assert shown.look("small")["told"] == 4
        assert shown.look("filed")["told"] == 0
        assert PASSWORD not in json.dumps(shown.look("small"))
        with study.engine.begin() as connection:
            connection.exec_driver_sql(f"DROP SCHEMA {schema_of(place.name)} CASCADE")
        study.close()
        with pytest.raises(UsageError, match="no study 'small'"):
            shown.look("small")
        begin(place).close()
        assert shown.look("small")["told"] == 0, "it shows the study that was there before"
    in_a_file.close()
