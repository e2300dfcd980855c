"""The command line, and the only place where orchestrator, tasks and agent are wired together.

Imports stand inside the functions here, against the rule of the house: PyTorch, Optuna and the compiler take seconds to
load, and ``edgefront --help`` or ``status`` must not wait for what they do not use.
"""

from __future__ import annotations

import errno
import io
import json
import os
import select
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import which
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from cli_compile import COMMANDS as COMPILE_COMMANDS
from cli_dashboard import dashboard
from cli_rack import agent, boards, check_rack_for, json_option, measure, rack
from cli_service import COMMANDS as SERVICE_COMMANDS
from cli_status import COMMANDS as STATUS_COMMANDS
from cli_steer import COMMANDS as STEER_COMMANDS
from cli_study import COMMANDS as STUDY_COMMANDS
from cli_study import STUDIES, artifact_reader, database_option, open_study, read_study, studies_option
from cli_watch import COMMANDS as WATCH_COMMANDS
from cli_worker import COMMANDS as WORKER_COMMANDS
from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.extras import extra_of, missing_text

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.loop import StudyEnd
    from orchestrator.notify import Notifier
    from orchestrator.ports import Clock, Evaluator, EventSink
    from orchestrator.reading import StudyReader
    from orchestrator.sampler import ProposerSampler
    from orchestrator.study import Study
    from orchestrator.studycheck import Mistake, Vocabulary
    from orchestrator.studyfile import StudyFile
    from orchestrator.view import FanOut
    from tasks.workers import EmbeddedLab

EXIT_RUN, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
_LAB_HINT = """broker at {broker}: stages wait there until somebody serves them
  edgefront worker --queues build,train
  edgefront agent --rack FILE     with {boards}"""


# Mistakes about places: the same command with another place, or another right to it, works.
_WRITABLE = "; name another place (--studies, --to), or make this one writable for you"
_PLACES = {
    errno.EROFS: _WRITABLE,
    errno.EACCES: _WRITABLE,
    errno.EPERM: _WRITABLE,
    errno.ENOENT: "; name a place that exists, or can be made",
    errno.ENOTDIR: "; name a folder where a folder is wanted",
    errno.EISDIR: "; name a file where a file is wanted",
    errno.ENAMETOOLONG: "; choose a shorter name",
}
_PASSING = (".backup-", ".restoring-")


class _Failure(click.ClickException):
    """An error of ours as one message on stderr."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        setattr(self, "exit_code", exit_code)  # noqa: B010 - click declares it for the class

    def show(self, file: Any = None) -> None:
        click.echo(f"edgefront: {self.message}", err=True)


class _Edgefront(click.Group):
    """Turns the errors people cause or must know of into a message and an exit code; ``--debug`` lets them through."""

    def invoke(self, ctx: click.Context) -> Any:
        from mcu_agent.errors import AgentError, InventoryError
        from tasks.errors import PipelineError

        if ctx.params.get("debug"):
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except OrchestratorError as error:
            raise _Failure(str(error), error.exit_code) from error
        except ModuleNotFoundError as error:
            module = (error.name or "").partition(".")[0]
            extra = extra_of(module)
            if extra is None:
                raise
            raise _Failure(missing_text(module, extra), EXIT_USAGE) from error
        except InventoryError as error:
            raise _Failure(str(error), EXIT_USAGE) from error
        except (AgentError, PipelineError) as error:
            raise _Failure(str(error), EXIT_RUN) from error
        except OSError as error:
            if error.errno == errno.EPIPE and _is_reader_gone():
                raise  # as in "| head"; click ends quietly then
            raise _Failure(_os_error_text(error), EXIT_USAGE if error.errno in _PLACES else EXIT_RUN) from error
        except KeyboardInterrupt:
            raise _Failure("interrupted; the same command goes on where it was", EXIT_INTERRUPTED) from None


def _is_reader_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    try:
        looker = select.poll()
        looker.register(sys.stdout.fileno(), 0)
        return any(found & select.POLLERR for _, found in looker.poll(0))
    except (OSError, ValueError):  # no file behind it
        return False


def _os_error_text(error: OSError) -> str:
    where = f"{_known_place(error.filename)}: " if error.filename else ""
    full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
    advice = "; free some space and run the same command again, nothing is lost" if full else ""
    return f"{where}{error.strerror or error}{advice or _PLACES.get(error.errno or 0, '')}"


def _known_place(name: str | bytes | int) -> str:
    """A path that its user knows: instead of a file of ours with a name for the time being, the folder around it."""
    path = Path(os.fsdecode(name)) if not isinstance(name, int) else Path(str(name))
    ours = [index for index, part in enumerate(path.parts) if part.startswith(_PASSING) or part.endswith(".half")]
    return str(Path(*path.parts[: ours[0]])) if ours else str(path)


@click.group(cls=_Edgefront, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show the whole traceback of an error.")
@click.version_option(package_name="edgefront", prog_name="edgefront")
def main(debug: bool) -> None:
    """Find the Pareto-best neural networks for your microcontroller.

    \b
    Start with:
      edgefront doctor                       is everything there?
      edgefront study check FILE             what a study file means, and what is wrong with it
      edgefront run FILE                     search; the same command goes on after a stop
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding shows "?" and no traceback
            stream.reconfigure(errors="replace")


