"""A study on a whole lab whose processes are killed by chance, and the same study undisturbed.

    python -m bench.pipelining.chaos [--json] [--trials 200] [--every 5] [--seed 1] [--folder FOLDER]

PostgreSQL, Redis, an orchestrator, four workers, two agents with four virtual boards each, all as a lab starts them.
The stages but the profile are stubs and training waits a second; the images are real and run on the boards. Every few
seconds one process of the orchestrator, a worker, an agent or the broker is killed (`kill -9`).

Twice: with as many trials under way as the lab can hold; and one after the other (q = 1), where the search must find
the same trials with the same values as it does undisturbed, to the last bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import optuna  # noqa: E402

from bench.pipelining.chaos_lab import ChaosLab, Unit  # noqa: E402
from bench.pipelining.chaos_stages import IMAGES_VARIABLE, TRAINING_VARIABLE, write_images  # noqa: E402
from orchestrator.location import Location  # noqa: E402
from orchestrator.postgres import DATABASE_VARIABLE  # noqa: E402
from orchestrator.records import Json  # noqa: E402
from orchestrator.registry import ENDED_STATES, FINISHED, Registry  # noqa: E402
from orchestrator.study import Study, TrialRecord  # noqa: E402
from tests.support.postgres import PostgresServer, postgres_server  # noqa: E402

KIND = "nrf52840-dk"
STUDY = "chaos"
_IMAGES = 4
_AGENTS, _BOARDS = 2, 4
_WORKERS = {"train-1": "train", "train-2": "train", "build-1": "build", "build-2": "build"}
_LOOK_EVERY_S = 0.2
_STUDY_FILE = """
name: {name}
seed: {seed}
dataset: {{source: digits}}
network: {{family: mlp}}
space:
  network.width: {{type: int, low: 1, high: 256, log: true}}
  network.depth: {{type: int, low: 1, high: 4}}
