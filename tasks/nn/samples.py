"""Raw arrays in, checked and split samples out. Pure: no files, no data sets by name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import Defect

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

SPLIT_NAMES = ("train", "validation", "test")
GROUP_DRAWS = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class RawData:
    """Arrays as a source gives them, channels first.

    Shapes: x (n, C, L) or (n, C, H, W); y (n,); groups (n,) or None: samples of one group (a person, a machine) never
    land in two splits. ``test_x`` and ``test_y`` are a test split that the source itself defines.
    """

    name: str
    x: FloatArray
    y: IntArray
    class_names: tuple[str, ...]
    groups: NDArray[Any] | None = None
    test_x: FloatArray | None = None
    test_y: IntArray | None = None
    description: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """One split, normalised. Shapes: x float32 (n, C, L) or (n, C, H, W); y int64 (n,)."""

    x: FloatArray
    y: IntArray

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSplit:
    """A data set ready for training.

    ``x`` of every split is ``(raw - mean) / std`` with ``mean`` and ``std`` (C,) of the training split: a program that
    feeds the deployed network must do the same before it quantises. ``sha256`` identifies arrays and split together,
    ``source_sha256`` what the source gave, before any arithmetic that could differ between machines.
    """

    train: Samples
    validation: Samples
    test: Samples
    input_shape: tuple[int, ...]
    n_classes: int
    class_names: tuple[str, ...]
    mean: FloatArray
    std: FloatArray
    sha256: str
    source_sha256: str
    description: str = ""


def split_data(raw: RawData, *, validation: float, test: float, seed: int) -> DataSplit:
    """Check, split and normalise ``raw``; the split depends on the data's labels, groups, fractions and ``seed`` only.

    Raises:
        Defect: the data cannot be used; the text names the array, the index and what to do.
    """
    check_samples(raw.name, "x", raw.x, raw.y, raw.class_names)
    if raw.test_x is None or raw.test_y is None:
        parts = _split_indices(raw, (1.0 - validation - test, validation, test), seed)
        arrays = [(raw.x[index], raw.y[index]) for index in parts]
    else:
        check_samples(raw.name, "x_test", raw.test_x, raw.test_y, raw.class_names)
        if raw.test_x.shape[1:] != raw.x.shape[1:]:
            shapes = f"{raw.test_x.shape[1:]} and {raw.x.shape[1:]}"
            raise Defect("bad_data", f"data set {raw.name}: x_test and x have samples of different shapes, {shapes}")
        parts = _split_indices(raw, (1.0 - validation, validation), seed)
        arrays = [(raw.x[index], raw.y[index]) for index in parts] + [(raw.test_x, raw.test_y)]
    mean, std = channel_statistics(arrays[0][0])
    splits = [Samples(x=normalise(x, mean, std), y=np.ascontiguousarray(y)) for x, y in arrays]
    return DataSplit(
        train=splits[0],
        validation=splits[1],
        test=splits[2],
        input_shape=tuple(raw.x.shape[1:]),
        n_classes=len(raw.class_names),
        class_names=raw.class_names,
        mean=mean,
        std=std,
        sha256=_hash_of([array for split in splits for array in (split.x, split.y)]),
        source_sha256=_hash_of_source(raw),
        description=raw.description,
    )


def channel_statistics(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation (C,) of each channel of x (n, C, …); a constant channel gets deviation 1."""
    axes = (0, *range(2, x.ndim))
    mean, std = x.mean(axis=axes, dtype=np.float64), x.std(axis=axes, dtype=np.float64)
    return mean.astype(np.float32), np.where(std > 1e-12, std, 1.0).astype(np.float32)


def normalise(x: FloatArray, mean: FloatArray, std: FloatArray) -> FloatArray:
    """``(x - mean) / std`` by channel; shapes x (n, C, …), mean and std (C,)."""
    shape = (1, -1, *([1] * (x.ndim - 2)))
    return np.ascontiguousarray((x - mean.reshape(shape)) / std.reshape(shape), dtype=np.float32)


