"""Many runs, in several processes, passing over those already done."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench.searching.run import Run, execute
from bench.searching.store import path_of, read, write

Say = Callable[[str], None]


def complete(runs: Sequence[Run], folder: Path, *, jobs: int, is_redo: bool, say: Say) -> list[str]:
    """Carry out the runs that are not done yet.

    Returns:
        one line for each run that failed; the others are done nevertheless.
    """
    due = [run for run in runs if is_redo or read(folder, run) is None]
    if len(due) < len(runs):
        say(f"{len(runs) - len(due)} of {len(runs)} runs are done already, in {folder}")
    failed = []
    for number, (run, problem) in enumerate(_all(due, folder, jobs), start=1):
        name = f"{run.problem}, {run.proposer}, seed {run.seed}"
        if problem:
            failed.append(f"{name}: {problem}")
        say(f"[{number}/{len(due)}] {name}{': FAILED: ' + problem if problem else ''}")
    return failed


def results(runs: Sequence[Run], folder: Path) -> list[dict[str, Any]]:
    """The results there are, in the order of ``runs``."""
    return [found for run in runs if (found := read(folder, run)) is not None]


def _all(runs: Sequence[Run], folder: Path, jobs: int) -> Iterator[tuple[Run, str]]:
    """Each run as it ends, with what went wrong, if anything did."""
    if jobs == 1 or len(runs) < 2:
        for run in runs:
            yield run, _one(run, folder)
        return
    # Fresh processes: a forked one inherits the threads' locks of PyTorch, but not the threads.
    with ProcessPoolExecutor(min(jobs, len(runs)), mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(_one, run, folder): run for run in runs}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _one(run: Run, folder: Path) -> str:
    """Run and keep; a failure of one method must not end the comparison of the others."""
    try:
        write(path_of(folder, run), execute(run))
    except Exception as error:  # the outermost loop of the worker
        logging.getLogger(__name__).debug("run failed", exc_info=True)
        return f"{type(error).__name__}: {error}"
    return ""