board: {kind}
objectives: {{error: {{limit: 0.9}}, rom: {{limit: 64 KiB}}, latency: {{limit: 1 s}}}}
budget: {{trials: {trials}}}
sampler: {{name: {sampler}, initial: {initial}}}
parallelism: {{in_flight: {in_flight}}}
profiling: {{samples: 32, timeout: 60}}
"""


@dataclass(kw_only=True)
class Found:
    """What became of a study. ``told`` trials of the budget; ``lost``: asked for and never told; ``doubled``: told
    twice, or with a stage whose result counts twice; ``again``: attempts beyond the first, by what ended the one
    before; ``values``: of each told trial, in the order of telling, its parameters and values."""

    seconds: float = 0.0
    kills: Counter[str] = field(default_factory=Counter)
    told: int = 0
    lost: int = 0
    doubled: int = 0
    again: Counter[str] = field(default_factory=Counter)
    values: list[str] = field(default_factory=list)
    front: list[int] = field(default_factory=list)


@contextmanager
def lab(folder: Path, database: str, *, training_s: float) -> Iterator[ChaosLab]:
    """The whole lab, running, but for the database that it is given."""
    images = folder.parent / "images"
    if not images.exists():
        write_images(images, KIND, _IMAGES)
    stages = {
        "EDGEFRONT_STAGES": "bench.pipelining.chaos_stages:STAGES",
        IMAGES_VARIABLE: str(images),
        TRAINING_VARIABLE: str(training_s),
    }
    # The orchestrator, too: it looks at candidates with the stage `gate`.
    words = ["orchestrator", "--studies", "studies", "--metrics-port", "0"]
    units = [Unit(name="orchestrator", words=words, environment=stages)]
    units += [
        Unit(name=name, words=["worker", "--queues", queues, "--name", name], environment=stages)
        for name, queues in _WORKERS.items()
    ]
    for number in range(_AGENTS):
        name = f"agent-{number}"
        rack = folder / f"{name}.toml"
        rack.write_text(f'[[board]]\nid = "{name}"\nkind = "{KIND}"\ndriver = "virtual"\ncount = {_BOARDS}\n')
        units.append(Unit(name=name, words=["agent", "--rack", str(rack), "--name", name]))
    environment = {DATABASE_VARIABLE: database, "EDGEFRONT_LOCKS": str(folder / "locks")}
    one = ChaosLab(folder=folder, units=units, environment=environment)
    one.start()
    try:
        yield one
    finally:
        one.close()


def run_study(
    folder: Path,
    server: PostgresServer,
    *,
    trials: int,
    in_flight: int,
    seed: int = 1,
    sampler: str = "ars",
    initial: int = 10,
    training_s: float = 1.0,
    trouble: Callable[[ChaosLab], None] = lambda lab: None,
    limit_s: float = 3600.0,
) -> Found:
    """Submit a study to a lab of its own, and see it to its end. ``trouble`` is called five times a second.

    Raises:
        TimeoutError: it did not end within ``limit_s``; the logs are in ``folder``.
        RuntimeError: it ended otherwise than by its budget.
    """
    folder.mkdir(parents=True)
    database = server.make_database(f"lab_{folder.name.replace('-', '_')}")
    file = folder / "study.yaml"
    file.write_text(
        _STUDY_FILE.format(
            name=STUDY, seed=seed, kind=KIND, trials=trials, sampler=sampler, initial=initial, in_flight=in_flight
        )
    )
    with lab(folder, database, training_s=training_s) as one:
        words = [sys.executable, "-m", "cli", "submit", str(file), "--studies", "studies"]
        environment = {**os.environ, **one.environment, "PYTHONPATH": str(ROOT)}
        subprocess.run(words, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        started = time.monotonic()
        _see_to_its_end(one, database, trouble, started + limit_s)
        seconds = time.monotonic() - started
        kills = Counter(one.kills)
    found = look(Location(folder=folder / "studies" / STUDY, name=STUDY, url=database))
    found.seconds, found.kills = seconds, kills
    return found


def _see_to_its_end(one: ChaosLab, database: str, trouble: Callable[[ChaosLab], None], deadline: float) -> None:
    registry = Registry(database)
    try:
        while (entry := registry.entry(STUDY)).state not in ENDED_STATES:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the study is {entry.state} with {entry.reached.told} trials; see {one.folder}")
            one.look_after()
            trouble(one)
            time.sleep(_LOOK_EVERY_S)
        if entry.state != FINISHED:
            raise RuntimeError(f"the study is {entry.state}: {entry.reason}; see {one.folder}")
    finally:
        registry.close()


def kills(every_s: float, seed: int) -> Callable[[ChaosLab], None]:
    """A trouble: one process is killed ``every_s`` seconds."""
    chance, last = random.Random(seed), [time.monotonic()]

    def trouble(one: ChaosLab) -> None:
        if time.monotonic() - last[0] >= every_s and one.kill_one(chance):
            last[0] = time.monotonic()

    return trouble


def outage(after_s: float, away_s: float) -> Callable[[ChaosLab], None]:
    """A trouble: the broker is killed once and stays away for ``away_s``."""
    begun, done = time.monotonic(), [False]

    def trouble(one: ChaosLab) -> None:
        if not done[0] and time.monotonic() - begun >= after_s:
            one.kill_broker(away_s)
            one.kills.append("broker")
            done[0] = True

    return trouble


def look(place: Location) -> Found:
    """Count, in the study's own database and in Optuna's tables, what was told, lost and doubled."""
    study = Study.open(place)
    try:
        records = study.trials()
        attempts = study.stage_attempts()
        told = sorted((trial for trial in records if trial.told is not None), key=lambda trial: trial.told or 0)
        results = Counter((trial.number, result.stage) for trial in told for result in study.results_of(trial.number))
        ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        known = {one.number for one in study.optuna.get_trials(deepcopy=False) if one.state in ended}
        numbers = Counter(trial.told for trial in told)
        return Found(
            told=len(told),
            lost=sum(trial.told is None for trial in records)
            + len(known ^ {trial.number for trial in told})
            + sum(attempt.is_open for attempt in attempts),
            doubled=sum(n - 1 for n in [*numbers.values(), *results.values()]),
            again=Counter(
                attempt.fault.reason if attempt.fault else attempt.state for attempt in attempts if attempt.is_failed
            ),
            values=[_facts(trial) for trial in told],
            front=sorted(trial.number for trial in study.front()),
        )
    finally:
        study.close()


def _facts(trial: TrialRecord) -> str:
    assert trial.outcome is not None
    values = {name: value.amount for name, value in sorted(trial.outcome.values.items())}
    return json.dumps([dict(trial.params), trial.seed, trial.outcome.ending.value, values], sort_keys=True)


def chaos(folder: Path, *, trials: int, every_s: float, seed: int) -> Json:
    """Both studies; see the module."""
    with postgres_server() as server:
        many = run_study(folder / "many", server, trials=trials, in_flight=8, seed=seed, trouble=kills(every_s, seed))
        calm = run_study(folder / "calm", server, trials=trials, in_flight=1, seed=seed)
        one = run_study(folder / "one", server, trials=trials, in_flight=1, seed=seed, trouble=kills(every_s, seed + 1))
    return {
        "kills": sum(many.kills.values()) + sum(one.kills.values()),
        "told": many.told,
        "lost": many.lost + one.lost,
        "doubled": many.doubled + one.doubled,
        "same_front": (one.front, one.values) == (calm.front, calm.values),
        "front": len(one.front),
        "killed": dict(many.kills + one.kills),
        "attempts_again": dict(many.again + one.again),
        "seconds": {"many": round(many.seconds), "calm": round(calm.seconds), "one": round(one.seconds)},
        "told_one_by_one": one.told,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between kills")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keep the logs there; default: a temporary one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgefront-chaos-") as temporary:
        found = chaos(given.folder or Path(temporary), trials=given.trials, every_s=given.every, seed=given.seed)
    print(json.dumps(found) if given.json else "\n".join(f"{name:<16} {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
