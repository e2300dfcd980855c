"""The part of the command line for searches in the background: submitting, running, steering and watching them.

As in :mod:`cli`, imports stand inside the functions, so that a command does not wait for what it does not use.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli_rack import aligned, json_option
from cli_study import STUDIES, studies_option
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.registry import Entry, Registry
    from orchestrator.service import Lab, Listener
    from orchestrator.studyedit import StudyEdit
    from orchestrator.studyfile import StudyFile

_EDIT_WAIT_S = 10.0
_SEEN_LATELY_S = 60.0


def _priority_option(default: int | None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        "--priority",
        type=click.IntRange(-5, 5),
        default=default,
        help="Each step doubles the study's share of the lab; -5 to 5, 0 is ordinary.",
    )


def open_registry(studies: Path) -> Registry:
    """The lab's list of studies."""
    from orchestrator.registry import Registry, registry_url

    return Registry(registry_url(studies))


def has_orchestrator(registry: Registry) -> bool:
    """Whether one showed itself in the last minute and, if it is of this host, still exists."""
    from datetime import UTC, datetime

    from tasks.app import is_gone
    from tasks.messages import Holder

    now = datetime.now(UTC)
    return any(
        (now - datetime.fromisoformat(other.seen_at)).total_seconds() < _SEEN_LATELY_S
        and not is_gone(Holder(worker="", host=other.host, pid=other.pid, born=other.born))
        for other in registry.orchestrators()
    )


def _now() -> str:
    from datetime import UTC, datetime

    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _who() -> str:
    import getpass
    import socket

    return f"{getpass.getuser()}@{socket.gethostname()}"


# ------------------------------------------------------------------------------------------------------------- submit


@click.command(short_help="Put a study on the lab's list and return.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@studies_option
@_priority_option(0)
@click.option("--trials", type=click.IntRange(1, 1_000_000), help="Budget of trials, instead of the study file's.")
@click.option("--watch", "is_watching", is_flag=True, help="Show how it goes, as edgefront watch does.")
@json_option
def submit(file: Path, studies: Path, priority: int, trials: int | None, is_watching: bool, as_json: bool) -> None:
    """Check the study in FILE wholly, its data included, and have `edgefront orchestrator` run it.

    \b
    Example:
      edgefront submit examples/digits.yaml --priority 1
    """
    from cli import load_file
    from cli_rack import check_rack_for
    from orchestrator.study import ARTIFACTS_VARIABLE
    from tasks.artifacts import check_writable

    loaded = load_file(file)
    check_rack_for(loaded.kinds)
    if address := os.environ.get(ARTIFACTS_VARIABLE):
        check_writable(address)
    if trials is not None:
        loaded = loaded.model_copy(update={"budget": loaded.budget.model_copy(update={"trials": trials})})
    registry = open_registry(studies)
    text = submit_study(loaded, file, studies, registry, priority)
    if as_json:
        click.echo(json.dumps(registry.entry(loaded.name).to_json()))
    else:
        click.echo(f"{text}\nwatch it with: edgefront watch {loaded.name}{_where(studies)}")
        if not has_orchestrator(registry):
            click.echo(f"nobody runs studies yet: edgefront orchestrator{_where(studies)}")
    if is_watching:
        from cli_watch import watch_study

        watch_study(loaded.name, studies, registry, as_json=as_json)
    registry.close()


def _where(studies: Path) -> str:
    import shlex

    return "" if studies == Path(STUDIES) else f" --studies {shlex.quote(str(studies))}"


def submit_study(file: StudyFile, path: Path, studies: Path, registry: Registry, priority: int) -> str:
    """Record a checked study; says in words what has become of it. The same study again changes nothing.

    Raises:
        UsageError: another study has this name, or the data are not those that it began with.
    """
    from orchestrator.registry import Submission
    from tasks.nn.sources import sources_of

    known = registry.find(file.name)
    if known is not None:
        return _submitted_before(known, file)
    sources = sources_of(file)
    _check_begun(file, sources, studies / file.name)
    registry.submit(
        Submission(
            name=file.name,
            folder=str((studies / file.name).absolute()),
            file=file.to_json(),
            source_text=path.read_text(encoding="utf-8"),
            source_folder=str(path.parent.resolve()),
            sources=sources,
            submitter=_who(),
            submitted_at=_now(),
            priority=priority,
        )
    )
    return f"{file.name} is submitted: {file.budget.trials} trials"


def _submitted_before(known: Entry, file: StudyFile) -> str:
    from orchestrator.studychange import changes

    lines = changes(known.submission.file, file.to_json())
    if not lines:
        return f"{file.name} was submitted before, unchanged since, and is {known.state}"
    raise UsageError(
        f"study {file.name} was submitted on {known.submission.submitted_at} and its file has changed since:\n"
        + "\n".join(f"  {line}" for line in lines)
        + "\nNothing was changed. What may change is a larger budget, a tighter limit and the priority: edgefront edit "
        f"{file.name} --trials N --wall-clock T --limit NAME=AMOUNT --priority N. For anything else give the study a "
        "new name."
    )


def _check_begun(file: StudyFile, sources: dict[str, str], folder: Path) -> None:
    """A study that `edgefront run` has begun goes on only with what may change."""
    from cli_background import place_of
    from orchestrator.study import Study
    from orchestrator.studychange import check_data, check_update

    place = place_of(folder)
    if not Study.exists(place):
        return
    study = Study.open(place)
    try:
        if study.has_begun:
            check_update(study.file, file)
            check_data(file, study.sources, sources)
    finally:
        study.close()


# ------------------------------------------------------------------------------------------------------- orchestrator


@click.command(short_help="Run all submitted studies, until told to stop.")
@studies_option
@click.option("--most", type=click.IntRange(1, 10_000), help="Trials under way at once over all studies.")
@click.option("--metrics-port", type=click.IntRange(0, 65535), default=9464, show_default=True, help="0: any free one.")
@click.option("--metrics-address", default="127.0.0.1", show_default=True, help="Interface of /metrics.")
def orchestrator(studies: Path, most: int | None, metrics_port: int, metrics_address: str) -> None:
    """Run the submitted studies, several at once, each in a process of its own, until Ctrl-C or SIGTERM.

    With EDGEFRONT_BROKER_URL the lab's workers are shared; without, each study gets workers of its own here. Another
    orchestrator of the same list takes over within a minute if this one dies.

    \b
    Example:
      EDGEFRONT_BROKER_URL=redis://lab:6379/0 edgefront orchestrator
    """
    import signal
    import threading

    from orchestrator.signals import set_soon

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: set_soon(stop))
    serve(studies, most, metrics_port, metrics_address, stop, lambda line: click.echo(f"{_now()} {line}"))


