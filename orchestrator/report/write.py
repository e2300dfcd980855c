"""The report of a study on disk: the page, and beside it the files that its links lead to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from orchestrator.boards import base, kind_of
from orchestrator.fronts import front, front_hypervolume
from orchestrator.reading import STUDY_COPY, StudyReader, history_of
from orchestrator.report.contents import BoardFront, ReportInput, Trial, contents
from orchestrator.report.course import tightenings, told_before
from orchestrator.report.page import render
from orchestrator.studyfile import StudyFile

REPORT_FILE = "report.html"
FILES_FOLDER = "report_files"

# Artifact → (link's text, file name), in the order of the links.
_DOWNLOADS = {
    "sources": ("C sources", "network-c.zip"),
    "onnx": ("ONNX int8", "network-int8.onnx"),
    "onnx_float": ("ONNX float", "network-float.onnx"),
    "elf": ("firmware", "firmware.elf"),
    "vectors": ("test vectors", "vectors.npz"),
}

# Layers and memory plans are most of a page: beside those of the fronts, a page has those of the last trials.
_LAST_WITH_NOTES = 500

ReadArtifact = Callable[[str], bytes | None]


def write_report(
    study: StudyReader, read: ReadArtifact, *, written_at: str, board_texts: Mapping[str, str], export_command: str = ""
) -> Path:
    """Write ``report.html`` into the study's folder and the files of the fronts' trials into ``report_files``.

    ``read`` gives the bytes of an artifact by its sha256, or None where it is gone: then there is no link to it.
    ``board_texts`` describes the study's board kinds. The page replaces the last one in one step, so a reader never
    sees half of it.

    Returns:
        The page.
    """
    trials = study.trials(in_full=False)
    fronts = {kind: front(trials, study.objectives, kind) for kind in ("", *(study.file.boards or ()))}
    on_front = {trial.number: trial for members in fronts.values() for trial in members}
    shown = [trial.number for trial in trials[-_LAST_WITH_NOTES:]]
    trials = study.with_notes(trials, {*on_front, *shown})
    page = ReportInput(
        study=study.file,
        limits=dict(zip(study.objectives.names, study.objectives.limits, strict=True)),
        trials=trials,
        front=[trial.number for trial in fronts[""]],
        history=history_of(trials, study.objectives),
        edits=told_before(tightenings(study.events()), trials),
        test_results=study.test_results(),
        written_at=written_at,
        board_text="" if study.file.boards else board_texts.get(study.file.kinds[0], ""),
        boards=[_board_front(study, fronts[kind], kind, board_texts.get(kind, "")) for kind in study.file.boards or ()],
        study_yaml=_without_secrets(study.file, _text_of(study.folder / STUDY_COPY)),
        export_command=export_command,
        downloads={number: save_downloads(on_front[number], study.folder, read) for number in sorted(on_front)},
    )
    path = study.folder / REPORT_FILE
    _replace(path, render(contents(page)).encode("utf-8"))
    return path


def _board_front(study: StudyReader, members: Sequence[Trial], kind: str, text: str) -> BoardFront:
    return BoardFront(
        kind=kind,
        text=text,
        front=[trial.number for trial in members],
        hypervolume=front_hypervolume(members, study.objectives, kind),
    )


def save_downloads(trial: Trial, folder: Path, read: ReadArtifact) -> list[tuple[str, str]]:
    """Copy a trial's artifacts under names a person can read; returns (link's text, link relative to ``folder``)."""
    artifacts: Mapping[str, str] = trial.outcome.artifacts if trial.outcome else {}
    links = []
    for kind in sorted({kind_of(name) for name in artifacts}):  # what all boards share first, then each board's own
        own = {base(name): sha256 for name, sha256 in artifacts.items() if kind_of(name) == kind}
        for name, (label, file_name) in _DOWNLOADS.items():
            data = read(own[name]) if name in own else None
            if data is not None:
                link = "/".join(filter(None, (FILES_FOLDER, f"trial-{trial.number}", kind, file_name)))
                (folder / link).parent.mkdir(parents=True, exist_ok=True)
                _replace(folder / link, data)
                links.append((f"{label}, {kind}" if kind else label, link))
    return links


def _replace(path: Path, data: bytes) -> None:
    half = path.with_name(path.name + ".half")
    try:
        half.write_bytes(data)
        half.replace(path)
    except OSError as error:  # a full disk: the last report stays, and its name is not in the error
        half.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def _without_secrets(file: StudyFile, text: str) -> str:
    """The study file as a report may show it: whoever knows the address of a webhook can post to it."""
    for secret in filter(None, (file.notify.webhook, file.notify.secret) if file.notify else ()):
        text = text.replace(secret, "***")
    return text


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
