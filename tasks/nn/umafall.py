"""UMAFall: daily activities and falls, recorded by motion sensors at five places of the body.

Source: Casilari, Santoyo-Ramón, Cano-García, *UMAFall: A Multisensor Dataset for the Research on Automatic Fall
Detection*, Procedia Computer Science 110, 2017. Read from the archive ``umafall_har.npz`` (recordings of 14.8 s at
20 Hz), looked for in the folder named by ``EDGEFRONT_DATA``. Persons never land in two splits.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import Defect
from tasks.nn.options import Option
from tasks.nn.samples import RawData
from tasks.nn.usercode import find_file

FILE_NAME = "umafall_har.npz"
DATA_VARIABLE = "EDGEFRONT_DATA"
POSITIONS = ("chest", "waist", "wrist", "ankle", "pocket")
RECORDING = 296
FALL = "Fall"

OPTIONS: Mapping[str, Option] = {
    "path": Option("str", "", f"the file {FILE_NAME}; left out, it is looked for in the folder {DATA_VARIABLE}"),
    "positions": Option("list", ["chest", "wrist", "ankle"], "sensors to use", choices=POSITIONS),
    "window": Option("int", 256, "samples a window, 20 a second", low=16, high=RECORDING),
    "stride": Option("int", 20, "samples from one window of a recording to the next", low=1, high=RECORDING),
    "merge_falls": Option("bool", True, "make one class of the falls forward, backward and lateral"),
}


def data_path(options: Mapping[str, Any]) -> Path:
    """The archive's file.

    Raises:
        Defect: it is not there, or no folder is named.
    """
    if options.get("path"):
        return find_file(str(options["path"]))
    folder = os.environ.get(DATA_VARIABLE, "")
    if not folder:
        remedy = f"set {DATA_VARIABLE} to the folder that holds {FILE_NAME}, or options: {{path: …}}"
        raise Defect("missing_file", f"data set umafall: no data folder is named; {remedy}")
    return find_file(str(Path(folder).expanduser() / FILE_NAME))


def stamp(options: Mapping[str, Any]) -> int:
    """Changes when the file does."""
    return data_path(options).stat().st_mtime_ns


def load(options: Mapping[str, Any]) -> RawData:
    """Windows (n, C, L) of the recordings in which all wanted sensors were worn, in g and degrees/s.

    A recording is cut into windows ``stride`` apart; of a fall only those that contain the impact (the largest
    acceleration) are kept, since the rest shows a person standing or lying. Groups are persons.

    Raises:
        Defect: the file is missing or is not the expected archive.
    """
    path = data_path(options)
    with np.load(path, allow_pickle=False) as archive:
        missing = {"x", "y", "scale", "present", "subject", "channels", "classes", "positions"} - set(archive.files)
        if missing:
            raise Defect("bad_data", f"{path} is not the UMAFall archive: {', '.join(sorted(missing))} is missing")
        recordings = archive["x"].astype(np.float32) / archive["scale"]
        labels, persons = archive["y"].astype(np.int64), archive["subject"]
        channels, names = [str(c) for c in archive["channels"]], [str(c) for c in archive["classes"]]
        worn = dict(zip((str(p) for p in archive["positions"]), archive["present"].T, strict=True))
    wanted = list(options["positions"])
    is_used = np.logical_and.reduce([worn[position] for position in wanted])
    chosen = [index for index, channel in enumerate(channels) if channel.split("_")[0] in wanted]
    acceleration = [index for index, channel in enumerate(channels) if channel.startswith(f"{wanted[0]}_acc")]
    is_fall = np.array(["fall" in name.lower() for name in names])

    windows, window_labels, window_persons = [], [], []
    for index in np.flatnonzero(is_used):
        impact = None
        if is_fall[labels[index]]:
            impact = int(np.linalg.norm(recordings[index][:, acceleration], axis=1).argmax())
        for start in window_starts(options["window"], options["stride"], impact):
            windows.append(recordings[index, start : start + options["window"], chosen])
            window_labels.append(labels[index])
            window_persons.append(persons[index])
    y, names = np.array(window_labels), names
    if options["merge_falls"]:
        y, names = merge_falls(y, names, is_fall)
    return RawData(
        name="umafall",
        # The list index moves the channel axis to the front: each window is (C, L) already.
        x=np.ascontiguousarray(np.stack(windows), dtype=np.float32),
        y=y,
        class_names=tuple(names),
        groups=np.array(window_persons),
        description=f"UMAFall, windows of {options['window'] / 20:g} s from {', '.join(wanted)}, split by person",
    )


def window_starts(window: int, stride: int, impact: int | None) -> list[int]:
    """First samples of the windows of one recording; with an impact, only of those that contain it.

    >>> window_starts(256, 20, None)
    [0, 20, 40]
    """
    starts = list(range(0, RECORDING - window + 1, stride))
    if impact is None:
        return starts
    around = [start for start in starts if start <= impact < start + window]
    return around or [min(max(impact - window // 2, 0), RECORDING - window)]


def merge_falls(
    y: NDArray[np.int64], names: list[str], is_fall: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], list[str]]:
    """Labels and names with all kinds of fall as one last class."""
    kept = [index for index in range(len(names)) if not is_fall[index]]
    new_label = np.full(len(names), len(kept), dtype=np.int64)
    new_label[kept] = np.arange(len(kept))
    return new_label[y], [names[index] for index in kept] + [FALL]
