"""What a study reads from outside: its data and its user's own network. Their fingerprints are fixed for a study, so
that no trial is evaluated with others than the rest, and no remembered result answers for others."""

from __future__ import annotations

from orchestrator.records import StageRequest
from orchestrator.studyfile import StudyFile
from tasks.errors import Defect
from tasks.nn.datasets import DataSplit, load_dataset
from tasks.nn.usercode import code_sha256, is_reference

DATASET = "dataset"
NETWORK = "network"


def sources_of(study: StudyFile) -> dict[str, str]:
    """The sha256 of what the data set holds, and of the code of a network family of the user's own.

    Raises:
        Defect: one of them cannot be loaded.
    """
    found = {DATASET: load_dataset(study.dataset, study.seed).source_sha256}
    if is_reference(study.network.family):
        found[NETWORK] = code_sha256(study.network.family, "network family")
    return found


def data_for(request: StageRequest, study: StudyFile) -> DataSplit:
    """The data of the study, once it is sure that they, and the code of its network, are what the study has fixed.

    Raises:
        Defect: they cannot be loaded, or are others than when the study began, or than on the orchestrator's host.
    """
    found = sources_of(study) if request.sources else {}
    for name, sha256 in request.sources.items():
        if found.get(name, "") != sha256:
            what = study.dataset.source if name == DATASET else study.network.family
            raise Defect(
                f"{name}_changed",
                f"{name} {what!r} is not what the run has started with: sha256 {sha256[:12]} there, "
                f"{found.get(name, '')[:12]} in this process. Put the old one back or the same on every host; or stop "
                "the run and start it again, which says what can be taken over",
            )
    return load_dataset(study.dataset, study.seed)
