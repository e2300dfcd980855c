"""Data sets by name, by ``.npz`` file or by the user's function, loaded once a process, always split the same."""

from __future__ import annotations

import functools
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.studyfile import Dataset
from tasks.errors import Defect
from tasks.nn import umafall
from tasks.nn.options import Option, check_options
from tasks.nn.samples import SPLIT_NAMES, DataSplit, RawData, Samples, split_data
from tasks.nn.usercode import describe_error, find_file, is_reference, load_function

__all__ = ["DataSplit", "Samples", "dataset_names", "dataset_options", "describe", "load_dataset"]

LAYOUTS: Mapping[str, tuple[int, ...]] = {
    # layout → the axes of the given array in the order (n, C, …); -1 stands for a new channel axis of size one
    "nchw": (0, 1, 2, 3),
    "nhwc": (0, 3, 1, 2),
    "nhw": (0, -1, 1, 2),
    "ncl": (0, 1, 2),
    "nlc": (0, 2, 1),
    "nl": (0, -1, 1),
}
DEFAULT_LAYOUT = {2: "nl", 3: "ncl", 4: "nchw"}
ARRAY_OPTIONS: Mapping[str, Option] = {
    "layout": Option(
        "str",
        "",
        "order of the axes of x: n sample, c channel, l time, h row, w column; "
        "left out, it is nl, ncl or nchw by the number of axes",
        choices=("", *LAYOUTS),
    ),
}


def _load_digits(options: Mapping[str, Any]) -> RawData:
    # Imported here: scikit-learn takes a second that no other data set should wait for.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return RawData(
        name="digits",
        x=np.asarray(bunch.images, dtype=np.float32)[:, None, :, :] / np.float32(16.0),
        y=np.asarray(bunch.target, dtype=np.int64),
        class_names=tuple(str(digit) for digit in range(10)),
        description="1,797 handwritten digits, 8 x 8 grey values (scikit-learn; UCI Optical Recognition of Digits)",
    )


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A data set known by name."""

    load: Callable[[Mapping[str, Any]], RawData]
    options: Mapping[str, Option]
    description: str


BUILT_IN: Mapping[str, BuiltIn] = {
    "digits": BuiltIn(_load_digits, {}, "1,797 handwritten digits, 8 x 8 pixels, 10 classes"),
    "umafall": BuiltIn(umafall.load, umafall.OPTIONS, "human activity from body-worn motion sensors (UMAFall)"),
}


def dataset_names() -> tuple[str, ...]:
    """The built-in data sets."""
    return tuple(BUILT_IN)


def dataset_options() -> dict[str, dict[str, str]]:
    """Data set → option → what it means, for ``study check``."""
    return {name: {key: str(option) for key, option in entry.options.items()} for name, entry in BUILT_IN.items()}


def load_dataset(spec: Dataset, seed: int) -> DataSplit:
    """Load, check, split and normalise a data set; the second call in a process costs nothing.

    Shapes: every split's x is float32 (n, C, L) or (n, C, H, W), y int64 (n,). The arrays are read-only.

    Raises:
        Defect: the source is unknown or its data cannot be used; the text says what to change.
    """
    if is_reference(spec.source):
        stamp = 0
    elif spec.source in BUILT_IN:
        stamp = umafall.stamp(spec.options) if spec.source == "umafall" else 0
    else:
        stamp = _npz_path(spec.source).stat().st_mtime_ns
    options = json.dumps(spec.options, sort_keys=True, default=str)
    return _load_cached(spec.source, options, spec.validation, spec.test, seed, stamp)


@functools.lru_cache(maxsize=4)
def _load_cached(source: str, options: str, validation: float, test: float, seed: int, stamp: int) -> DataSplit:
    raw = _load_raw(source, json.loads(options))
    data = split_data(raw, validation=validation, test=test, seed=seed)
    for samples in (data.train, data.validation, data.test):
        samples.x.flags.writeable = False
        samples.y.flags.writeable = False
    return data


def _load_raw(source: str, options: Mapping[str, Any]) -> RawData:
    if source in BUILT_IN:
        entry = BUILT_IN[source]
        return entry.load(check_options(f"data set {source}", entry.options, options))
    if is_reference(source):
        arrays = _call_user(source, {key: value for key, value in options.items() if key not in ARRAY_OPTIONS})
        options = {key: value for key, value in options.items() if key in ARRAY_OPTIONS}
    else:
        arrays = _read_npz(_npz_path(source))
    checked = check_options(f"data set {source}", ARRAY_OPTIONS, options)
    return raw_from_arrays(source, arrays, checked["layout"])


def _npz_path(source: str) -> Path:
    if not source.endswith(".npz"):
        known = ", ".join(BUILT_IN)
        allowed = f"allowed are the built-in {known}, a path ending in .npz, or module:function"
        raise Defect("unknown_dataset", f"data set {source!r} is unknown; {allowed}")
    return find_file(os.path.expandvars(source))


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    if not zipfile.is_zipfile(path):
        path.open("rb").close()  # a file that may not be read is no fault of its content
        text = f"{path} is no .npz file, or only a part of one; write it with numpy.savez(path, x=…, y=…)"
        raise Defect("bad_data", text)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise Defect("bad_data", f"{path} holds an object array; save plain numbers and text only") from error
        raise Defect("bad_data", f"{path} is no readable .npz file: {error}") from error
    except (zipfile.BadZipFile, EOFError, KeyError) as error:
        raise Defect("bad_data", f"{path} is no readable .npz file: {error}") from error


def _call_user(reference: str, options: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The user's function returns ``{"x": …, "y": …}`` or ``(x, y)`` or ``(x, y, x_test, y_test)``."""
    function = load_function(reference, "data set")
    try:
        result = function(**options)
    except (Exception, SystemExit) as error:  # the user's code runs here; whatever it raises is shown to the user
        raise Defect("bad_user_code", f"data set {reference!r} failed: {describe_error(error)}") from error
    if isinstance(result, Mapping):
        return {str(key): _as_array(reference, str(key), value) for key, value in result.items()}
    if isinstance(result, tuple | list) and len(result) in (2, 4):
        named = zip(("x", "y", "x_test", "y_test"), result, strict=False)
        return {key: _as_array(reference, key, value) for key, value in named}
    found = f"{type(result).__name__} of length {len(result)}" if hasattr(result, "__len__") else type(result).__name__
    expected = "(x, y), (x, y, x_test, y_test) or a dictionary with these names"
    raise Defect("bad_user_code", f"data set {reference!r} returned {found}; expected {expected}")


