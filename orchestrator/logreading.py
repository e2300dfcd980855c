"""What happened in a study, in the order in which it happened: its record, its stages, and the files of its logs.

Lines of a file count as written when they say so themselves (the orchestrator's, Celery's and Redis's way); one that
does not, as the line before it; a file without any, as when it was last written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.following import event_text
from orchestrator.ledger import StageAttempt
from orchestrator.reading import FINAL_STAGE, StudyReader
from orchestrator.records import Event, Json
from orchestrator.study import Study

_MOST_BYTES = 64 * 1024
_ISO = re.compile(r"\[?(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,6})?)(Z|[+-]\d\d:\d\d)?")
_REDIS = re.compile(r"\d+:[A-Z] (\d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d\.\d+)")


@dataclass(kw_only=True)
class LogReader:
    """The record of a study and the files in the ``logs`` of its ``folder`` as lines, each once; ``trial`` keeps what
    is about it. ``study`` is None as long as it has not begun: then there are only files."""

    folder: Path
    study: Study | StudyReader | None = None
    trial: int | None = None
    _seen: int = 0
    _has_stages: bool = False
    _offsets: dict[Path, int] = field(default_factory=dict)

    def news(self) -> list[Json]:
        """What came since the last call, in the order of time: events ``{"time", "event", …fields}`` and lines of
        files ``{"time", "log", "text"}``; of one trial, the first time, its stages (:func:`attempt_lines`) as well.

        Raises:
            StudyError: the record cannot be read.
        """
        found = [*self._stages(), *self._events(), *self._lines()]
        return sorted(found, key=lambda line: datetime.fromisoformat(line["time"]))

    def _stages(self) -> Iterator[Json]:
        if self.study is not None and self.trial is not None and not self._has_stages:
            self._has_stages = True
            yield from attempt_lines(self.study, self.trial)

    def _events(self) -> Iterator[Json]:
        if self.study is None:
            return
        with self.study.guarded():
            found = self.study.ledger.events_from(self._seen)
        self._seen += len(found)
        for at, event in found:
            if self.trial is None or event.fields.get("trial") == self.trial:
                yield {"time": at, "event": event.name, **event.fields}

    def _lines(self) -> Iterator[Json]:
        """Of a file seen for the first time the last 64 KiB count."""
        pattern = "*.log" if self.trial is None else f"trial-{self.trial}-*.txt"
        for path in sorted((self.folder / "logs").glob(pattern)):
            written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            lines = self._new_lines(path)
            at = next((stamp for stamp in map(stamp_of, lines) if stamp is not None), written)
            for line in lines:
                at = stamp_of(line) or at
                yield {"time": at.isoformat(timespec="milliseconds"), "log": path.stem, "text": line}

    def _new_lines(self, path: Path) -> list[str]:
        size = path.stat().st_size
        start = self._offsets.get(path, max(0, size - _MOST_BYTES))
        if size < start:  # begun anew
            start = 0
        with path.open("rb") as file:
            file.seek(start)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offsets[path] = start + len(whole)
        return whole.decode(errors="replace").splitlines()


def stamp_of(line: str) -> datetime | None:
    """When a line of a log says that it was written; where it names no zone, in this host's. None where it does not."""
    try:
        if found := _ISO.match(line):
            stamp = datetime.fromisoformat(found[1].replace(",", ".") + (found[2] or ""))
        elif found := _REDIS.match(line):
            stamp = datetime.strptime(found[1], "%d %b %Y %H:%M:%S.%f")
        else:
            return None
    except ValueError:
        return None
    return stamp if stamp.tzinfo is not None else stamp.astimezone()


def attempt_lines(study: Study | StudyReader, trial: int) -> Iterator[Json]:
    """The stages of one trial, each attempt with its times, its worker and how it ended."""
    for attempt in study.stage_attempts():
        if attempt.trial == trial:
            yield _attempt_line(attempt)


def _attempt_line(attempt: StageAttempt) -> Json:
    return {
        "time": attempt.queued_at,
        "event": "test_split" if attempt.stage == FINAL_STAGE else "stage",
        "trial": attempt.trial,
        "stage": attempt.stage,
        "attempt": attempt.attempt,
        "state": attempt.state,
        "started_at": attempt.started_at,
        "ended_at": attempt.ended_at,
        "seconds": attempt.seconds,
        "worker": attempt.worker,
        "fault": attempt.fault.to_json() if attempt.fault else None,
    }


def log_text(line: Json) -> str:
    """A line of :class:`LogReader` for people."""
    if "log" in line:
        return f"{line['log']} | {line['text']}"
    fields = {name: value for name, value in line.items() if name not in ("time", "event")}
    if line["event"] in ("stage", "test_split"):
        took = f", {line['seconds']:.1f} s" if line["seconds"] is not None else ""
        fault = f", {line['fault']['reason']}: {line['fault']['detail']}" if line["fault"] else ""
        text = f"{line['stage']} attempt {line['attempt']}: {line['state']}{took} on {line['worker'] or '–'}{fault}"
    else:
        text = event_text(Event(name=line["event"], fields=fields))
    return f"{line['time']}  {text}"


def json_line(line: Json) -> str:
    return json.dumps(line, default=str)
