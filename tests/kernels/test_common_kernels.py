"""The pieces all kernels share, alone and at the ends of their ranges, against integers without a width."""

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
#include "kernels/ef_add_s8.h"

void requantise(const int32_t *sums, const int32_t *factors, const ef_requant_t *quant, int8_t *out, int32_t n);
void requantise(const int32_t *sums, const int32_t *factors, const ef_requant_t *quant, int8_t *out, int32_t n)
{
    for (int32_t i = 0; i < n; ++i) {
        out[i] = ef_requantise(sums[i], factors[i], *quant);
    }
}

void span(int32_t start, int32_t dilation, int32_t kernel, int32_t size, int32_t *out);
void span(int32_t start, int32_t dilation, int32_t kernel, int32_t size, int32_t *out)
{
    const ef_span_t found = ef_span(start, dilation, kernel, size);
    out[0] = found.first;
    out[1] = found.end;
}

void add(const ef_add_t *layer, const int8_t *in, const int8_t *other, int8_t *out);
void add(const ef_add_t *layer, const int8_t *in, const int8_t *other, int8_t *out)
{
    ef_add_s8(layer, 65536, in, other, out);
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder: Path = tmp_path_factory.mktemp("kernels")
    kernels = resources.files("tasks.firmware") / "csrc" / "kernels"
    sources = {f"kernels/{name}": (kernels / name).read_text("utf-8") for name in ("ef_common.h", "ef_add_s8.h")}
    return ctypes.CDLL(str(link_shared(folder, write_sources({**sources, "driver.c": _DRIVER}, folder))))


def words(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def call(function: Callable[..., None], *arguments: np.ndarray | int) -> None:
    function(*(item.ctypes.data_as(ctypes.c_void_p) if isinstance(item, np.ndarray) else item for item in arguments))


def expected_byte(accumulator: int, multiplier: int, shift: int, zero_point: int, low: int, high: int) -> int:
    value = zero_point + (((accumulator << shift) * multiplier + 2**31) >> 32)
    return min(max(value, low), high)


@pytest.mark.parametrize(
    ("zero_point", "low", "high", "shift"),
    [(0, -128, 127, 0), (-128, -128, 127, 3), (127, -5, 127, 9), (13, 13, 90, 22)],
)
def test_requantisation_is_exact_over_its_whole_range(
    library: ctypes.CDLL, zero_point: int, low: int, high: int, shift: int
) -> None:
    rng = np.random.default_rng(shift)
    bound = (2**31 - 1) >> shift
    wide, near = rng.integers(-bound, bound + 1, size=2000), rng.integers(-600, 601, size=2000).clip(-bound, bound)
    accumulators = np.concatenate([wide, near, [-bound, bound, 0, 0]]).astype(np.int32)
    largest = 2**31 - 1
    multipliers = np.concatenate([rng.integers(0, 2**31, size=4000), [largest, largest, 0, largest]]).astype(np.int32)
    out = np.empty(len(accumulators), np.int8)
    call(library.requantise, accumulators, multipliers, words(0, zero_point, low, high, shift), out, len(out))
    wanted = [
        expected_byte(int(a), int(m), shift, zero_point, low, high)
        for a, m in zip(accumulators, multipliers, strict=True)
    ]
    assert out.tolist() == wanted


def test_exact_halves_go_up(library: ctypes.CDLL) -> None:
    accumulators, multipliers = words(-3, -2, -1, 1, 2, 3), np.full(6, 2**30, np.int32)
    out = np.empty(6, np.int8)
    call(library.requantise, accumulators, multipliers, words(0, 0, -128, 127, 1), out, 6)  # halves
    assert out.tolist() == [-1, -1, 0, 1, 1, 2]


def test_a_span_holds_just_the_taps_inside(library: ctypes.CDLL) -> None:
    out = words(0, 0)
    for dilation in (1, 2, 3):
        for kernel in (1, 2, 3, 5):
            for size in (1, 2, 4, 7):
                for start in range(-dilation * kernel - 2, size + 3):
                    call(library.span, start, dilation, kernel, size, out)
                    inside = [tap for tap in range(kernel) if 0 <= start + tap * dilation < size]
                    assert list(range(int(out[0]), int(out[1]))) == inside


def test_an_addition_is_exact_for_all_pairs_of_bytes(library: ctypes.CDLL) -> None:
    values = np.arange(-128, 128, dtype=np.int8)
    first, second = (grid.ravel().copy() for grid in np.meshgrid(values, values))
    out = np.empty(len(first), np.int8)
    shift, (m1, m2), (z1, z2, zo) = 22, (2**31 - 1, 2**30 + 12345), (-128, 127, -3)
    offset = (zo << 32) + 2**31 - (z1 << shift) * m1 - (z2 << shift) * m2
    low, high = (np.uint32(offset >> part & 0xFFFFFFFF).astype(np.int32) for part in (0, 32))
    call(library.add, words(int(low), int(high), m1, m2, shift, -100, 100), first, second, out)
    total = (first.astype(np.int64) - z1 << shift) * m1 + (second.astype(np.int64) - z2 << shift) * m2
    assert np.array_equal(out, np.clip(zo + ((total + 2**31) >> 32), -100, 100))
