"""The command line: what it accepts, what it says, and how it ends."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

import cli
import cli_worker
from mcu_agent.errors import InventoryError
from orchestrator.errors import OrchestratorError, UsageError

ROOT = Path(__file__).parents[2]
PACKAGES = ("mcu_agent", "orchestrator", "tasks")
GENERATED_DOCS = ROOT / "docs"


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, list(arguments))


@pytest.fixture
def study_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEFRONT_IMPORT_PATH", "")  # the command line adds to it
    path = tmp_path / "quick.yaml"
    path.write_text(
        """\
name: quick
dataset: {source: digits}
network: {family: mlp}
space:
  network.width: {type: int, low: 4, high: 8}
board: nrf52-dk
objectives: {error: {}, rom: {limit: 64 KiB}}
budget: {trials: 3}
""",
        encoding="utf-8",
    )
    return path


def test_help_comes_at_once_because_nothing_heavy_is_loaded() -> None:
    command = [sys.executable, "-X", "importtime", "-c", "import cli; cli.main(['--help'])"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30)
    assert done.returncode == 0, done.stderr
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "optuna", "numpy", "rich", "celery", "onnx", "sqlalchemy", "plotly", "pydantic"}


def test_a_study_file_is_explained_in_words(study_file: Path) -> None:
    result = call("study", "check", str(study_file))
    assert result.exit_code == 0, result.output
    assert "network.width" in result.output
    assert "64 KiB" in result.output
    assert "1079 train" in result.output


def test_every_mistake_in_a_study_file_is_told_with_its_line_and_exit_code_2(study_file: Path) -> None:
    study_file.write_text(study_file.read_text().replace("digits", "digitz").replace("nrf52-dk", "nrf53"))
    result = call("study", "check", str(study_file))
    assert result.exit_code == 2
    assert f"{study_file}:2: dataset.source" in result.stderr
    assert f"{study_file}:6: board" in result.stderr
    assert "Traceback" not in result.stderr


def test_options_that_only_show_when_tried_are_mistakes_in_the_study_file(study_file: Path) -> None:
    text = study_file.read_text() + "sampler: {name: ars, options: {rollouts: 3}}\n"
    study_file.write_text(text.replace("low: 4, high: 8", "low: 4, high: 100000000"))
    result = call("study", "check", str(study_file))
    assert result.exit_code == 2
    assert ":9: sampler.options" in result.stderr
    assert ": space.network.width.high: found 100000000" in result.stderr


def test_data_is_found_beside_the_study_file(study_file: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(study_file.parent / "mine.npz", x=rng.random((60, 1, 4, 4), np.float32), y=np.arange(60) % 3)
    study_file.write_text(study_file.read_text().replace("source: digits", "source: mine.npz"))
    result = call("study", "check", str(study_file))
    assert "3 classes" in result.output, result.stderr


def test_a_missing_study_file_is_a_usage_error() -> None:
    result = call("run", "no-such-file.yaml")
    assert result.exit_code == 2
    assert result.stderr.startswith("edgefront: ")
    assert "no-such-file.yaml" in result.stderr


def test_a_missing_study_names_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "study.db").write_bytes(b"")
    result = call("status", "digit", "--studies", str(tmp_path))
    assert result.exit_code == 2
    assert f"no study 'digit' (did you mean 'digits'?); in the folder {tmp_path}: digits" in result.stderr


def test_a_corrupt_study_is_an_error_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "study.db").write_bytes(b"this is no database at all, but it is long enough to look at" * 20)
    result = call("status", "digits", "--studies", str(tmp_path))
    assert result.exit_code == 1
    assert "study.db" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "error", [OrchestratorError("broker away"), OSError(28, "No space left on device", "study.db")]
)
def test_errors_of_a_run_are_one_message_and_exit_code_1(
    error: Exception, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "run_file", fail)
    result = call("run", str(study_file))
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(("edgefront: broker away", "edgefront: study.db: No space left on device"))
    assert isinstance(call("--debug", "run", str(study_file)).exception, type(error))


def test_workers_are_given_by_kind() -> None:
    assert cli.parse_workers("train=2, boards=3") == {"train_workers": 2, "boards": 3}
    assert cli.parse_workers("") == {}


@pytest.mark.parametrize("text", ["2", "train", "train=0", "train=1000000", "train=two", "gpu=1"])
def test_other_workers_are_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(UsageError, match="allowed are train=N, build=N and boards=N"):
        cli.parse_workers(text)


def test_queues_are_checked_before_a_worker_starts() -> None:
    assert cli_worker.parse_queues("build, board.nrf52-dk") == ["build", "board.nrf52-dk"]
    for text in ("", "training", "board"):
        with pytest.raises(UsageError, match=r"allowed are build, train and board\.KIND"):
            cli_worker.parse_queues(text)
    result = call("worker", "--queues", "board.nrf53-dk")
    assert result.exit_code == 2
    assert "known kinds: nrf52-dk" in result.stderr


def test_a_worker_says_what_it_serves_and_where_without_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks import crew

    monkeypatch.setenv("EDGEFRONT_BROKER_URL", "redis://:sesame@lab:6379/0")
    monkeypatch.setattr(crew, "check_reachable", lambda url, is_needed: None)
    monkeypatch.setattr(crew, "check_queues", lambda url, queues: None)
    monkeypatch.setattr(crew.Crew, "serve", lambda self: 0)
    result = call("worker", "--queues", "train,build", "--concurrency", "2")
    assert result.exit_code == 0
    assert "serving train, build of redis://:***@lab:6379/0, 2 at once" in result.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--memory-limit", "8 parsecs"), "--memory-limit: found '8 parsecs'; allowed: a number above 0, or"),
        (
            ("--time-limit", "-3s"),
            "--time-limit: found '-3s'; allowed: a number above 0, or one with a unit: s, ms, us",
        ),
        (("--memory-limit", "0"), "--memory-limit: found '0'; allowed: a number above 0"),
        (("--time-limit", "9h"), "--time-limit: found 32400 s; allowed are up to 21600"),
        (("--gpus", "0", "--concurrency", "2"), "--gpus goes with --concurrency 1"),
        (("--gpus", ","), "--gpus: none given"),
    ],
)
def test_limits_and_gpus_that_no_worker_can_have_are_refused(
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], said: str
) -> None:
    monkeypatch.setenv("EDGEFRONT_BROKER_URL", "redis://localhost:1/0")
    result = call("worker", "--queues", "train", *options)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_worker_without_a_broker_is_not_told_that_one_is_started_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFRONT_BROKER_URL", "redis://localhost:1/0")
    result = call("worker", "--queues", "train")
    assert "no Redis answers at redis://localhost:1/0" in result.stderr
    assert "by itself" not in result.stderr


@pytest.mark.parametrize(
    ("text", "unit", "amount"),
    [("8GiB", "byte", 8 * 1024**3), ("2 GB", "byte", 2e9), ("512 MiB", "byte", 512 * 1024**2), ("2h", "s", 7200.0)],
)
def test_a_limit_is_given_as_the_help_gives_it(text: str, unit: str, amount: float) -> None:
    assert cli_worker.parse_limit("--limit", text, unit) == amount


def test_the_agent_refuses_a_rack_file_with_a_mistake(tmp_path: Path) -> None:
    rack = tmp_path / "rack.toml"
    rack.write_text('[[board]]\nid = "a"\nkind = "nrf52-dk"\ndriver = "telepathy"\n')
    result = call("agent", "--rack", str(rack))
    assert result.exit_code == 2
    assert "virtual" in result.stderr


def test_boards_are_listed_for_people_and_for_scripts(tmp_path: Path) -> None:
    assert "nRF52840" in call("boards").output
    listed = json.loads(call("boards", "--json").output)
    assert {"name": "nrf52-dk", "flash_bytes": 512 * 1024}.items() <= listed[0].items()
    rack = tmp_path / "rack.toml"
    rack.write_text('[[board]]\nid = "bench"\nkind = "nrf52-dk"\ndriver = "virtual"\ncount = 2\n')
    boards = json.loads(call("boards", "--rack", str(rack), "--json").output)
    assert [(board["board"], board["state"]) for board in boards] == [("bench-1", "idle"), ("bench-2", "idle")]


def test_the_schema_is_one_that_editors_understand() -> None:
    schema = json.loads(call("study", "schema").output)
    assert set(schema["required"]) >= {"name", "dataset", "network", "space", "objectives", "budget"}
    assert schema["oneOf"] == [{"required": ["board"]}, {"required": ["boards"]}]


def test_the_doctor_says_by_its_exit_code_whether_something_required_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = json.loads(call("doctor", "--json", "--studies", str(tmp_path)).output)
    assert {"name", "ok", "found", "remedy", "required", "purpose"} == set(findings[0])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = call("doctor", "--studies", str(tmp_path))
    assert result.exit_code == 1
    assert "pip install torch" in result.output


def test_the_first_interrupt_asks_the_run_to_stop_and_the_second_ends_it() -> None:
    from rich.console import Console

    before = cli.signal.getsignal(cli.signal.SIGINT)  # ignored where the tests run in the background of a shell
    with cli._stopping(Console(quiet=True)) as stop:
        os.kill(os.getpid(), cli.signal.SIGINT)
        assert stop.wait(1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), cli.signal.SIGINT)
            stop.clear()
            stop.wait(1)
    assert cli.signal.getsignal(cli.signal.SIGINT) is before


def all_commands(group: click.Group, words: tuple[str, ...] = ("edgefront",)) -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found += all_commands(command, (*words, name))
        else:
            found.append((" ".join((*words, name)), command))
    return found


@pytest.mark.parametrize(("words", "command"), all_commands(cli.main))
def test_every_command_has_help_and_an_example(words: str, command: click.Command) -> None:
    assert command.help
    assert re.search(rf"Example.*{words}", command.help, re.DOTALL)


def test_the_generated_parts_of_the_documentation_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(GENERATED_DOCS))
    import generate

    pages = generate.pages()
    assert {page.name for page in pages} >= {"cli.md", "metrics.md", "study-file.md"}
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert generate.render(text) == text, f"{page.name} is behind; run `make docs`"


def test_every_link_in_the_documentation_leads_somewhere() -> None:
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")]:
        for link in re.findall(r"\]\((?!https?://)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.relative_to(ROOT)} links to {link}"


def test_a_full_disk_is_said_with_the_file_and_what_to_do() -> None:
    error = OSError(errno.ENOSPC, "No space left on device", "studies/mine/report.html")
    text = cli._os_error_text(error)
    assert text.startswith("studies/mine/report.html: No space left on device; free some space")
    assert cli._os_error_text(OSError(errno.EIO, "Input/output error", "x")) == "x: Input/output error"


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/ro/.restoring-4b_gxvb1/study", "/ro"),
        ("/ro/x.tar.gz.half", "/ro"),
        ("/proc/x/.backup-qwq9tfbb", "/proc/x"),
        ("/ro/study", "/ro/study"),
    ],
)
def test_a_place_that_cannot_be_written_is_named_as_its_user_knows_it(path: str, shown: str) -> None:
    text = cli._os_error_text(OSError(errno.EROFS, "Read-only file system", path))
    assert (
        text
        == f"{shown}: Read-only file system; name another place (--studies, --to), or make this one writable for you"
    )


def test_a_place_that_cannot_be_used_is_the_users_mistake() -> None:
    done = call("submit", "examples/digits.yaml", "--studies", "/proc/nowhere")
    assert done.exit_code == 2
    assert "/proc/nowhere: No such file or directory; name a place that exists" in done.stderr


def test_a_terminal_that_knows_few_characters_gets_question_marks_for_the_rest() -> None:
    code = "import cli; cli.main(['boards'], standalone_mode=False)"
    surroundings = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", code + "; print('12 \\u00b5s')"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, env=surroundings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("12 ?s\n")


@pytest.mark.parametrize("command", ["run", "submit"])
@pytest.mark.parametrize(
    ("rack", "message"),
    [
        ("", "none.toml: cannot be read"),
        ("[[board]]\nid = 'b'\n", "none.toml:1: board 1: kind: missing"),
        (
            "[[board]]\nid = 'b'\nkind = 'nrf5340-dk'\ndriver = 'virtual'\n",
            "has no board of kind nrf52-dk, which the study is for; it has nrf5340-dk",
        ),
    ],
)
def test_a_wrong_rack_file_is_told_before_a_study_begins(
    study_file: Path, monkeypatch: pytest.MonkeyPatch, command: str, rack: str, message: str
) -> None:
    file = study_file.with_name("none.toml")
    if rack:
        file.write_text(rack)
    monkeypatch.delenv("EDGEFRONT_BROKER_URL", raising=False)
    monkeypatch.setenv("EDGEFRONT_RACK", str(file))
    studies = study_file.parent / "studies"
    result = call(command, str(study_file), "--studies", str(studies))
    assert result.exit_code == 2
    assert "EDGEFRONT_RACK: " in result.stderr
    assert message in result.stderr
    assert not studies.exists()


def test_the_rack_file_of_a_host_with_agents_elsewhere_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFRONT_RACK", "/gone/rack.toml")
    monkeypatch.setenv("EDGEFRONT_BROKER_URL", "redis://lab:6379/0")
    cli.check_rack_for(("nrf52-dk",))
    with pytest.raises(InventoryError, match=r"EDGEFRONT_RACK: /gone/rack\.toml: cannot be read"):
        cli.check_rack_for(("nrf52-dk",), is_inline=True)


def test_a_reader_that_has_seen_enough_is_no_error_worth_a_message() -> None:
    command = [sys.executable, "-c", "import cli; cli.main()", "boards"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=30)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


# What Edgefront sets for processes of its own.
_OWN_VARIABLES = {
    "EDGEFRONT_AGENT_CHANNEL",
    "EDGEFRONT_LAB_REGISTRY",
    "EDGEFRONT_TIME_LIMIT_S",
    "EDGEFRONT_TRUST",
    "EDGEFRONT_WARM_STAGES",
    "EDGEFRONT_WORKER",
    "EDGEFRONT_WORKER_CHANNEL",
}


def test_the_manual_lists_every_environment_variable_that_is_read() -> None:
    files = [*ROOT.glob("cli*.py"), *(file for name in PACKAGES for file in (ROOT / name).rglob("*.py"))]
    read = {name for file in files for name in re.findall(r'"(EDGEFRONT_[A-Z_]+)"', file.read_text(encoding="utf-8"))}
    table = "\n".join(re.findall(r"^\| `EDGEFRONT_.*$", (ROOT / "docs" / "cli.md").read_text(encoding="utf-8"), re.M))
    assert set(re.findall(r"`(EDGEFRONT_[A-Z_]+)`", table)) == read - _OWN_VARIABLES
    assert read >= _OWN_VARIABLES


def test_the_rack_of_the_environment_is_that_of_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFRONT_RACK", str(tmp_path / "nowhere.toml"))
    for words in (("agent",), ("boards", "--watch"), ("rack", "check")):
        assert "nowhere.toml" in call(*words).stderr


def test_submitting_tries_the_place_of_the_artifacts(study_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFRONT_ARTIFACTS", "foo://x")
    done = call("submit", str(study_file), "--studies", str(study_file.parent / "studies"))
    assert (done.exit_code, "artifacts at foo://x" in done.stderr) == (2, True)
    assert not (study_file.parent / "studies").exists()
