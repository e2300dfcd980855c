"""A model file without a study: what is reported about it, where it is refused, and how it is shown."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper
from rich.cells import cell_len
from rich.console import Console
from test_report import CHROMIUM, dump_dom

import cli
from mcu_agent.image import read_image
from mcu_agent.kinds import load_kind
from orchestrator.errors import UsageError
from orchestrator.records import Source
from orchestrator.report.compiled import contents
from tasks import compile as compiling
from tasks.compile import Report, compile_model, measure, read_model
from tasks.compile_view import report_view
from tasks.deployment import memory_map
from tasks.errors import Defect, TransientFault
from tasks.firmware.errors import ToolchainError, ToolchainInterrupted
from tests.support.qdq import QdqModel

BOARD = "nucleo-l4r5zi"


def small_model(kernel: int = 3, outputs: int = 6) -> QdqModel:
    """conv → relu → add → global average, 2x8x8 → ``outputs`` channels."""
    rng = np.random.default_rng(0)
    model = QdqModel([2, 8, 8])
    integers = rng.integers(-127, 128, (outputs, 2, kernel, kernel))
    weights = model.weights(integers, [0.01] * outputs)
    conv = model.node("Conv", [model.last, weights], pads=[kernel // 2] * 4)
    source = model.quantised(model.node("Relu", [conv]), 0.05, -128)
    model.quantised(model.node("Add", [source, source]), 0.1, -128)
    model.quantised(model.node("GlobalAveragePool", [model.last]), 0.05, -100)
    return model


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    file = tmp_path / "small.onnx"
    file.write_bytes(small_model().serialised())
    return file


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    file = tmp_path_factory.mktemp("model") / "small.onnx"
    file.write_bytes(small_model().serialised())
    kind = load_kind(BOARD)
    return measure("small.onnx", compile_model(file, kind), kind)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["compile", *arguments])


def refusal(file: Path, folder: Path, *more: str) -> str:
    """The message of a call that must be refused, and leave nothing behind."""
    result = call(str(file), "--board", BOARD, "--out", str(folder / "out"), *more)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("edgefront: ")
    assert "Traceback" not in result.output
    assert not (folder / "out").exists()
    return result.stderr


def test_a_model_is_compiled_run_and_written_with_its_report(model_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    result = call(str(model_file), "--board", BOARD, "--out", str(folder), "--json")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown == json.loads((folder / "report.json").read_text())
    assert (folder / "edgefront.c").is_file()
    assert "edgefront_run" in read_image((folder / "firmware.elf").read_bytes(), load_kind(BOARD)).symbols
    assert shown["inputs"] == {"n": 3, "seed": 0, "bit_exact": True}
    assert [layer["op"] for layer in shown["layers"]] == ["conv2d", "add", "avgpool"]
    assert shown["layers"][0]["output_shape"] == [8, 8, 6]
    assert shown["layers"][0]["macs"] == 8 * 8 * 6 * 2 * 9
    assert [layer["path"] for layer in shown["layers"]] == ["assembly", "assembly", "C"]
    assert shown["optimise"] == "speed"


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_page_of_a_compiled_model_is_drawn_and_says_what_is_emulated(model_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert call(str(model_file), "--board", BOARD, "--out", str(folder)).exit_code == 0
    dom = dump_dom(folder / "report.html", tmp_path / "profile")
    assert 'data-ready="yes"' in dom, "the script stopped half-way"
    assert len(re.findall(r"<tr[^>]*data-number", dom)) == 3
    texts = re.sub(r"<[^>]*>", "", dom.split("<script")[0])
    assert "cycles, emulated: " in texts
    assert ", measured" not in texts
    assert "set by layer" in texts


def test_the_page_shows_the_plan_that_was_compiled(model_file: Path) -> None:
    kind = load_kind(BOARD)
    compiled = compile_model(model_file, kind)
    shown = contents(measure("a/small.onnx", compiled, kind).to_json(), memory_map(compiled))
    memory = shown["memory"]
    assert memory["arena_bytes"] == compiled.plan.arena_bytes
    assert (memory["bound_bytes"], memory["peak_layer"]) == (
        *(compiled.plan.lower_bound_bytes, compiled.plan.peak_step),
    )
    assert memory["groups"]["scratch"]["height"] == list(compiled.plan.scratch_bytes.values())
    assert memory["names"] == ["0 conv2d", "1 add", "2 avgpool"]
    assert shown["layer_sources"]["cycles"] == "emulated"
    assert (shown["name"], shown["headline"][0]["title"]) == ("small.onnx", "ROM")


def test_parts_of_a_report_add_up(report: Report) -> None:
    totals = {name: value.amount for name, value in report.totals.items()}
    assert totals["rom"] == totals["weights"] + totals["code"] + totals["runtime"]
    assert sum(layer.rom.weights_bytes for layer in report.layers) == totals["weights"]
    assert 0 < sum(layer.rom.code_bytes for layer in report.layers) < totals["code"]  # the rest is the run function
    assert totals["macs"] == sum(layer.macs for layer in report.layers)
    for name in ("instructions", "cycles"):
        inside = sum(getattr(layer, name) for layer in report.layers)
        assert 0.9 * totals[name] < inside < totals[name]
    assert totals["latency"] == totals["cycles"] / report.clock_hz
    assert report.layers[report.largest_layer].live_bytes == max(layer.live_bytes for layer in report.layers)
    assert totals["arena"] >= totals["arena_lower_bound"] > 0
    assert totals["ram"] == totals["ram_static"] + totals["stack_used"]


def test_what_ran_on_the_emulator_is_never_called_exact_or_measured(report: Report) -> None:
    emulated = {"stack_used", "ram", "instructions", "cycles", "latency"}
    assert {name for name, value in report.totals.items() if value.source is Source.EMULATED} == emulated
    assert {value.source for value in report.totals.values()} == {Source.EMULATED, Source.EXACT}
    assert "zero wait states" in report.totals["latency"].note


def shown(report: Report, width: int) -> list[str]:
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(report_view(report, width))
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [100, 80, 60])
def test_the_table_has_one_line_a_layer_at_every_width(report: Report, width: int) -> None:
    long = tuple(replace(layer, name=f"/block/{layer.index}/{'x' * 60}/Conv") for layer in report.layers)
    lines = shown(replace(report, layers=long), width)
    assert max(cell_len(line.rstrip()) for line in lines) <= width
    rows = [line for line in lines if "x/Conv" in line and line.lstrip()[0].isdigit()]
    assert len(rows) == len(report.layers)
    assert {"#", "name", "instr./MAC", "cycles"} <= set(lines[1].split())
    assert ("instr." in lines[1].split(), "output" in lines[1]) == (width == 100, width >= 80)


def test_totals_name_the_layer_that_sets_the_arena_and_say_what_is_emulated(report: Report) -> None:
    text = "\n".join(shown(report, 100))
    largest = report.layers[report.largest_layer]
    assert f"set by layer {largest.index} ({largest.name})" in text
    assert "ms" in text or "µs" in text
    assert "emulated, at 120 MHz and zero wait states" in text
    assert "bit-exact" in text


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "nothing.onnx: there is no such file" in refusal(tmp_path / "nothing.onnx", tmp_path)


@pytest.mark.parametrize(
    "data", [b"", b"this is no model", helper.make_model(helper.make_graph([], "g", [], [])).SerializeToString()]
)
def test_what_is_no_model_is_refused(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(data)
    assert f"{file}: not an ONNX model" in refusal(file, tmp_path)


def plain_model(operator: str, **attributes: object) -> onnx.ModelProto:
    node = helper.make_node(operator, ["x"], ["y"], **attributes)
    inputs, outputs = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in "xy")
    return helper.make_model(helper.make_graph([node], "g", [inputs], [outputs]))


def test_a_float_model_is_refused_with_the_way_to_quantise_it(tmp_path: Path) -> None:
    file = tmp_path / "float.onnx"
    file.write_bytes(plain_model("Relu").SerializeToString())
    text = refusal(file, tmp_path)
    assert f"{file}: not quantised" in text
    assert "quantize_static" in text


def test_a_model_of_integer_operators_is_refused_with_the_format_to_use(tmp_path: Path) -> None:
    file = tmp_path / "integer.onnx"
    file.write_bytes(plain_model("QLinearConv").SerializeToString())
    assert "QLinearConv); quantise to the QDQ format" in refusal(file, tmp_path)


def test_weights_in_another_file_are_refused(tmp_path: Path) -> None:
    model = onnx.load_model_from_string(small_model().serialised())
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    file = tmp_path / "apart.onnx"
    file.write_bytes(model.SerializeToString())
    with pytest.raises(UsageError, match=f"{model.graph.initializer[0].name}.*save the model in one piece"):
        read_model(file)


def test_an_invalid_model_is_refused_with_what_is_wrong_in_it(tmp_path: Path) -> None:
    model = onnx.load_model_from_string(small_model().serialised())
    model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 1
    del next(node for node in model.graph.node if node.op_type == "Conv").input[1:]
    file = tmp_path / "invalid.onnx"
    file.write_bytes(model.SerializeToString())
    text = refusal(file, tmp_path)
    assert f"{file}: not a valid ONNX model" in text
    assert "has input size 1" in text


def test_an_error_of_ours_in_a_valid_model_is_not_blamed_on_the_file(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise IndexError("ours")

    monkeypatch.setattr(compiling, "compile_network", fail)
    monkeypatch.setattr(compiling, "invalidity", lambda _: "")
    with pytest.raises(IndexError, match="ours"):
        compile_model(model_file, load_kind(BOARD))


def test_an_unsupported_operator_is_named_with_node_reason_and_remedy(tmp_path: Path) -> None:
    model = small_model()
    model.quantised(model.node("Gelu", [model.last]))
    file = tmp_path / "gelu.onnx"
    file.write_bytes(model.serialised())
    text = refusal(file, tmp_path)
    assert f"{file}, board {BOARD}: operator Gelu, node 'gelu_" in text
    assert "it cannot be compiled; " in text


def test_an_unknown_board_is_refused_with_those_there_are(model_file: Path, tmp_path: Path) -> None:
    result = call(str(model_file), "--board", "nucleo", "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert "unknown board kind 'nucleo'; known kinds: nrf52-dk" in result.stderr


def test_a_network_larger_than_the_board_is_refused_with_the_bytes_over(tmp_path: Path) -> None:
    model = QdqModel([800])
    weights = model.weights(np.ones((800, 800)), 0.01)
    model.quantised(model.node("MatMul", [model.last, weights]))
    file = tmp_path / "large.onnx"
    file.write_bytes(model.serialised())
    result = call(str(file), "--board", "nrf52-dk", "--out", str(tmp_path / "out"))
    assert result.exit_code == 2, result.output
    assert "large.onnx, board nrf52-dk: the firmware does not fit: FLASH needs 6" in result.stderr
    assert " over)" in result.stderr


def test_a_folder_in_use_is_written_only_when_told_so(model_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    arguments = (str(model_file), "--board", BOARD, "--out", str(folder))
    result = call(*arguments)
    assert result.exit_code == 2
    assert f"--out: {folder} is not an empty folder" in result.stderr
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    assert call(*arguments, "--force").exit_code == 0
    assert (folder / "mine.txt").read_text() == "mine"
    assert (folder / "report.json").is_file()


def test_a_file_in_the_place_of_the_folder_is_refused_even_with_force(model_file: Path) -> None:
    result = call(str(model_file), "--board", BOARD, "--out", str(model_file), "--force")
    assert result.exit_code == 2
    assert "small.onnx is a file" in result.stderr


def test_code_for_size_is_asked_for_and_reported(model_file: Path, report: Report, tmp_path: Path) -> None:
    made = call(str(model_file), "--board", BOARD, "--out", str(tmp_path / "out"), "--optimise", "size", "--json")
    shown = json.loads(made.stdout)
    assert shown["optimise"] == "size"
    assert shown["totals"]["rom"]["amount"] < report.totals["rom"].amount


def test_a_folder_that_cannot_be_made_is_named_with_the_option(model_file: Path) -> None:
    result = call(str(model_file), "--board", BOARD, "--out", str(model_file / "below"))
    assert result.exit_code == 2
    assert f"--out: {model_file / 'below'} cannot be made (Not a directory)" in result.stderr


def test_what_an_earlier_compilation_wrote_does_not_stay(model_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "kernels").mkdir(parents=True)
    for name in ("edgefront_depthwise.S", "kernels/ef_softmax_s8.h", "kernels/own.h"):
        (folder / name).write_text("old")
    assert call(str(model_file), "--board", BOARD, "--out", str(folder), "--force").exit_code == 0
    left = {
        path.name for path in folder.rglob("*") if path.name in ("edgefront_depthwise.S", "ef_softmax_s8.h", "own.h")
    }
    assert left == {"own.h"}


def test_a_folder_as_the_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert "is a folder; give an ONNX model" in refusal(tmp_path / "model", tmp_path)


def test_a_missing_gcc_is_a_usage_error(model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "gcc_path", lambda: None)
    text = refusal(model_file, tmp_path, "--compiler", "gcc")
    assert "arm-none-eabi-gcc is not on the path; install it, or use --compiler zig" in text


@pytest.mark.parametrize(
    ("error", "raised"), [(ToolchainInterrupted("killed"), TransientFault), (ToolchainError("refused"), Defect)]
)
def test_a_failing_c_compiler_is_not_the_users_mistake(
    error: Exception, raised: type[Exception], model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(compiling, "compile_network", fail)
    with pytest.raises(raised, match=str(error)):
        compile_model(model_file, load_kind(BOARD))


def test_both_kinds_of_pieces_of_a_layer_are_told_apart(report: Report) -> None:
    conv = report.layers[0]
    n_weights, n_channels = 6 * 2 * 9, 6
    assert conv.rom.weights_bytes >= n_weights + 4 * n_channels * 2  # int8 weights, int32 biases and multipliers
    assert conv.rom.weights_bytes < n_weights + 4 * n_channels * 2 + 64
    assert conv.rom.code_bytes > 50
