"""The 100 % line: the hypervolume that a long evolutionary run reaches, stored beside this file.

The run sees the truth, keeps every point that no other dominates, and breeds from all of them. It is not one of the
methods compared.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.searching.problem import Problem
from bench.searching.store import write
from orchestrator.arrays import FloatArray
from orchestrator.design import latin_hypercube
from orchestrator.pareto import non_dominated
from orchestrator.proposers.untried import Tried
from orchestrator.space import SearchSpace

STORED = Path(__file__).with_name("reference.json")
EVALUATIONS = 50_000
_OFFSPRING = 250

_CROSSED = 0.5
_LEAST_STEP = 1e-3

Say = Callable[[str], None]


def stored(own: Path | None = None) -> dict[str, float]:
    """Reference hypervolume by problem, from the stored file and, for problems of one's own, from ``own``."""
    found: dict[str, float] = {}
    for path in (STORED, own):
        if path is not None and path.is_file():
            entries = json.loads(path.read_text(encoding="utf-8"))["problems"]
            found |= {name: float(entry["hv"]) for name, entry in entries.items()}
    return found


def store(path: Path, name: str, entry: dict[str, Any]) -> None:
    """Put one problem's reference into a file, beside those already there."""
    entries = json.loads(path.read_text(encoding="utf-8"))["problems"] if path.is_file() else {}
    if path == STORED:
        entries[name] = entry
        text = json.dumps({"problems": dict(sorted(entries.items()))}, indent=2)
        path.write_text(text + "\n", encoding="utf-8")
    else:
        write(path, {"problems": entries | {name: entry}})


def make(problem: Problem, evaluations: int, seed: int, say: Say) -> dict[str, Any]:
    """The reference of one problem, with how it came about: by formula, by listing every candidate of a space small
    enough, or by evolution."""
    if problem.best_hv is not None:
        return {"hv": problem.best_hv, "method": "formula"}
    space = problem.space
    if space.size() <= evaluations:
        points = np.array(list(space.all_points()))
        hv = problem.score(_truth(problem, space, points))
        return {"hv": hv, "method": "all candidates", "evaluations": len(points)}
    half, hv, size = _evolve(problem, space, evaluations, seed, say)
    return {
        "hv": hv,
        "method": "evolution with an archive",
        "evaluations": evaluations,
        "seed": seed,
        "hv_at_half": half,
        "front": size,
    }


def _evolve(problem: Problem, space: SearchSpace, evaluations: int, seed: int, say: Say) -> tuple[float, float, int]:
    """Hypervolume at half of the evaluations and at the end, and the size of the archive."""
    rng = np.random.default_rng([seed, 1])
    points = space.at_quantiles(latin_hypercube(_OFFSPRING * 4, len(space.axes), rng))
    archive, shares = _kept(points, _truth(problem, space, points))
    done, half = len(points), 0.0
    while done < evaluations:
        children = _children(archive, space, rng)
        archive, shares = _kept(np.vstack([archive, children]), np.vstack([shares, _truth(problem, space, children)]))
        if done < evaluations / 2 <= done + len(children):
            half = problem.score(shares)
            say(f"{problem.name}: {half:.6f} after {done + len(children)} evaluations, front of {len(archive)}")
        done += len(children)
    return half, problem.score(shares), len(archive)


def _children(archive: FloatArray, space: SearchSpace, rng: np.random.Generator) -> FloatArray:
    """Half of them crossed, all of them mutated in a few columns by steps of all sizes; none known already."""
    mothers, fathers = archive[rng.integers(len(archive), size=(2, _OFFSPRING))]
    crossed = (rng.random(mothers.shape) < 0.5) & (rng.random((_OFFSPRING, 1)) < _CROSSED)
    children = np.where(crossed, fathers, mothers)
    sizes = _LEAST_STEP ** rng.random((_OFFSPRING, 1))
    mutated = rng.random(children.shape) < 1.5 / children.shape[1]
    children = children + mutated * sizes * rng.standard_normal(children.shape)
    fresh = _random_choices(children, space, rng, mutated)
    return _new_ones(fresh, archive, space, rng)


def _random_choices(
    children: FloatArray, space: SearchSpace, rng: np.random.Generator, mutated: FloatArray
) -> FloatArray:
    """One-hot columns need a new choice, not a small step: any mutated one is drawn again, whole."""
    drawn = space.at_quantiles(rng.random((len(children), len(space.axes))))
    start = 0
    for axis in space.axes.values():
        columns = slice(start, start + axis.width)
        if axis.width > 1:
            hit = mutated[:, columns].any(axis=1)
            children[hit, columns] = drawn[hit, columns]
        start += axis.width
    return space.snap(children)


def _new_ones(children: FloatArray, archive: FloatArray, space: SearchSpace, rng: np.random.Generator) -> FloatArray:
    known = Tried(space, archive)
    new = [child for child in np.unique(children, axis=0) if known.first_untried(child[None]) is not None]
    return np.array(new) if new else known.draw(_OFFSPRING, rng)


def _truth(problem: Problem, space: SearchSpace, points: FloatArray) -> FloatArray:
    return np.array([problem.vector(problem.truth(space.decode(point))) for point in points])


def _kept(points: FloatArray, shares: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The non-dominated, of those within the limits as soon as there are any; the nearest to them before."""
    excess = np.maximum(shares - 1.0, 0.0).max(axis=1)
    if (excess > 0).all():
        nearest = np.argsort(excess, kind="stable")[:_OFFSPRING]
        return points[nearest], shares[nearest]
    points, shares = points[excess == 0], shares[excess == 0]
    _, unique = np.unique(shares, axis=0, return_index=True)
    points, shares = points[unique], shares[unique]
    front = non_dominated(shares)
    return points[front], shares[front]
