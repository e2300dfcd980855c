"""The page on adding an operator, run as it stands: its blocks register the operator, its own test must pass."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mcu_agent.kinds import load_kind
from tasks.firmware import emit_elementwise, kernels, lower, onnx_ops
from tasks.firmware.compiler import compile_network
from tasks.firmware.errors import Unsupported
from tasks.quant import reference
from tests.support.qdq import QdqModel

PAGE = Path(__file__).parents[2] / "docs" / "add-an-operator.md"
REGISTRIES: tuple[dict[Any, Any], ...] = (
    *(onnx_ops.HANDLERS, lower.LOWERINGS, reference.PLAIN, emit_elementwise.EMITTED),
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def added(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the page defines, while its operator is registered."""
    before = [dict(registry) for registry in REGISTRIES]
    folder = tmp_path_factory.mktemp("kernels")
    (block,) = blocks("c")
    first, kernel = block.split("\n", 1)
    (folder / Path(first).name).write_text(kernel)
    kernels.FOLDERS.append(folder)
    names: dict[str, Any] = {"__name__": "added_operator"}
    for block in blocks("python"):
        exec(compile(block, str(PAGE), "exec", dont_inherit=True), names)
    yield names
    kernels.FOLDERS.remove(folder)
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(entries)


def test_the_operator_of_the_page_passes_its_own_test(added: dict[str, Any]) -> None:
    tests: list[Callable[[], None]] = [value for name, value in added.items() if name.startswith("test_")]
    assert len(tests) == 1
    tests[0]()


def test_a_kernel_with_a_mistake_does_not_pass_it(
    added: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = kernels.kernel_text("ef_upsample_s8.h")
    assert "x / across" in text
    (tmp_path / "ef_upsample_s8.h").write_text(text.replace("x / across", "(x + 1) / across"))
    monkeypatch.setattr(kernels, "FOLDERS", [tmp_path, *kernels.FOLDERS])
    (test,) = [value for name, value in added.items() if name.startswith("test_")]
    with pytest.raises(Exception, match="differ from the reference"):
        test()


@pytest.mark.parametrize(
    ("scales", "attributes", "reason"),
    [
        ([1, 1, 1.5, 2], {"mode": "nearest"}, "its scales are"),
        ([1, 2, 1, 1], {"mode": "nearest"}, "its scales are"),
        ([1, 1, 2, 2], {"mode": "linear"}, "interpolates"),
        ([2, 2], {"mode": "nearest"}, "no scale for each axis"),
    ],
)
def test_the_handler_of_the_page_refuses_what_it_does_not_cover(
    added: dict[str, Any], scales: list[float], attributes: dict[str, str], reason: str
) -> None:
    np, model = added["np"], QdqModel([3, 4, 5])
    inputs = [model.last, "", model.constant(np.array(scales, np.float32))]
    model.quantised(model.node("Resize", inputs, **attributes), 0.08, -7)
    with pytest.raises(Unsupported, match=reason):
        compile_network(model.serialised(), load_kind("nrf52840-dk"))


def test_each_block_names_the_file_it_belongs_to() -> None:
    root = PAGE.parents[1]
    named = [block.split("\n", 1)[0] for block in [*blocks("python"), *blocks("c")]]
    paths = [path for line in named for path in re.findall(r"[\w/]+\.(?:py|h)", line)]
    assert len(paths) >= len(named) == 7
    assert [path for path in paths if not (root / path).parent.is_dir()] == []
