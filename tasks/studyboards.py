"""The boards of a study and its limits there. Apart from the compiler, which a host with boards does not have."""

from __future__ import annotations

from collections.abc import Mapping

from mcu_agent.errors import AgentError
from mcu_agent.kinds import BoardKind, load_kind
from orchestrator.errors import UsageError
from orchestrator.objectives import Objectives
from orchestrator.studyfile import StudyFile
from tasks.errors import Defect


def boards_of(study: StudyFile) -> dict[str, BoardKind]:
    """The board kinds the study is for, by name, in its order.

    Raises:
        Defect: the catalogue does not have one of them.
    """
    try:
        return {kind: load_kind(kind) for kind in study.kinds}
    except AgentError as error:
        raise Defect("unknown_board", str(error)) from error


def limits_of(study: StudyFile, kinds: Mapping[str, BoardKind]) -> Objectives:
    """The study's objectives with the smallest board's memory as their bounds.

    Raises:
        Defect: the study's objectives are unusable.
    """
    try:
        return Objectives.on_boards(study, kinds)
    except UsageError as error:
        raise Defect("bad_study", str(error)) from error
