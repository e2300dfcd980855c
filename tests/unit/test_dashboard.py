"""Who may look at the dashboard, and what it sends."""

from __future__ import annotations

import gzip
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from email.message import Message
from pathlib import Path
from typing import Any

import optuna
import pytest
from click.testing import CliRunner

from cli import main
from cli_dashboard import ShownStudies
from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.report.serve import COOKIE, Access, DashboardServer
from tests.support.studies import make_study

TOKEN = "a token of the laboratory"


class Shown:
    """Two studies, one of which cannot be read."""

    def __init__(self) -> None:
        self.looks = 0

    def names(self) -> list[str]:
        return ["digits", "broken"]

    def look(self, name: str) -> dict[str, Any]:
        self.looks += 1
        if name == "broken":
            raise OrchestratorError("its database is damaged")
        row = {"name": name, "board": "b", "told": self.looks, "budget": 9, "state": {}, "figures": [], "history": []}
        return {**row, "points": "x" * 3000}

    def boards(self) -> dict[str, Any]:
        return {"boards": [], "text": "no agent"}


@pytest.fixture
def open_server() -> Iterator[DashboardServer]:
    with DashboardServer(Shown(), Access(address="127.0.0.1", port=0), first="digits", clock=Clock()) as server:
        yield server


@pytest.fixture
def closed_server() -> Iterator[DashboardServer]:
    with DashboardServer(Shown(), Access(address="127.0.0.1", port=0, token=TOKEN)) as server:
        yield server


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any) -> None:
        return None


def ask(server: DashboardServer, path: str, data: bytes | None = None, **headers: str) -> tuple[int, bytes, Message]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(server.url.rstrip("/") + path, data=data, headers=named)
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=10) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers


def test_on_this_machine_everybody_may_look(open_server: DashboardServer) -> None:
    status, body, headers = ask(open_server, "/api/study/digits")
    assert (status, json.loads(body)["name"]) == (200, "digits")
    assert "script-src 'self';" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert ask(open_server, "/")[2]["Location"] == "/study/digits"
    assert b"/live.js" in ask(open_server, "/study/digits")[1]


def test_the_address_of_no_study_says_so_with_a_page_that_lists_those_there_are(open_server: DashboardServer) -> None:
    status, body, _ = ask(open_server, "/study/nope")
    assert (status, b"/live.js" in body) == (404, True)
    assert [ask(open_server, path)[0] for path in ("/study/digits", "/study/broken")] == [200, 200]


@pytest.mark.parametrize(
    "path", ["/", "/study/digits", "/api/study/digits", "/api/studies", "/api/boards", "/live.js", "/x"]
)
def test_without_the_token_nothing_is_told(closed_server: DashboardServer, path: str) -> None:
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Cookie": f"{COOKIE}={TOKEN}"},
    ):
        status, body, answered = ask(closed_server, path, **headers)
        assert status == 401
        assert b"digits" not in body
        assert answered["Cache-Control"] == "no-store"


def test_the_token_in_a_header_admits(closed_server: DashboardServer) -> None:
    status, body, _ = ask(closed_server, "/api/studies", Authorization=f"Bearer {TOKEN}")
    assert status == 200
    assert [row["name"] for row in json.loads(body)["studies"]] == ["digits", "broken"]
    assert json.loads(body)["studies"][1]["error"] == "its database is damaged"


def test_the_form_gives_a_cookie_that_admits_and_does_not_hold_the_token(closed_server: DashboardServer) -> None:
    assert ask(closed_server, "/login", data=b"token=wrong")[0] == 401
    status, _, headers = ask(closed_server, "/login", data=f"token={TOKEN.replace(' ', '+')}".encode())
    cookie = headers["Set-Cookie"]
    assert status == 200
    assert TOKEN not in cookie and "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert ask(closed_server, "/study/digits", Cookie=cookie.partition(";")[0])[0] == 200


def test_the_page_that_asks_for_the_token_has_what_it_needs(closed_server: DashboardServer) -> None:
    for path in ("/login.js", "/live.css"):
        assert ask(closed_server, path)[0] == 200