def serve(studies: Path, most: int | None, port: int, address: str, stop: Any, say: Callable[[str], None]) -> None:
    """Be the orchestrator of the list in ``studies`` until ``stop`` is set."""
    import secrets

    import psutil
    from prometheus_client import CollectorRegistry

    from orchestrator.exposition import MetricsServer
    from orchestrator.registry import Orchestrator
    from orchestrator.service import Service
    from tasks.hosts import host_name

    studies.mkdir(parents=True, exist_ok=True)
    host, pid = host_name(), os.getpid()
    me = Orchestrator(
        owner=f"{host}:{pid}:{secrets.token_hex(4)}", host=host, pid=pid, born=psutil.Process().create_time()
    )
    metrics = CollectorRegistry()
    with ExitStack() as stack:
        lab = _lab(studies, most, metrics, say, stack)
        server = stack.enter_context(MetricsServer(metrics, port=port, address=address))
        say(f"orchestrator {me.owner} at work; metrics at {server.url}")
        Service(lab, me).run(stop)
    say("stopped; nothing is lost, the next orchestrator goes on")


def _lab(studies: Path, most: int | None, metrics: Any, say: Callable[[str], None], stack: ExitStack) -> Lab:
    from cli_background import ProcessLauncher, Series
    from orchestrator.loop import SystemClock
    from orchestrator.metrics import SearchMetrics
    from orchestrator.notify import Poster
    from orchestrator.service import Lab
    from orchestrator.service_metrics import ServiceMetrics
    from tasks.app import is_gone
    from tasks.guardian import Guardian
    from tasks.messages import Holder

    registry = open_registry(studies)
    stack.callback(registry.close)
    guardian = Guardian()
    stack.callback(guardian.stop)
    poster = Poster()
    stack.callback(poster.close)
    service_metrics = ServiceMetrics(metrics)
    series = Series(SearchMetrics(metrics, studies), service_metrics)

    def shown(counts: Any, slots: int, found: Any) -> None:
        service_metrics.show(counts, slots, poster.failures)
        for name, share in found.items():
            service_metrics.share(name, share)

    slots, is_shared = _slots(most, stack)
    return Lab(
        registry=registry,
        launch=ProcessLauncher(guardian, registry.url),
        listener_of=lambda entry: _listener(entry, series, poster),
        slots=slots,
        is_shared=is_shared,
        is_gone=lambda other: is_gone(Holder(worker="", host=other.host, pid=other.pid, born=other.born)),
        clock=SystemClock(),
        shown=shown,
        restarted=service_metrics.restarted,
        say=say,
    )


