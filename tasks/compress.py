"""The stage ``compress``: channels pruned and the rest fine-tuned, then quantised to int8."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from orchestrator.records import Json, Source, StageRequest, Value
from orchestrator.studyfile import Compression, StudyFile, Training
from tasks.errors import Defect
from tasks.keeping import Keeper
from tasks.nn.candidate import build_candidate, compression_of, example_of, training_of
from tasks.nn.datasets import DataSplit
from tasks.nn.fit import TensorData, calibration_inputs, choose_device, error_of, fit, reproducible
from tasks.nn.prune import Sparsity, prune
from tasks.nn.resume import load_weights
from tasks.nn.sources import data_for
from tasks.nn.weights import unpack_weights
from tasks.quant.quantise import quantisation_summary, quantise
from tasks.stage import StageContext, StageOutput
from tasks.train import reporter


def run(request: StageRequest, context: StageContext) -> StageOutput:
    """Compress one trained candidate.

    Inputs: ``weights``. Artifacts: ``onnx`` (int8, QDQ) and ``onnx_float``. Values: ``pruned_float_error``, the share
    of validation samples that the pruned network classifies wrongly before quantisation. Notes: fine-tuning curve,
    layer shapes after pruning, shape and normalisation of the inputs, operators of the int8 model.

    Its state is kept every ``training.checkpoint_every`` of fine-tuning, as in the stage ``train``.

    Raises:
        Infeasible: fine-tuning diverged.
        HandedOver: the worker is leaving; the state is kept.
        Defect: the weights are missing or damaged, or the network cannot be pruned or exported.
    """
    study = StudyFile.from_json(request.study)
    training, (compression, sparsity) = training_of(study, request.params), compression_of(study, request.params)
    if "weights" not in request.inputs:
        raise Defect("missing_artifact", "stage compress needs the artifact 'weights' of the stage train")
    data = data_for(request, study)
    device = choose_device(training.device)
    with reproducible(request.seed, training.threads):
        module = build_candidate(study, request.params, request.seed, data)
        module = unpack_weights(module, context.artifacts.get_bytes(request.inputs["weights"]))
        curve = _prune_and_tune(module.to(device), data, (training, compression, sparsity), request, context)
        module = module.cpu()
        error = error_of(module, data.validation)
        calibration = calibration_inputs(data, compression.calibration_samples, study.seed)
        onnx_float, onnx_int8 = quantise(module, calibration)
    note = "validation, pruned, floating point"
    return StageOutput(
        values={"pruned_float_error": Value(amount=error, unit="1", source=Source.EXACT, note=note)},
        artifacts={
            "onnx": context.artifacts.put_bytes(onnx_int8),
            "onnx_float": context.artifacts.put_bytes(onnx_float),
        },
        notes={
            "curve": curve,
            "layers": _layer_shapes(module),
            "inputs": _input_facts(data),
            "quantisation": {
                "calibration_samples": len(calibration),
                "nodes": dict(quantisation_summary(onnx_int8)),
                "onnx_bytes": len(onnx_int8),
            },
        },
    )


def _prune_and_tune(
    module: nn.Module,
    data: DataSplit,
    how: tuple[Training, Compression, Sparsity],
    request: StageRequest,
    context: StageContext,
) -> list[list[float]]:
    """Prune in place; the curve ``[[loss, accuracy], …]`` over all fine-tuning epochs."""
    training, compression, sparsity = how
    curve: list[list[float]] = []
    if sparsity.is_zero:
        return curve
    device = next(module.parameters()).device
    tensors = TensorData.of(data, device)
    n_total = compression.steps * compression.finetune_epochs
    # The learning rate goes back to where training began: with a tenth of it, half-pruned networks do not recover.
    tuning = training.model_copy(update={"epochs": max(1, compression.finetune_epochs)})

    keeper = Keeper.begin(context, training.checkpoint_every, device)

    def tune(pruned: nn.Module, round_index: int) -> None:
        if compression.finetune_epochs == 0:
            return
        over = keeper.found.rounds.get(round_index)
        if over is not None:  # by an earlier attempt; the next round prunes the same channels of the same weights
            load_weights(pruned, over.weights)
            over.generators.restore(device)
            curve.extend(_rounded(over.curve))
            return
        epochs = fit(
            pruned,
            tensors,
            tuning,
            seed=request.seed + 1 + round_index,
            on_epoch=reporter(request, context, done=round_index * compression.finetune_epochs, total=n_total),
            on_state=lambda make: keeper.on_state(make, round_index),
            start=keeper.start_of(round_index),
            warm_up=False,
        )
        points = tuple((epoch.loss, epoch.accuracy) for epoch in epochs)
        keeper.end_round(round_index, pruned, points)
        curve.extend(_rounded(points))

    prune(
        module,
        example_of(data).to(device),
        sparsity,
        steps=compression.steps,
        criterion=compression.criterion,
        seed=request.seed,
        on_round=tune,
    )
    return curve


def _rounded(curve: Iterable[tuple[float, float]]) -> list[list[float]]:
    return [[round(loss, 5), round(accuracy, 5)] for loss, accuracy in curve]


def _input_facts(data: DataSplit) -> Json:
    """What a program must do before it feeds the deployed network, and what the outputs mean."""
    return {
        "shape": list(data.input_shape),
        "mean": [float(value) for value in data.mean],
        "std": [float(value) for value in data.std],
        "class_names": list(data.class_names),
    }


def _layer_shapes(module: nn.Module) -> Json:
    """Name of each layer with weights → its output channels."""
    layers = {name: layer for name, layer in module.named_modules() if hasattr(layer, "weight")}
    is_layer = (nn.modules.conv._ConvNd, nn.Linear)
    return {name: int(layer.weight.shape[0]) for name, layer in layers.items() if isinstance(layer, is_layer)}