def check_samples(name: str, array: str, x: FloatArray, y: IntArray, class_names: Sequence[str]) -> None:
    """Refuse what training could only choke on later.

    Raises:
        Defect: lengths differ, values are not finite, a label is out of range, or only one class is there.
    """
    labels = array.replace("x", "y", 1)
    where = f"data set {name}"
    if len(x) != len(y):
        raise Defect("bad_data", f"{where}: {array} has {len(x)} samples but {labels} has {len(y)} labels")
    if len(x) == 0 or 0 in x.shape:
        raise Defect("bad_data", f"{where}: {array} is empty, its shape is {x.shape}")
    finite = np.isfinite(x)
    if not finite.all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        n_bad = int(finite.size - finite.sum())
        text = f"{where}: {array} holds {n_bad} values that are not finite, the first is {x[index]} at index {index}"
        raise Defect("bad_data", text + "; remove or fill them")
    outside = np.flatnonzero((y < 0) | (y >= len(class_names)))
    if len(outside):
        first = int(outside[0])
        allowed = f"allowed are 0 to {len(class_names) - 1}"
        raise Defect("bad_data", f"{where}: {labels}[{first}] is {y[first]}, {allowed} ({len(class_names)} classes)")
    if len(class_names) < 2 or len(np.unique(y)) < 2:
        raise Defect("bad_data", f"{where}: {labels} holds one class only ({y[0]}); classification needs two or more")


def _split_indices(raw: RawData, shares: Sequence[float], seed: int) -> list[IntArray]:
    if raw.groups is not None:
        return _split_by_group(raw.name, raw.y, raw.groups, shares, len(raw.class_names), seed)
    return _split_stratified(raw.name, raw.y, shares, raw.class_names, seed)


def _split_stratified(
    name: str, y: IntArray, shares: Sequence[float], class_names: Sequence[str], seed: int
) -> list[IntArray]:
    """Every class is shared out in the given shares, at least one sample of each class in each split."""
    rng = np.random.default_rng(seed)
    parts: list[list[IntArray]] = [[] for _ in shares]
    for label, class_name in enumerate(class_names):
        members = rng.permutation(np.flatnonzero(y == label))
        if len(members) < len(shares):
            text = (
                f"class {label} ({class_name}) has {len(members)} samples; {len(shares)} splits need at least one each"
            )
            raise Defect("bad_data", f"data set {name}: {text}. Add samples, or leave the class out")
        cuts = _cuts(len(members), shares)
        for part, piece in zip(parts, np.split(members, cuts), strict=True):
            part.append(piece)
    return [np.sort(np.concatenate(part)) for part in parts]


def _cuts(n: int, shares: Sequence[float]) -> list[int]:
    """Where to cut ``n`` samples; each later split gets its rounded share but at least one, the first the rest."""
    sizes = [max(1, round(n * share)) for share in shares[1:]]
    while n - sum(sizes) < 1:
        sizes[sizes.index(max(sizes))] -= 1
    return list(np.cumsum([n - sum(sizes), *sizes])[:-1])


def _split_by_group(
    name: str, y: IntArray, groups: NDArray[Any], shares: Sequence[float], n_classes: int, seed: int
) -> list[IntArray]:
    """Whole groups go to one split. Of many random assignments the one is taken whose splits come closest to the wanted
    share of every class, with every class in the training split."""
    names, member = np.unique(groups, return_inverse=True)
    if len(groups) != len(y):
        raise Defect("bad_data", f"data set {name}: groups has {len(groups)} entries but y has {len(y)} labels")
    if len(names) < len(shares):
        text = f"{len(names)} groups cannot be shared out over {len(shares)} splits"
        raise Defect("bad_data", f"data set {name}: {text}; it needs at least one group (person, machine) for each")
    counts = np.zeros((len(names), n_classes))
    np.add.at(counts, (member, y), 1.0)
    total = np.maximum(counts.sum(axis=0), 1.0)
    cuts = _cuts(len(names), shares)
    rng = np.random.default_rng(seed)
    best, best_score = None, np.inf
    for _ in range(GROUP_DRAWS):
        pieces = np.split(rng.permutation(len(names)), cuts)
        fractions = np.stack([counts[piece].sum(axis=0) / total for piece in pieces])
        score = float(np.abs(fractions - np.asarray(shares)[:, None]).sum() + 10.0 * (fractions == 0.0).sum())
        if score < best_score:
            best, best_score = pieces, score
    assert best is not None
    parts = [np.flatnonzero(np.isin(member, piece)) for piece in best]
    missing = np.setdiff1d(np.unique(y), np.unique(y[parts[0]]))
    if len(missing):
        text = f"class {missing[0]} is in too few groups to be in the training split and in another"
        raise Defect("bad_data", f"data set {name}: {text}; leave it out or merge it with another")
    return parts


def _hash_of(arrays: Sequence[NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _hash_of_source(raw: RawData) -> str:
    given = (raw.x, raw.y, raw.test_x, raw.test_y, np.array(raw.class_names))
    groups = [] if raw.groups is None else [np.asarray(raw.groups).astype(np.str_)]
    return _hash_of([*(array for array in given if array is not None), *groups])
