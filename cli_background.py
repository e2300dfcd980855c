"""A study in a process of its own: ``python -m cli_background``, started by the service (:mod:`cli_launch`).

Wiring, as :mod:`cli` is, but for programs: what a study needs is put together here, orders come over the leash.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING

from orchestrator.errors import EvaluationDefect, OrchestratorError, StudyError, UsageError
from orchestrator.extras import MissingExtra
from orchestrator.leash import Leash
from orchestrator.locks import StudyTaken
from orchestrator.records import Event
from orchestrator.registry import Entry, LeaseLost, Reached, Registry
from orchestrator.service import (
    AGAIN_SO,
    FAILED_SO,
    FENCE_S,
    FINISHED_SO,
    INTERRUPTED_SO,
    PAUSED_SO,
    STOPPED_SO,
)
from orchestrator.signals import set_soon

if TYPE_CHECKING:
    from orchestrator.objectives import Objectives
    from orchestrator.study import Study
    from orchestrator.studyfile import StudyFile

REGISTRY_VARIABLE = "EDGEFRONT_LAB_REGISTRY"
_FENCE_EVERY_S = 1.0
_SILENT, _ORPHANED = 70, 71  # exit statuses of a process whose service is not heard any more, or is gone


class Orders:
    """What the service asks of this process, as it comes in; :class:`Steering` reads it in the loop's thread."""

    def __init__(self) -> None:
        self.limit = 0
        self.is_pausing = False
        self.for_good = threading.Event()
        self.stop = threading.Event()
        self.edits = threading.Event()
        self.first = threading.Event()
        self.is_over = False
        self._heard = monotonic()

    def take(self, event: Event) -> None:
        self._heard = monotonic()
        if event.name == "limit":
            self.limit, self.is_pausing = int(event.fields["trials"]), False
            self.first.set()
        elif event.name == "pause":
            self.is_pausing = True
            self.first.set()
        elif event.name == "edits":
            self.edits.set()
        elif event.name in ("stop", "interrupt"):
            if event.name == "stop":
                self.for_good.set()
            self.stop.set()
            self.first.set()

    def orphaned(self) -> None:
        """The service is gone: whoever takes over must not wait for this process."""
        if not self.is_over:
            os._exit(_ORPHANED)

    def watch(self) -> None:
        """End this process when the service was not heard for so long that others may have taken over."""
        while not self.is_over:
            if monotonic() - self._heard > FENCE_S:
                os._exit(_SILENT)
            threading.Event().wait(1.0)


class Steering:
    """The loop's :class:`~orchestrator.ports.Control`: the service's orders, the lab's list of edits."""

    def __init__(self, study: Study, entry: Entry, registry: Registry, orders: Orders, leash: Leash) -> None:
        self._study = study
        self._entry = entry
        self._registry = registry
        self._orders = orders
        self._leash = leash
        self._could_use: int | None = None
        self._checked = 0.0

    def check(self) -> None:
        """
        Raises:
            LeaseLost: another orchestrator has the study.
        """
        self._checked = monotonic()
        self._registry.check_held(self._entry.name, self._entry.token)

    def in_flight(self, could_use: int) -> int:
        if could_use != self._could_use:
            self._could_use = could_use
            self._leash.send(Event(name="could_use", fields={"trials": could_use}))
        if monotonic() - self._checked > _FENCE_EVERY_S:
            self.check()
        return self._orders.limit

    def is_pausing(self) -> bool:
        return self._orders.is_pausing

    def take_edits(self) -> bool:
        if not self._orders.edits.is_set():
            return False
        self._orders.edits.clear()
        return self.make_edits()

    def make_edits(self) -> bool:
        """Make what was asked for, answer each, and search by what holds then; whether anything changed."""
        from cli import study_sampler
        from orchestrator.studyedit import StudyEdit, apply_edit

        before = self._study.file
        for row in self._registry.edits(self._entry.name):
            if row.is_pending:
                self.check()
                try:
                    answer = apply_edit(self._study, StudyEdit.from_json(row.edit), objectives_of, _now())
                except UsageError as error:
                    answer = f"refused: {error}"
                self._registry.answer_edit(row.number, answer)
        if self._study.file == before:
            return False
        self._study.optuna.sampler = study_sampler(self._study)
        return True


