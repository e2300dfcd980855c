"""A trial as a project of its own: C sources, networks, firmware, test vectors, Makefile and the figures it achieved.

What is written depends on the trial alone, except for the path of the Python that ``make test-board`` tries first.
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray

from mcu_agent.kinds import BoardKind
from orchestrator.boards import on_board
from orchestrator.errors import StudyError, UsageError
from orchestrator.quantities import exact, show, title
from orchestrator.records import Json, Outcome, Params, ParamValue, Value
from orchestrator.studyfile import StudyFile
from tasks.deployment import BOARD_FILES
from tasks.errors import Defect, TransientFault
from tasks.firmware.toolchain import gcc_flags
from tasks.stage import Artifacts

T = TypeVar("T")

# A header of this many input bytes is about 250 KB of C, which every compiler still takes at once.
_HEADER_INPUT_BYTES = 65_536
_HEADER_VECTORS = 32
_VALUES_PER_LINE = 24
_NEEDED = ("sources", "elf", "layers", "vectors", "onnx")


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """The trial to export and what it is shown with; ``test_error`` is None where the test split was not used. ``kind``
    is the study's board, or one of them: of what each board has of its own, that board's is exported.

    ``inputs`` is what the stage ``compress`` noted of the data (``shape``, ``mean``, ``std``, ``class_names``), empty
    where it noted nothing.
    """

    study: StudyFile
    trial: int
    params: Params
    outcome: Outcome
    kind: BoardKind
    test_error: Value | None = None
    inputs: Json = field(default_factory=dict)

    @property
    def values(self) -> dict[str, Value]:
        """The outcome's values on this board."""
        return self._here(self.outcome.values)

    @property
    def artifacts(self) -> dict[str, str]:
        """The outcome's artifacts for this board."""
        return self._here(self.outcome.artifacts)

    def _here(self, entries: Mapping[str, T]) -> dict[str, T]:
        return on_board(entries, self.kind.name) if self.study.boards else dict(entries)


def board_to_export(study: StudyFile, asked: str | None) -> str:
    """The board kind a trial of the study is exported for.

    Raises:
        UsageError: the study has several and none was asked for, or it does not have the one that was.
    """
    if asked is None and study.boards:
        raise UsageError(
            f"--board: study {study.name} is for {len(study.boards)} boards; name the one to export for, one of "
            f"{', '.join(study.boards)}"
        )
    if asked is not None and asked not in study.kinds:
        raise UsageError(f"--board: study {study.name} is not for {asked!r}; allowed: {', '.join(study.kinds)}")
    return asked or study.kinds[0]


def export_trial(exported: Exported, artifacts: Artifacts, folder: Path) -> list[str]:
    """Write the project into ``folder``; gives back the paths below it, sorted.

    Everything is read before the first file is written.

    Raises:
        UsageError: the folder holds something, or is a file.
        StudyError: an artifact is missing or altered (its text says which).
        Defect: the trial has no firmware, or its artifacts are not what the build stage writes.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--to: {folder} is not an empty folder; choose a new one or empty it")
    files = project_files(exported, artifacts)
    for path, data in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return sorted(files)


def project_files(exported: Exported, artifacts: Artifacts) -> dict[str, bytes]:
    """The project as path → content; raises as :func:`export_trial`."""
    parts = _read_artifacts(exported, artifacts)
    sources = _unzip(parts["sources"])
    inputs, outputs = _vectors(parts["vectors"])
    facts = _facts(exported, sources, inputs, outputs)
    files = {
        **{_place(path): data for path, data in sources.items()},
        "firmware/firmware.elf": parts["elf"],
        "network-int8.onnx": parts["onnx"],
        "test/test_vectors.npz": parts["vectors"],
        "test/test_vectors.h": _header(inputs, outputs).encode(),
        "test/test_network.c": _template("test_network.c").encode(),
        "test/test_board.py": _template("test_board.py").encode(),
        "layers.json": parts["layers"],
        "figures.json": _figures_json(exported).encode(),
    }
    if "onnx_float" in parts:
        files["network-float.onnx"] = parts["onnx_float"]
    environment = Environment(autoescape=False, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    for name in ("Makefile", "CMakeLists.txt", "README.md", *(["edgefront_io.h"] if facts["io"] else [])):
        path = f"src/{name}" if name.endswith(".h") else name
        files[path] = environment.from_string(_template(f"{name}.j2")).render(facts).encode()
    return files


def _read_artifacts(exported: Exported, artifacts: Artifacts) -> dict[str, bytes]:
    names = exported.artifacts
    missing = [name for name in _NEEDED if name not in names]
    if missing:
        raise Defect("no_firmware", f"trial {exported.trial} has no {', '.join(missing)}; only complete trials have")
    try:
        return {name: artifacts.get_bytes(names[name]) for name in (*_NEEDED, "onnx_float") if name in names}
    except TransientFault as error:
        raise StudyError(
            f"trial {exported.trial} cannot be exported: {error.detail}. Restore the file from a copy, or export "
            "another trial; the study itself goes on without it."
        ) from error


def _unzip(data: bytes) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    except zipfile.BadZipFile as error:
        raise Defect("bad_sources", f"the sources artifact is no zip archive: {error}") from error


def _place(path: str) -> str:
    """The network itself goes to ``src``, what only the test firmware needs to ``firmware``."""
    return f"firmware/{path}" if path.startswith(BOARD_FILES) else f"src/{path}"


def _vectors(data: bytes) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Inputs (n, bytes) and outputs (n, k)."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        inputs, outputs = arrays["inputs"], arrays["outputs"]
    return inputs.reshape(len(inputs), -1).astype(np.int8), outputs.reshape(len(outputs), -1).astype(np.int8)


def _facts(
    exported: Exported, sources: Mapping[str, bytes], inputs: NDArray[np.int8], outputs: NDArray[np.int8]
) -> dict[str, object]:
    compiled = [path for path in sorted(sources) if path.endswith((".c", ".S")) and not path.startswith(BOARD_FILES)]
    return {
        "study": exported.study,
        "trial": exported.trial,
        "kind": exported.kind,
        "params": {name: _short(value) for name, value in exported.params.items()},
        "figures": _figures(exported),
        "memory": _memory(exported.values),
        "io": _io(exported.inputs, inputs.shape[1], outputs.shape[1]),
        "sources": [_place(path) for path in compiled],
        "has_assembly": any(path.endswith(".S") for path in compiled),
        "python": sys.executable,
        "core_flags": " ".join(gcc_flags(exported.kind)),
        "arm_flags": " ".join((*gcc_flags(exported.kind), "-std=c11 -O2 -ffreestanding -ffunction-sections")),
        "input_bytes": inputs.shape[1],
        "output_bytes": outputs.shape[1],
        "n_vectors": _n_vectors(inputs),
    }


def _short(value: ParamValue) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _memory(values: Mapping[str, Value]) -> str:
    """What the network takes in somebody else's firmware, without our start-up code and harness."""
    parts = [
        exact(values[name].amount, "byte") + what
        for name, what in (
            ("weights_bytes", " of flash for weights"),
            ("code_bytes", " of flash for the layers' code"),
            ("arena", " of static RAM"),
            ("stack", " of stack"),
        )
        if name in values
    ]
    return (
        ", ".join(parts) + ", no heap." if parts else "no heap."
    ) + " ROM and RAM below are those of the test image."


