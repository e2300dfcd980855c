"""The report: what it says, that it is one file, and that a browser draws it."""

from __future__ import annotations

import errno
import json
import re
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_trials import (
    TWO_BOARDS,
    MadeUpTrial,
    buffer,
    made_up_trials,
    memory_map,
    report_input,
    study_file,
    two_board_input,
    two_board_trials,
)

from orchestrator.loop import run_study
from orchestrator.objectives import Objectives
from orchestrator.reading import StudyReader
from orchestrator.records import Ending, Fault, FaultKind, Outcome, Source, Value
from orchestrator.report import write
from orchestrator.report.contents import ReportInput, contents, layers_of
from orchestrator.report.figures import layer_sources, memory_figure
from orchestrator.report.page import render, script_json
from orchestrator.studyedit import StudyEdit, apply_edit
from tests.support.browser import CHROMIUM, Page, browser, needs_chromium
from tests.support.scripted import ScriptedEvaluator
from tests.support.studies import FLASH_BYTES, RAM_BYTES, Recorder, make_sampler, make_study


def complete(number: int, **values: float) -> MadeUpTrial:
    units = {"error": "1", "rom": "byte", "ram": "byte", "flops": "1"}
    named = {name: Value(amount=v, unit=units[name], source=Source.EXACT) for name, v in values.items()}
    return MadeUpTrial(number=number, params={}, outcome=Outcome(ending=Ending.COMPLETE, values=named))


def test_the_headline_names_the_best_of_the_front_in_each_objective() -> None:
    trials = [complete(0, error=0.1, rom=2048, ram=1, flops=1), complete(1, error=0.2, rom=1024, ram=1, flops=1)]
    test = {0: Value(amount=0.125, unit="1", source=Source.EXACT)}
    page = contents(report_input(trials, test_results=test, history=[(1, 0.25), (2, 0.5)]))
    figures = {figure["title"]: figure for figure in page["headline"]}
    assert figures["hypervolume"]["figure"] == "0.500"
    assert figures["lowest error"]["figure"] == "10.00 %"
    assert "12.50 %" in figures["lowest error"]["about"]
    assert figures["smallest ROM"]["figure"] == "1.0 KiB"
    assert "trial 1" in figures["smallest ROM"]["about"]


def test_each_value_carries_its_source_and_each_infeasible_trial_its_reason() -> None:
    page = contents(report_input())
    trials = {trial["number"]: trial for trial in page["trials"]}
    assert trials[0]["values"]["energy"] == {
        "amount": pytest.approx(trials[0]["values"]["cycles"]["amount"] * 0.35e-9, rel=1e-3),
        "title": "energy",
        "text": trials[0]["values"]["energy"]["text"],
        "source": "estimated",
        "note": "nJ per cycle of the board",
    }
    assert "above the limit of 4 M" in trials[8]["reason"]
    assert trials[17]["reason"] == "board_hung at profile"
    assert {entry["source"] for entry in page["sources"]} == {"exact", "emulated", "estimated"}


def test_a_study_without_any_ended_trial_has_a_report_too() -> None:
    page = contents(report_input([], test_results={}, history=[], front=[], downloads={}))
    assert page["trials"] == []
    assert "<title>digits" in render(page)


def test_layers_join_what_the_compiler_knows_with_what_the_board_counted() -> None:
    notes = {
        "build": {"layers": [{"symbol": "edgefront_layer_00_conv2d", "op": "conv2d", "macs": 9}]},
        "profile": {"layers": [{"symbol": "edgefront_layer_00_conv2d", "cycles": 21}]},
    }
    assert layers_of(notes) == [{"symbol": "edgefront_layer_00_conv2d", "op": "conv2d", "macs": 9, "cycles": 21}]


def test_buffers_are_rectangles_over_their_layers_at_their_bytes_and_scratch_is_apart() -> None:
    memory = {
        "arena": [buffer(0, 64, 0, 2, "x", "y"), buffer(64, 1200, 1, 2, "a", "b", "c", "d"), buffer(1264, 32, 1, 1)],
        "arena_lower_bound": 1280,
        "arena_peak_layer": 1,
    }
    figure = memory_figure(memory, [{"op": "conv2d"}, {"op": "add"}])
    assert figure is not None
    assert (figure["arena_bytes"], figure["bound_bytes"], figure["peak_layer"]) == (1296, 1280, 1)
    assert figure["names"] == ["0 conv2d", "1 add", "2"]
    shown = figure["groups"]["activations"]
    assert (shown["x"], shown["width"], shown["base"], shown["height"]) == ([1, 1.5], [3, 2], [0, 64], [64, 1200])
    assert shown["about"] == [
        "x, y: 64 bytes at 0, layers 0 to 2",
        "a, b, c and 1 more: 1,200 bytes at 64, layers 1 to 2",
    ]
    assert figure["labels"] == {"x": [1.5], "y": [664], "text": ["1,200"]}  # the others are too low
    scratch = figure["groups"]["scratch"]
    assert (scratch["x"], scratch["base"], scratch["about"]) == (
        *([1], [1264]),
        ["scratch memory: 32 bytes at 1,264, layer 1"],
    )


