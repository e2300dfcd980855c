"""The live page in a real browser, while another process runs the study."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import time

import pytest

from bench.pipelining.large import write_large_study
from cli_dashboard import ShownStudies
from orchestrator.loop import run_study
from orchestrator.objectives import Objectives
from orchestrator.records import Event, StageRequest, StageResult
from orchestrator.report.serve import Access, DashboardServer
from orchestrator.studyedit import StudyEdit, apply_edit
from tasks import messages
from tasks.broker import EmbeddedBroker, connect
from tasks.watching import LabWatch
from tests.support.browser import Page, browser, needs_chromium
from tests.support.run_scripted import main
from tests.support.scripted import ScriptedEvaluator, complete
from tests.support.studies import Recorder, make_sampler, make_study

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a token of the laboratory"
pytestmark = needs_chromium


def go_on(folder: Path, trials: int) -> None:
    """The study up to so many trials, by a process of its own, with stages that take no time."""
    command = [sys.executable, "-m", "tests.support.run_scripted", str(folder / "small"), str(trials)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with browser(tmp_path / "profile") as one:
        yield one


def test_the_page_of_a_study_follows_it_without_being_loaded_again(tmp_path: Path, page: Page) -> None:
    main(tmp_path / "small", 2)
    with DashboardServer(ShownStudies(tmp_path), Access(address="127.0.0.1", port=0), first="small") as server:
        page.resize(1920, 1080)
        page.open(server.url)
        page.wait("document.querySelectorAll('#ended tbody tr').length === 2")
        assert page.ask("document.getElementById('name').textContent") == "small"
        assert page.ask("document.getElementById('state').textContent") == "finished"
        points = "document.querySelectorAll('#front-plot .scatterlayer .point').length"
        drawn = page.wait(points)
        page.ask(
            "(window.kept = document.querySelector('#front-plot svg'), document.getElementById('y-axis').value = 'rom')"
        )
        go_on(tmp_path, 5)
        page.wait("document.getElementById('told').textContent === '5'")
        assert page.wait("document.querySelectorAll('#ended tbody tr').length === 5")
        assert page.ask("document.querySelector('#ended tbody tr').textContent").startswith("#4")
        assert page.ask(points) > drawn
        assert page.ask("window.kept === document.querySelector('#front-plot svg')"), "it was drawn anew"
        assert page.ask("document.getElementById('y-axis').value") == "rom", "what was chosen is lost"
        # On a wall everything fits the screen, and what matters is large.
        assert page.ask("document.documentElement.scrollHeight <= innerHeight")
        assert page.ask("parseFloat(getComputedStyle(document.querySelector('.figure-value')).fontSize)") >= 36
        page.resize(390, 844)
        assert page.wait("document.documentElement.scrollWidth <= innerWidth"), "a phone would have to scroll sideways"
        assert page.complaints == []
        assert {address for address in page.asked if not address.startswith((server.url, "data:"))} == set()


def report(*states: str) -> str:
    boards = [{"board": f"b-{n}", "kind": "nrf52-dk", "state": state, "detail": ""} for n, state in enumerate(states)]
    return json.dumps({"version": 1, "at": time(), "boards": boards})


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    one = EmbeddedBroker(tmp_path / "broker", tmp_path / "broker.log")
    one.start()
    yield one
    one.stop()


def test_the_page_shows_stage_and_epoch_of_what_is_under_way_the_boards_and_the_way_to_optuna(
    tmp_path: Path, page: Page, broker: EmbeddedBroker
) -> None:
    study, stop = make_study(tmp_path / "small"), threading.Event()

    def stop_in_training(one: StageRequest) -> StageResult | None:
        if one.stage != "train":
            return complete(one)
        stop.set()
        return None

    run_study(study, ScriptedEvaluator(stop_in_training), make_sampler(), sink=Recorder(), stop=stop)
    (under_way,) = (attempt for attempt in study.stage_attempts() if attempt.is_open)
    study.ledger.record_start(0, "train", under_way.attempt, "gpu-1", datetime.now(UTC).isoformat())
    client = connect(broker.url)

    def tell(epoch: int, *states: str) -> None:
        about = {"trial": 0, "epoch": epoch, "epochs": 8, "accuracy": 0.5}
        event = messages.encode_event(Event(name="epoch_finished", fields=about))
        client.xadd(messages.events_key(study.study_id), event)  # type: ignore[arg-type]
        client.set(messages.agent_key("a@lab"), report(*states))

    tell(3, "idle", "leased", "quarantined")
    shown = ShownStudies(tmp_path, watch=LabWatch(broker.url))
    with DashboardServer(shown, Access(address="127.0.0.1", port=0), first="small") as server:
        page.open(server.url)
        row = "document.querySelector('#way tbody tr')?.textContent"
        assert "epoch 3/8, accuracy 50.0 %" in page.wait(row)
        assert "train" in page.ask(row)
        assert page.ask("document.querySelector('#way .steps .now').title") == "train"
        wall = "[...document.querySelectorAll('#boards .board')].map((one) => one.className).join()"
        assert page.wait(wall) == "board idle,board leased,board quarantined"
        assert "optuna-dashboard sqlite:///" in page.ask("document.getElementById('footer').textContent")
        tell(4, "idle", "idle", "quarantined")
        page.wait(f"{row}?.includes('epoch 4/8')")
        page.wait(f"{wall} === 'board idle,board idle,board quarantined'")
        assert page.complaints == []
    shown.close()
    client.close()
    study.close()


@pytest.fixture
def busy(tmp_path: Path) -> Path:
    """A folder with a study of sixty trials of four objectives, two of which are under way; half-way a limit was
    tightened."""
    study = write_large_study(tmp_path / "busy", 60)
    edit = StudyEdit(limits={"rom": 30 * 1024.0})
    apply_edit(study, edit, lambda file: Objectives.from_study(file, 2.0**20, 2.0**18), "2026-01-05T08:30:30+00:00")
    study.close()
    return tmp_path


def test_on_every_screen_all_parts_keep_to_their_cards(busy: Path, page: Page) -> None:
    filled = """[...document.querySelectorAll('.plot')].every((plot) => {
      const drawn = plot.querySelector('svg');
      return drawn && drawn.clientHeight === plot.clientHeight && drawn.clientWidth === plot.clientWidth;
    })"""
    figures = """[...document.querySelectorAll('.figure-value')].every((node) => {
      const text = document.createRange();
      text.selectNodeContents(node);
      return text.getBoundingClientRect().right <= node.getBoundingClientRect().right;
    })"""
    sideways = "document.documentElement.scrollWidth <= innerWidth"
    scrolled = "[...document.querySelectorAll('.scroll')].some((box) => box.scrollHeight > box.clientHeight + 1)"
    rows = "[...document.querySelectorAll('#ended tbody tr')].filter((row) => row.offsetHeight).length"
    with DashboardServer(ShownStudies(busy), Access(address="127.0.0.1", port=0), first="busy") as server:
        page.resize(1400, 900)
        page.open(server.url)
        page.wait("document.querySelectorAll('#ended tbody tr').length === 40")
        for width, height in ((1400, 900), (1920, 1080), (420, 900)):
            page.resize(width, height)
            for condition in (filled, figures, sideways):
                assert page.wait(condition), (width, condition)
            assert page.ask("document.getElementById('ended-hint').textContent.includes('e emulated')")
            if width == 1920:
                assert page.wait(f"!({scrolled}) && {rows} < 12")
                assert page.ask(
                    "[...document.querySelectorAll('.scroll')].every((box) => box.scrollWidth <= box.clientWidth)"
                )
                shown = page.ask(rows)
                assert shown >= 5
                assert f"the last {shown} " in page.ask("document.getElementById('ended-hint').textContent")
            else:
                assert page.wait(f"{rows} === 40")
        reasons = page.ask("""[...document.querySelectorAll('td.reason')].filter((cell) => cell.textContent)
          .map((cell) => [cell.getBoundingClientRect(), cell.closest('tr').offsetHeight])
          .map(([box, high]) => [box.left, box.right, high])""")
        assert reasons and all(left >= 0 and right <= 420 and high < 130 for left, right, high in reasons)
        mark = page.ask("document.querySelector('#history-plot .annotation').textContent")
        assert (mark, page.ask("document.getElementById('history-hint').textContent")) == (
            "ROM ≤ 30 KiB",
            "judged by the limits that hold now",
        )
        assert page.complaints == []


def test_where_nothing_is_under_way_its_room_is_given_to_what_has_ended(tmp_path: Path, page: Page) -> None:
    main(tmp_path / "small", 2)
    with DashboardServer(ShownStudies(tmp_path), Access(address="127.0.0.1", port=0), first="small") as server:
        page.resize(1920, 1080)
        page.open(server.url)
        page.wait("document.querySelectorAll('#ended tbody tr').length === 2")
        assert page.ask("document.getElementById('way-card').offsetHeight") == 0
        assert page.ask("document.getElementById('ended-card').offsetWidth") > 1800
        assert page.ask("document.getElementById('ended-hint').textContent").startswith(
            "nothing under way · the last 2"
        )


def test_the_address_of_no_study_leads_to_those_there_are_until_it_begins(tmp_path: Path, page: Page) -> None:
    write_large_study(tmp_path / "other", 4).close()
    with DashboardServer(ShownStudies(tmp_path), Access(address="127.0.0.1", port=0)) as server:
        page.open(f"{server.url}study/small")
        page.wait("document.querySelector('#tiles a')?.getAttribute('href') === '/study/other'")
        page.wait("document.getElementById('error').textContent.includes(\"there is no study 'small'\")")
        assert page.ask("[document.title, document.getElementById('name').textContent]") == [
            "no study small · Edgefront",
            "small",
        ]
        main(tmp_path / "small", 2)
        page.wait("document.getElementById('told').textContent === '2'")
        assert page.ask("[document.getElementById('studies').hidden, document.getElementById('error').hidden]") == [
            True,
            True,
        ]


def test_a_browser_without_the_token_is_asked_for_it_and_then_shows_the_list(tmp_path: Path, page: Page) -> None:
    access = Access(address="127.0.0.1", port=0, token=TOKEN)
    with DashboardServer(ShownStudies(tmp_path), access) as server:
        page.open(server.url)
        assert page.ask("fetch('/api/studies').then((answer) => answer.status)") == 401
        page.ask("document.getElementById('token').value = 'wrong'")
        page.ask("document.querySelector('button').click()")
        page.wait("document.getElementById('answer').textContent === 'this is not the token'")
        page.open("about:blank")  # an address that differs behind the # alone would not be loaded again
        page.open(f"{server.url}#token={TOKEN.replace(' ', '%20')}")
        page.wait("document.getElementById('none')?.hidden === false")
        assert TOKEN not in page.ask("location.href + document.cookie")
        assert not [address for address in page.asked if "token=" in address.partition("#")[0]]
