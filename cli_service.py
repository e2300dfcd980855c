"""The part of the command line for searches in the background: submitting, running, steering and watching them.

As in :mod:`cli`, imports stand inside the functions, so that a command does not wait for what it does not use.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli_rack import json_option
from cli_study import database_option, studies_option, where
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.location import Location
    from orchestrator.registry import Entry, Reached, Registry
    from orchestrator.service import Lab, Listener
    from orchestrator.studyfile import StudyFile

_SEEN_LATELY_S = 60.0
# What a study that is submitted once more does by itself, by its state.
_STANDINGS = {
    "submitted": "waits for its turn",
    "running": "runs",
    "paused": "is paused: edgefront resume {name} lets it go on",
    "finished": "has finished: a larger budget makes it go on, edgefront edit {name} --trials N",
}


def priority_option(default: int | None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option ``--priority``."""
    return click.option(
        "--priority",
        type=click.IntRange(-5, 5),
        default=default,
        help="Each step doubles the study's share of the lab; -5 to 5, 0 is ordinary.",
    )


def open_registry(studies: Path, database: str | None = None) -> Registry:
    """The lab's list of studies.

    Raises:
        UsageError: ``database``, or ``EDGEFRONT_DATABASE``, is no address of a PostgreSQL database.
        StudyError: the list cannot be used.
    """
    from orchestrator.registry import Registry, registry_url

    return Registry(registry_url(studies, database))


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


def now() -> str:
    """This moment, as it is recorded."""
    from datetime import UTC, datetime

    return datetime.now(UTC).isoformat(timespec="milliseconds")


def who() -> str:
    """Whoever gives this command, as it is recorded."""
    import getpass
    import socket

    return f"{getpass.getuser()}@{socket.gethostname()}"


# ------------------------------------------------------------------------------------------------------------- submit


