"""What the documentation shows works as shown."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import cli
from bench import zoo
from mcu_agent.rack import parse_rack

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture(autouse=True)
def own_import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFRONT_IMPORT_PATH", "")  # the command line adds to it


def check(file: Path) -> str:
    result = CliRunner().invoke(cli.main, ["study", "check", str(file)])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_study_file_of_the_reference_is_a_right_one(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(next(block for block in blocks("study-file.md", "yaml") if block.startswith("name:")))
    assert "number from 0 to 0.7" in check(file)


def test_the_reference_study_becomes_one_for_two_boards_as_shown(tmp_path: Path) -> None:
    one = next(block for block in blocks("study-file.md", "yaml") if block.startswith("name:"))
    (boards,) = blocks("several-boards.md", "yaml")
    file = tmp_path / "study.yaml"
    head, _, rest = one.partition("board: nrf52840-dk\n")
    file.write_text(head + boards + rest[rest.index("budget:") :])
    told = check(file)
    assert "  boards    nrf52840-dk: " in told
    assert "latency    up to 2 ms" in told


def test_the_parts_of_the_first_own_study_make_a_right_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    images, labels = rng.random((200, 1, 6, 6)).astype(np.float32), np.arange(200) % 4
    (save,) = [block for block in blocks("first-study.md", "python") if "np.savez" in block]
    exec(save, {"images": images, "labels": labels})
    (network,) = [block for block in blocks("first-study.md", "python") if "# mynet.py" in block]
    (tmp_path / "mynet.py").write_text(network)
    data, _, family, limits = blocks("first-study.md", "yaml")
    file = tmp_path / "mine.yaml"
    file.write_text("\n".join(["name: mine", data, family, limits, "budget: {trials: 3}"]))
    assert "4 classes" in check(file)


def test_the_rack_file_of_the_first_board_is_a_right_one(tmp_path: Path) -> None:
    rack = tmp_path / "rack.toml"
    rack.write_text(blocks("first-board.md", "toml")[0])
    result = CliRunner().invoke(cli.main, ["boards", "--rack", str(rack)])
    assert "bench-2" in result.output, result.output


def test_the_readme_compiles_a_network_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (command,) = [block for block in blocks("../README.md", "sh") if "compile" in block]
    program, *arguments = shlex.split(command)
    Path("network-int8.onnx").write_bytes(zoo.quantised("mlp"))
    result = CliRunner().invoke(cli.main, arguments)
    assert (program, result.exit_code) == ("edgefront", 0), result.output
    assert {"firmware.elf", "report.json", "report.html", "edgefront.c"} <= {
        path.name for path in Path("build").iterdir()
    }


def all_pages() -> list[Path]:
    root = DOCS.parent
    return sorted([*DOCS.rglob("*.md"), *root.glob("*.md"), *(root / "bench").glob("*.md")])


@pytest.mark.parametrize("page", all_pages(), ids=lambda page: page.name)
def test_no_link_of_a_page_leads_nowhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)]*)\)", text):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            names = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in names, f"{target}#{anchor}"


def test_every_decision_is_listed() -> None:
    folder = DOCS / "decisions"
    listed = re.findall(r"\((\d{4}-[^)]*\.md)\)", (folder / "README.md").read_text(encoding="utf-8"))
    assert listed == sorted(path.name for path in folder.glob("[0-9]*.md"))


RACKS = [
    pytest.param(block, id=f"{page.relative_to(DOCS)}-{number}")
    for page in sorted(DOCS.rglob("*.md"))
    for number, block in enumerate(blocks(str(page.relative_to(DOCS)), "toml"))
    if "[[board]]" in block
]


@pytest.mark.parametrize("block", RACKS)
def test_every_rack_file_shown_is_a_right_one(block: str) -> None:
    assert parse_rack(block, "shown.toml").boards


def test_rack_files_are_shown_where_boards_and_meters_are_described() -> None:
    pages = {str(one.id).rpartition("-")[0] for one in RACKS}
    assert {"boards.md", "meters.md", "rack.md", "first-board.md"} <= pages