def objectives_of(file: StudyFile) -> Objectives:
    """The objectives of a study file on its boards."""
    from mcu_agent.kinds import load_kind
    from orchestrator.objectives import Objectives

    return Objectives.on_boards(file, {kind: load_kind(kind) for kind in file.kinds})


def open_submitted(entry: Entry, registry: Registry) -> Study:
    """The study of an entry, begun if need be.

    A study that has been edited is as the edits have left it; else it takes over what its submitted file allows.
    """
    from orchestrator.study import Study
    from orchestrator.studyfile import StudyFile
    from tasks.nn.usercode import add_search_folder

    add_search_folder(Path(entry.submission.source_folder))
    folder, file = Path(entry.submission.folder), StudyFile.from_json(entry.submission.file)
    place = registry.place(entry)
    is_edited = any(not row.is_pending for row in registry.edits(entry.name))
    if is_edited and Study.exists(place):
        return Study.open(place)
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / "submitted.yaml"
    copy.write_text(entry.submission.source_text, encoding="utf-8")
    return Study.open_or_create(place, file, objectives_of(file), source=copy)


def run_submitted(entry: Entry, registry: Registry, orders: Orders, leash: Leash) -> tuple[str, str]:
    """Run the study until it ends or is told to; returns how it ended and the same in words."""
    from orchestrator.studychange import check_data
    from tasks.nn.sources import sources_of

    study = open_submitted(entry, registry)
    with ExitStack() as stack:
        stack.callback(study.close)
        stack.enter_context(study.locked())
        steering = Steering(study, entry, registry, orders, leash)
        steering.check()
        if orders.for_good.is_set():
            _announce(study, leash)
            return STOPPED_SO, close_for_good(study)
        found = sources_of(study.file)
        check_data(study.file, entry.submission.sources, found)
        for note in study.take_sources(found):
            _log(note)
        steering.make_edits()
        how, text = _search(study, steering, orders, leash)
        while how == FINISHED_SO and steering.make_edits():
            how, text = _search(study, steering, orders, leash)
        if orders.for_good.is_set():
            return STOPPED_SO, close_for_good(study)
        if how == FINISHED_SO:
            _report(study)
        return how, text


def reached_by(study: Study) -> Reached:
    """How far the study is, by its record."""
    history = study.hypervolume_history()
    return Reached(
        told=len(history),
        budget=study.file.budget.trials,
        hypervolume=history[-1][1] if history else 0.0,
        front_size=len(study.front()),
    )


def _announce(study: Study, leash: Leash) -> None:
    """Tell the service where a study stands that is not searched any more: it may never have heard of it."""
    reached = reached_by(study)
    front = {"hypervolume": reached.hypervolume, "front_size": reached.front_size}
    leash.send(Event(name="study_started", fields={"name": study.file.name, "budget": reached.budget}))
    leash.send(Event(name="study_resumed", fields={"told": reached.told}))
    leash.send(Event(name="front_changed", fields=front))


def _search(study: Study, steering: Steering, orders: Orders, leash: Leash) -> tuple[str, str]:
    from cli import make_evaluator, start_lab, study_sampler
    from orchestrator.fencing import FencedEvaluator
    from orchestrator.loop import SystemClock, run_study

    clock = SystemClock()
    with ExitStack() as stack:
        lab = start_lab(study, stack)
        sink = study.recording(_Up(leash), clock.now_iso)
        evaluator = make_evaluator(study, lab, sink)
        stack.callback(evaluator.close)
        fenced = FencedEvaluator(evaluator, steering.check)
        end = run_study(study, fenced, study_sampler(study), sink=sink, clock=clock, stop=orders.stop, control=steering)
        if orders.for_good.is_set():
            _recall_tasks(study, lab.url)
    hows = {"interrupted": INTERRUPTED_SO, "paused": PAUSED_SO}
    return hows.get(end.reason, FINISHED_SO), end.text


