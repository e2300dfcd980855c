"""What the queue, the database and the orchestrator cost, and what they survive.

    python bench/pipeline.py [--json] [--only throughput,looking,death,outage,chaos] [--trials 200] [--large 10000]

Everything is measured on the real path: a real Redis, worker processes, an orchestrator process, and under ``chaos``
and ``outage`` a PostgreSQL server and agents with virtual boards. Needs a checkout with its development tools and, for
those two, PostgreSQL's server programs; about half an hour on two idle cores, most of it under ``chaos``. What each
figure is: bench/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# Workers and commands are processes of their own, and each of these figures is of few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

from bench.pipelining import chaos, death, looking, throughput  # noqa: E402
from orchestrator.records import Json  # noqa: E402

EMPTY_TRIALS, WAITING_TRIALS, WAIT_S = 400, 80, 0.5
AWAY_S = 60.0
_OUTAGE_TRIALS, _OUTAGE_AFTER_S = 40, 15.0


def measure_throughput() -> Json:
    """Stages that do nothing, and trainings that wait."""
    file = throughput.study_file(EMPTY_TRIALS, in_flight=8, train_workers=1)
    empty = throughput.run_once(file)
    return {
        "trials_per_s": round(empty.trials_per_s, 1),
        "cpu_ms_per_trial": empty.cpu_ms_per_trial,
        "stage_latency_ms_p50": round(1000 * throughput.stage_latency_s(EMPTY_TRIALS // 5), 1),
        "worker_speedup_2": round(throughput.worker_speedup(WAITING_TRIALS, WAIT_S), 2),
    }


def measure_looking(trials: int) -> Json:
    """A large study, for whoever looks at it and whoever goes on with it."""
    found = looking.measure(trials)
    return {
        "status_s_10k": round(found["status_s"], 2),
        "report_s_10k": round(found["report_s"], 2),
        "orchestrator_mb_10k": round(found["orchestrator_mb"]),
        "begin_s_10k": round(found["begin_s"], 2),
        "trial_ms_10k": round(1000 * found["trial_s"]),
        "database_mb_10k": round(found["database_mb"]),
    }


def measure_death() -> Json:
    """Another host dies amid a training."""
    return {"detect_and_rerun_s": round(death.detect_and_rerun_s(), 1)}


def measure_outage(folder: Path) -> Json:
    """The broker is killed amid a study on a whole lab, and is away for a minute."""
    with chaos.postgres_server() as server:
        found = chaos.run_study(
            folder / "outage",
            server,
            trials=_OUTAGE_TRIALS,
            in_flight=8,
            trouble=chaos.outage(_OUTAGE_AFTER_S, AWAY_S),
        )
    return {
        "outage": {
            "away_s": AWAY_S,
            "told": found.told,
            "lost": found.lost,
            "doubled": found.doubled,
            "attempts_again": sum(found.again.values()),
            "seconds": round(found.seconds),
        }
    }


PARTS = ("throughput", "looking", "death", "outage", "chaos")


def measure(only: Sequence[str], trials: int, large: int, folder: Path) -> Json:
    """All figures of the ``PARTS`` named in ``only``."""
    parts: dict[str, Callable[[], Json]] = {
        "throughput": measure_throughput,
        "looking": lambda: measure_looking(large),
        "death": measure_death,
        "outage": lambda: measure_outage(folder),
        "chaos": lambda: {"chaos": chaos.chaos(folder, trials=trials, every_s=5.0, seed=1)},
    }
    found: dict[str, Any] = {}
    for name in only:
        print(f"{name} …", file=sys.stderr, flush=True)
        found |= parts[name]()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas")
    parser.add_argument("--trials", type=int, default=200, help="of each study under chaos")
    parser.add_argument("--large", type=int, default=10_000, help="trials of the study that is looked at")
    parser.add_argument("--folder", type=Path, help="keep the logs of chaos and outage there")
    given = parser.parse_args()
    only = given.only.split(",")
    if wrong := [name for name in only if name not in PARTS]:
        parser.error(f"--only: found {wrong[0]!r}; allowed are {', '.join(PARTS)}, with commas")
    with tempfile.TemporaryDirectory(prefix="edgefront-bench-") as temporary:
        found = measure(only, given.trials, given.large, given.folder or Path(temporary))
    print(json.dumps(found) if given.json else "\n".join(f"{name:<22} {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
