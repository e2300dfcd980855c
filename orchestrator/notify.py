"""Word of a study to a webhook: a new record of its hypervolume, its end, a stall.

A notification is a POST of JSON whose ``text`` Slack and its like show as it is; with a secret the header
``X-Edgefront-Signature`` holds ``sha256=`` and the HMAC-SHA256 of the body in hex. Sending happens in a thread, with a
time limit, again after a pause, and is given up in the end: a study never waits for its webhook and never fails with
it.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import logging
import threading
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from orchestrator.errors import UsageError
from orchestrator.ports import Clock
from orchestrator.quantities import elapsed
from orchestrator.records import Event, Json
from orchestrator.studyfile import Notify, StudyFile

WEBHOOK_VARIABLE = "EDGEFRONT_WEBHOOK"
SECRET_VARIABLE = "EDGEFRONT_WEBHOOK_SECRET"
SIGNATURE_HEADER = "X-Edgefront-Signature"
RECORD, END, STALL = "record", "end", "stall"

_TIMEOUT_S = 5.0
_RETRY_AFTER_S = (1.0, 5.0, 25.0, 125.0)
_MOST_WAITING = 100
_RECORD_EVERY_S = 600.0
# A run that dies is tried again after a minute at most; one that begins later than this after the last did not hang.
_APART_S = 300.0
# Runs that end so go on later: no end of the study.
_NO_ENDS = ("interrupted", "paused")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Webhook:
    """Where to post what: ``on`` names the events, ``stall_after_s`` is how long no trial may be told."""

    url: str
    on: tuple[str, ...] = (RECORD, END, STALL)
    secret: str = ""
    stall_after_s: float = 3600.0


def webhooks_of(file: StudyFile, environment: Mapping[str, str]) -> tuple[Webhook, ...]:
    """The study's own and the service's (``EDGEFRONT_WEBHOOK``, ``EDGEFRONT_WEBHOOK_SECRET``).

    Raises:
        UsageError: ``EDGEFRONT_WEBHOOK`` is no address of HTTP.
    """
    found = []
    if file.notify is not None:
        own = file.notify
        found.append(Webhook(url=own.webhook, on=own.on, secret=own.secret or "", stall_after_s=own.stall_after))
    lab = lab_webhook(environment)
    if lab is not None and lab.url not in [webhook.url for webhook in found]:
        found.append(lab)
    return tuple(found)


def lab_webhook(environment: Mapping[str, str]) -> Webhook | None:
    """The service's own, where it has one.

    Raises:
        UsageError: ``EDGEFRONT_WEBHOOK`` is no address of HTTP. The text shows its beginning only: it may be a secret.
    """
    url = environment.get(WEBHOOK_VARIABLE)
    if not url:
        return None
    try:
        Notify(webhook=url)
    except ValueError:
        raise UsageError(
            f"{WEBHOOK_VARIABLE}: found {url[:20]!r}…; allowed is http://host:port/… or https://…, with a port from 1 "
            "to 65535"
        ) from None
    return Webhook(url=url, secret=environment.get(SECRET_VARIABLE, ""))


def signature(body: bytes, secret: str) -> str:
    """What the header holds."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Post:
    webhook: Webhook
    body: bytes


