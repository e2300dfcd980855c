"""Kernels of products and softmaxes at the ends of their ranges, against integers without a width."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from tasks.firmware.compiler import write_sources
from tasks.firmware.toolchain import link_shared

_DRIVER = """
#include "kernels/ef_mul_s8.h"
#include "kernels/ef_softmax_s8.h"

void multiply(const ef_requant_t *quant, const ef_mul_t *terms, const int8_t *in, const int8_t *other, int8_t *out);
void multiply(const ef_requant_t *quant, const ef_mul_t *terms, const int8_t *in, const int8_t *other, int8_t *out)
{
    ef_mul_s8(1, 65536, *quant, *terms, in, other, out);
}

void softmax(int32_t n, const ef_requant_t *quant, const ef_softmax_t *terms, int8_t *values);
void softmax(int32_t n, const ef_requant_t *quant, const ef_softmax_t *terms, int8_t *values)
{
    ef_softmax_s8(1, n, *quant, terms, values, values);
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder: Path = tmp_path_factory.mktemp("kernels")
    kernels = resources.files("tasks.firmware") / "csrc" / "kernels"
    names = ("ef_common.h", "ef_mul_s8.h", "ef_softmax_s8.h")
    sources = {f"kernels/{name}": (kernels / name).read_text("utf-8") for name in names}
    return ctypes.CDLL(str(link_shared(folder, write_sources({**sources, "driver.c": _DRIVER}, folder))))


def words(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def call(function: Callable[..., None], *arguments: np.ndarray | int) -> None:
    function(*(item.ctypes.data_as(ctypes.c_void_p) if isinstance(item, np.ndarray) else item for item in arguments))


@pytest.mark.parametrize(("zero_points", "shift"), [((-128, -128), 15), ((127, -128), 15), ((0, 3), 0)])
def test_a_product_is_exact_for_all_pairs_of_bytes(
    library: ctypes.CDLL, zero_points: tuple[int, int], shift: int
) -> None:
    values = np.arange(-128, 128, dtype=np.int8)
    first, second = (grid.ravel().copy() for grid in np.meshgrid(values, values))
    out = np.empty(len(first), np.int8)
    for multiplier in (2**31 - 1, 2**16 + 1):
        call(library.multiply, words(zero_points[0], -3, -100, 100, shift), words(zero_points[1], multiplier),
             first, second, out)  # fmt: skip
        products = (first.astype(np.int64) - zero_points[0]) * (second.astype(np.int64) - zero_points[1])
        wanted = np.clip(-3 + (((products << shift) * multiplier + 2**31) >> 32), -100, 100)
        assert np.array_equal(out, wanted)


@pytest.mark.parametrize(
    ("n", "bits", "scale"),
    [(1, 30, 2**32 - 1), (3, 30, 2**32 - 1), (3, 30, 2**14), (1024, 21, 2**24), (4096, 19, 2**32 - 1)],
)
def test_a_softmax_is_exact_where_its_sum_fills_32_bits(library: ctypes.CDLL, n: int, bits: int, scale: int) -> None:
    exponents = np.array([2**bits - 5001 * step for step in range(80)] + [0] * 176, np.uint32)
    terms = np.concatenate([np.array([scale], np.uint32), exponents])
    rng = np.random.default_rng(n)
    for values in (np.full(n, 127, np.int8), rng.integers(50, 128, size=n).astype(np.int8)):
        numbers = [int(exponents[int(values.max()) - int(value)]) for value in values]
        divisor = (sum(numbers) * scale + 2**31) >> 32
        wanted = [min(max(-128 + (number + divisor // 2) // divisor, -128), 127) for number in numbers]
        out = values.copy()
        call(library.softmax, n, words(0, -128, -128, 127, 0), terms, out)
        assert out.tolist() == wanted