def _as_array(reference: str, key: str, value: Any) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise Defect("bad_user_code", f"data set {reference!r}: {key} is no array: {error}") from error


def raw_from_arrays(name: str, arrays: Mapping[str, NDArray[Any]], layout: str = "") -> RawData:
    """Arrays named ``x`` (or ``x_train``), ``y`` (or ``y_train``), and where given ``x_test``, ``y_test``, ``classes``
    (names) and ``groups``, as a raw data set.

    Raises:
        Defect: an array is missing, of the wrong kind or shape.
    """
    x = _inputs(name, arrays, "x" if "x" in arrays else "x_train", layout)
    y = _labels(name, arrays, "y" if "y" in arrays else "y_train")
    has_test = "x_test" in arrays or "y_test" in arrays
    classes = arrays.get("classes")
    return RawData(
        name=name,
        x=x,
        y=y,
        class_names=tuple(str(c) for c in (range(_count_classes(name, y)) if classes is None else classes.ravel())),
        groups=arrays.get("groups"),
        test_x=_inputs(name, arrays, "x_test", layout) if has_test else None,
        test_y=_labels(name, arrays, "y_test") if has_test else None,
    )


def _count_classes(name: str, y: NDArray[np.int64]) -> int:
    """One more than the largest label; labels that leave classes out are refused, as no split could hold those."""
    present = np.unique(y[y >= 0])
    if len(present) and present[-1] + 1 != len(present):
        found = ", ".join(map(str, present[:8])) + (" …" if len(present) > 8 else "")
        text = f"the labels are {found}; allowed are 0 to {len(present) - 1} for {len(present)} classes: renumber them"
        raise Defect("bad_data", f"data set {name}: {text}, for example with numpy.unique(y, return_inverse=True)")
    return len(present)


def _array(name: str, arrays: Mapping[str, NDArray[Any]], key: str) -> NDArray[Any]:
    if key not in arrays:
        found = ", ".join(sorted(arrays)) or "nothing"
        wanted = f"{key.removesuffix('_train')!r} is missing"
        raise Defect("bad_data", f"data set {name}: array {wanted}; found {found}, needed are x and y")
    array = arrays[key]
    if array.dtype.kind not in "fiub":
        kinds = "numbers (float or integer)"
        raise Defect("bad_data", f"data set {name}: {key} has the type {array.dtype}; allowed are {kinds}")
    return array


def _inputs(name: str, arrays: Mapping[str, NDArray[Any]], key: str, layout: str) -> NDArray[np.float32]:
    array = _array(name, arrays, key)
    layout = layout or DEFAULT_LAYOUT.get(array.ndim, "")
    if not layout:
        shapes = "(n, time), (n, channels, time) or (n, channels, rows, columns)"
        raise Defect("bad_data", f"data set {name}: {key} has the shape {array.shape}; allowed are {shapes}")
    if array.ndim != len(layout):
        text = f"{key} has {array.ndim} axes, its shape is {array.shape}, but layout {layout!r} has {len(layout)}"
        raise Defect("bad_data", f"data set {name}: {text}")
    axes = LAYOUTS[layout]
    array = array.transpose([axis for axis in axes if axis >= 0])
    if -1 in axes:
        array = np.expand_dims(array, axes.index(-1))
    with np.errstate(over="ignore"):  # what is too large becomes infinite and is refused with its place
        return np.ascontiguousarray(array, dtype=np.float32)


def _labels(name: str, arrays: Mapping[str, NDArray[Any]], key: str) -> NDArray[np.int64]:
    array = _array(name, arrays, key)
    if array.ndim != 1:
        text = f"{key} has the shape {array.shape}; allowed is (n,), one whole number a sample"
        raise Defect("bad_data", f"data set {name}: {text}")
    with np.errstate(invalid="ignore"):
        labels = array.astype(np.int64)
    odd = np.flatnonzero(labels != array)
    if len(odd):
        raise Defect("bad_data", f"data set {name}: {key}[{odd[0]}] is {array[odd[0]]}; labels are 0, 1, 2 …")
    return labels


def describe(spec: Dataset, seed: int) -> str:
    """The data set in words, for ``study check``; loads it and so finds every mistake in it."""
    data = load_dataset(spec, seed)
    shape = " x ".join(str(size) for size in data.input_shape)
    sizes = ", ".join(f"{len(getattr(data, name))} {name}" for name in SPLIT_NAMES)
    names = ", ".join(data.class_names[:15]) + (" …" if data.n_classes > 15 else "")
    text = f"{spec.source}: inputs of {shape} (channels first), {data.n_classes} classes ({names}); samples: {sizes}"
    if len(data.input_shape) == 2 and data.input_shape[0] > data.input_shape[1] and "layout" not in spec.options:
        text += f". There are more channels ({data.input_shape[0]}) than time steps ({data.input_shape[1]}):"
        text += " if the axes are (n, time, channel), set options: {layout: nlc}"
    return text
