"""The rack: measurements under faults, boards in parallel, overhead, the PPK2's path, the agent's installation.

    python bench/rack.py [--json] [--only faults,speedup,overhead,ppk2,install,start]
                         [--measurements 2000] [--agents 8] [--boards 8] [--seed 0]

``faults`` runs a lab of agent processes with virtual boards over a real broker, of which a share of all image loads
hangs, fails verification, loses its probe or kills its process, while agents and the broker are killed now and then; a
run without faults says what the values must be. ``speedup`` and ``overhead`` run one and eight boards that take as long
to program as real ones. ``install`` makes a virtual environment for an agent and counts its bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.rack_ppk2 import ppk2_report  # noqa: E402
from bench.racking.boards import LOG_VARIABLE, SHARE_VARIABLE  # noqa: E402
from bench.racking.lab import Lab  # noqa: E402
from bench.racking.work import Tally, evaluator, measure_all, requests  # noqa: E402
from mcu_agent.leases import State  # noqa: E402
from mcu_agent.pool import Pool, lock_folder  # noqa: E402
from mcu_agent.rack import load_rack  # noqa: E402
from orchestrator.records import StageResult  # noqa: E402
from tasks.artifacts import ArtifactStore  # noqa: E402

KIND = "nrf52-dk"
N_IMAGES = 8
SHARE = 0.1
KILLS, RESTARTS = 6, 3
_PARTS = ("faults", "speedup", "overhead", "ppk2", "install", "start")
_IN_PROCESS = ("elf", "vectors", "layers")


def faults(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The lab under faults against the same measurements without."""
    store = ArtifactStore(folder / "artifacts")
    wanted = requests(store, KIND, options.measurements, N_IMAGES)
    say(f"{len(wanted)} measurements of {N_IMAGES} images, without faults")
    calm = Lab(folder=folder / "calm", kind=KIND, driver=DRIVER.format("faulty"), agents=1, boards=2)
    with calm, evaluator(calm.url, folder / "artifacts", wanted[0].study_id) as queue:
        calm.wait_until_ready()
        expected = measure_all(queue, wanted[:N_IMAGES])
    truth = {trial % N_IMAGES: facts(result) for trial, result in expected.results.items()}
    say(f"the same on {options.agents} agents with {options.boards} boards each, {SHARE:.0%} of loads faulty")
    log = folder / "faults.log"
    log.touch()
    shutil.rmtree(folder / "artifacts-memory", ignore_errors=True)
    lab = Lab(
        folder=folder / "lab",
        kind=KIND,
        driver=DRIVER.format("faulty"),
        agents=options.agents,
        boards=options.boards,
        environment={SHARE_VARIABLE: str(SHARE), LOG_VARIABLE: str(log)},
    )
    with lab, evaluator(lab.url, folder / "artifacts", wanted[0].study_id) as queue:
        lab.wait_until_ready()
        chance = random.Random(options.seed)
        tally = measure_all(queue, wanted, trouble=trouble(lab, chance, len(wanted)))
    differing = [trial for trial, result in tally.results.items() if facts(result) != truth[trial % N_IMAGES]]
    board_faults = len(log.read_text().splitlines())
    return {
        "boards": options.agents * options.boards,
        "measurements": len(wanted),
        "faults_injected": board_faults + lab.kills + lab.restarts,
        "agents_killed": lab.kills,
        "broker_restarts": lab.restarts,
        "attempts_failed": dict(tally.faults),
        "lost": len(wanted) - len(tally.results),
        "doubled": tally.doubled,
        "differing": len(differing),
        "leaked": leaked(lab),
        "seconds": round(tally.seconds, 1),
    }


DRIVER = "bench.racking.boards:{}"


def trouble(lab: Lab, chance: random.Random, n: int) -> Callable[[int], None]:
    """Kills agents and restarts the broker at moments spread over the run."""
    moments = sorted((chance.uniform(0.05, 0.9) * n, what) for what in ["agent"] * KILLS + ["broker"] * RESTARTS)

    def at(done: int) -> None:
        lab.look_after()
        while moments and done >= moments[0][0]:
            _, what = moments.pop(0)
            if what == "agent":
                lab.kill_an_agent(chance)
            else:
                lab.restart_broker()

    return at


def facts(result: StageResult) -> dict[str, float]:
    """What a measurement of an image must give whenever and wherever it is made."""
    return {name: value.amount for name, value in result.values.items()}


def leaked(lab: Lab) -> int:
    """Boards that are still held, and processes that are still there, after the lab has ended."""
    left = lab.leftovers()
    os.environ["EDGEFRONT_LOCKS"] = str(lab.locks)
    pools = [Pool(load_rack(rack), lock_folder()) for rack in lab.racks()]
    held = [
        status.board.board_id
        for pool in pools
        for status in pool.statuses()
        if status.state not in (State.IDLE, State.QUARANTINED)
    ]
    return len(left) + len(held)