@pytest.mark.parametrize("address", ["0.0.0.0", "192.168.1.2", "::", "lab.example.org"])
def test_where_others_reach_it_it_does_not_start_without_a_token(address: str) -> None:
    with pytest.raises(UsageError, match="EDGEFRONT_DASHBOARD_TOKEN"):
        Access(address=address, port=0)
    assert Access(address=address, port=0, token=TOKEN).admits(f"Bearer {TOKEN}", "")


def test_a_short_token_is_refused() -> None:
    with pytest.raises(UsageError, match="found 5 characters; needed are at least 16"):
        Access(address="127.0.0.1", port=0, token="short")


def test_a_name_made_to_lead_here_is_turned_away_where_no_token_is_asked(open_server: DashboardServer) -> None:
    assert ask(open_server, "/api/studies", Host="evil.example.org")[0] == 421
    assert ask(open_server, "/api/studies", Host=f"localhost:{open_server.port}")[0] == 200


def test_nothing_can_be_written(open_server: DashboardServer) -> None:
    assert ask(open_server, "/api/study/digits", data=b"x")[0] == 404
    request = urllib.request.Request(open_server.url, method="DELETE")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=5)
    with refused.value as answer:
        assert answer.code == 501
    assert ask(open_server, "/login", data=b"x" * 5000)[0] == 413


def test_a_study_is_read_once_for_many_screens_and_again_after_a_second() -> None:
    shown, clock = Shown(), Clock()
    with DashboardServer(shown, Access(address="127.0.0.1", port=0), clock=clock) as server:
        first = ask(server, "/api/study/digits")
        again = ask(server, "/api/study/digits", If_None_Match=first[2]["ETag"])
        assert (shown.looks, again[0], again[1]) == (1, 304, b"")
        clock.now_s = 1.5
        assert ask(server, "/api/study/digits", If_None_Match=first[2]["ETag"])[0] == 200
        assert shown.looks == 2


def test_what_is_large_is_sent_compressed(open_server: DashboardServer) -> None:
    _, body, headers = ask(open_server, "/api/study/digits", Accept_Encoding="gzip")
    assert headers["Content-Encoding"] == "gzip"
    assert json.loads(gzip.decompress(body))["name"] == "digits"
    _, script, _ = ask(open_server, "/plotly.js", Accept_Encoding="gzip")
    assert len(script) < 2_000_000 and b"Plotly" in gzip.decompress(script)


@pytest.mark.parametrize("path", ["/api/study/none", "/api/study/..%2F..%2Fetc", "/api/x", "/../cli.py", "/live.html"])
def test_what_is_not_there_is_not_found(open_server: DashboardServer, path: str) -> None:
    assert ask(open_server, path)[0] == 404


def test_a_port_that_is_taken_is_said_with_what_to_choose(open_server: DashboardServer) -> None:
    with pytest.raises(UsageError, match="another --port"):
        DashboardServer(Shown(), Access(address="127.0.0.1", port=open_server.port))


def test_a_study_names_the_way_to_every_plot_of_optuna(tmp_path: Path) -> None:
    make_study(tmp_path / "small").close()
    with closing(ShownStudies(tmp_path)) as shown:
        command = shown.look("small")["links"]["every plot of Optuna"]
    program, address = command.split()
    assert program == "optuna-dashboard"
    assert optuna.get_all_study_names(address) == ["small"], "nothing to see at this address"
    with closing(ShownStudies(tmp_path, optuna_url="http://lab:8080/")) as shown:
        assert shown.look("small")["links"]["every plot of Optuna"] == "http://lab:8080/"


def test_the_command_refuses_an_open_address_and_an_unknown_study(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["dashboard", "--studies", str(tmp_path), "--address", "0.0.0.0"])
    assert (done.exit_code, "set a token" in done.output) == (2, True)
    done = CliRunner().invoke(main, ["dashboard", "nothing", "--studies", str(tmp_path), "--port", "0"])
    assert (done.exit_code, "no study 'nothing'" in done.output) == (2, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--studies", "/nonexist"), "--studies: there is no folder /nonexist"),
        (("--optuna-dashboard", "foo"), "--optuna-dashboard: found 'foo'; allowed is http://host:port/"),
    ],
)
def test_the_command_refuses_what_would_show_nothing(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    done = CliRunner().invoke(main, ["dashboard", "--studies", str(tmp_path), "--port", "0", *words])
    assert (done.exit_code, said in done.output) == (2, True)
