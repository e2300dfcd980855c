"""How good the search methods are: problems × proposers × seeds.

    python bench/search.py --problem tinyml --proposer ars,random --seeds 3 --trials 60 --jobs 2

Every run is kept in a file of its own below --out, so an interrupted bench goes on where it was, and later calls add
to it. Prints a table, or with --json one object: {"runs": [{"problem", "proposer", "seed", "hv": [per trial],
"proposal_s": [per trial]}], "reference_hv": {problem: hypervolume}}. Writes the same object, the statistics and a page
of figures to --out. bench/README.md says how to read them; docs/own-problem.md how to add a problem.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

# One thread a process, said before any library is loaded: the runs share the cores, and times must compare.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from bench.searching import catalogue, reference, scaling, tables  # noqa: E402
from bench.searching.comparison import Results  # noqa: E402
from bench.searching.figures import write_page  # noqa: E402
from bench.searching.fingerprint import fingerprint  # noqa: E402
from bench.searching.run import Run, sampler_of  # noqa: E402
from bench.searching.schedule import complete, results  # noqa: E402
from bench.searching.store import pack, read, unpack, write  # noqa: E402
from orchestrator.errors import UsageError  # noqa: E402
from orchestrator.proposers import registry  # noqa: E402

SIZES = "150,300,600,1000"
RUN_FIELDS = ("problem", "proposer", "seed", "trials", "initial", "workers")
JSON_FIELDS = ("problem", "proposer", "seed", "hv", "proposal_s")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; the exit code is 0, 1 when a run failed, 2 when an argument is wrong, 130 after Ctrl-C."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        problems, proposers, seeds = _problems(given), _proposers(given.proposer), _seeds(given.seeds)
        _check(problems, proposers, given)
        if given.unpack:
            _say(f"{unpack(given.unpack, given.out)} runs of {given.unpack} are new in {given.out}")
        if given.pack:
            _say(f"{pack(given.out, given.pack, reference.stored())} runs of {given.out} are in {given.pack}")
            return 0
        if given.make_reference:
            return _make_references(problems, given)
        if given.scaling:
            return _scale(problems, proposers, given)
        # By seed first: a bench that is interrupted has compared everything on a few seeds.
        runs = [
            Run(problem=p, proposer=m, seed=s, trials=given.trials, initial=given.initial, workers=given.workers)
            for s in seeds
            for p in problems
            for m in proposers
        ]
        return _compare(runs, given)
    except UsageError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on with the runs that are not done")
        return 130


def _compare(runs: Sequence[Run], given: argparse.Namespace) -> int:
    failed = complete(runs, given.out, jobs=given.jobs, is_redo=given.redo, say=_say)
    found = results(runs, given.out)
    if found:
        _report(found, given)
    for line in failed:
        _say(f"failed: {line}")
    return 1 if failed else 0


def _report(found: Sequence[dict[str, Any]], given: argparse.Namespace) -> None:
    reference_hv, unions = _reference_hv(found, given.out)
    ordered = [{name: run[name] for name in JSON_FIELDS} for run in found]
    table = {"runs": ordered, "reference_hv": reference_hv}
    compared = Results(found, reference_hv)
    base = given.against or ("ars" if "ars" in compared.proposers else compared.proposers[0])
    standings, leads = compared.standings(), compared.leads(base)
    kept = compared.against_sequential(_alone(found, given.out))
    write(given.out / "search.json", table)
    statistics = {"standings": [asdict(item) for item in standings], "leads": [asdict(item) for item in leads]}
    write(given.out / "statistics.json", statistics)
    title = f"Search quality: {given.trials} trials, {given.workers} at once"
    write_page(compared, given.out / "search.html", title)
    if given.json:
        print(json.dumps(table, allow_nan=False))
    else:
        print(tables.text(standings, leads, kept, is_markdown=given.markdown))
    if unions:
        _say(f"no stored reference for {', '.join(unions)}: the union of these runs is 100 %")
    stale = sum(run["code"] != fingerprint(run["proposer"]) for run in found)
    if stale:
        _say(f"{stale} of {len(found)} results come from other code than this; --redo repeats them")
    _say(f"figures: {given.out / 'search.html'}; statistics: {given.out / 'statistics.json'}")


def _alone(found: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """The same runs as those with several workers, with one, where they are in the folder, too."""
    several = (item for item in found if item["workers"] > 1)
    names = (Run(**{name: run[name] for name in RUN_FIELDS} | {"workers": 1}) for run in several)
    return [run for name in names if (run := read(folder, name)) is not None]


def _reference_hv(found: Sequence[dict[str, Any]], out: Path) -> tuple[dict[str, float], list[str]]:
    """The reference of each problem, and the problems for which the union of the runs had to do."""
    stored = reference.stored(out / "reference.json")
    names = list(dict.fromkeys(run["problem"] for run in found))
    unions = [name for name in names if name not in stored]
    for name in unions:
        shares = np.array([row for run in found if run["problem"] == name for row in run["shares"]])
        # A problem on which nothing is feasible has no hypervolume to be a share of.
        stored[name] = catalogue.problem(name).score(shares) or 1.0
    return {name: stored[name] for name in names}, unions


def _make_references(problems: Sequence[str], given: argparse.Namespace) -> int:
    for name in problems:
        entry = reference.make(catalogue.problem(name), given.make_reference, 0, _say)
        command = f"python bench/search.py --make-reference {given.make_reference} --problem {name}"
        path = given.out / "reference.json" if ":" in name else reference.STORED
        reference.store(path, name, entry | {"command": command})
        _say(f"{name}: {entry['hv']:.6f}, kept in {path}")
    return 0


def _scale(problems: Sequence[str], proposers: Sequence[str], given: argparse.Namespace) -> int:
    sizes = [_whole(item, "--scaling", 1) for item in given.scaling.split(",")]
    measured = []
    for name in problems:
        for proposer in proposers:
            found = catalogue.problem(name)
            times = scaling.proposal_times(found, proposer, sizes, seed=0, limit_s=given.limit_s)
            measured += times
            exponent = scaling.growth(times)
            parts = [f"{item['trials']}: {item['proposal_s']:.3f} s" for item in times]
            _say(f"{name}, {proposer}: {', '.join(parts)}" + (f"; ~ n^{exponent:.2f}" if exponent is not None else ""))
    write(given.out / "scaling.json", {"scaling": measured})
    if given.json:
        print(json.dumps({"scaling": measured}))
    return 0


def _problems(given: argparse.Namespace) -> list[str]:
    if given.problem is None and given.scaling:
        return ["tinyml"]
    if given.problem is None:
        missing = [name for name in catalogue.names() if name not in catalogue.available()]
        if missing:
            _say(f"left out, because EDGEFRONT_DATA does not lead to its table: {', '.join(missing)}")
        return list(catalogue.available())
    return list(dict.fromkeys(part for text in given.problem for part in text.split(",") if part))


def _proposers(given: Sequence[str] | None) -> list[str]:
    """Names separated by commas; one with options stands alone, because options have commas, too."""
    if given is None:
        return list(registry.names())
    parts = [part for text in given for part in ([text] if ":" in text else text.split(",")) if part]
    return list(dict.fromkeys(parts))


def _seeds(text: str) -> list[int]:
    """``5`` → 0 … 4, ``3-5`` → 3, 4, 5, ``1,7`` → 1, 7, ``4,`` → 4."""
    if "," in text:
        return list(dict.fromkeys(_whole(part, "--seeds", 0) for part in text.split(",") if part))
    first, dash, last = text.partition("-")
    if not dash:
        return list(range(_whole(first, "--seeds", 1)))
    low, high = _whole(first, "--seeds", 0), _whole(last, "--seeds", 0)
    if low > high:
        raise UsageError(f"--seeds: found {text!r}; the first must not be above the last")
    return list(range(low, high + 1))


def _whole(text: str, option: str, least: int) -> int:
    if not text.strip().isdecimal() or int(text) < least:
        raise UsageError(f"{option}: found {text!r}, allowed are whole numbers from {least}")
    return int(text)


def _check(problems: Sequence[str], proposers: Sequence[str], given: argparse.Namespace) -> None:
    """Refuse what cannot work now, not after an hour."""
    for name in ("jobs", "trials", "initial", "workers"):
        if getattr(given, name) < 1:
            raise UsageError(f"--{name}: found {getattr(given, name)}, allowed are whole numbers from 1")
    if given.make_reference is not None and given.make_reference < 1000:
        raise UsageError(f"--make-reference: found {given.make_reference}, allowed are whole numbers from 1000")
    if not problems or not proposers:
        raise UsageError("--problem and --proposer: name at least one")
    if given.against is not None and given.against not in proposers:
        raise UsageError(f"--against: found {given.against!r}, allowed are {', '.join(proposers)}")
    for name in problems:
        found = catalogue.problem(name)
        for proposer in proposers:
            sampler_of(found, proposer, seed=0, initial=given.initial)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    problems = f"{', '.join(catalogue.names())} or module:attribute"
    add("--problem", action="append", help=f"{problems}; more with commas or again (default: all there are)")
    methods = ", ".join(registry.names())
    add("--proposer", action="append", help=f"{methods}, or name:option=value,option=value (default: all)")
    add("--seeds", default="5", help="how many (5), from-to (3-7) or which (1,4) (default 5)")
    add("--trials", type=int, default=150, help="trials a run (default 150)")
    add("--initial", type=int, default=20, help="of these from the Latin hypercube (default 20)")
    add("--workers", type=int, default=1, help="trials evaluated at once (default 1)")
    add("--jobs", type=int, default=1, help="runs carried out at once, a process each (default 1)")
    add("--out", type=Path, default=ROOT / "bench" / "results", help="folder of the results (default bench/results)")
    add("--against", help="the proposer the others are compared with (default ars where it takes part, else the first)")
    add("--redo", action="store_true", help="repeat runs that are done already")
    add("--json", action="store_true", help="print one JSON object")
    add("--markdown", action="store_true", help="print the tables in Markdown")
    add("--scaling", nargs="?", const=SIZES, help=f"time proposals after so many trials instead (default {SIZES})")
    add("--pack", type=Path, metavar="FILE", help="only put all runs below --out into one file")
    add("--unpack", type=Path, metavar="FILE", help="take the runs of such a file as done")
    add("--limit-s", type=float, default=60.0, help="with --scaling: no larger history after this many seconds")
    make = {"nargs": "?", "type": int, "const": reference.EVALUATIONS, "metavar": "EVALUATIONS"}
    add("--make-reference", **make, help="compute and store the 100 %% line by a long evolutionary run instead")  # type: ignore[arg-type]
    return parser


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
