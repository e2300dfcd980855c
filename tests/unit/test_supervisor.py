"""Worker processes that are held back do not start behind the back of whoever holds them."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tasks import workers
from tasks.guardian import Guardian
from tasks.workers import Supervisor, WorkerSpec, _Running


class Dead:
    """A process that has ended; ``told`` says whether it was told to."""

    pid = 2**31 - 1

    def __init__(self, code: int | None = 1) -> None:
        self.code = code
        self.told = False

    def poll(self) -> int | None:
        return self.code

    def terminate(self) -> None:
        self.told = True
        self.code = 0


def test_a_worker_held_while_it_is_started_again_ends_after_all() -> None:
    launching, go_on = threading.Event(), threading.Event()
    fresh = Dead(code=None)

    class Slow(Supervisor):
        def _launch(self, spec: WorkerSpec) -> Any:
            launching.set()
            go_on.wait(10)
            return fresh

    guardian = cast(Guardian, SimpleNamespace(add=lambda pid: None, remove=lambda pid: None))
    supervisor = Slow(None, {}, guardian)
    spec = WorkerSpec(name="w", queue="board.nrf52-dk", concurrency=1)
    supervisor._running.append(_Running(spec=spec, process=cast(Any, Dead()), started=0.0, start_again_at=0.0))
    supervisor._thread = threading.Thread(target=supervisor._watch, daemon=True)
    supervisor._thread.start()
    assert launching.wait(10)
    holding = threading.Thread(target=supervisor.hold, args=("w",))
    holding.start()
    holding.join(0.05)
    go_on.set()
    holding.join(10)
    assert fresh.told
    supervisor._over.set()
    supervisor._thread.join(10)


def test_what_the_children_will_need_is_loaded_before_they_are_forked(caplog: pytest.LogCaptureFixture) -> None:
    code = (
        "import sys; from tasks import workers; assert 'tasks.profile' not in sys.modules;"
        "workers._preload(['profile']); print('tasks.profile' in sys.modules, 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True False\n"
    workers._preload(["sorcery"])
    assert "cannot load stage sorcery" in caplog.text