def speedup(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Eight boards that wait against one."""
    one, eight = (waiting_lab(folder / f"{boards}", boards, each=24) for boards in (1, 8))
    rate_1, rate_8 = (len(tally.results) / tally.seconds for tally in (one, eight))
    return {"speedup_8": round(rate_8 / rate_1, 2), "per_s": [round(rate_1, 2), round(rate_8, 2)]}


def waiting_lab(folder: Path, boards: int, each: int) -> Tally:
    """``each`` measurements a board on one agent with ``boards`` boards that take as long to program as real ones."""
    store = ArtifactStore(folder / "artifacts")
    wanted = requests(store, KIND, each * boards, 1)
    lab = Lab(folder=folder / "lab", kind=KIND, driver=DRIVER.format("waiting"), agents=1, boards=boards)
    with lab, evaluator(lab.url, folder / "artifacts", wanted[0].study_id) as queue:
        lab.wait_until_ready()
        measure_all(queue, warm_ups(wanted, boards))
        return measure_all(queue, wanted)


def warm_ups(wanted: list[Any], boards: int) -> list[Any]:
    """Measurements under other names, so that every child has loaded what it needs."""
    from dataclasses import replace

    return [replace(one, trial=10**6 + index, seed=10**6 + index) for index, one in enumerate(wanted[: 2 * boards])]


def overhead(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """From asking to the result, less programming and running, one at a time on one board."""
    store = ArtifactStore(folder / "artifacts")
    wanted = requests(store, KIND, 30, 1)
    lab = Lab(folder=folder / "lab", kind=KIND, driver="virtual", agents=1, boards=1)
    spent = []
    with lab, evaluator(lab.url, folder / "artifacts", wanted[0].study_id) as queue:
        lab.wait_until_ready()
        measure_all(queue, warm_ups(wanted, 2))
        for request in wanted:
            started = time.monotonic()
            result = measure_all(queue, [request]).results[request.trial]
            phases = result.notes["phases"]
            spent.append(time.monotonic() - started - phases["flash_s"] - phases["run_s"] - phases["measure_s"])
    return {"overhead_ms": round(1e3 * statistics.median(spent), 1), "worst_ms": round(1e3 * max(spent), 1)}


def install(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Megabytes (10^6 bytes of files) that an agent's packages take beside those of an empty virtual environment, as
    pip installs them without compiling ahead, and with the bytecode of everything that pip would have compiled."""
    python = folder / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    empty = size_of(folder / "venv")
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-compile"]
    subprocess.run([*pip, f"{ROOT}[boards]"], check=True, capture_output=True)
    plain = size_of(folder / "venv") - empty
    torch = subprocess.run([str(python), "-c", "import torch"], capture_output=True, check=False).returncode
    subprocess.run([str(python.parent / "edgefront"), "measure", "--help"], check=True, capture_output=True)
    subprocess.run([str(python), "-m", "compileall", "-q", str(folder / "venv" / "lib")], check=False)
    compiled = size_of(folder / "venv") - empty
    return {
        "install_mb": round(plain / 1e6, 1),
        "install_compiled_mb": round(compiled / 1e6, 1),
        "has_torch": torch == 0,
    }


def size_of(folder: Path) -> int:
    """Bytes of all files below ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def start(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """How long ``edgefront measure`` takes beside measuring: the median of nine runs on a virtual board."""
    store = ArtifactStore(folder / "artifacts")
    (request,) = requests(store, KIND, 1, 1)
    image, vectors = folder / "firmware.elf", folder / "vectors.npz"
    image.write_bytes(store.get_bytes(request.inputs["elf"]))
    vectors.write_bytes(store.get_bytes(request.inputs["vectors"]))
    command = [sys.executable, "-m", "cli", "measure", str(image), "--board", KIND, "--json"]
    environment = {**os.environ, "EDGEFRONT_LOCKS": str(folder / "locks")}
    beside = []
    for _ in range(10):
        started = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
        beside.append(time.monotonic() - started - json.loads(done.stdout)["phases"]["total_s"])
    return {"measure_start_s": round(statistics.median(beside[1:]), 3)}


def ppk2(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The PPK2's decoder and statistics on synthetic traces."""
    return {"ppk2": ppk2_report(seed=options.seed)}


def say(text: str) -> None:
    """Progress, beside the results."""
    print(text, file=sys.stderr, flush=True)


def text_of(report: Mapping[str, Any]) -> str:
    """The report for people."""
    return "\n".join(f"{name:<18} {value}" for name, value in report.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--only", default=",".join(_PARTS), help=f"comma-separated: {', '.join(_PARTS)}")
    parser.add_argument("--measurements", type=int, default=2000)
    parser.add_argument("--agents", type=int, default=8)
    parser.add_argument("--boards", type=int, default=8, help="boards an agent")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    parts = [part.strip() for part in options.only.split(",") if part.strip()]
    if unknown := sorted(set(parts) - set(_PARTS)):
        parser.error(f"--only: unknown {', '.join(unknown)}; allowed: {', '.join(_PARTS)}")
    report: dict[str, Any] = {}
    for part in parts:
        say(f"{part} …")
        with tempfile.TemporaryDirectory(prefix="edgefront-rack-") as folder:
            report |= globals()[part](Path(folder), options)
    print(json.dumps(report) if options.json else text_of(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