def test_notes_without_a_memory_plan_have_no_figure_of_it() -> None:
    trial = MadeUpTrial(number=0, params={}, outcome=None, notes={"build": {"image_id": "00"}})
    (shown,) = contents(report_input([trial], front=[], history=[], test_results={}, downloads={}))["trials"]
    assert shown["memory"] is None
    assert memory_figure({"arena": []}, []) is None


def test_the_memory_shown_is_the_builds_and_not_that_of_the_untrained_network() -> None:
    notes = {"build": {"memory": memory_map(2, 8)}, "gate": {"memory": memory_map(2, 16)}}
    for stages, expected in ((("gate",), 160), (("build", "gate"), 144)):
        trial = MadeUpTrial(number=0, params={}, outcome=None, notes={stage: notes[stage] for stage in stages})
        (shown,) = contents(report_input([trial], front=[], history=[], test_results={}, downloads={}))["trials"]
        assert shown["memory"]["arena_bytes"] == expected


@pytest.mark.parametrize(
    ("sources", "fallback", "expected"),
    [
        (["emulated", "emulated"], "measured", "emulated"),
        (["measured", "measured"], "emulated", "measured"),
        ([None, None], "emulated", "emulated"),
        (["measured", "emulated"], "measured", ""),
        ([None, None], "", ""),
    ],
)
def test_cycles_of_layers_are_called_what_every_layer_says_they_are(
    sources: list[str | None], fallback: str, expected: str
) -> None:
    layers = [{"cycles": 5, "macs": 9, **({"source": source} if source else {})} for source in sources]
    assert layer_sources(layers, fallback) == {"cycles": expected, "macs": "exact"}


def test_layers_of_notes_without_a_source_take_that_of_the_trials_cycles() -> None:
    page = contents(report_input())
    assert {trial["layer_sources"]["cycles"] for trial in page["trials"] if trial["layers"]} == {"emulated"}


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.n_scripts = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.n_scripts += tag == "script"
        named = dict(attributes)
        if tag in ("link", "img", "iframe", "script") and (named.get("src") or named.get("href")):
            self.fetched.append(tag)


def test_the_page_is_one_file_that_fetches_nothing() -> None:
    elements = Elements()
    elements.feed(render(contents(report_input())))
    assert elements.fetched == []
    assert elements.n_scripts == 3


def test_no_text_of_a_study_can_break_out_of_the_page() -> None:
    attack = "</script><script>alert(1)</script><!--"
    trial = MadeUpTrial(number=0, params={"network.width": attack}, outcome=None, state="running")
    page = render(
        contents(report_input([trial], study_yaml=attack, front=[], history=[], test_results={}, downloads={}))
    )
    elements = Elements()
    elements.feed(page)
    assert elements.n_scripts == 3
    assert "alert(1)</script>" not in page


