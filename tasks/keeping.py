"""When a training keeps its state, and going on from what an earlier attempt kept."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from time import monotonic

import torch
from torch import nn

from orchestrator.records import Event
from tasks.errors import HandedOver
from tasks.nn.resume import CheckpointUnusable, FitState, Generators, Progress, RoundState, pack, unpack, weights_of
from tasks.stage import Checkpoint, StageContext

_log = logging.getLogger(__name__)
_NOTHING = Progress(rounds={}, fit=None)


@dataclass(kw_only=True)
class Keeper:
    """Keeps the progress of one stage every ``every_s``, and when the worker is leaving.

    ``found`` is what an earlier attempt had kept. Rounds of fine-tuning that are over are added by :meth:`end_round`.
    """

    checkpoint: Checkpoint
    every_s: float
    device: torch.device
    found: Progress = _NOTHING
    clock: Callable[[], float] = monotonic
    _rounds: dict[int, RoundState] = field(default_factory=dict)
    _kept_s: float = 0.0

    @staticmethod
    def begin(context: StageContext, every_s: float, device: torch.device) -> Keeper:
        """With what there is to go on from; what cannot be used is said in the log and passed over."""
        keeper = Keeper(checkpoint=context.checkpoint, every_s=every_s, device=device)
        keeper._kept_s = keeper.clock()
        data = context.checkpoint.load()
        if data is None:
            return keeper
        try:
            keeper.found = unpack(data, device)
        except CheckpointUnusable as error:
            _log.warning("a checkpoint is passed over, the stage starts anew: %s", error)
            return keeper
        keeper._rounds = dict(keeper.found.rounds)
        epoch = keeper.found.fit.epoch if keeper.found.fit else 0
        context.progress(Event(name="stage_resumed", fields={"epoch": epoch, "rounds": len(keeper.found.rounds)}))
        return keeper

    def start_of(self, round_index: int = 0) -> FitState | None:
        """Where the training of this round goes on from; None: from its beginning."""
        return self.found.fit if self.found.fit_round == round_index else None

    def on_state(self, make: Callable[[], FitState], round_index: int = 0) -> None:
        """Keep the state where it is time.

        Raises:
            HandedOver: the worker is leaving, and the state is kept.
        """
        is_leaving = self.checkpoint.is_leaving()
        if not is_leaving and self.clock() - self._kept_s < self.every_s:
            return
        state = make()
        self.checkpoint.save(pack(Progress(rounds=self._rounds, fit=state, fit_round=round_index), self.device))
        self._kept_s = self.clock()
        if is_leaving:
            raise HandedOver(f"the worker is leaving; epoch {state.epoch} is kept and another worker goes on from it")

    def end_round(self, round_index: int, module: nn.Module, curve: tuple[tuple[float, float], ...]) -> None:
        """A round of fine-tuning is over: what comes after starts from its weights."""
        state = RoundState(weights=weights_of(module), generators=Generators.of(self.device), curve=curve)
        self._rounds[round_index] = state
        self.found = replace(self.found, fit=None)
