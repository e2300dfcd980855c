"""Weights in the order in which kernels read them.

Kernels take several outputs at once and four taps a word, so rows of weights are cut into groups of outputs and words
of taps: ``[groups][words][outputs of the group][4]``. Taps that fill no word follow in a table of their own,
``[groups][taps][outputs of the group]``, so that nothing is padded, but for convolutions where three are left: as a
word with one zero they take half of the time. The input's zero point is folded into the bias:
Σ w·(x − z) + b = Σ w·x + (b − z·Σ w).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tasks.firmware.ir import Int8Array, Int32Array

WORD = 4
PAIRS = (2, 1)
QUADS = (4, 2, 1)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Packed:
    """``words`` and ``tails`` together are as long as the weights; ``requant`` holds, group by group, the biases and
    then the multipliers."""

    words: Int8Array
    tails: Int8Array
    requant: Int32Array


def pack(
    weights: Int8Array, bias: Int32Array, multipliers: Int32Array, zero_point: int, widths: Sequence[int]
) -> Packed:
    """Tables for kernels that work on groups of ``widths`` outputs, the widest first.

    Shapes:
        weights: (O, K). bias, multipliers: (O,). zero_point: of the input.
    """
    folded = fold(weights, bias, zero_point)
    rows = list(groups(len(weights), widths))
    return Packed(
        words=np.concatenate([_words(weights[part]) for part in rows]),
        tails=np.concatenate([_tails(weights[part]) for part in rows]),
        requant=np.concatenate([values[part] for part in rows for values in (folded, multipliers)]),
    )


def interleave(
    weights: Int8Array, bias: Int32Array, multipliers: Int32Array, zero_point: int, widths: Sequence[int]
) -> tuple[Int32Array, Int8Array]:
    """The same as one table of words, for each group its biases, weights and multipliers, and the tails; arguments as
    for :func:`pack`. Rows must be those of :func:`completed`."""
    folded = fold(weights, bias, zero_point)
    rows = list(groups(len(weights), widths))
    parts = [(folded[part], _words(weights[part]).view("<i4"), multipliers[part]) for part in rows]
    words: Int32Array = np.concatenate([piece for group in parts for piece in group]).astype(np.int32)
    return words, np.concatenate([_tails(weights[part]) for part in rows])


def completed(weights: Int8Array) -> Int8Array:
    """Weights (O, K), with a zero behind each row where only that is missing for a whole word."""
    return np.pad(weights, ((0, 0), (0, 1))) if weights.shape[1] % WORD == WORD - 1 else weights


def _words(rows: Int8Array) -> Int8Array:
    """[words][rows][4]."""
    n_words = rows.shape[1] // WORD
    whole = rows[:, : n_words * WORD].reshape(len(rows), n_words, WORD)
    return np.ascontiguousarray(whole.transpose(1, 0, 2)).ravel()


def _tails(rows: Int8Array) -> Int8Array:
    """[taps][rows]."""
    return np.ascontiguousarray(rows[:, rows.shape[1] // WORD * WORD :].T).ravel()


def fold(weights: Int8Array, bias: Int32Array, zero_point: int) -> Int32Array:
    """The biases (O,) with the zero point in them, modulo 2**32 like the accumulators they start."""
    sums = weights.reshape(len(weights), -1).astype(np.int64).sum(axis=1)
    folded: Int32Array = (bias.astype(np.int64) - zero_point * sums).astype(np.uint32).astype(np.int32)
    return folded


def groups(n: int, widths: Sequence[int]) -> Iterator[slice]:
    """Rows 0 … n - 1 in as many groups of the widest size as there are, then of the next."""
    start = 0
    for width in widths:
        while n - start >= width:
            yield slice(start, start + width)
            start += width