def test_script_json_is_json_and_refuses_what_is_not() -> None:
    assert json.loads(script_json({"a": "<\u2028>"})) == {"a": "<\u2028>"}
    with pytest.raises(ValueError, match="Out of range float"):
        script_json({"a": float("nan")})


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("count", [40, 0])
def test_a_browser_draws_every_part(count: int, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    some = {} if count else {"test_results": {}, "history": [], "front": [], "downloads": {}}
    page.write_text(render(contents(report_input(made_up_trials(count), **some))), encoding="utf-8")
    dom = dump_dom(page, tmp_path / "profile")
    assert 'data-ready="yes"' in dom, "the script stopped half-way"
    assert len(re.findall(r"<tr[^>]*data-number", dom)) == count
    assert dom.count("main-svg") >= (8 if count else 3)
    texts = re.sub(r"<[^>]*>", "", dom.split("<script")[0])
    assert (", emulated: " in texts, ", measured: " in texts) == (count > 0, False)
    assert ("set by layer" in texts, "bytes of the arena" in texts) == (count > 0, count > 0)
    assert (">scratch</text>" in dom) == (count > 0)


def dump_dom(page: Path, profile: Path) -> str:
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = [str(CHROMIUM), *flags.split(), "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=5000", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_the_headline_says_how_the_told_ended_and_what_faults_have_cost() -> None:
    lost = Outcome(ending=Ending.FAULT, fault=Fault(kind=FaultKind.TRANSIENT, reason="board_lost", detail=""))
    trials = [complete(0, error=0.1, rom=2048, ram=1, flops=1)]
    for count, words in ((0, ""), (1, "; 1 more ended in a fault"), (2, "; 2 more ended in faults")):
        faults = [MadeUpTrial(number=n + 1, params={}, state="fault", outcome=lost) for n in range(count)]
        (figure,) = (one for one in contents(report_input([*trials, *faults]))["headline"] if "front" in one["title"])
        assert figure["about"] == f"of 1 told (1 complete){words}"


def test_a_report_marks_after_which_trial_a_limit_was_tightened(tmp_path: Path) -> None:
    study = make_study(tmp_path, objectives={"error": {}, "rom": {"limit": 40_000}})
    run_study(study, ScriptedEvaluator(), make_sampler(), sink=Recorder())
    third = next(trial.ended_at for trial in study.trials() if trial.told == 3)
    assert third is not None
    edit = StudyEdit(limits={"rom": 25_600.0, "error": 0.5})
    apply_edit(study, edit, lambda file: Objectives.from_study(file, FLASH_BYTES, RAM_BYTES), third)
    study.close()
    reader = StudyReader.open(tmp_path)
    page = write.write_report(reader, lambda sha256: None, written_at=third, board_texts={}).read_text(encoding="utf-8")
    shown = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert shown["edits"] == [
        [sum((trial.ended_at or "") <= third for trial in reader.trials()), "ROM ≤ 25 KiB, error ≤ 50 %"]
    ]
    assert [tuple(row) for row in shown["history"]] == reader.hypervolume_history()
    reader.close()
    assert "where they were tightened" in page
    assert "where they were tightened" not in render(contents(report_input()))


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with browser(tmp_path / "profile") as one:
        yield one


def show(page: Page, folder: Path, source: ReportInput) -> None:
    path = folder / "report.html"
    path.write_text(render(contents(source)), encoding="utf-8")
    page.open(path.as_uri())
    page.wait("document.documentElement.dataset.ready === 'yes'")


@needs_chromium
def test_the_front_starts_with_what_is_feasible_and_the_limits_and_the_rest_is_a_click_away(
    tmp_path: Path, page: Page
) -> None:
    trials = [complete(n, error=0.1 / (n + 1), rom=8192.0 * (n + 1), ram=1, flops=1) for n in range(3)]
    values = {"rom": Value(amount=1024.0 * 900, unit="byte", source=Source.EXACT)}
    far = MadeUpTrial(number=3, params={}, state="infeasible", outcome=Outcome(ending=Ending.INFEASIBLE, values=values))
    limits = {"error": 0.25, "rom": 40 * 1024.0, "ram": 32768.0, "flops": 4e6}
    show(page, tmp_path, report_input([*trials, far], limits=limits))
    axis = "document.getElementById('front-plot')._fullLayout.xaxis"
    kib = f"{axis}.range.map((value) => {axis}.type === 'log' ? 10 ** value : value)"
    low, high = page.ask(kib)
    assert low < 8 and 40 < high < 50
    assert "1 trial lies outside" in page.ask("document.getElementById('front-hint').textContent")
    page.ask("document.querySelector('#front-plot [data-title=Autoscale]').click()")
    assert page.wait(f"{kib}[1] > 900")
    page.ask("choose(0)")
    assert page.ask(f"{kib}[1] > 900"), "the view that was chosen is lost"


@needs_chromium
def test_one_told_trial_is_seen_in_the_course_and_marks_stand_at_edits(tmp_path: Path, page: Page) -> None:
    trials = [complete(0, error=0.1, rom=2048, ram=1, flops=1)]
    show(page, tmp_path, report_input(trials, history=[(1, 0.216)], edits=[(1, "ROM ≤ 30 KiB")]))
    assert page.ask("document.querySelectorAll('#history-plot .scatterlayer .point').length") == 2
    assert page.ask("document.querySelector('#history-plot .annotation').textContent") == "ROM ≤ 30 KiB"
    assert page.ask("document.querySelectorAll('#history-plot .shapelayer path').length") == 1
    assert page.ask("apart([0.1, 0.672, 0.684])") == [0.1, 0.684]
    assert page.ask("[apart([7]), apart([1, 1.01]), apart([1, 1.01, 2])]") == [[7], [1, 1.01], [1, 2]]


@needs_chromium
def test_on_a_phone_plots_keep_to_their_cards_even_when_a_scroll_bar_comes(tmp_path: Path, page: Page) -> None:
    page.resize(435, 900)
    show(page, tmp_path, report_input())
    # What a scroll bar does: less room, and the window says nothing of it.
    page.ask("document.body.style.width = '405px'")
    plots = "[...document.querySelectorAll('.two .plot')]"
    assert page.wait(f"{plots}.every((plot) => plot.querySelector('svg').clientWidth <= plot.clientWidth)")
    assert page.ask("document.documentElement.scrollWidth") <= 435


def test_parameters_that_are_fixed_are_not_drawn() -> None:
    space = {"network.width": {"type": "int", "low": 4, "high": 32}, "network.depth": 2}
    page = contents(report_input(study=study_file(space=space)))
    assert page["params"] == ["network.width"]


def test_a_disk_too_full_for_the_new_report_leaves_the_last_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_bytes(b"the last one")

    def fail(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match=r"No space left on device: '.*report\.html'"):
        write._replace(path, b"a new one")
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("report.html", b"the last one")]


def test_each_board_has_its_own_values_front_layers_and_best_points() -> None:
    source = two_board_input()
    page = contents(source)
    assert [board["kind"] for board in page["boards"]] == list(TWO_BOARDS)
    joint = {trial["number"] for trial in page["trials"] if trial["front"]}
    fronts = {
        kind: {trial["number"] for trial in page["trials"] if trial["boards"][kind]["front"]} for kind in TWO_BOARDS
    }
    assert joint == set(source.front)
    assert fronts == {board.kind: set(board.front) for board in source.boards}
    assert len({frozenset(numbers) for numbers in (joint, *fronts.values())}) > 1
    for trial, found in zip(source.trials, page["trials"], strict=True):
        assert not [name for name in found["values"] if "@" in name]
        for kind in TWO_BOARDS:
            own = found["boards"][kind]["values"]
            if trial.state == "complete":
                assert trial.outcome is not None
                assert own["latency"]["amount"] == trial.outcome.values[f"latency@{kind}"].amount
                assert own["latency"]["amount"] <= found["values"]["latency"]["amount"]
                assert own["error"] == found["values"]["error"]
    for board in page["boards"]:
        rows = {trial["number"]: trial["boards"][board["kind"]] for trial in page["trials"]}
        (fastest,) = (best for best in board["best"] if best["name"] == "latency")
        members = fronts[board["kind"]]
        assert fastest["amount"] == min(rows[number]["values"]["latency"]["amount"] for number in members)
        assert rows[fastest["trial"]]["values"]["latency"]["amount"] == fastest["amount"]
    cycles = [page["trials"][0]["boards"][kind]["layers"][0]["cycles"] for kind in TWO_BOARDS]
    assert cycles[0] != cycles[1]


def test_sources_of_values_are_those_of_every_board() -> None:
    trials = [
        MadeUpTrial(
            number=0,
            params={},
            outcome=Outcome(
                ending=Ending.COMPLETE,
                values={
                    "error": Value(amount=0.1, unit="1", source=Source.EXACT),
                    "ram": Value(amount=9, unit="byte", source=Source.EXACT),
                    "latency": Value(amount=2.0, unit="s", source=Source.EMULATED),
                    "latency@nrf52840-dk": Value(amount=1.0, unit="s", source=Source.MEASURED),
                    "latency@nucleo-h743zi": Value(amount=2.0, unit="s", source=Source.EMULATED),
                },
            ),
        )
    ]
    found = {
        entry["source"]: [name for name, _ in entry["quantities"]]
        for entry in contents(two_board_input(trials))["sources"]
    }
    assert found == {"exact": ["error (validation)", "RAM"], "measured": ["latency"], "emulated": ["latency"]}


def test_the_page_of_one_board_has_no_choice_of_boards() -> None:
    page = contents(report_input())
    assert page["boards"] == []
    assert "data-view" not in render(page).split("<script")[0]


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_shows_all_boards_or_one(tmp_path: Path) -> None:
    page = render(contents(two_board_input(two_board_trials(20))))
    ready = 'document.documentElement.dataset.ready = "yes";'
    assert ready in page
    clicked = page.replace(ready, f'{ready} document.querySelector("[data-view=nucleo-h743zi]").click();')
    shown = {}
    for name, text in (("joint", page), ("one", clicked)):
        path = tmp_path / f"{name}.html"
        path.write_text(text, encoding="utf-8")
        dom = dump_dom(path, tmp_path / "profile").split("<script")[0]
        shown[name] = re.sub(r"<[^>]*>", " ", dom)
    assert "Joint Pareto front" in shown["joint"] and "Pareto front of nucleo-h743zi" in shown["one"]
    assert "of trial" in shown["joint"] and "on nrf52840-dk, emulated" in shown["joint"]
    assert "on nucleo-h743zi, emulated" in shown["one"]
    assert "--board nrf52840-dk" in shown["joint"] and "--board nucleo-h743zi" in shown["one"]
    for text in shown.values():
        assert "joint, the worst counts" in text
