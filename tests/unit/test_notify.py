"""Notifications: what is worth one, how it is sent, and that nobody waits for it."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import cli
from orchestrator.errors import UsageError
from orchestrator.notify import Notifier, Poster, Webhook, webhooks_of
from orchestrator.records import Event
from orchestrator.report.write import _without_secrets
from orchestrator.studyfile import StudyFile
from orchestrator.studyyaml import read_yaml
from tests.support.lab import ManualClock
from tests.support.studies import study_file
from tests.support.webhooks import webhooks


@pytest.fixture
def poster() -> Iterator[Poster]:
    made = Poster(retry_after_s=(0.01, 0.01), timeout_s=0.5)
    yield made
    made.close()


def event(name: str, /, **fields: object) -> Event:
    return Event(name=name, fields=fields)


class Kept(Poster):
    """A poster that keeps what it would send."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[str, dict[str, object]]] = []

    def post(self, webhook: Webhook, content: dict[str, object]) -> None:
        self.sent.append((webhook.url, content))

    def events(self) -> list[object]:
        return [content["event"] for _, content in self.sent]


@pytest.fixture
def kept() -> Iterator[Kept]:
    made = Kept()
    yield made
    made.close()


def notifier(poster: Poster, clock: ManualClock, *hooks: Webhook) -> Notifier:
    return Notifier(study="digits", webhooks=hooks or (Webhook(url="http://a"),), poster=poster, clock=clock)


def test_an_end_is_posted_as_signed_json_that_slack_shows(poster: Poster) -> None:
    with webhooks() as server:
        told = notifier(poster, ManualClock(), Webhook(url=server.url, secret="abc"))
        told.emit(event("front_changed", hypervolume=0.5, front_size=3))
        told.emit(event("study_finished", reason="budget"))
        received = server.next()
    assert received.headers["Content-Type"] == "application/json"
    expected = hmac.new(b"abc", received.body, hashlib.sha256).hexdigest()
    assert received.headers["X-Edgefront-Signature"] == f"sha256={expected}"
    assert received.content == {
        "event": "end",
        "study": "digits",
        "time": "2030-01-01T00:00:00001000.000+00:00",
        "hypervolume": 0.5,
        "front_size": 3,
        "text": "study digits has ended (budget): 0.5000 hypervolume, 3 on the front",
        "how": "budget",
    }


def test_without_a_secret_nothing_is_signed(poster: Poster) -> None:
    with webhooks() as server:
        poster.post(Webhook(url=server.url), {"event": "end"})
        assert "X-Edgefront-Signature" not in server.next().headers


def test_a_server_that_fails_is_asked_again_until_it_takes_it(poster: Poster) -> None:
    with webhooks(answers=(503, 500)) as server:
        poster.post(Webhook(url=server.url), {"event": "end"})
        assert [server.next().content["event"] for _ in range(3)] == ["end"] * 3
        poster.close()
        assert (server.count(), poster.failures) == (0, 0)


def test_one_that_never_takes_it_is_given_up_and_counted(poster: Poster, caplog: pytest.LogCaptureFixture) -> None:
    with webhooks(answers=(500,) * 9) as server:
        poster.post(Webhook(url=f"{server.url}/T0KEN"), {"event": "end"})
        for _ in range(3):
            server.next()
        poster.close()
    assert poster.failures == 1
    assert "was given up" in caplog.text
    assert "T0KEN" not in caplog.text


def test_nobody_waits_for_a_server_that_hangs(poster: Poster) -> None:
    with webhooks(is_hanging=True) as server:
        began = time.monotonic()
        for number in range(300):
            poster.post(Webhook(url=server.url), {"event": number})
        assert time.monotonic() - began < 5.0  # one alone takes half a second to be given up
        assert server.next().content["event"] in range(300)
        poster.close(timeout_s=0.1)
    assert poster.failures >= 150  # more than a hundred do not wait


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "http://no.such.host.invalid/", "http://[::1"])
def test_an_address_that_does_not_answer_harms_nobody(poster: Poster, url: str) -> None:
    poster.post(Webhook(url=url), {"event": "end"})
    poster.close()
    assert poster.failures == 1


def test_the_first_front_of_a_resumed_study_is_no_record(kept: Kept) -> None:
    told = notifier(kept, ManualClock())
    told.emit(event("study_started", budget=9))
    told.emit(event("study_resumed", told=4))
    told.emit(event("front_changed", hypervolume=0.5, front_size=2))
    told.emit(event("trial_ended", trial=4, ending="complete"))
    assert kept.sent == []
    told.emit(event("front_changed", hypervolume=0.6, front_size=3))
    assert kept.sent[0][1]["text"] == "study digits: new record, hypervolume 0.6000, 3 on the front"


def test_a_front_that_only_grows_is_no_record(kept: Kept) -> None:
    told = notifier(kept, ManualClock())
    told.emit(event("study_started", budget=9))
    told.emit(event("trial_ended", trial=0, ending="complete"))
    told.emit(event("front_changed", hypervolume=0.5, front_size=1))
    told.emit(event("front_changed", hypervolume=0.5, front_size=2))
    assert len(kept.sent) == 1