# ------------------------------------------------------------------------------------------------------------- run


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """How ``edgefront run`` was called."""

    file: Path
    studies: Path
    workers: Mapping[str, int]
    trials: int | None
    is_json: bool
    is_inline: bool
    metrics_port: int
    metrics_address: str
    database: str | None = None


@main.command(short_help="Search until the budget is spent; again: go on.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@studies_option
@click.option(
    "--workers", default="", metavar="train=N,build=N,boards=N", help="Worker processes, instead of the study file's."
)
@click.option("--trials", type=click.IntRange(1, 1_000_000), help="Budget of trials, instead of the study file's.")
@click.option("--inline", is_flag=True, help="Run every stage in this process, without queue and workers.")
@click.option("--metrics-port", type=click.IntRange(0, 65535), default=0, help="Port of /metrics; 0: any free one.")
@click.option("--metrics-address", default="127.0.0.1", show_default=True, help="Interface of /metrics.")
@database_option
@json_option
def run(
    file: Path,
    studies: Path,
    workers: str,
    trials: int | None,
    inline: bool,
    metrics_port: int,
    metrics_address: str,
    database: str | None,
    as_json: bool,
) -> None:
    """Run the study in FILE until its budget is spent, and write its report.

    Stopped at any point – Ctrl-C, power cut – the same command goes on where it was; Ctrl-C twice stops at once.

    \b
    Example:
      edgefront run examples/digits.yaml --workers train=2
    """
    options = RunOptions(
        file=file,
        studies=studies,
        workers=parse_workers(workers),
        trials=trials,
        is_json=as_json,
        is_inline=inline,
        metrics_port=metrics_port,
        metrics_address=metrics_address,
        database=database,
    )
    end = run_file(options)
    if end.reason == "interrupted":
        sys.exit(EXIT_INTERRUPTED)


def parse_workers(text: str) -> dict[str, int]:
    """``"train=2,boards=1"`` → ``{"train_workers": 2, "boards": 1}``.

    Raises:
        UsageError: an unknown kind, or a number that is none or out of range.
    """
    from orchestrator.studyfile import MOST_WORKERS

    fields = {"train": "train_workers", "build": "build_workers", "boards": "boards"}
    counts = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        kind, _, number = part.partition("=")
        if kind not in fields or not number.isdecimal() or not 1 <= int(number) <= MOST_WORKERS:
            raise UsageError(
                f"--workers: found {part!r}; allowed are train=N, build=N and boards=N with N from 1 to {MOST_WORKERS}"
            )
        counts[fields[kind]] = int(number)
    return counts


def run_file(options: RunOptions) -> StudyEnd:
    """Run a study from its file to its report."""
    from rich.console import Console

    from mcu_agent.kinds import load_kind
    from orchestrator.location import database_url, location_of
    from orchestrator.objectives import Objectives
    from orchestrator.study import ARTIFACTS_VARIABLE, Study
    from tasks.artifacts import check_writable
    from tasks.nn.sources import sources_of

    if address := os.environ.get(ARTIFACTS_VARIABLE):
        check_writable(address)
    file = _overridden(load_file(options.file), options)
    check_rack_for(file.kinds, is_inline=options.is_inline)
    objectives = Objectives.on_boards(file, {kind: load_kind(kind) for kind in file.kinds})
    location = location_of(options.studies, file.name, database_url(options.database))
    study = Study.open_or_create(location, file, objectives, source=options.file)
    console = Console(stderr=options.is_json, highlight=False)
    # Locked before the lab starts: it would take the workers of whoever else runs this study for leftovers.
    with study.locked(), _stopping(console) as stop:
        for note in study.take_sources(sources_of(file)):
            console.print(f"note: {note}", style="yellow", markup=False)
        end = _run_study(study, options, console, stop)
    report_path = write_study_report(study.reader, options.studies)
    if not options.is_json:
        _say_end(study, end, report_path, console)
    study.close()
    return end


def _overridden(file: StudyFile, options: RunOptions) -> StudyFile:
    """The file with the budget and the workers of the command line; both are allowed to differ from run to run."""
    parallelism = file.parallelism.model_copy(update=dict(options.workers))
    budget = file.budget.model_copy(update={"trials": options.trials} if options.trials else {})
    return file.model_copy(update={"parallelism": parallelism, "budget": budget})


def _run_study(study: Study, options: RunOptions, console: Console, stop: threading.Event) -> StudyEnd:
    from prometheus_client import CollectorRegistry

    from orchestrator.exposition import MetricsServer
    from orchestrator.loop import SystemClock, run_study
    from orchestrator.metrics import PrometheusSink, SearchMetrics
    from orchestrator.view import FanOut
    from tasks.broker import without_password

    registry = CollectorRegistry()
    clock = SystemClock()
    with ExitStack() as stack:
        server = stack.enter_context(
            MetricsServer(registry, port=options.metrics_port, address=options.metrics_address)
        )
        if not options.is_json:
            console.print(f"metrics at {server.url}", style="dim")
        lab = None if options.is_inline else start_lab(study, stack)
        if lab is not None and not lab.is_embedded and not options.is_json:
            boards = " and ".join(f"a {kind}" for kind in study.file.kinds)
            console.print(_LAB_HINT.format(broker=without_password(lab.url), boards=boards), style="dim")
        view = _open_view(study, options, console, stack)
        metrics = PrometheusSink(SearchMetrics(registry, options.studies), study.file.name)
        sinks = (view, metrics, _notifier(study, clock, stack))
        sink = study.recording(FanOut(*sinks), clock.now_iso)
        evaluator = make_evaluator(study, lab, sink)
        stack.callback(evaluator.close)
        return run_study(study, evaluator, study_sampler(study), sink=sink, clock=clock, stop=stop)


def study_sampler(study: Study) -> ProposerSampler:
    """The sampler of the study file, for the study's limits as they are, with a look at its best candidates."""
    from orchestrator.loop import trial_seed
    from orchestrator.sampler import make_sampler
    from tasks.artifacts import ArtifactStore
    from tasks.look import looks

    artifacts = ArtifactStore(study.artifacts)
    look = looks(study.study_id, study.file, study.sources, artifacts, partial(trial_seed, study.file.seed))
    return make_sampler(study.file, study.objectives, look)


def _notifier(study: Study, clock: Clock, stack: ExitStack) -> Notifier:
    """Posts to the study's own webhook while it runs."""
    from orchestrator.notify import Notifier, Poster, Ticking, webhooks_of

    poster = Poster()
    stack.callback(poster.close)
    webhooks = webhooks_of(study.file, os.environ)
    notifier = Notifier(study=study.file.name, webhooks=webhooks, poster=poster, clock=clock)
    stack.enter_context(Ticking(notifier))
    return notifier


def start_lab(study: Study, stack: ExitStack) -> EmbeddedLab:
    """Broker and workers beside this process, or the lab's broker."""
    from tasks.workers import EmbeddedLab

    parallelism = study.file.parallelism
    lab = EmbeddedLab(
        study.folder,
        board_kinds=study.file.kinds,
        train_workers=parallelism.train_workers,
        build_workers=parallelism.build_workers,
        boards=parallelism.boards,
    )
    return stack.enter_context(lab)


def make_evaluator(study: Study, lab: EmbeddedLab | None, sink: EventSink) -> Evaluator:
    """The study's stages on the workers of ``lab``; without one, in this process."""
    from tasks.evaluator import CeleryEvaluator, InlineEvaluator
    from tasks.registry import stages_for

    stages = stages_for(study.file.kinds)
    if lab is None:
        return InlineEvaluator(study.artifacts, sink, stages=stages)
    return CeleryEvaluator(
        url=lab.url,
        study_id=study.study_id,
        artifacts=study.artifacts,
        sink=sink,
        check=lab.check,
        boards=lab.boards if lab.is_embedded else 0,
        stages=stages,
    )


def _open_view(study: Study, options: RunOptions, console: Console, stack: ExitStack) -> FanOut:
    """JSON lines, the live picture or plain lines, behind the progress that they draw from."""
    from time import monotonic

    from orchestrator.loop import SystemClock
    from orchestrator.progress import Progress
    from orchestrator.view import FanOut, JsonLines, LiveView, PlainLines
    from tasks.registry import STAGES

    if options.is_json:
        return FanOut(JsonLines(click.echo, SystemClock().now_iso))
    progress = Progress(monotonic)
    progress.name, progress.budget = study.file.name, study.file.budget.trials
    units = dict(zip(study.objectives.names, study.objectives.units, strict=True))
    if console.is_terminal:
        return FanOut(progress, stack.enter_context(LiveView(progress, units, STAGES, console, monotonic)))
    return FanOut(progress, PlainLines(progress, units, lambda line: console.print(line, markup=False, soft_wrap=True)))


@contextmanager
def _stopping(console: Console) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C (or SIGTERM) sets; the second Ctrl-C interrupts at once."""
    from orchestrator.signals import set_soon

    stop = threading.Event()
    over = threading.Event()

    came: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came.append(number)
        set_soon(stop)

    def say() -> None:
        # Not in the handler: it may have interrupted the console in the middle of a picture.
        stop.wait()
        if not over.is_set():
            console.print("stopping; nothing is lost (Ctrl-C again: at once)", style="yellow")

    threading.Thread(target=say, name="stopping", daemon=True).start()
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        over.set()
        stop.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def _program() -> str:
    """How the user calls this program: by its name where that is on the PATH, else by its file (``make demo``)."""
    return "edgefront" if which("edgefront") or not sys.argv[0].endswith("edgefront") else sys.argv[0]


def _say_end(study: Study, end: StudyEnd, report_path: Path, console: Console) -> None:
    from orchestrator.summary import summary_of, summary_view

    summary = summary_of(study.reader)
    console.print(summary_view(summary))
    name, studies = study.file.name, study.folder.parent
    where = "" if studies == Path(STUDIES) else f" --studies {shlex.quote(str(studies))}"
    lines = [f"\n{end.text}", f"report   {report_path}"]
    if summary["front"] and end.reason != "interrupted":
        best = summary["front"][0]["trial"]
        board = f" --board {study.file.boards[0]}" if study.file.boards else ""
        lines.append(f"export   {_program()} export {name}{where} --trial {best}{board} --to {name}-{best}")
    console.print("\n".join(lines), markup=False, soft_wrap=True)


# ------------------------------------------------------------------------------------------- looking at a study


@main.command(short_help="Write the HTML report as it stands.")
@click.argument("study")
@studies_option
@database_option
@click.option("--open", "is_open", is_flag=True, help="Open it in the browser.")
def report(study: str, studies: Path, database: str | None, is_open: bool) -> None:
    """Write the HTML report of STUDY as it stands and print where it is.

    \b
    Example:
      edgefront report digits --open
    """
    opened = read_study(study, studies, database)
    path = write_study_report(opened, studies)
    opened.close()
    click.echo(path)
    if is_open:
        click.launch(path.absolute().as_uri())


def write_study_report(study: StudyReader, studies: Path) -> Path:
    """The report as it stands; ``studies`` is the folder that it names in the commands it shows."""
    from datetime import UTC, datetime

    from mcu_agent.kinds import load_kind
    from orchestrator.report.write import write_report

    name = study.file.name
    where = "" if studies == Path(STUDIES) else f" --studies {shlex.quote(str(studies))}"
    board = " --board {board}" if study.file.boards else ""
    return write_report(
        study,
        artifact_reader(study),
        written_at=datetime.now(UTC).isoformat(timespec="seconds"),
        board_texts={kind: load_kind(kind).description for kind in study.file.kinds},
        export_command=f"{_program()} export {name}{where} --trial {{trial}}{board} --to {name}-{{trial}}",
    )


@main.command(short_help="Write a trial as a C project that tests itself.")
@click.argument("study")
@studies_option
@database_option
@click.option("--trial", type=click.IntRange(min=0), required=True, help="Number of a complete trial.")
@click.option("--to", "folder", type=click.Path(path_type=Path), required=True, help="New or empty folder.")
@click.option("--board", metavar="KIND", help="Which board's firmware and figures, where the study has several.")
def export(study: str, studies: Path, database: str | None, trial: int, folder: Path, board: str | None) -> None:
    """Write a trial of STUDY as a project: C sources, ONNX networks, test vectors, Makefile and measured figures.

    \b
    Example:
      edgefront export digits --trial 1 --to my-network && make -C my-network test
    """
    from mcu_agent.kinds import load_kind
    from tasks.artifacts import ArtifactStore
    from tasks.export import Exported, board_to_export, export_trial

    opened = open_study(study, studies, database)
    kind = board_to_export(opened.file, board)
    record = next((one for one in opened.trials() if one.number == trial), None)
    if record is None or record.outcome is None or record.state != "complete":
        numbers = ", ".join(str(one.number) for one in opened.front()) or "none yet"
        state = "does not exist" if record is None else f"is {record.state}"
        raise UsageError(f"--trial: trial {trial} {state}; only complete ones can be exported. On the front: {numbers}")
    exported = Exported(
        study=opened.file,
        trial=trial,
        params=record.params,
        outcome=record.outcome,
        test_error=opened.test_results().get(trial),
        kind=load_kind(kind),
        inputs=record.notes.get("compress", {}).get("inputs", {}),
    )
    export_trial(exported, ArtifactStore(opened.artifacts), folder)
    opened.close()
    click.echo(f"{folder}  (next: make -C {shlex.quote(str(folder))} test)")


# ----------------------------------------------------------------------------------------------- study files


@main.group(short_help="Check study files; back up and restore studies, make room.")
def study() -> None:
    """Check study files and help editors with them; back up and restore studies; make room."""


@study.command(short_help="Explain a study file, or list its mistakes.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def check(file: Path) -> None:
    """Explain FILE in words, or list every mistake in it with its line.

    \b
    Example:
      edgefront study check examples/digits.yaml
    """
    from orchestrator.studycheck import explain
    from tasks.nn.datasets import describe

    loaded = load_file(file)
    click.echo(explain(loaded, vocabulary()))
    click.echo(f"\ndata: {describe(loaded.dataset, loaded.seed)}")


@study.command(short_help="Print the JSON Schema of study files.")
def schema() -> None:
    """Print the JSON Schema of study files, for editors that complete and check YAML.

    \b
    Example:
      edgefront study schema > study.schema.json
    """
    from orchestrator.studycheck import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


def load_file(file: Path) -> StudyFile:
    """The study file, wholly checked, with what its calibration files hold in place of their names.

    Raises:
        UsageError: lists every mistake.
    """
    from orchestrator.studycheck import load_study
    from tasks.nn.usercode import add_search_folder

    # The user's own data and networks lie beside the study file; worker processes inherit the variable.
    add_search_folder(file.parent)
    return _calibrated(load_study(file, vocabulary()), file.parent)


def _calibrated(study: StudyFile, folder: Path) -> StudyFile:
    """The study with what its calibration files hold in place of their names, as its workers will need it."""
    from mcu_agent.calibration import load_calibration

    names = study.profiling.calibration
    records = [load_calibration(folder / name) for name in names if isinstance(name, str)]
    kinds = [record.kind for record in records]
    for kind in kinds:
        if kind not in study.kinds or kinds.count(kind) > 1:
            wanted = ", ".join(study.kinds)
            raise UsageError(f"profiling.calibration: found one for {kind}; allowed is one for each of {wanted}")
    profiling = study.profiling.model_copy(update={"calibration": tuple(record.to_json() for record in records)})
    return study.model_copy(update={"profiling": profiling}) if names else study


def vocabulary() -> Vocabulary:
    """The names a study file may use: boards of the catalogue, built-in data sets, families and samplers."""
    from mcu_agent.kinds import kinds
    from orchestrator.proposers.registry import names
    from orchestrator.studycheck import BoardFacts, Vocabulary
    from tasks.nn.datasets import dataset_names
    from tasks.nn.families import family_options

    return Vocabulary(
        boards={name: BoardFacts(kind.flash_bytes, kind.ram_bytes, kind.description) for name, kind in kinds().items()},
        datasets=dataset_names(),
        families=family_options(),
        samplers=names(),
        extra=_deep_mistakes,
    )


def _deep_mistakes(study: StudyFile) -> Iterator[Mistake]:
    """What only shows when it is tried: the sampler's options, the data, the networks."""
    from orchestrator.proposers.registry import make_proposer
    from orchestrator.space import SearchSpace
    from orchestrator.studycheck import Mistake
    from orchestrator.studyvalues import telling_candidates
    from tasks.rehearsal import mistakes

    try:
        make_proposer(study.sampler.name, SearchSpace.from_parameters(study.space), study.sampler.options)
    except UsageError as error:
        field, _, text = str(error).partition(": ")
        yield Mistake(field=field, text=text)
    for field, text in mistakes(study, telling_candidates(study)):
        yield Mistake(field=field, text=text)


for study_command in STUDY_COMMANDS:
    study.add_command(study_command)
LAB_COMMANDS = (*STATUS_COMMANDS, *SERVICE_COMMANDS, *STEER_COMMANDS, *WATCH_COMMANDS)
for lab_command in (*COMPILE_COMMANDS, *WORKER_COMMANDS, boards, rack, measure, agent, dashboard, *LAB_COMMANDS):
    main.add_command(lab_command)


if __name__ == "__main__":
    main()