def _io(inputs: Json, input_bytes: int, output_bytes: int) -> dict[str, Any] | None:
    """What ``edgefront_io.h`` and the README say of inputs and classes; None where the trial's notes do not have it or
    speak of other sizes."""
    if not all(name in inputs for name in ("shape", "mean", "std", "class_names")):
        return None
    if prod(inputs["shape"]) != input_bytes or len(inputs["class_names"]) != output_bytes:
        return None
    mean, std = ([float(np.float32(value)) for value in inputs[name]] for name in ("mean", "std"))
    classes = [str(name) for name in inputs["class_names"]]
    return {
        "shape": list(inputs["shape"]),
        "mean": mean,
        "rows": [(f"{m:.6g}", f"{s:.6g}") for m, s in zip(mean, std, strict=True)],
        "mean_c": [_c_float(value) for value in mean],
        "std_c": [_c_float(value) for value in std],
        "classes": classes,
        "classes_c": [_c_string(name) for name in classes],
    }


def _c_float(value: float) -> str:
    """Nine digits give back the very float32."""
    text = f"{value:.9g}"
    return f"{text}f" if any(mark in text for mark in ".e") else f"{text}.0f"


def _c_string(text: str) -> str:
    plain = set(range(0x20, 0x7F)) - set(b'"\\?')
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in text.encode()) + '"'


def _all_values(exported: Exported) -> dict[str, Value]:
    """The objectives first, in the study's order."""
    values = dict(exported.values)
    if exported.test_error is not None:
        values["test_error"] = exported.test_error
    order = [*(name for name in exported.study.objectives if name in values), *values]
    return {name: values[name] for name in order}


def _figures(exported: Exported) -> list[dict[str, str]]:
    return [
        {
            "name": title(name),
            "text": show(value.amount, value.unit, name),
            "source": value.source.value,
            "note": value.note.replace("|", "/"),
        }
        for name, value in _all_values(exported).items()
    ]


def _figures_json(exported: Exported) -> str:
    figures: Json = {
        "study": exported.study.name,
        "trial": exported.trial,
        "board": exported.kind.name,
        "params": dict(exported.params),
        "inputs": dict(exported.inputs),
        "values": {name: value.to_json() for name, value in _all_values(exported).items()},
        "artifacts": exported.artifacts,
    }
    return json.dumps(figures, indent=2) + "\n"


def _n_vectors(inputs: NDArray[np.int8]) -> int:
    fitting: int = _HEADER_INPUT_BYTES // inputs.shape[1]
    return max(1, min(len(inputs), _HEADER_VECTORS, fitting))


def _header(inputs: NDArray[np.int8], outputs: NDArray[np.int8]) -> str:
    n = _n_vectors(inputs)
    return (
        "/* Inputs from the validation split and what the network answers; generated by Edgefront. */\n"
        "#ifndef TEST_VECTORS_H\n#define TEST_VECTORS_H\n\n#include <stdint.h>\n\n"
        f"#define TEST_VECTORS {n}\n"
        f"#define TEST_INPUT_BYTES {inputs.shape[1]}\n"
        f"#define TEST_OUTPUT_BYTES {outputs.shape[1]}\n\n"
        f"static const int8_t test_inputs[TEST_VECTORS][TEST_INPUT_BYTES] = {_table(inputs[:n])};\n\n"
        f"static const int8_t test_outputs[TEST_VECTORS][TEST_OUTPUT_BYTES] = {_table(outputs[:n])};\n\n"
        "#endif\n"
    )


def _table(rows: NDArray[np.int8]) -> str:
    return "{\n" + "\n".join(f"    {{{_row(row.tolist())}}}," for row in rows) + "\n}"


def _row(values: list[int]) -> str:
    lines = [values[i : i + _VALUES_PER_LINE] for i in range(0, len(values), _VALUES_PER_LINE)]
    return ",\n     ".join(", ".join(map(str, line)) for line in lines)


def _template(name: str) -> str:
    return resources.files("tasks").joinpath("templates", name).read_text(encoding="utf-8")
