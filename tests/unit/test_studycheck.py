"""Study files: every mistake with its line, and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.studycheck import BoardFacts, Mistake, Vocabulary, explain, json_schema, load_study, notes
from orchestrator.studyfile import StudyFile

VOCABULARY = Vocabulary(
    boards={
        "nrf52840-dk": BoardFacts(1024 * 1024, 256 * 1024, "a Cortex-M4F"),
        "small": BoardFacts(32 * 1024, 300 * 1024, "with little flash"),
    },
    datasets=("digits",),
    families={"resnet2d": {"width": "channels", "depth": "blocks"}},
    samplers=("ars", "random"),
)
GOOD = """\
name: mine
dataset: {source: digits}
network: {family: resnet2d}
space:
  network.width: {type: int, low: 4, high: 32}
  training.learning_rate: {type: float, low: 1e-4, high: 1e-2, log: true}
  compression.sparsity.stage1: {type: float, low: 0, high: 0.5}
board: nrf52840-dk
objectives:
  error: {}
  rom: {limit: 64 KiB}
budget: {trials: 30}
"""


def load(folder: Path, text: str, vocabulary: Vocabulary = VOCABULARY) -> StudyFile:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return load_study(path, vocabulary)


def complaint(folder: Path, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(folder, text)
    return str(caught.value)


def test_a_good_file_is_read_with_units_and_scientific_numbers(tmp_path: Path) -> None:
    study = load(tmp_path, GOOD)
    assert study.objectives["rom"].limit == 65536
    learning_rate = study.space["training.learning_rate"]
    assert learning_rate.type == "float"
    assert (learning_rate.low, learning_rate.high) == (1e-4, 1e-2)


@pytest.mark.parametrize(
    ("old", "new", "line", "parts"),
    [
        ("board: nrf52840-dk", "board: nrf52840", 8, ["board", "'nrf52840'", "did you mean 'nrf52840-dk'"]),
        (
            "source: digits",
            "source: digts",
            2,
            ["dataset.source", "digts", "allowed: digits", ".npz", "module:function"],
        ),
        ("family: resnet2d", "family: resnet", 3, ["network.family", "'resnet'", "resnet2d"]),
        ("network.width", "network.widht", 5, ["no option 'widht'", "did you mean 'width'", "width, depth"]),
        ("training.learning_rate", "training.rate", 6, ["no field 'rate'", "learning_rate"]),
        ("training.learning_rate", "train.learning_rate", 6, ["network.…, training.… or compression.…"]),
        ("high: 32", "hi: 32", 5, ["space.network.width.hi", "unknown field", "did you mean 'high'"]),
        ("high: 32", "high: 2", 5, ["low 4", "must be below high 2"]),
        ("type: int", "type: integer", 5, ["type 'integer'", "float, int, categorical, fixed"]),
        ("high: 0.5", "high: 1.5", 7, ["compression.sparsity.stage1.high", "found 1.5", "less than 1"]),
        ("64 KiB", "64 Kib", 11, ["objectives.rom.limit", "64 Kib", "KiB"]),
        ("64 KiB", "-1", 11, ["objectives.rom.limit", "-1", "greater than 0"]),
        ("64 KiB", "100", 11, ["no firmware needs less than 1024 bytes"]),
        ("error: {}", "eror: {}", 10, ["eror", "did you mean 'error'", "latency, energy"]),
        ("error: {}", "latency: {}", 10, ["objectives.latency", "has no limit", "20 ms"]),
        ("trials: 30", "trials: 0", 12, ["budget.trials", "found 0", "greater than or equal to 1"]),
        ("trials: 30", "trails: 30", 12, ["budget.trails", "did you mean 'trials'"]),
        ("name: mine", "name: my study", 1, ["name", "'my study'", "letters"]),
        ("name: mine", "name: mine\nname: yours", 2, ["is given twice, in lines 1 and 2"]),
        ("name: mine\n", "", 1, ["name: is missing"]),
        ("board: nrf52840-dk", "board: 7", 8, ["board", "found 7"]),
        ("board: nrf52840-dk\n", "", 1, ["board: is missing", "boards: [kind, kind]"]),
        ("board: nrf52840-dk", "boards: nrf52840-dk", 8, ["boards", "a list of 2 to 8", "for one, give board: KIND"]),
        ("board: nrf52840-dk", "boards: [nrf52840-dk]", 8, ["boards: found 1; allowed: a list of 2 to 8 board kinds"]),
        ("board: nrf52840-dk", f"boards: [{', '.join('abcdefghi')}]", 8, ["boards: found 9"]),
        ("board: nrf52840-dk", "boards: [nrf52840-dk, 7]", 8, ["boards.1: found 7; allowed: text"]),
        (
            "board: nrf52840-dk",
            "board: nrf52840-dk\nboards: [nrf52840-dk, small]",
            9,
            ["boards: is given beside board", "not both"],
        ),
        (
            "board: nrf52840-dk",
            "boards:\n- nrf52840-dk\n- small\n- nrf52840-dk",
            11,
            ["boards.2: found 'nrf52840-dk' twice", "parallelism.boards"],
        ),
        (
            "board: nrf52840-dk",
            "boards:\n- nrf52840-dk\n- smal",
            10,
            ["boards.1: found 'smal' (did you mean 'small'?); allowed: nrf52840-dk, small"],
        ),
        ("64 KiB", "3 ms", 11, ["objectives.rom.limit", "found '3 ms'", "KiB"]),
        ("error: {}", "error: {limit: 5}", 10, ["objectives.error.limit", "found 5", "0.05 or 5 %"]),
        ("64 KiB", ".inf", 11, ["objectives.rom.limit", "a finite number"]),
        ("trials: 30", "trials: 30, wall_clock: 3 KiB", 12, ["budget.wall_clock", "found '3 KiB'", "min, h, d"]),
        ("trials: 30", f"trials: {10**12}", 12, ["budget.trials", "less than or equal to 1000000"]),
        ("board:", f"seed: {10**30}\nboard:", 8, ["seed", "less than 4294967296"]),
        ("board:", "parallelism: {train_workers: 1000000}\nboard:", 8, ["train_workers", "less than or equal to 256"]),
        ("board:", "training: {device: gpu}\nboard:", 8, ["training.device", "found 'gpu'", "cpu, auto, cuda"]),
        ("{type: int, low: 4, high: 32}", "{type: categorical, choices: []}", 5, ["choices", "is empty"]),
        ("{type: int, low: 4, high: 32}", "{type: categorical, choices: [1, ~]}", 5, ["choices.1", "a number, text"]),
        ("board:", "notify: {webhook: 'htp:/x'}\nboard:", 8, ["notify.webhook: found 'htp:/x'", "http://host/"]),
        ("board:", "notify: {webhook: 'http://h:99999/'}\nboard:", 8, ["notify.webhook", "a port from 1 to 65535"]),
        ("board:", "notify: {webhook: 'http://h:0/'}\nboard:", 8, ["notify.webhook", "a port from 1 to 65535"]),
        ("board:", "notify:\n  webhook: http://h/\n  on: [ende]\nboard:", 10, ["notify.on.0", "found 'ende'", "'end'"]),
        ("trials: 30", "trials: 30, wall_clock: -3 s", 12, ["budget.wall_clock", "found '-3 s'", "above 0"]),
        ("name: mine", "name: 2026-01-01", 1, ["name", "allowed: text", "quotes"]),
        ("name: mine", "name: 2026-13-45", 1, ["is not YAML", "'2026-13-45'", "month"]),
        ("name: mine", "name: mi\0ne", 1, ["is not YAML", "U+0000"]),
    ],
)
def test_a_mistake_is_named_with_line_value_and_what_is_allowed(
    tmp_path: Path, old: str, new: str, line: int, parts: list[str]
) -> None:
    text = complaint(tmp_path, GOOD.replace(old, new))
    assert f"study.yaml:{line}: " in text
    for part in parts:
        assert part in text


def test_a_whole_number_is_not_searched_as_a_real_one(tmp_path: Path) -> None:
    text = complaint(
        tmp_path, GOOD.replace("training.learning_rate", "training.epochs").replace("1e-4, high: 1e-2", "1, high: 9")
    )
    assert "use type: int" in text


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = complaint(
        tmp_path,
        GOOD.replace("digits", "digts").replace("high: 32", "high: 2").replace("high: 0.5", "high: 3")
        + "sampler: {name: arse, initial: 0}\nsede: 3\n",
    )
    lines = [int(line.split(":")[1]) for line in text.splitlines()[1:]]
    assert lines == [2, 5, 7, 13, 13, 14]
    assert text.splitlines()[0].endswith("6 mistakes in the study file")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "found nothing"),
        ("- a\n- b\n", "found a list"),
        ("name: [unclosed\n", "is not YAML"),
        ("name: \tx: y: z", ":1: is not YAML"),
    ],
)
def test_what_is_no_study_at_all_is_said(tmp_path: Path, text: str, part: str) -> None:
    assert part in complaint(tmp_path, text)


def test_each_place_in_a_list_is_complained_of_once(tmp_path: Path) -> None:
    text = complaint(tmp_path, GOOD.replace("{type: int, low: 4, high: 32}", "{type: categorical, choices: [1, ~]}"))
    assert text.count("choices.1") == 1


def test_the_error_may_be_limited_in_percent(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD.replace("error: {}", "error: {limit: 5 %}")).objectives["error"].limit == 0.05


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("name: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("name: x\nspace: &a\n  inner: *a\n", "an alias (*name) contains itself"),
        (
            "a: &a [x, x, x, x, x, x, x, x, x]\n"
            + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
            "holds more than 20000 values",
        ),
    ],
    ids=["deep", "endless", "exploding"],
)
def test_yaml_made_to_overwhelm_is_refused_at_once(tmp_path: Path, text: str, part: str) -> None:
    assert part in complaint(tmp_path, text)


def test_a_missing_file_and_one_that_is_no_text_are_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml: cannot be read"):
        load_study(tmp_path / "none.yaml", VOCABULARY)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        load_study(tmp_path / "binary.yaml", VOCABULARY)


def test_a_space_with_nothing_to_search_is_refused(tmp_path: Path) -> None:
    head, tail = GOOD.split("space:\n")
    fixed = head + "space:\n  network.width: 8\n" + tail[tail.index("board:") :]
    assert "study.yaml:4: space: " in complaint(tmp_path, fixed)
    assert "nothing to search" in complaint(tmp_path, fixed)


@pytest.mark.parametrize("name", ["data/mine.npz", "my.module:load"])
def test_data_and_families_of_ones_own_are_allowed(tmp_path: Path, name: str) -> None:
    text = GOOD.replace("source: digits", f"source: {name}").replace("family: resnet2d", "family: my.nets:build")
    assert load(tmp_path, text.replace("network.width", "network.anything")).dataset.source == name


def test_merge_keys_are_followed_and_overruled_without_complaint(tmp_path: Path) -> None:
    text = GOOD.replace("network.width: {", "network.depth: &range {").replace(
        "board:", "  network.width: {<<: *range, high: 64}\nboard:"
    )
    width = load(tmp_path, text).space["network.width"]
    assert width.type == "int"
    assert (width.low, width.high) == (4, 64)


def test_what_only_others_know_is_asked_when_the_rest_is_right(tmp_path: Path) -> None:
    def extra(study: StudyFile) -> list[Mistake]:
        return [Mistake(field="space.network.width.high", text="found 32; allowed: 1 to 16")]

    vocabulary = Vocabulary(
        boards=VOCABULARY.boards,
        datasets=VOCABULARY.datasets,
        families=VOCABULARY.families,
        samplers=VOCABULARY.samplers,
        extra=extra,
    )
    with pytest.raises(UsageError, match=r"study\.yaml:5: space\.network\.width\.high: found 32; allowed: 1 to 16"):
        load(tmp_path, GOOD, vocabulary)


def test_the_explanation_names_space_limits_board_and_budget(tmp_path: Path) -> None:
    text = explain(load(tmp_path, GOOD), VOCABULARY)
    for part in (
        "infinitely many",
        "from 4 to 32",
        "on a log scale",
        "up to 64 KiB",
        "a Cortex-M4F",
        "30 trials",
        "ars",
    ):
        assert part in text
    assert "Note" not in text


def test_a_countable_space_is_counted(tmp_path: Path) -> None:
    head, tail = GOOD.split("space:\n")
    space = "  network.width: {type: int, low: 1, high: 10}\n  network.depth: {type: categorical, choices: [1, 2]}\n"
    study = load(tmp_path, head + "space:\n" + space + tail[tail.index("board:") :])
    assert "20 different candidates" in explain(study, VOCABULARY)
    assert notes(study, VOCABULARY) == ["the space holds only 20 different candidates for 30 trials: some repeat"]


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("64 KiB", "2 MiB", "is lowered to that"),
        ("trials: 30", "trials: 5", "ars is never asked"),
        ("family: resnet2d", "family: resnet2d, options: {width: 3}", "overruled by the space"),
    ],
)
def test_what_is_allowed_but_surprising_is_noted(tmp_path: Path, old: str, new: str, part: str) -> None:
    found = notes(load(tmp_path, GOOD.replace(old, new)), VOCABULARY)
    assert len(found) == 1
    assert part in found[0]


def test_the_schema_describes_every_section_and_allows_units_and_plain_values() -> None:
    schema = json_schema()
    definitions = schema["$defs"]
    assert {"type": "string"} in schema["properties"]["space"]["additionalProperties"]["anyOf"]
    assert any(one.get("type") == "string" for one in definitions["Objective"]["properties"]["limit"]["anyOf"])
    for model in ("Dataset", "Network", "Budget", "Sampler", "Training", "Compression", "Parallelism", "Profiling"):
        for name, field in definitions[model]["properties"].items():
            assert field.get("description"), f"{model}.{name} has no description"


def test_mistakes_in_early_stopping_and_plateau_name_what_is_allowed_there(tmp_path: Path) -> None:
    text = GOOD.replace("{trials: 30}", "{trials: 30, plateau: {trials: 9, gian: 0.1}}")
    text += "early_stopping: {mode: aggressive, chances: 0.1}\n"
    found = complaint(tmp_path, text)
    assert ":12: budget.plateau.gian: unknown field (did you mean 'gain'?); allowed: trials, gain" in found
    assert ":13: early_stopping.mode: found 'aggressive'; allowed: 'conservative' or 'off'" in found
    assert ":13: early_stopping.chances: unknown field (did you mean 'chance'?)" in found


def test_the_explanation_says_when_trainings_and_the_search_end_early(tmp_path: Path) -> None:
    plain = load(tmp_path, GOOD)
    assert "still adds to the front is below 5 %; less than 0.1 % of the hypervolume" in explain(plain, VOCABULARY)
    text = (
        GOOD.replace("{trials: 30}", "{trials: 30, plateau: {trials: 9, gain: 0.01}}") + "early_stopping: {mode: off}\n"
    )
    told = explain(load(tmp_path, text), VOCABULARY)
    assert "less when the last 9 trials raised the hypervolume by no more than 1 %" in told
    assert "given up" not in told


def test_several_boards_are_explained_with_the_smallest_memory_and_one_line_each(tmp_path: Path) -> None:
    text = GOOD.replace("board: nrf52840-dk", "boards: [nrf52840-dk, small]").replace("rom: {", "ram: {}\n  rom: {")
    study = load(tmp_path, text)
    assert study.kinds == ("nrf52840-dk", "small")
    told = explain(study, VOCABULARY)
    assert "  boards    nrf52840-dk: a Cortex-M4F\n            small: with little flash\n" in told
    assert "ram        up to 256 KiB (all nrf52840-dk has)" in told
    assert "rom        up to 32 KiB (all small has)" in told
    assert "the limit of rom (64 KiB) is above what small has (32 KiB) and is lowered to that" in told
    assert "1 with a board of each kind" in told
    assert "trained once; firmware is built for each of the 2 boards" in told
    assert "of each kind" not in explain(load(tmp_path, GOOD), VOCABULARY)


def test_one_board_or_several_never_both_also_without_a_file() -> None:
    data = StudyFile.model_validate(
        {
            "name": "s",
            "dataset": {"source": "digits"},
            "network": {"family": "mlp"},
            "space": {"network.width": {"type": "int", "low": 1, "high": 4}},
            "boards": ["a", "b"],
            "objectives": {"error": {}},
            "budget": {"trials": 1},
        }
    ).to_json()
    assert data["boards"] == ["a", "b"]
    assert "board" not in data
    assert StudyFile.from_json(data).kinds == ("a", "b")
    single = {name: item for name, item in data.items() if name != "boards"} | {"board": "a"}
    assert StudyFile.from_json(single).to_json() == single  # a study of before there could be several
    for wrong in ({**data, "board": "a"}, {**single, "board": None}, {**data, "boards": ["a", "a"]}):
        with pytest.raises(ValueError, match=r"give board for one kind|must be given|twice"):
            StudyFile.from_json(wrong)