def _slots(most: int | None, stack: ExitStack) -> tuple[Callable[[], int], bool]:
    """How many trials may be under way, and whether the workers are a lab's."""
    from tasks.broker import BROKER_VARIABLE, check_reachable
    from tasks.slots import AnnouncedSlots

    url = os.environ.get(BROKER_VARIABLE)
    if url:
        check_reachable(url)
    if most is not None:
        return lambda: most, bool(url)
    if not url:
        n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return lambda: n_cores, False
    announced = AnnouncedSlots(url)
    stack.callback(announced.close)
    return announced, True


def _listener(entry: Entry, series: Any, poster: Any) -> Listener:
    from cli_background import StudyListener
    from orchestrator.loop import SystemClock
    from orchestrator.notify import Notifier, webhooks_of
    from orchestrator.studyfile import StudyFile

    file = StudyFile.from_json(entry.submission.file)
    webhooks = webhooks_of(file, os.environ)
    notifier = Notifier(study=entry.name, webhooks=webhooks, poster=poster, clock=SystemClock())
    return StudyListener(entry.name, series.sink(entry.name), notifier, series.ended)


# ------------------------------------------------------------------------------------------------------------- status


def say_all(studies: Path, *, as_json: bool) -> None:
    """Print how all studies of the lab stand, for people or as JSON."""
    from orchestrator.registry import has_registry

    entries: list[Entry] = []
    is_served = False
    if has_registry(studies):
        registry = open_registry(studies)
        entries, is_served = registry.entries(), has_orchestrator(registry)
        registry.close()
    if as_json:
        click.echo(json.dumps([entry.to_json() for entry in entries]))
        return
    if not entries:
        click.echo(f"nothing was submitted in {studies} yet; edgefront submit STUDY.yaml does")
        return
    rows = [["study", "state", "trials", "hypervolume", "front", "priority", "by", ""], *map(_row, entries)]
    for line in aligned(rows):
        click.echo(line)
    if not is_served:
        click.echo(f"\nno orchestrator is at work; start one with: edgefront orchestrator{_where(studies)}")


def _row(entry: Entry) -> list[str]:
    state = entry.state
    if entry.state in ("submitted", "running") and entry.wanted != "run":
        state += {"pause": ", pausing", "stop": ", stopping"}[entry.wanted]
    reached = entry.reached
    return [
        entry.name,
        state,
        f"{reached.told}/{reached.budget}",
        f"{reached.hypervolume:.4f}",
        str(reached.front_size),
        f"{entry.priority:+d}" if entry.priority else "0",
        entry.submission.submitter,
        entry.reason.partition("\n")[0][:100],
    ]


# ------------------------------------------------------------------------------------------------ pause, resume, stop


@click.command(short_help="Let a study finish its trials and begin none.")
@click.argument("study")
@studies_option
def pause(study: str, studies: Path) -> None:
    """Let the trials of STUDY that are under way finish, and begin none until `edgefront resume`.

    \b
    Example:
      edgefront pause digits
    """
    from orchestrator.registry import PAUSE, PAUSED

    registry = open_registry(studies)
    _check_not_ended(registry.entry(study), "be paused")
    registry.want(study, PAUSE, _now())
    is_paused = registry.entry(study).state == PAUSED
    click.echo(f"{study} is paused" if is_paused else f"{study} pauses once its trials under way have ended")
    registry.close()


@click.command(short_help="Let a paused or failed study go on.")
@click.argument("study")
@studies_option
def resume(study: str, studies: Path) -> None:
    """Let STUDY go on that was paused, or that has failed once its cause is removed.

    \b
    Example:
      edgefront resume digits
    """
    from orchestrator.registry import RUN

    registry = open_registry(studies)
    _check_not_ended(registry.entry(study), "go on")
    registry.want(study, RUN, _now())
    click.echo(f"{study} goes on as soon as there is room")
    registry.close()


@click.command(short_help="End a study for good, with a report.")
@click.argument("study")
@studies_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def stop(study: str, studies: Path, yes: bool) -> None:
    """End STUDY for good: its trials under way are given up and its report is written. It cannot be resumed.

    \b
    Example:
      edgefront stop digits --yes
    """
    from orchestrator.registry import STOP

    registry = open_registry(studies)
    _check_not_ended(registry.entry(study), "be stopped")
    if not yes:
        click.confirm(f"end {study} for good?", abort=True)
    registry.want(study, STOP, _now())
    if has_orchestrator(registry):
        click.echo(f"{study} is being stopped; its report will be in {registry.entry(study).submission.folder}")
    else:
        click.echo(f"{study}: {stop_here(registry.entry(study), registry)}")
    registry.close()


def stop_here(entry: Entry, registry: Registry) -> str:
    """End a study that no orchestrator runs, in this process."""
    from cli_background import close_for_good, open_submitted, place_of
    from orchestrator.registry import STOPPED
    from orchestrator.study import Study

    token = registry.take(entry, f"stop:{_who()}:{os.getpid()}", _now())
    if token is None:
        return "an orchestrator has taken it meanwhile and stops it"
    text = "stopped for good before it began"
    if Study.exists(place_of(Path(entry.submission.folder))):
        study = open_submitted(entry, registry)
        with study.locked():
            text = close_for_good(study)
        study.close()
    registry.release(entry.name, token, STOPPED, "", _now())
    return text


