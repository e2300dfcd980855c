"""What a worker does for whoever can put messages into its queues: which stages, for which kinds of board, with
artifacts from where. Everything else is refused, whatever a message says.

A worker's own limits follow from the queues it serves; ``run_worker`` hands them to its child processes in
``EDGEFRONT_TRUST``. A process without the variable (a stage run in the orchestrator itself) allows everything.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from orchestrator.boards import base
from orchestrator.records import Json
from tasks.messages import BOARD_QUEUE, QUEUE_STAGES, TaskMessage
from tasks.registry import stages_of_queues

TRUST_VARIABLE = "EDGEFRONT_TRUST"
# Images and vectors of a microcontroller are a few megabytes at most.
AGENT_ARTIFACT_BYTES = 64_000_000
# Where artifacts can be kept. Others that fsspec knows read archives, run programs or lead to further addresses.
STORE_SCHEMES = ("file", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "sftp", "ssh", "smb", "hdfs", "webdav")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trust:
    """What a worker may be asked for; an empty tuple allows all. ``artifact_bytes`` bounds each artifact it fetches."""

    stages: tuple[str, ...] = ()
    board_kinds: tuple[str, ...] = ()
    artifact_stores: tuple[str, ...] = ()
    artifact_bytes: int | None = None

    @property
    def is_agent(self) -> bool:
        """Whether nothing but boards is asked for: no training, no compiler, nobody's code but an image's."""
        return bool(self.stages) and set(self.stages) <= set(QUEUE_STAGES[BOARD_QUEUE])

    def objection(self, task: TaskMessage) -> str:
        """Why the task is refused, in one line; empty when it is not."""
        stage = base(task.request.stage)
        if self.stages and stage not in self.stages:
            return f"stage {stage} is not run here; this worker runs {', '.join(self.stages)}"
        kind = task.request.stage.partition("@")[2] or task.request.study.get("board")
        if self.board_kinds and kind not in self.board_kinds:
            return f"board kind {str(kind)[:60]!r} is not offered here; there are {', '.join(self.board_kinds)}"
        if not is_allowed_store(task.artifacts, self.artifact_stores):
            allowed = ", ".join(self.artifact_stores) or f"absolute folders and addresses of {', '.join(STORE_SCHEMES)}"
            return f"artifacts at {task.artifacts[:200]!r} are not used here; allowed are {allowed}"
        return ""

    def to_text(self) -> str:
        fields: Json = {
            "stages": self.stages,
            "board_kinds": self.board_kinds,
            "artifact_stores": self.artifact_stores,
            "artifact_bytes": self.artifact_bytes,
        }
        return json.dumps(fields)

    @staticmethod
    def from_text(text: str) -> Trust:
        """
        Raises:
            ValueError: the text is not one of ``to_text``.
        """
        data = json.loads(text)
        try:
            return Trust(
                stages=tuple(data["stages"]),
                board_kinds=tuple(data["board_kinds"]),
                artifact_stores=tuple(data["artifact_stores"]),
                artifact_bytes=data["artifact_bytes"],
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{TRUST_VARIABLE} is {text[:200]!r}, which is set by the program itself only") from error

    @staticmethod
    def from_environment() -> Trust:
        text = os.environ.get(TRUST_VARIABLE)
        return Trust.from_text(text) if text else _EVERYTHING


_EVERYTHING = Trust()


def trust_of_queues(queues: Sequence[str], artifact_stores: Collection[str] = ()) -> Trust:
    """What a worker of these queues may be asked for: their stages, and boards of the kinds whose queues they are."""
    heads = [queue.partition(".")[0] for queue in queues]
    is_agent = all(head == BOARD_QUEUE for head in heads)
    kinds = tuple(queue.partition(".")[2] for queue in queues if queue.startswith(f"{BOARD_QUEUE}."))
    return Trust(
        stages=tuple(dict.fromkeys(stages_of_queues(QUEUE_STAGES, tuple(queues)))),
        board_kinds=kinds if is_agent else (),
        artifact_stores=tuple(artifact_stores),
        artifact_bytes=AGENT_ARTIFACT_BYTES if is_agent else None,
    )


def is_allowed_store(address: str, allowed: Collection[str]) -> bool:
    """Whether artifacts may be read and written at ``address``: at or below one of ``allowed``, by whole components.

    A folder is given by its absolute path and compared after symbolic links are followed. An address with a scheme must
    be of one of ``STORE_SCHEMES``, name the same host or bucket, and hold no ``..``, also not in percent signs; chained
    addresses of fsspec (``::``) are refused. An empty ``allowed`` takes every address of such a form.
    """
    place = _place(address)
    if place is None:
        return False
    places = [found for one in allowed if (found := _place(one)) is not None]
    return not allowed or any(_is_below(place, one) for one in places)


_Place = tuple[str, str, tuple[str, ...]]


def _place(address: str) -> _Place | None:
    """Scheme, host and components of the path; None for what is not the address of a store."""
    if not address or "::" in address or not address.isprintable():
        return None
    scheme = _SCHEME.match(address)
    if scheme is None:
        return ("file", "", Path(address).resolve().parts) if Path(address).is_absolute() else None
    try:
        parts = urlsplit(address)
    except ValueError:
        return None
    path = unquote(parts.path)
    components = tuple(part for part in path.split("/") if part)
    if parts.scheme not in STORE_SCHEMES or parts.query or parts.fragment or {"..", "."} & set(components):
        return None
    if parts.scheme == "file":
        return ("file", "", Path(path).resolve().parts) if path.startswith("/") and not parts.netloc else None
    return (parts.scheme, parts.netloc, components) if parts.netloc and "\\" not in address else None


def _is_below(place: _Place, allowed: _Place) -> bool:
    return place[:2] == allowed[:2] and place[2][: len(allowed[2])] == allowed[2]
