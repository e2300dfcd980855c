"""Data sets: what comes out is checked, split without leaks, and the same every time."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.studyfile import Dataset
from tasks.errors import Defect
from tasks.nn import umafall
from tasks.nn.datasets import dataset_names, dataset_options, describe, load_dataset, raw_from_arrays
from tasks.nn.samples import RawData, split_data
from tasks.nn.usercode import add_search_folder, search_folders


def save(folder: Path, **arrays: object) -> Dataset:
    path = folder / "own.npz"
    np.savez(path, **{key: np.asarray(value) for key, value in arrays.items()})
    return Dataset(source=str(path))


def two_classes(n: int = 40, *shape: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=(n, *(shape or (2, 6)))), "y": np.arange(n) % 2}


def raw(x: np.ndarray, y: np.ndarray, **more: object) -> RawData:
    names = tuple(str(label) for label in range(int(y.max()) + 1))
    return RawData(name="t", x=x.astype(np.float32), y=y, class_names=names, **more)  # type: ignore[arg-type]


def test_digits_are_split_by_class_and_normalised_with_the_training_split() -> None:
    data = load_dataset(Dataset(source="digits"), 0)
    assert data.input_shape == (1, 8, 8)
    assert data.n_classes == 10
    assert len(data.train) + len(data.validation) + len(data.test) == 1797
    assert abs(float(data.train.x.mean())) < 1e-5
    assert abs(float(data.train.x.std()) - 1.0) < 1e-5
    for samples in (data.train, data.validation, data.test):
        assert samples.x.dtype == np.float32
        assert samples.y.dtype == np.int64
        share = np.bincount(samples.y, minlength=10) / len(samples)
        assert share.min() > 0.08, "a class is short in one split"


def test_no_sample_is_in_two_splits() -> None:
    x = np.arange(300, dtype=np.float32).reshape(100, 1, 3)
    data = split_data(raw(x, np.arange(100) % 4), validation=0.25, test=0.25, seed=1)
    seen = [{row.tobytes() for row in samples.x} for samples in (data.train, data.validation, data.test)]
    assert sum(len(part) for part in seen) == 100
    assert len(set.union(*seen)) == 100


def test_the_split_depends_on_the_seed_and_on_nothing_else() -> None:
    spec = Dataset(source="digits")
    first = load_dataset(spec, 5).sha256
    load_dataset.__globals__["_load_cached"].cache_clear()
    np.random.default_rng().normal(size=3)
    assert load_dataset(spec, 5).sha256 == first
    assert load_dataset(spec, 6).sha256 != first


def test_a_second_load_in_one_process_gives_the_same_read_only_arrays() -> None:
    spec = Dataset(source="digits")
    assert load_dataset(spec, 0) is load_dataset(spec, 0)
    with pytest.raises(ValueError, match="read-only"):
        load_dataset(spec, 0).train.x[0] = 0.0


def test_an_npz_that_changes_is_read_again(tmp_path: Path) -> None:
    spec = save(tmp_path, **two_classes())
    before = load_dataset(spec, 0)
    save(tmp_path, **two_classes(60))
    os.utime(tmp_path / "own.npz", ns=(1, 1))
    after = load_dataset(spec, 0)
    assert len(after.train) > len(before.train)


def test_a_test_split_of_the_source_is_kept(tmp_path: Path) -> None:
    arrays = two_classes()
    spec = save(tmp_path, **arrays, x_test=arrays["x"][:7] + 100.0, y_test=arrays["y"][:7], classes=["off", "on"])
    data = load_dataset(spec, 0)
    assert len(data.test) == 7
    assert len(data.train) + len(data.validation) == 40
    assert float(data.test.x.min()) > float(data.train.x.max())
    assert data.class_names == ("off", "on")


def test_groups_never_land_in_two_splits(tmp_path: Path) -> None:
    arrays = two_classes(120, 1, 1)
    person = np.arange(120) // 10
    arrays["x"] = person.reshape(120, 1, 1).astype(np.float32)
    data = load_dataset(save(tmp_path, **arrays, groups=person), 3)
    people = [set(np.unique(samples.x).tolist()) for samples in (data.train, data.validation, data.test)]
    assert sum(len(part) for part in people) == len(set.union(*people)) == 12
    assert min(len(part) for part in people) >= 2


@pytest.mark.parametrize(
    ("layout", "shape", "expected"),
    [
        ("nlc", (40, 12, 3), (3, 12)),
        ("nhwc", (40, 5, 4, 3), (3, 5, 4)),
        ("nhw", (40, 5, 4), (1, 5, 4)),
        ("nl", (40, 9), (1, 9)),
        ("", (40, 9), (1, 9)),
        ("", (40, 3, 9), (3, 9)),
        ("", (40, 3, 5, 4), (3, 5, 4)),
    ],
)
def test_the_layout_says_where_the_channels_are(layout: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    x = np.arange(np.prod(shape)).reshape(shape)
    data = raw_from_arrays("t", {"x": x, "y": np.arange(40) % 2}, layout)
    assert data.x.shape[1:] == expected
    if layout == "nhwc":
        assert data.x[7, 2, 3, 1] == x[7, 3, 1, 2]


def test_a_users_function_gives_arrays_and_gets_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import numpy as np
def load(n):
    return np.ones((n, 2, 4)) * np.arange(n)[:, None, None], np.arange(n) % 2
"""
    (tmp_path / "own_data_ok.py").write_text(code)
    monkeypatch.setenv("EDGEFRONT_IMPORT_PATH", str(tmp_path))
    data = load_dataset(Dataset(source="own_data_ok:load", options={"n": 30}), 0)
    assert len(data.train) + len(data.validation) + len(data.test) == 30


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("def load():\n    return 3\n", r"returned int; expected \(x, y\)"),
        ("def load():\n    return 1, 2, 3\n", "returned tuple of length 3"),
        ("def load():\n    return {}['key']\n", r"failed: KeyError: 'key' \(own_data_\d.py, line 2\)"),
        ("load = 5\n", "'load' is no function"),
        ("import nonexistent_package_zz\n", "nonexistent_package_zz.*; install it"),
        ("def other(): pass\n", "'load' does not exist"),
        ("1 +\n", r"cannot be imported: SyntaxError: invalid syntax \(own_data_\d.py, line 1\)$"),
        ("def load(a):\n    pass\n", r"missing 1 required positional argument: 'a'$"),
        ("def load():\n    return [[1, 2], [3]], [0, 1]\n", "x is no array"),
        ("import sys\n\ndef load():\n    sys.exit(3)\n", r"failed: SystemExit: 3 \(own_data_\d.py, line 4\)"),
        ("import sys\nsys.exit(4)\n", r"cannot be imported: SystemExit: 4"),
    ],
)
def test_a_users_function_that_fails_is_told_where(
    code: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    name = f"own_data_{abs(hash(code)) % 10}{len(code)}"
    text = text.replace(r"own_data_\d", name)
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setenv("EDGEFRONT_IMPORT_PATH", str(tmp_path))
    with pytest.raises(Defect, match=text):
        load_dataset(Dataset(source=f"{name}:load"), 0)


def test_a_module_that_is_nowhere_names_the_places_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFRONT_IMPORT_PATH", str(tmp_path))
    with pytest.raises(Defect, match=f"no module 'nowhere_at_all' in {re.escape(str(tmp_path))}"):
        load_dataset(Dataset(source="nowhere_at_all:load"), 0)


def spoilt(key: str, change: object) -> dict[str, object]:
    arrays: dict[str, object] = dict(two_classes())
    arrays[key] = change(arrays[key]) if callable(change) else change
    return arrays


def with_nan(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[3, 1, 2] = np.nan
    x[5, 0, 0] = np.inf
    return x


@pytest.mark.parametrize(
    ("key", "change", "text"),
    [
        ("x", with_nan, r"x holds 2 values that are not finite, the first is nan at index \(3, 1, 2\)"),
        ("y", lambda y: y * 0, r"y holds one class only \(0\)"),
        ("y", lambda y: y - 1, r"y\[0\] is -1, allowed are 0 to 0"),
        ("y", lambda y: y * 2, r"the labels are 0, 2; allowed are 0 to 1 for 2 classes: renumber them"),
        ("y", lambda y: y * 10**12, r"the labels are 0, 1000000000000; allowed are 0 to 1"),
        ("y", lambda y: np.where(y == 1, np.nan, y), r"y\[1\] is nan; labels are 0, 1, 2"),
        ("x", lambda x: x.astype(np.float64) * 1e300, r"x holds \d+ values that are not finite"),
        ("classes", ["a", "b", "c"], r"class 2 \(c\) has 0 samples; 3 splits need at least one each"),
        ("y", lambda y: y[:-1], "x has 40 samples but y has 39 labels"),
        ("y", lambda y: y.reshape(-1, 1), r"y has the shape \(40, 1\); allowed is \(n,\)"),
        ("y", lambda y: y + 0.5, r"y\[0\] is 0.5; labels are 0, 1, 2"),
        ("y", lambda y: y.astype(str), "y has the type <U21; allowed are numbers"),
        ("x", lambda x: x[:, 0, 0], r"x has the shape \(40,\); allowed are \(n, time\)"),
        ("x", lambda x: x[:0], "x has 0 samples but y has 40 labels"),
        ("x", lambda x: x[:, :, :0], "x is empty"),
        ("classes", ["only one"], r"y\[1\] is 1, allowed are 0 to 0 \(1 classes\)"),
        ("groups", np.zeros(40), "1 groups cannot be shared out over 3 splits"),
        ("groups", np.arange(39), "groups has 39 entries but y has 40 labels"),
    ],
)
def test_bad_data_names_the_array_and_the_index(key: str, change: object, text: str, tmp_path: Path) -> None:
    with pytest.raises(Defect, match=text):
        load_dataset(save(tmp_path, **spoilt(key, change)), 0)


def test_an_array_that_is_missing_is_named_with_what_is_there(tmp_path: Path) -> None:
    arrays = two_classes()
    with pytest.raises(Defect, match="array 'y' is missing; found images, x, needed are x and y"):
        load_dataset(save(tmp_path, x=arrays["x"], images=arrays["x"]), 0)


def test_object_arrays_are_refused(tmp_path: Path) -> None:
    spec = save(tmp_path, x=np.array([{}, {}], dtype=object), y=[0, 1])
    with pytest.raises(Defect, match="holds an object array"):
        load_dataset(spec, 0)


@pytest.mark.parametrize("damage", ["text", "nothing", "half", "one array"])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "data.npz"
    save(tmp_path, **two_classes())
    whole = next(tmp_path.glob("*.npz")).read_bytes()
    np.save(tmp_path / "one.npy", two_classes()["x"])
    contents = {
        "text": b"hello",
        "nothing": b"",
        "half": whole[: len(whole) // 2],
        "one array": (tmp_path / "one.npy").read_bytes(),
    }
    path.write_bytes(contents[damage])
    with pytest.raises(Defect, match=r"data\.npz is no \.npz file, or only a part of one; write it with numpy\.savez"):
        load_dataset(Dataset(source=str(path)), 0)


def test_a_missing_file_is_named_with_every_place_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFRONT_IMPORT_PATH", str(tmp_path))
    with pytest.raises(Defect, match=re.escape(str(tmp_path / "gone.npz"))):
        load_dataset(Dataset(source="gone.npz"), 0)


def test_a_relative_path_is_found_beside_the_study_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, **two_classes())
    monkeypatch.setenv("EDGEFRONT_IMPORT_PATH", str(tmp_path))
    assert load_dataset(Dataset(source="own.npz"), 0).n_classes == 2


def test_a_folder_that_is_added_is_looked_at_first_and_listed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFRONT_IMPORT_PATH", "/elsewhere")
    save(tmp_path, **two_classes())
    add_search_folder(tmp_path)
    add_search_folder(tmp_path)
    assert os.environ["EDGEFRONT_IMPORT_PATH"].split(os.pathsep) == [str(tmp_path.resolve()), "/elsewhere"]
    assert load_dataset(Dataset(source="own.npz"), 0).n_classes == 2


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(Defect, match="'mnist' is unknown; allowed are the built-in digits, umafall"):
        load_dataset(Dataset(source="mnist"), 0)


def test_an_unknown_option_lists_the_known_ones() -> None:
    with pytest.raises(Defect, match="option 'size' is unknown; allowed: none"):
        load_dataset(Dataset(source="digits", options={"size": 3}), 0)


def test_a_wrong_number_of_axes_for_the_layout_is_refused(tmp_path: Path) -> None:
    spec = save(tmp_path, **two_classes()).model_copy(update={"options": {"layout": "nhwc"}})
    with pytest.raises(Defect, match=r"x has 3 axes.*layout 'nhwc' has 4"):
        load_dataset(spec, 0)


def test_describe_says_shape_classes_and_sizes() -> None:
    text = describe(Dataset(source="digits"), 0)
    assert "1 x 8 x 8" in text
    assert "10 classes" in text
    assert "1079 train" in text


def test_describe_warns_of_swapped_axes(tmp_path: Path) -> None:
    assert "{layout: nlc}" in describe(save(tmp_path, **two_classes(40, 30, 3)), 0)


def test_every_built_in_data_set_describes_its_options() -> None:
    assert set(dataset_options()) == set(dataset_names())
    assert "merge" not in dataset_options()["digits"]
    assert "degrees" not in dataset_options()["umafall"]["window"]
    assert "default 256" in dataset_options()["umafall"]["window"]


def test_a_fall_is_cut_only_where_its_impact_is() -> None:
    assert umafall.window_starts(100, 50, None) == [0, 50, 100, 150]
    assert umafall.window_starts(100, 50, 60) == [0, 50]
    assert umafall.window_starts(100, 50, 260) == [196]
    assert umafall.window_starts(296, 20, 5) == [0]


def test_umafall_without_a_folder_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEFRONT_DATA", raising=False)
    with pytest.raises(Defect, match="set EDGEFRONT_DATA to the folder"):
        load_dataset(Dataset(source="umafall"), 0)


def small_recordings(folder: Path) -> Path:
    """An archive of the same form: two activities and a fall, nine persons, the waist sensor never worn by person 1."""
    rng = np.random.default_rng(0)
    n = 54
    labels = np.arange(n) % 3
    subject = (np.arange(n) // 6 + 1).astype(np.uint8)
    x = rng.integers(-50, 50, size=(n, umafall.RECORDING, 27)).astype(np.int16)
    x[labels == 2, 197, 0] = 9000
    present = np.ones((n, 5), bool)
    present[subject == 1, 1] = False
    channels = [f"{p}_{k}_{a}" for p in umafall.POSITIONS[:4] for k in ("acc", "gyro") for a in "xyz"]
    path = folder / umafall.FILE_NAME
    np.savez(
        path,
        x=x,
        y=labels.astype(np.uint8),
        scale=np.full(27, 2.0, np.float32),
        present=present,
        subject=subject,
        channels=np.array([*channels, "pocket_acc_x", "pocket_acc_y", "pocket_acc_z"]),
        classes=np.array(["Walking", "Sitting", "lateralFall"]),
        positions=np.array(umafall.POSITIONS),
    )
    return path


def test_umafall_gives_windows_of_the_wanted_sensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_recordings(tmp_path)
    monkeypatch.setenv("EDGEFRONT_DATA", str(tmp_path))
    data = umafall.load(umafall_options(window=100, stride=98))
    assert data.x.shape[1:] == (18, 100)
    assert data.class_names == ("Walking", "Sitting", "Fall")
    counts = np.bincount(data.y)
    assert counts[0] == counts[1] == 18 * 3
    assert counts[2] == 18 * 2, "only the windows with the impact (98 to 197 and 196 to 295) show the fall"
    impacts = data.x[data.y == 2][:, 0, :].max(axis=1)
    assert (impacts == 4500.0).all()


def test_umafall_leaves_out_recordings_without_a_wanted_sensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_recordings(tmp_path)
    monkeypatch.setenv("EDGEFRONT_DATA", str(tmp_path))
    data = umafall.load(umafall_options(positions=["waist"]))
    assert 1 not in set(np.asarray(data.groups).tolist())
    assert data.x.shape[1] == 6


def umafall_options(**changes: object) -> dict[str, object]:
    return {name: option.default for name, option in umafall.OPTIONS.items()} | changes


def test_umafall_options_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_recordings(tmp_path)
    monkeypatch.setenv("EDGEFRONT_DATA", str(tmp_path))
    for options, text in (
        ({"window": 400}, "option 'window' is 400; allowed: 16 to 296"),
        ({"positions": ["knee"]}, "option 'positions'.*'chest', 'waist'"),
        ({"merge_falls": 1}, "option 'merge_falls' is 1; allowed: any bool"),
    ):
        with pytest.raises(Defect, match=text):
            load_dataset(Dataset(source="umafall", options=options), 0)


@pytest.mark.skipif("EDGEFRONT_DATA" not in os.environ, reason="EDGEFRONT_DATA names no folder with umafall_har.npz")
def test_the_real_recordings_keep_persons_apart() -> None:
    raw_data = umafall.load(umafall_options())
    assert raw_data.x.shape[1:] == (18, 256)
    data = split_data(raw_data, validation=0.2, test=0.2, seed=0)
    assert data.n_classes == 13
    assert np.bincount(data.validation.y, minlength=13).min() > 0
    assert np.bincount(data.test.y, minlength=13).min() > 0
    person = np.asarray(raw_data.groups).astype(np.float32).reshape(-1, 1, 1)
    marked = split_data(replace(raw_data, x=person), validation=0.2, test=0.2, seed=0)
    people = [set(np.unique(part.x).tolist()) for part in (marked.train, marked.validation, marked.test)]
    assert sum(len(part) for part in people) == len(set.union(*people)) == 18


def test_a_folder_that_is_named_twice_is_looked_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEFRONT_IMPORT_PATH", str(tmp_path))
    assert search_folders() == [tmp_path]