def test_records_in_quick_succession_become_one_with_the_newest(kept: Kept) -> None:
    clock = ManualClock()
    told = notifier(kept, clock)
    told.emit(event("study_started", budget=9))
    told.emit(event("trial_ended", trial=0, ending="complete"))
    for hypervolume in (0.1, 0.2, 0.3):
        told.emit(event("front_changed", hypervolume=hypervolume, front_size=1))
        told.tick()
    clock.now += 601
    told.tick()
    told.tick()
    assert [content["hypervolume"] for _, content in kept.sent] == [0.1, 0.3]


def test_a_stall_is_told_once_until_a_trial_is_told_again(kept: Kept) -> None:
    clock = ManualClock()
    told = notifier(kept, clock, Webhook(url="http://a", stall_after_s=60))
    told.emit(event("study_started", budget=9))
    for _ in range(3):
        clock.now += 59
        told.tick()
    assert kept.events() == ["stall"]
    told.emit(event("trial_ended", trial=0, ending="fault"))
    told.tick()
    told.emit(event("trial_ended", trial=1, ending="complete"))
    clock.now += 61
    told.tick()
    assert kept.events() == ["stall", "stall"]


def test_runs_that_die_one_after_the_other_are_one_stall_and_a_run_long_after_is_none(kept: Kept) -> None:
    clock = ManualClock()
    told = notifier(kept, clock, Webhook(url="http://a", stall_after_s=200))
    for _ in range(5):
        told.emit(event("study_started", budget=9))
        told.tick()
        clock.now += 60
    assert kept.events() == ["stall"]
    assert kept.sent[0][1]["seconds"] == 240
    told.emit(event("trial_ended", trial=0, ending="complete"))
    told.tick()
    clock.now += 100_000  # paused while it waited to be tried again
    told.emit(event("study_started", budget=9))
    told.tick()
    assert kept.events() == ["stall"]


def test_a_study_that_pauses_neither_ends_nor_stalls(kept: Kept) -> None:
    clock = ManualClock()
    told = notifier(kept, clock)
    told.emit(event("study_started", budget=9))
    told.emit(event("study_finished", reason="paused"))
    clock.now += 100_000
    told.tick()
    assert kept.sent == []


def test_each_webhook_hears_what_it_asked_for(kept: Kept) -> None:
    told = notifier(kept, ManualClock(), Webhook(url="http://a", on=("end",)), Webhook(url="http://b", on=("record",)))
    told.emit(event("study_started", budget=9))
    told.emit(event("trial_ended", trial=0, ending="complete"))
    told.emit(event("front_changed", hypervolume=0.5, front_size=1))
    told.end("failed", "bit_mismatch")
    assert [(url, content["event"]) for url, content in kept.sent] == [("http://b", "record"), ("http://a", "end")]


def noisy(**changes: object) -> StudyFile:
    return study_file(notify={"webhook": "https://hooks.example/T0/B1", "secret": "s3cr3t", **changes})


def test_study_and_service_each_have_their_webhook() -> None:
    found = webhooks_of(noisy(on="end"), {"EDGEFRONT_WEBHOOK": "http://lab/", "EDGEFRONT_WEBHOOK_SECRET": "x"})
    assert [(hook.url, hook.on, hook.secret) for hook in found] == [
        ("https://hooks.example/T0/B1", ("end",), "s3cr3t"),
        ("http://lab/", ("record", "end", "stall"), "x"),
    ]
    assert webhooks_of(study_file(), {}) == ()
    with pytest.raises(UsageError, match="EDGEFRONT_WEBHOOK"):
        webhooks_of(study_file(), {"EDGEFRONT_WEBHOOK": "lab.example"})


def test_the_service_does_not_start_with_a_webhook_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFRONT_WEBHOOK", "http://lab:99999/")
    done = CliRunner().invoke(cli.main, ["orchestrator", "--studies", str(tmp_path), "--metrics-port", "0"])
    assert done.exit_code == 2
    assert "EDGEFRONT_WEBHOOK: found 'http://lab:99999/'…; allowed is http://host:port/" in done.stderr


def test_neither_workers_nor_reports_learn_whom_to_notify() -> None:
    file = noisy()
    assert "notify" not in file.for_stages()
    assert study_file().to_json() == file.for_stages()
    shown = _without_secrets(file, "notify: {webhook: https://hooks.example/T0/B1, secret: s3cr3t}")
    assert shown == "notify: {webhook: ***, secret: ***}"


def test_yaml_that_takes_on_for_a_truth_value_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "notify.yaml"
    path.write_text("webhook: https://hooks.example/\non: [record]\n", encoding="utf-8")
    data, lines = read_yaml(path)
    assert data == {"webhook": "https://hooks.example/", "on": ["record"]}
    assert lines.of("on.0") == 2
    assert study_file(notify=data).notify == study_file(notify={**data, "on": "record"}).notify
