"""An exported trial is a project that stands on its own."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from report_trials import study_file

from mcu_agent.kinds import load_kind
from orchestrator.errors import UsageError
from orchestrator.records import Ending, Outcome, Source, Value
from tasks.errors import Defect
from tasks.export import Exported, export_trial, project_files
from tasks.firmware.compiler import compile_graph
from tasks.firmware.host import HostNetwork
from tasks.firmware.ir import Clamp, Dense, Graph, Tensor

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


@pytest.mark.skipif(shutil.which("cmake") is None or shutil.which("cc") is None, reason="needs cmake and cc")
def test_its_cmake_project_builds_and_passes(project: Path, tmp_path: Path) -> None:
    for command in (
        ["cmake", "-S", str(project), "-B", str(tmp_path / "b")],
        ["cmake", "--build", str(tmp_path / "b")],
        ["ctest", "--test-dir", str(tmp_path / "b"), "--no-tests=error"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_gives_each_figure_with_its_source(project: Path) -> None:
    text = (project / "README.md").read_text(encoding="utf-8")
    assert "| error | 3.12 % | exact |" in text
    assert "| latency | 4.2 ms | emulated | zero wait states |" in text
    assert "| test error | 4.00 % | exact |" in text
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


def test_a_damaged_source_archive_is_a_defect_with_its_reason() -> None:
    artifacts = MemoryArtifacts()
    with pytest.raises(Defect, match="no zip archive"):
        project_files(exported(artifacts, sources=b"nonsense"), artifacts)


def test_the_same_trial_gives_the_same_files() -> None:
    artifacts = MemoryArtifacts()
    assert project_files(exported(artifacts), artifacts) == project_files(exported(artifacts), artifacts)