class _Up:
    """Events on their way to the service."""

    def __init__(self, leash: Leash) -> None:
        self._leash = leash

    def emit(self, event: Event) -> None:
        self._leash.send(event)


def _recall_tasks(study: Study, url: str) -> None:
    """Messages that still wait in the lab's queues are dropped when a worker takes them."""
    import redis

    from tasks import messages
    from tasks.broker import connect

    client = connect(url, retries=1)
    try:
        for attempt in study.stage_attempts():
            if attempt.is_open:
                client.set(messages.beat_key(attempt.task_id), messages.GIVEN_UP, ex=messages.RESULT_KEPT_S)
    except (redis.RedisError, OSError) as error:
        _log(f"tasks that wait in the broker could not be recalled: {error}")
    finally:
        client.close()


def close_for_good(study: Study) -> str:
    """End a study, whose sole runner this is: its trials under way are closed without a result, and its report is
    written. Says so in words."""
    from orchestrator.closing import close_open_trials, given_up
    from orchestrator.quantities import counted

    with study.guarded():
        n_open = close_open_trials(study, _now())
    _report(study)
    told = sum(trial.told is not None for trial in study.trials())
    return f"stopped for good after {counted(told, 'trial')}{given_up(n_open)}"


def _report(study: Study) -> None:
    from cli import write_study_report

    write_study_report(study.reader, study.folder.parent)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _log(line: str) -> None:
    sys.stderr.write(f"{_now()} {line}\n")
    sys.stderr.flush()


def ending_of(run: Callable[[], tuple[str, str]]) -> Event:
    """Run, and say how it ended. ``is_patient``: what was in the way is the lab's and may take long to go away."""
    from mcu_agent.errors import AgentError
    from orchestrator.postgres import DatabaseAway
    from tasks.errors import PipelineError, TransientFault
    from tasks.workers import WorkersError

    try:
        how, text = run()
    except (EvaluationDefect, UsageError, MissingExtra, AgentError) as error:
        how, text, is_patient = FAILED_SO, str(error), False
    except PipelineError as error:
        how, text, is_patient = AGAIN_SO if isinstance(error, TransientFault) else FAILED_SO, str(error), False
    except (StudyTaken, DatabaseAway) as error:
        how, text, is_patient = AGAIN_SO, str(error), True
    except (StudyError, WorkersError, OSError) as error:
        how, text, is_patient = AGAIN_SO, str(error), False
    except (LeaseLost, OrchestratorError) as error:
        how, text, is_patient = AGAIN_SO, str(error), True
    else:
        is_patient = False
    return Event(name="ended", fields={"how": how, "text": text, "is_patient": is_patient})


def main(arguments: list[str] | None = None) -> int:
    """The study's process, from its first order to its last word."""
    parser = argparse.ArgumentParser(prog="python -m cli_background", description="Started by edgefront orchestrator.")
    parser.add_argument("name")
    parser.add_argument("token", type=int)
    parser.add_argument("socket", type=int)
    given = parser.parse_args(arguments)
    os.set_inheritable(given.socket, False)
    orders = Orders()
    leash = Leash(socket.socket(fileno=given.socket), orders.take, orders.orphaned)
    threading.Thread(target=orders.watch, name="watch", daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: _interrupt(orders, number, frame))
    orders.first.wait()
    registry = Registry(os.environ[REGISTRY_VARIABLE])
    entry = registry.entry(given.name)
    if entry.token != given.token:
        return _SILENT
    _log(f"study {entry.name} runs in process {os.getpid()}")
    ended = ending_of(lambda: run_submitted(entry, registry, orders, leash))
    _log(f"{ended.fields['how']}: {ended.fields['text']}")
    leash.send(ended)
    orders.is_over = True
    with contextlib.suppress(OSError):
        leash.close()
    registry.close()
    return 0


def _interrupt(orders: Orders, number: int, frame: FrameType | None) -> None:
    set_soon(orders.stop)
    set_soon(orders.first)


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # all is closed by now, and taking PyTorch down takes seconds