class Poster:
    """Sends what it is given from a thread of its own, in order; an address that does not answer delays the others by
    its time limits at most. ``failures`` counts what was given up or dropped."""

    def __init__(self, *, retry_after_s: Sequence[float] = _RETRY_AFTER_S, timeout_s: float = _TIMEOUT_S) -> None:
        self._retry_after_s = tuple(retry_after_s)
        self._timeout_s = timeout_s
        self._waiting: deque[tuple[float, int, _Post]] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self.failures = 0
        self._thread = threading.Thread(target=self._run, name="notify", daemon=True)
        self._thread.start()

    def post(self, webhook: Webhook, content: Json) -> None:
        """Never waits and never raises."""
        with self._changed:
            if len(self._waiting) >= _MOST_WAITING:
                self._waiting.popleft()
                self.failures += 1
            self._waiting.append((0.0, 0, _Post(webhook=webhook, body=json.dumps(content).encode())))
            self._changed.notify()

    def close(self, timeout_s: float = 10.0) -> None:
        """Try once more what is waiting, for ``timeout_s`` at most, and end."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        with self._changed:
            self.failures += len(self._waiting)
            self._waiting.clear()

    def _run(self) -> None:
        while (found := self._next()) is not None:
            n_failed, post = found
            trouble = self._send(post)
            if trouble:
                self._again(n_failed + 1, post, trouble)

    def _next(self) -> tuple[int, _Post] | None:
        """What is due first, once it is; None when all is done and the poster closed."""
        with self._changed:
            while True:
                if self._is_closing and not self._waiting:
                    return None
                due = min(self._waiting, key=lambda item: item[0], default=None)
                wait_s = None if due is None else due[0] - monotonic()
                if due is not None and (self._is_closing or (wait_s or 0.0) <= 0):
                    self._waiting.remove(due)
                    return due[1], due[2]
                self._changed.wait(wait_s)

    def _again(self, n_failed: int, post: _Post, trouble: str) -> None:
        with self._changed:
            if self._is_closing or n_failed > len(self._retry_after_s):
                self.failures += 1
                host = post.webhook.url.partition("://")[2].partition("/")[0].rpartition("@")[2]
                _log.warning("a notification to %s was given up: %s", host, trouble)
                return
            self._waiting.append((monotonic() + self._retry_after_s[n_failed - 1], n_failed, post))

    def _send(self, post: _Post) -> str:
        """Empty where it went through; else what went wrong."""
        headers = {"Content-Type": "application/json", "User-Agent": "edgefront"}
        if post.webhook.secret:
            headers[SIGNATURE_HEADER] = signature(post.body, post.webhook.secret)
        try:
            request = urllib.request.Request(post.webhook.url, data=post.body, headers=headers, method="POST")
            with urllib.request.urlopen(request, timeout=self._timeout_s):
                return ""
        except (OSError, ValueError, http.client.HTTPException) as error:  # time limits and refusals are OSErrors
            return str(getattr(error, "reason", "") or error)


@dataclass(kw_only=True)
class Notifier:
    """An :class:`~orchestrator.ports.EventSink` that posts what is worth it of one study.

    A record within ``record_every_s`` of the last one waits until that time is over, and the newest is told then.
    ``tick`` must be called now and then: it finds stalls, and sends records that have waited.
    """

    study: str
    webhooks: Sequence[Webhook]
    poster: Poster
    clock: Clock
    record_every_s: float = _RECORD_EVERY_S
    _told_s: float | None = None
    _seen_s: float | None = None
    _stalled: set[str] = field(default_factory=set)
    _recorded_s: float | None = None
    _waiting: bool = False
    _is_news: bool = False
    _best: float = 0.0
    _hypervolume: float = 0.0
    _front_size: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def emit(self, event: Event) -> None:
        handler = _HANDLERS.get(event.name)
        if handler is not None:
            with self._lock:
                handler(self, event.fields)

    def tick(self) -> None:
        with self._lock:
            self._seen_s = self.clock.monotonic()
            self._look_for_stall()
            if self._waiting and self._may_tell_record():
                self._tell_record()

    def end(self, how: str, text: str) -> None:
        """The study has ended in a way that its own events do not tell: it ``failed``, or was ``stopped``."""
        with self._lock:
            self._on_end(how, text)

    def _on_study_started(self, fields: Mapping[str, Any]) -> None:
        now = self.clock.monotonic()
        # A study whose runs die one after the other, or that is edited, is no nearer to its end by beginning again.
        if self._told_s is None or self._seen_s is None or now - self._seen_s > _APART_S:
            self._told_s = now
        self._hypervolume, self._front_size, self._best = 0.0, 0, 0.0
        self._is_news = False  # a front that follows before any trial has ended is where the study stands

    def _on_trial_ended(self, fields: Mapping[str, Any]) -> None:
        self._is_news = True
        if fields.get("ending") != "fault":
            self._told_s = self.clock.monotonic()
            self._stalled.clear()

    def _on_front_changed(self, fields: Mapping[str, Any]) -> None:
        self._hypervolume, self._front_size = float(fields["hypervolume"]), int(fields["front_size"])
        if self._is_news and self._hypervolume > self._best:
            self._waiting = True
            if self._may_tell_record():
                self._tell_record()
        self._best = max(self._best, self._hypervolume)

    def _on_study_finished(self, fields: Mapping[str, Any]) -> None:
        reason = str(fields.get("reason", ""))
        self._told_s = None
        if reason not in _NO_ENDS:
            self._on_end(reason, "")

    def _on_end(self, how: str, text: str) -> None:
        self._told_s, self._waiting = None, False
        said = text or f"{self._hypervolume:.4f} hypervolume, {self._front_size} on the front"
        self._post(END, f"study {self.study} has ended ({how}): {said}", how=how)

    def _look_for_stall(self) -> None:
        if self._told_s is None:
            return
        still_s = self.clock.monotonic() - self._told_s
        for webhook in self.webhooks:
            if STALL in webhook.on and still_s >= webhook.stall_after_s and webhook.url not in self._stalled:
                self._stalled.add(webhook.url)
                text = f"study {self.study} is stalled: no trial was told for {elapsed(still_s)}"
                self.poster.post(webhook, self._content(STALL, text, seconds=still_s))

    def _may_tell_record(self) -> bool:
        return self._recorded_s is None or self.clock.monotonic() - self._recorded_s >= self.record_every_s

    def _tell_record(self) -> None:
        self._recorded_s, self._waiting = self.clock.monotonic(), False
        text = f"study {self.study}: new record, hypervolume {self._hypervolume:.4f}, {self._front_size} on the front"
        self._post(RECORD, text)

    def _post(self, event: str, text: str, **more: object) -> None:
        for webhook in self.webhooks:
            if event in webhook.on:
                self.poster.post(webhook, self._content(event, text, **more))

    def _content(self, event: str, text: str, **more: object) -> Json:
        return {
            "event": event,
            "study": self.study,
            "time": self.clock.now_iso(),
            "hypervolume": self._hypervolume,
            "front_size": self._front_size,
            "text": text,
            **more,
        }


_HANDLERS: dict[str, Callable[[Notifier, Mapping[str, Any]], None]] = {
    "study_started": Notifier._on_study_started,
    "trial_ended": Notifier._on_trial_ended,
    "front_changed": Notifier._on_front_changed,
    "study_finished": Notifier._on_study_finished,
}


class Ticking:
    """Calls ``tick`` of a notifier from a thread of its own until left; a context manager."""

    def __init__(self, notifier: Notifier, every_s: float = 1.0) -> None:
        self._notifier = notifier
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notify-tick", daemon=True)

    def __enter__(self) -> Ticking:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            self._notifier.tick()
