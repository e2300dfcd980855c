"""The stage ``train``: the candidate's network, trained in floating point."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.records import Event, Source, StageRequest, Value
from orchestrator.stopping import StoppingRule
from orchestrator.studyfile import StudyFile
from tasks.errors import Stopped
from tasks.keeping import Keeper
from tasks.nn.candidate import build_candidate, training_of
from tasks.nn.fit import (
    Epoch,
    OnEpoch,
    TensorData,
    choose_device,
    described,
    epochs_of,
    error_of,
    fit,
    reproducible,
)
from tasks.nn.sources import data_for
from tasks.nn.weights import pack_weights
from tasks.stage import StageContext, StageOutput


def run(request: StageRequest, context: StageContext) -> StageOutput:
    """Train one candidate.

    Artifacts: ``weights`` (npz). Values: ``float_error``, the share of validation samples classified wrongly. Notes:
    the curve, ``[[loss, accuracy], …]`` by epoch, the number of parameters, and the device it was trained on.

    Its state is kept every ``training.checkpoint_every``; an attempt after a worker's death goes on from there.

    Raises:
        Infeasible: training diverged.
        HandedOver: the worker is leaving; the state is kept.
        Stopped: the request's rule gave it up after one of the epochs; the notes hold the curve so far.
        Defect: data set, network or training options cannot be used.
    """
    study = StudyFile.from_json(request.study)
    training = training_of(study, request.params)
    data = data_for(request, study)
    device = choose_device(training.device)
    with reproducible(request.seed, training.threads):
        module = build_candidate(study, request.params, request.seed, data).to(device)
        tensors = TensorData.of(data, device)
        keeper = Keeper.begin(context, training.checkpoint_every, device)
        start = keeper.start_of()
        before = epochs_of(start.curve, training.epochs) if start else []
        on_epoch = stopping(request, reporter(request, context), before)
        curve = fit(
            module, tensors, training, seed=request.seed, on_epoch=on_epoch, on_state=keeper.on_state, start=start
        )
        error = error_of(module, data.validation)
        weights = pack_weights(module)
    return StageOutput(
        values={"float_error": Value(amount=error, unit="1", source=Source.EXACT, note="validation, floating point")},
        artifacts={"weights": context.artifacts.put_bytes(weights)},
        notes={
            "curve": _rounded(curve),
            "n_parameters": sum(parameter.numel() for parameter in module.parameters()),
            "dataset_sha256": data.sha256,
            "device": described(device),
        },
    )


def stopping(request: StageRequest, report: OnEpoch, before: Sequence[Epoch] = ()) -> OnEpoch:
    """``report``, which then ends the training where the request's rule says so. The epochs ``before`` were looked at
    by an earlier attempt, and passed."""
    if request.stopping is None:
        return report
    rule = StoppingRule.from_json(request.stopping)
    curve: list[Epoch] = list(before)

    def report_and_look(epoch: Epoch) -> None:
        report(epoch)
        curve.append(epoch)
        stop = rule.look([1.0 - item.accuracy for item in curve])
        if stop is not None:
            raise Stopped(stop, {"curve": _rounded(curve)})

    return report_and_look


def _rounded(curve: Sequence[Epoch]) -> list[list[float]]:
    return [[round(epoch.loss, 5), round(epoch.accuracy, 5)] for epoch in curve]


def reporter(request: StageRequest, context: StageContext, *, done: int = 0, total: int | None = None) -> OnEpoch:
    """Turns epochs into ``epoch_finished`` events; ``done`` epochs of ``total`` came before."""

    def report(epoch: Epoch) -> None:
        fields = {
            "trial": request.trial,
            "stage": request.stage,
            "epoch": done + epoch.epoch,
            "epochs": total or epoch.epochs,
            "loss": epoch.loss,
            "accuracy": epoch.accuracy,
        }
        context.progress(Event(name="epoch_finished", fields=fields))

    return report
