"""An exported trial is a project that stands on its own."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from report_trials import study_file

from mcu_agent.image import read_image
from mcu_agent.kinds import load_kind
from orchestrator.errors import StudyError, UsageError
from orchestrator.records import Ending, Outcome, Source, Value
from tasks.artifacts import ArtifactStore
from tasks.errors import Defect
from tasks.export import Exported, board_to_export, export_trial, project_files
from tasks.firmware.compiler import compile_graph
from tasks.firmware.host import HostNetwork
from tasks.firmware.ir import Clamp, Dense, Graph, Tensor
from tasks.firmware.toolchain import gcc_flags
from tasks.nn.samples import normalise
from tasks.quant.reference import quantise_input

BOARD = "nrf52-dk"
N_INPUTS, N_OUTPUTS, N_VECTORS = 6, 3, 40


class MemoryArtifacts:
    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def put_bytes(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        self.kept[sha256] = data
        return sha256

    def get_bytes(self, sha256: str) -> bytes:
        return self.kept[sha256]


def dense_graph() -> Graph:
    """One dense layer with weights that can be told apart."""
    weights = (np.arange(N_OUTPUTS * N_INPUTS).reshape(N_OUTPUTS, N_INPUTS) * 7 % 23 - 11).astype(np.int8)
    layer = Dense(
        name="dense",
        inputs=("x",),
        output="y",
        clamp=Clamp(low=-128, high=127),
        weights=weights,
        bias=np.array([100, -50, 0], np.int32),
        multipliers=np.full(N_OUTPUTS, 2**26, np.int32),
        left_shift=0,
    )
    tensors = {
        "x": Tensor(name="x", shape=(1, 1, N_INPUTS), scale=0.5, zero_point=3),
        "y": Tensor(name="y", shape=(1, 1, N_OUTPUTS), scale=0.25, zero_point=-4),
    }
    return Graph(input="x", output="y", tensors=tensors, layers=(layer,), digest="0" * 64)


@lru_cache
def parts() -> dict[str, bytes]:
    """The artifacts of a build, made by the real compiler."""
    compiled = compile_graph(dense_graph(), load_kind(BOARD))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for path, text in compiled.sources.items():
            file.writestr(path, text)
    inputs = np.random.default_rng(0).integers(-128, 128, (N_VECTORS, 1, 1, N_INPUTS)).astype(np.int8)
    outputs = HostNetwork(compiled.sources, compiled.graph, compiled.plan).run(inputs)
    vectors = io.BytesIO()
    np.savez(vectors, inputs=inputs, outputs=outputs)
    return {
        "sources": archive.getvalue(),
        "elf": compiled.image.elf,
        "layers": json.dumps(compiled.layers_json()).encode(),
        "vectors": vectors.getvalue(),
        "onnx": onnx.ModelProto().SerializeToString() or b"onnx",
        "onnx_float": b"float",
    }


def exported(artifacts: MemoryArtifacts, **replaced: bytes) -> Exported:
    names = {name: artifacts.put_bytes(data) for name, data in {**parts(), **replaced}.items()}
    values = {
        "error": Value(amount=0.0312, unit="1", source=Source.EXACT),
        "rom": Value(amount=30_720, unit="byte", source=Source.EXACT),
        "latency": Value(amount=0.0042, unit="s", source=Source.EMULATED, note="zero wait states"),
    }
    return Exported(
        study=study_file(board=BOARD),
        trial=12,
        params={"network.width": 8},
        outcome=Outcome(ending=Ending.COMPLETE, values=values, artifacts=names),
        kind=load_kind(BOARD),
        test_error=Value(amount=0.04, unit="1", source=Source.EXACT),
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    artifacts = MemoryArtifacts()
    folder = tmp_path / "network"
    export_trial(exported(artifacts), artifacts, folder)
    return folder


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=120)


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@needs_make
def test_its_own_test_passes_on_this_machine_without_its_makers_source_tree(project: Path) -> None:
    done = make(project, "test")
    assert "32 of 32 test vectors bit for bit" in done.stdout, done.stderr


@needs_make
def test_its_own_test_passes_with_the_compiler_of_the_python_package(project: Path) -> None:
    done = make(project, "test", f"HOST_CC={sys.executable} -m ziglang cc")
    assert done.returncode == 0, done.stderr


@needs_make
def test_its_own_test_fails_when_a_weight_is_changed(project: Path) -> None:
    weights = project / "src" / "edgefront_weights.c"
    weights.write_text(weights.read_text().replace("-11", "-10", 1))
    done = make(project, "test")
    assert done.returncode != 0
    assert "of 32 test vectors bit for bit" in done.stdout


@needs_make
def test_its_firmware_passes_on_the_virtual_board(project: Path) -> None:
    done = make(project, "test-board")
    assert "32 test vectors bit for bit on a virtual nrf52-dk" in done.stdout, done.stdout + done.stderr


@needs_make
def test_a_python_without_the_agent_is_told_how_to_name_another(project: Path) -> None:
    done = make(project, "test-board", f"EDGEFRONT_PYTHON={sys.executable} -S -E -I")
    assert done.returncode != 0
    assert "EDGEFRONT_PYTHON=" in done.stdout


@needs_make
@pytest.mark.skipif(shutil.which("arm-none-eabi-gcc") is None, reason="needs arm-none-eabi-gcc")
def test_its_firmware_links_again_with_the_arm_compiler(project: Path) -> None:
    done = make(project, "firmware")
    assert (project / "build" / "firmware.elf").exists(), done.stderr
    assert "ef_dense_s8" in read_image((project / "build" / "firmware.elf").read_bytes(), load_kind(BOARD)).symbols


@pytest.mark.skipif(shutil.which("cmake") is None or shutil.which("cc") is None, reason="needs cmake and cc")
def test_its_cmake_project_builds_and_passes(project: Path, tmp_path: Path) -> None:
    for command in (
        ["cmake", "-S", str(project), "-B", str(tmp_path / "b")],
        ["cmake", "--build", str(tmp_path / "b")],
        ["ctest", "--test-dir", str(tmp_path / "b"), "--no-tests=error"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", ["Makefile", "CMakeLists.txt", "README.md"])
def test_every_way_to_build_it_takes_the_assembly(project: Path, file: str) -> None:
    assembly = [path.relative_to(project).as_posix() for path in (project / "src").rglob("*.S")]
    assert assembly == ["src/kernels/ef_dense_s8.S"]
    lists = [
        line for line in (project / file).read_text(encoding="utf-8").splitlines() if " src/edgefront_weights.c" in line
    ]
    assert [path for line in lists for path in assembly if path not in line.replace(")", "").split()] == []
    assert lists


@pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("arm-none-eabi-gcc") is None, reason="needs cmake, arm-none-eabi-gcc"
)
def test_its_cmake_library_for_the_board_holds_the_assembly(project: Path, tmp_path: Path) -> None:
    folder, flags = tmp_path / "b", " ".join(gcc_flags(load_kind(BOARD)))
    cross = ["-DCMAKE_SYSTEM_NAME=Generic", "-DCMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY"]
    for language in ("C", "ASM"):
        cross += [f"-DCMAKE_{language}_COMPILER=arm-none-eabi-gcc", f"-DCMAKE_{language}_FLAGS={flags}"]
    for command in (["cmake", "-S", str(project), "-B", str(folder), *cross], ["cmake", "--build", str(folder)]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
    library = str(folder / "libedgefront_network.a")
    symbols = subprocess.run(["arm-none-eabi-nm", library], capture_output=True, text=True, timeout=60, check=True)
    assert " T ef_dense_s8" in symbols.stdout


def test_the_readme_gives_each_figure_with_its_source(project: Path) -> None:
    text = (project / "README.md").read_text(encoding="utf-8")
    assert "| error (validation) | 3.12 % | exact |" in text
    assert "| latency | 4.2 ms | emulated | zero wait states |" in text
    assert "| error (test) | 4.00 % | exact |" in text
    assert "| `network.width` | 8 |" in text


def test_the_interface_is_the_header_with_three_functions(project: Path) -> None:
    header = (project / "src" / "edgefront.h").read_text(encoding="utf-8")
    for function in ("int edgefront_init(void)", "int edgefront_run(", "edgefront_sizes(void)"):
        assert function in header


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    artifacts = MemoryArtifacts()
    with pytest.raises(UsageError, match="not an empty folder"):
        export_trial(exported(artifacts), artifacts, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_trial_without_firmware_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    artifacts = MemoryArtifacts()
    whole = exported(artifacts)
    without = Outcome(ending=Ending.COMPLETE, artifacts={"onnx": whole.outcome.artifacts["onnx"]})
    stripped = Exported(study=whole.study, trial=3, params={}, outcome=without, kind=whole.kind)
    with pytest.raises(Defect, match="trial 3 has no sources, elf, layers, vectors"):
        export_trial(stripped, artifacts, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_trial_whose_artifact_was_lost_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "artifacts")
    memory = MemoryArtifacts()
    whole = exported(memory)
    for sha256 in whole.outcome.artifacts.values():
        store.put_bytes(memory.get_bytes(sha256))
    Path(store.path_of(whole.outcome.artifacts["elf"])).write_bytes(b"altered")
    with pytest.raises(StudyError, match=r"trial \d+ cannot be exported: .*was altered.*export another trial"):
        export_trial(whole, store, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_damaged_source_archive_is_a_defect_with_its_reason() -> None:
    artifacts = MemoryArtifacts()
    with pytest.raises(Defect, match="no zip archive"):
        project_files(exported(artifacts, sources=b"nonsense"), artifacts)


def test_the_same_trial_gives_the_same_files() -> None:
    artifacts = MemoryArtifacts()
    assert project_files(exported(artifacts), artifacts) == project_files(exported(artifacts), artifacts)


def c_rows(rows: np.ndarray) -> str:
    return "{" + ",".join("{" + ",".join(map(str, row.tolist())) + "}" for row in rows) + "}"


def test_the_io_header_feeds_raw_samples_as_the_training_did(tmp_path: Path) -> None:
    mean, std = np.array([3.0, -0.7], np.float32), np.array([1.7, 0.31], np.float32)
    inputs = {"shape": [2, 3], "mean": mean.tolist(), "std": std.tolist(), "class_names": ["a", 'b"\\', "ü?"]}
    artifacts = MemoryArtifacts()
    export_trial(replace(exported(artifacts), inputs=inputs), artifacts, tmp_path / "network")
    raw = (np.random.default_rng(3).normal(size=(N_VECTORS, 2, 3)) * 30).astype(np.float32)
    raw[0, 0, 0] = 3.0 + 1.7 * 0.5 * 2.5  # exactly between two steps
    tensor = Tensor(name="x", shape=(1, 3, 2), scale=0.5, zero_point=3)
    expected = quantise_input(normalise(raw, mean, std), tensor).reshape(N_VECTORS, -1)
    raw_c, expected_c = (c_rows(rows) for rows in (raw.transpose(0, 2, 1).reshape(N_VECTORS, -1), expected))
    (tmp_path / "main.c").write_text(
        '#include "edgefront_io.h"\n#include <stdio.h>\n#include <string.h>\n'
        f"static const float raw[][6] = {raw_c};\nstatic const int8_t q[][6] = {expected_c};\n"
        "int main(void) {\n  int8_t input[6], answer[3] = {-5, 7, 7};\n  int wrong = 0;\n"
        f"  for (int i = 0; i < {N_VECTORS}; ++i) {{\n"
        "    edgefront_quantise_input(raw[i], input);\n    wrong += memcmp(input, q[i], 6) != 0;\n  }\n"
        '  printf("%d wrong, %s, %s\\n", wrong, edgefront_class_names[edgefront_class(answer)],\n'
        "         edgefront_class_names[2]);\n}\n"
    )
    source = tmp_path / "network" / "src"
    files = [str(tmp_path / "main.c"), str(source / "edgefront.c"), str(source / "edgefront_weights.c")]
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-fno-sanitize=undefined", f"-I{source}"]
    program = str(tmp_path / "main")
    subprocess.run([sys.executable, "-m", "ziglang", "cc", *flags, *files, "-o", program], check=True, timeout=120)
    assert subprocess.run([program], capture_output=True, check=True).stdout.decode() == '0 wrong, b"\\, ü?\n'


def test_the_readme_says_how_inputs_are_normalised_and_what_the_outputs_mean() -> None:
    artifacts = MemoryArtifacts()
    inputs = {"shape": [1, 6], "mean": [4.884], "std": [6.0169], "class_names": ["rest", "walk", "fall"]}
    files = project_files(replace(exported(artifacts), inputs=inputs), artifacts)
    text = files["README.md"].decode()
    assert "| 0 | 4.884 | 6.0169 |" in text
    assert "Classes in their order: rest, walk, fall." in text
    assert json.loads(files["figures.json"])["inputs"] == inputs


def test_notes_that_speak_of_another_network_give_no_io_header() -> None:
    artifacts = MemoryArtifacts()
    inputs = {"shape": [1, 7], "mean": [0.0], "std": [1.0], "class_names": ["a", "b", "c"]}
    files = project_files(replace(exported(artifacts), inputs=inputs), artifacts)
    assert "src/edgefront_io.h" not in files
    assert "edgefront_io.h" not in files["README.md"].decode()


def test_of_several_boards_the_one_asked_for_is_exported_with_its_own_figures() -> None:
    artifacts = MemoryArtifacts()
    one = exported(artifacts)
    kinds = (BOARD, "nucleo-h743zi")
    own = {f"{name}@{BOARD}": one.outcome.artifacts[name] for name in ("sources", "elf", "layers")}
    others = {f"{name}@nucleo-h743zi": "0" * 64 for name in ("sources", "elf", "layers")}
    shared = {name: one.outcome.artifacts[name] for name in ("vectors", "onnx")}
    latency = one.outcome.values["latency"]
    values = {
        "error": one.outcome.values["error"],
        "latency": replace(latency, amount=9.0),
        f"latency@{BOARD}": latency,
        "latency@nucleo-h743zi": replace(latency, amount=9.0),
    }
    several = replace(
        one,
        study=study_file(board=None, boards=list(kinds)),
        outcome=replace(one.outcome, artifacts=own | others | shared, values=values),
    )
    files = project_files(several, artifacts)
    assert files["firmware/firmware.elf"] == parts()["elf"]
    figures = json.loads(files["figures.json"])
    assert figures["board"] == BOARD
    assert {name: value["amount"] for name, value in figures["values"].items()} == {
        "error": 0.0312,
        "latency": 0.0042,
        "test_error": 0.04,
    }
    assert set(figures["artifacts"]) == {"sources", "elf", "layers", "vectors", "onnx"}


def test_a_study_for_several_boards_is_exported_for_one_that_must_be_named() -> None:
    several = study_file(board=None, boards=["nrf52-dk", "nucleo-h743zi"])
    assert board_to_export(several, "nucleo-h743zi") == "nucleo-h743zi"
    assert board_to_export(study_file(), None) == "nrf52840-dk"
    with pytest.raises(UsageError, match=r"--board: study digits is for 2 boards; .* one of nrf52-dk, nucleo-h743zi"):
        board_to_export(several, None)
    with pytest.raises(UsageError, match=r"is not for 'nrf53'; allowed: nrf52-dk, nucleo-h743zi"):
        board_to_export(several, "nrf53")
