"""What early stopping would have saved, and cost, on studies that were run to the end.

    python bench/early_stopping.py [--json] [--orders 200] [--chance 0.05] [bench/data/digits-*.json]
    python bench/early_stopping.py --record bench/data/digits-0.json --trials 40 --seed 0

The first replays the rule on recorded learning curves: trial after trial, in the order they were told and in shuffled
orders, each with the front and the finished trials that the study would have had by then. The second makes a recording.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.recording import RecordedTrial, Recording, load, record  # noqa: E402
from orchestrator.pareto import hypervolume, non_dominated  # noqa: E402
from orchestrator.records import Json  # noqa: E402
from orchestrator.stopping import Finished, stopping_rule  # noqa: E402
from orchestrator.studyfile import EarlyStopping  # noqa: E402

DATA = ROOT / "bench" / "data"


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """One order of a recording's trials. ``lost`` are front trials of the whole study that were stopped; the loss is
    the share of the hypervolume that went with them."""

    epochs: int
    saved: int
    stopped: int
    front: int
    lost: int
    hypervolume_loss: float

    @property
    def saved_share(self) -> float:
        return self.saved / self.epochs


def replay(recording: Recording, order: Sequence[int], settings: EarlyStopping) -> Replay:
    """Take the trials in this order through training, each under the rule that the ones before it give."""
    finished: list[Finished] = []
    kept: list[RecordedTrial] = []
    saved = 0
    for place, index in enumerate(order):
        trial = recording.trials[index]
        epoch = _stopped_at(trial, finished, recording, settings) if place >= recording.initial else None
        if epoch is not None:
            saved += len(trial.errors) - epoch + trial.later_epochs
            continue
        kept.append(trial)
        if trial.state == "complete":
            finished.append(Finished(values=trial.values, errors=trial.errors))
    everything = _points(recording.trials, recording)
    left = _points(kept, recording)
    reference = recording.objectives.reference
    on_front = {index for index, is_on in enumerate(non_dominated(everything)) if is_on}
    complete = [trial.trial for trial in recording.trials if trial.state == "complete"]
    kept_numbers = {trial.trial for trial in kept}
    return Replay(
        epochs=sum(len(trial.errors) + trial.later_epochs for trial in recording.trials),
        saved=saved,
        stopped=len(recording.trials) - len(kept),
        front=len(on_front),
        lost=sum(complete[index] not in kept_numbers for index in on_front),
        hypervolume_loss=1.0 - hypervolume(left, reference) / hypervolume(everything, reference),
    )


def _stopped_at(
    trial: RecordedTrial, finished: Sequence[Finished], recording: Recording, settings: EarlyStopping
) -> int | None:
    """The epoch at which the rule would have given the trial up."""
    if not trial.errors:
        return None
    rule = stopping_rule(trial.known, len(trial.errors), finished, recording.objectives, settings)
    looks = range(1, len(trial.errors) + 1) if rule is not None else ()
    return next((epoch for epoch in looks if rule is not None and rule.look(trial.errors[:epoch])), None)


def _points(trials: Sequence[RecordedTrial], recording: Recording) -> np.ndarray:
    complete = [recording.objectives.vector(trial.values) for trial in trials if trial.state == "complete"]
    return recording.objectives.normalised(np.array(complete).reshape(len(complete), len(recording.objectives.names)))


def shuffled(recording: Recording, n_orders: int) -> list[list[int]]:
    """Orders of the trials, the same ones for every setting."""
    return [np.random.default_rng([7, seed]).permutation(len(recording.trials)).tolist() for seed in range(n_orders)]


def summary(recording: Recording, n_orders: int, settings: EarlyStopping) -> Json:
    """Figures of the recorded order, and of shuffled ones together."""
    recorded = replay(recording, range(len(recording.trials)), settings)
    others = [replay(recording, order, settings) for order in shuffled(recording, n_orders)]
    losses = [run.hypervolume_loss for run in others]
    return {
        "recording": recording.name,
        "command": recording.command,
        "chance": settings.chance,
        "gain": settings.gain,
        "recorded_order": {**asdict(recorded), "saved_share": recorded.saved_share},
        "shuffled": {
            "orders": n_orders,
            "saved_share": statistics.mean(run.saved_share for run in others),
            "stopped": statistics.mean(run.stopped for run in others),
            "lost": statistics.mean(run.lost for run in others),
            "hypervolume_loss": statistics.mean(losses),
            "hypervolume_loss_p95": float(np.quantile(losses, 0.95)),
            "hypervolume_loss_max": max(losses),
        },
    }


def table(figures: Sequence[Json]) -> str:
    """The figures in Markdown."""
    lines = [
        "| recording | order | epochs saved | trials stopped | front trials lost | hypervolume lost |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for item in figures:
        one, all_ = item["recorded_order"], item["shuffled"]
        lines.append(
            f"| {item['recording']} | as told | {one['saved_share']:.1%} | {one['stopped']} | "
            f"{one['lost']} of {one['front']} | {one['hypervolume_loss']:.3%} |"
        )
        lines.append(
            f"| | {all_['orders']} shuffled | {all_['saved_share']:.1%} | {all_['stopped']:.1f} | {all_['lost']:.2f} | "
            f"{all_['hypervolume_loss']:.3%} (95 % of orders: at most {all_['hypervolume_loss_p95']:.3%}) |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recordings", nargs="*", type=Path, help="default: all in bench/data")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--orders", type=int, default=200, help="shuffled orders beside the recorded one")
    parser.add_argument("--chance", type=float, default=EarlyStopping().chance, help="as in the study file")
    parser.add_argument("--gain", type=float, default=EarlyStopping().gain, help="as in the study file")
    parser.add_argument("--record", type=Path, metavar="FILE", help="run a study to the end and record it")
    parser.add_argument("--study", type=Path, default=ROOT / "examples" / "digits.yaml", help="what to record")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if given.record is not None:
        words = shlex.join(["python", "bench/early_stopping.py", *(arguments or sys.argv[1:])])
        record(given.record, study=given.study, trials=given.trials, seed=given.seed, command=words)
        return
    paths = given.recordings or sorted(DATA.glob("*.json"))
    settings = EarlyStopping(chance=given.chance, gain=given.gain)
    figures = [summary(load(path), given.orders, settings) for path in paths]
    print(json.dumps({"early_stopping": figures}) if given.json else table(figures))


if __name__ == "__main__":
    main()
