"""Processes that hold or want boards, and die in every way on request.

``python -m tests.support.holders FOLDER HOW [REDIS_URL]`` prints ``held`` once it has the one board, then does ``HOW``:
``wait`` until told by a line on its standard input, ``raise``, ``exit``, ``vanish``, ``fork`` a child and vanish,
``leak`` the lease and end, or ``touch`` the board at every line.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from mcu_agent.boards.fake import FakeBoard
from mcu_agent.boards.protocol import Board
from mcu_agent.errors import LeaseLost
from mcu_agent.image import read_image
from mcu_agent.kinds import load_kind
from mcu_agent.leases import Timing
from mcu_agent.pool import Pool
from mcu_agent.rack import Rack, RackBoard
from tests.support import boards

KIND = "nrf52-dk"
# The rules at a tenth of a second, so that what takes half a minute in a laboratory takes a moment here.
FAST = Timing(beat_s=0.02, stale_s=0.3, grace_s=0.1, skip_s=0.2, poll_s=0.02, shared_s=0.5)
DURATION_S = 0.6
LEAKED: list[AbstractContextManager[Board]] = []  # leases that are still open when the program ends


def make_pool(folder: Path, count: int = 1, url: str = "", timing: Timing = FAST, prefix: str = "probe") -> Pool:
    """A pool of fake boards behind probes."""
    entries = (RackBoard(board_id=f"b{n}", kind=KIND, driver="pyocd", probe=f"{prefix}/{n}") for n in range(count))

    def make(entry: RackBoard) -> FakeBoard:
        return FakeBoard(entry.board_id, load_kind(entry.kind), boards.fake_network())

    return Pool(Rack(boards=tuple(entries), leases_url=url), folder, make=make, timing=timing)


@contextmanager
def wanter(folder: Path, how: str, url: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that wants the board of ``folder``; killed at the end."""
    command = [sys.executable, "-m", "tests.support.holders", str(folder), how, url]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def holder(folder: Path, how: str, url: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that has the board of ``folder``; killed at the end."""
    with wanter(folder, how, url) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def main(folder: Path, how: str, url: str) -> None:
    pool = make_pool(folder, url=url)
    if how == "leak":
        LEAKED.append(pool.lease(KIND, how, duration_s=DURATION_S, wait_s=10.0))
        LEAKED[0].__enter__()
        _say("held")
        return
    with pool.lease(KIND, how, duration_s=60.0 if how == "touch" else DURATION_S, wait_s=10.0) as board:
        if how == "touch":
            board.load(read_image(boards.firmware(), board.kind))
        _say("held")
        if how == "raise":
            raise RuntimeError("as asked")
        if how == "exit":
            sys.exit(0)
        if how == "fork" and os.fork() == 0:
            sys.stdin.read()  # a child that outlives it, until the test ends
            os._exit(0)
        if how in ("vanish", "fork"):
            os._exit(3)
        for _ in sys.stdin:
            if how == "wait":
                return
            _say(_touched(board))


def _touched(board: object) -> str:
    assert hasattr(board, "read")
    try:
        board.read(load_kind(KIND).ram_origin, 4)
    except LeaseLost as error:
        return f"lost: {error}"
    return "fine"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