@click.command(short_help="Put a study on the lab's list and return.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@studies_option
@database_option
@priority_option(0)
@click.option("--trials", type=click.IntRange(1, 1_000_000), help="Budget of trials, instead of the study file's.")
@click.option("--watch", "is_watching", is_flag=True, help="Show how it goes, as edgefront watch does.")
@json_option
def submit(
    file: Path,
    studies: Path,
    database: str | None,
    priority: int,
    trials: int | None,
    is_watching: bool,
    as_json: bool,
) -> None:
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
    registry = open_registry(studies, database)
    text = submit_study(loaded, file, studies, registry, priority)
    if as_json:
        click.echo(json.dumps(registry.entry(loaded.name).to_json()))
    else:
        click.echo(f"{text}\nwatch it with: edgefront watch {loaded.name}{where(studies)}")
        if not has_orchestrator(registry):
            click.echo(f"nobody runs studies yet: edgefront orchestrator{where(studies)}")
    if is_watching:
        from cli_watch import watch_study

        watch_study(loaded.name, studies, database, registry, as_json=as_json)
    registry.close()


def submit_study(file: StudyFile, path: Path, studies: Path, registry: Registry, priority: int) -> str:
    """Record a checked study; says in words what has become of it. The same study again changes nothing.

    Raises:
        UsageError: another study has this name, or the data are not those that it began with; or it is the same
            and does not run, because it has failed or was stopped.
    """
    from orchestrator.quantities import counted
    from orchestrator.registry import Submission
    from tasks.nn.sources import sources_of

    known = registry.find(file.name)
    if known is not None:
        return _submitted_before(known, file)
    sources = sources_of(file)
    reached = _check_begun(file, sources, registry.place_of(studies / file.name))
    registry.submit(
        Submission(
            name=file.name,
            folder=str((studies / file.name).absolute()),
            file=file.to_json(),
            source_text=path.read_text(encoding="utf-8"),
            source_folder=str(path.parent.resolve()),
            sources=sources,
            submitter=who(),
            submitted_at=now(),
            priority=priority,
        ),
        reached,
    )
    begun = f", {reached.told} of them told" if reached is not None else ""
    return f"{file.name} is submitted: {counted(file.budget.trials, 'trial')}{begun}"


def _submitted_before(known: Entry, file: StudyFile) -> str:
    from orchestrator.registry import FAILED, STOPPED
    from orchestrator.studychange import changes

    name, state = known.name, known.state
    lines = changes(known.submission.file, file.to_json())
    if lines:
        raise UsageError(
            f"study {name} was submitted on {known.submission.submitted_at} and its file has changed since:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nNothing was changed. What may change is a larger budget, a tighter limit and the priority: edgefront "
            f"edit {name} --trials N --wall-clock T --limit NAME=AMOUNT --priority N. For anything else give the study "
            "a new name."
        )
    if state == STOPPED:
        raise UsageError(
            f"study {name} was stopped for good on {known.changed_at} and does not run again; nothing was changed. To "
            "search anew give the study a new name in its file."
        )
    if state == FAILED:
        raise UsageError(
            f"study {name} has failed on {known.changed_at} and does not run: {known.reason}\nNothing was changed. "
            f"Once the cause is removed: edgefront resume {name}"
        )
    return f"{name} was submitted before, its file is unchanged since, and it {_STANDINGS[state].format(name=name)}"


def _check_begun(file: StudyFile, sources: dict[str, str], place: Location) -> Reached | None:
    """A study that `edgefront run` has begun, or that was restored, goes on only with what may change; says how far it
    is, None where it has not begun."""
    from cli_background import reached_by
    from orchestrator.study import Study
    from orchestrator.studychange import check_data, check_update

    if not Study.exists(place):
        return None
    with closing(Study.open(place)) as study:
        if study.has_begun:
            check_update(study.file, file)
            check_data(file, study.sources, sources)
        return reached_by(study)


# ------------------------------------------------------------------------------------------------------- orchestrator


@click.command(short_help="Run all submitted studies, until told to stop.")
@studies_option
@database_option
@click.option("--most", type=click.IntRange(1, 10_000), help="Trials under way at once over all studies.")
@click.option("--metrics-port", type=click.IntRange(0, 65535), default=9464, show_default=True, help="0: any free one.")
@click.option("--metrics-address", default="127.0.0.1", show_default=True, help="Interface of /metrics.")
def orchestrator(
    studies: Path, database: str | None, most: int | None, metrics_port: int, metrics_address: str
) -> None:
    """Run the submitted studies, several at once, each in a process of its own, until Ctrl-C or SIGTERM.

    With EDGEFRONT_BROKER_URL the lab's workers are shared; without, each study gets workers of its own here. Another
    orchestrator of the same list takes over within a minute if this one dies.

    \b
    Example:
      EDGEFRONT_BROKER_URL=redis://lab:6379/0 edgefront orchestrator
    """
    import signal
    import threading

    from orchestrator.notify import lab_webhook
    from orchestrator.signals import set_soon

    lab_webhook(os.environ)  # a wrong one is an error now and not with the first study
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: set_soon(stop))
    registry = open_registry(studies, database)
    serve(studies, registry, most, metrics_port, metrics_address, stop, lambda line: click.echo(f"{now()} {line}"))


def serve(
    studies: Path,
    registry: Registry,
    most: int | None,
    port: int,
    address: str,
    stop: Any,
    say: Callable[[str], None],
) -> None:
    """Be the orchestrator of the list until ``stop`` is set; it is closed then."""
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
        stack.callback(registry.close)
        lab = _lab(studies, registry, most, metrics, say, stack)
        server = stack.enter_context(MetricsServer(metrics, port=port, address=address))
        say(f"orchestrator {me.owner} at work; metrics at {server.url}")
        Service(lab, me).run(stop)
    say("stopped; nothing is lost, the next orchestrator goes on")


def _lab(
    studies: Path, registry: Registry, most: int | None, metrics: Any, say: Callable[[str], None], stack: ExitStack
) -> Lab:
    from cli_launch import ProcessLauncher, Series
    from orchestrator.loop import SystemClock
    from orchestrator.metrics import SearchMetrics
    from orchestrator.notify import Poster
    from orchestrator.service import Lab
    from orchestrator.service_metrics import ServiceMetrics
    from tasks.app import is_gone
    from tasks.guardian import Guardian
    from tasks.messages import Holder

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
    from cli_launch import StudyListener
    from orchestrator.loop import SystemClock
    from orchestrator.notify import Notifier, webhooks_of
    from orchestrator.studyfile import StudyFile

    file = StudyFile.from_json(entry.submission.file)
    webhooks = webhooks_of(file, os.environ)
    notifier = Notifier(study=entry.name, webhooks=webhooks, poster=poster, clock=SystemClock())
    return StudyListener(entry.name, series.sink(entry.name), notifier, series.ended)


COMMANDS = (submit, orchestrator)