def _check_not_ended(entry: Entry, what: str) -> None:
    from orchestrator.registry import ENDED_STATES, FINISHED

    if entry.state in ENDED_STATES:
        more = " A larger budget makes it go on: edgefront edit --trials N." if entry.state == FINISHED else ""
        raise UsageError(f"study {entry.name} is {entry.state} since {entry.changed_at} and cannot {what}.{more}")


# --------------------------------------------------------------------------------------------------------------- edit


@click.command(short_help="Raise a study's budget, tighten its limits, change its priority.")
@click.argument("study")
@studies_option
@click.option("--trials", type=click.IntRange(1, 1_000_000), help="Budget of trials; it may only be raised.")
@click.option("--wall-clock", metavar="T", help="Budget of time over all runs (8 h); it may only be raised.")
@click.option("--limit", "limits", multiple=True, metavar="NAME=AMOUNT", help="Limit of an objective (latency=20ms).")
@_priority_option(None)
def edit(
    study: str, studies: Path, trials: int | None, wall_clock: str | None, limits: tuple[str, ...], priority: int | None
) -> None:
    """Change STUDY while it runs: a larger budget, tighter limits, another priority.

    A limit holds for the trials that were told, too: those beyond it are infeasible from then on, and the search goes
    on from that. It may only be tightened, and only of an objective that the study has.

    \b
    Example:
      edgefront edit digits --trials 200 --limit "rom=48 KiB"
    """
    from orchestrator.studyedit import StudyEdit, parse_limit

    change = StudyEdit(trials=trials, wall_clock_s=_seconds(wall_clock), limits=dict(map(parse_limit, limits)))
    if change.is_empty and priority is None:
        raise click.UsageError("nothing to change; give --trials, --wall-clock, --limit or --priority")
    registry = open_registry(studies)
    entry = registry.entry(study)
    if not change.is_empty:
        click.echo(f"{study}: {edit_study(entry, change, registry)}")
    if priority is not None:
        registry.set_priority(study, priority, _now())
        click.echo(f"{study}: priority {priority}")
    registry.close()


def _seconds(text: str | None) -> float | None:
    from orchestrator.studyfile import parse_quantity

    if text is None:
        return None
    try:
        seconds = float(parse_quantity(text, "s"))
    except ValueError as error:
        raise UsageError(f"--wall-clock: {error}") from error
    if not 0 < seconds < float("inf"):
        raise UsageError(f"--wall-clock: found {text}; allowed is any time above 0")
    return seconds


def edit_study(entry: Entry, change: StudyEdit, registry: Registry) -> str:
    """Ask for the change, and wait a while for the study's process to make it; says what has become of it.

    Raises:
        UsageError: it cannot be made; nothing was changed.
    """
    from orchestrator.registry import STOPPED

    if entry.state == STOPPED:
        raise UsageError(f"study {entry.name} was stopped for good on {entry.changed_at} and cannot be edited")
    _check_edit(entry, change, registry)
    number = registry.add_edit(entry.name, change.to_json(), _who(), _now())
    registry.reopen(entry.name, _now())
    if not registry.entry(entry.name).owner:
        return "taken over when it runs next"
    answer = _answer(entry.name, number, registry)
    if answer.startswith("refused: "):
        raise UsageError(answer.removeprefix("refused: "))
    return answer or "asked for; its process makes the change between two trials (edgefront logs shows when)"


def _answer(name: str, number: int, registry: Registry) -> str:
    from time import monotonic, sleep

    deadline = monotonic() + _EDIT_WAIT_S
    while monotonic() < deadline:
        row = next(row for row in registry.edits(name) if row.number == number)
        if not row.is_pending:
            return row.answer
        sleep(0.2)
    return ""


def _check_edit(entry: Entry, change: StudyEdit, registry: Registry) -> None:
    """Against the study as it will be when the changes before this one are made."""
    from cli_background import objectives_of, place_of
    from orchestrator.study import Study
    from orchestrator.studyedit import StudyEdit, edited
    from orchestrator.studyfile import StudyFile

    file = StudyFile.from_json(entry.submission.file)
    place = place_of(Path(entry.submission.folder))
    if Study.exists(place):
        study = Study.open(place)
        file = study.file
        study.close()
    for row in registry.edits(entry.name):
        if row.is_pending:
            file = edited(file, objectives_of(file), StudyEdit.from_json(row.edit))
    edited(file, objectives_of(file), change)


COMMANDS = (submit, orchestrator, pause, resume, stop, edit)
