"""Stages on their way through the evaluator: queued, retried, taken back; all recorded before it is acted upon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from orchestrator.errors import EvaluationDefect
from orchestrator.ledger import CandidateRow, StageAttempt
from orchestrator.ports import Clock, Evaluator, EventSink
from orchestrator.records import Ending, Event, Fault, FaultKind, Json, Outcome, StageRequest, StageResult
from orchestrator.stopping import Finished, errors_of, known_of, stopping_rule
from orchestrator.study import FINAL_STAGE, Study
from orchestrator.studyfile import StudyFile

MAX_ATTEMPTS = 3
# The stage that may be given up early, and the one that says beforehand what the candidate will need.
TRAIN_STAGE = "train"
GATE_STAGE = "gate"
# What says nothing about the trial, however often it happens, and for how long it then waits: every board of its kind
# is in use or out of use, the artifacts are out of reach, or its worker left and another goes on from what was kept.
UNCOUNTED_WAITS_S = {"no_board_free": 15.0, "store_unreachable": 15.0, "handed_over": 0.0}
# The machine has no room for the candidate, which another attempt will hardly change. One more, perhaps elsewhere.
MEMORY_REASONS = ("memory_limit", "out_of_memory")
MAX_MEMORY_ATTEMPTS = 2
# What a stage reports when an artifact it was to read is gone or damaged: the stage that wrote it runs again.
ARTIFACT_REASONS = ("artifact_missing", "artifact_altered")


@dataclass(frozen=True, kw_only=True, slots=True)
class StageEnded:
    """A stage of this trial has its result, or was given up with ``fault`` after its last attempt."""

    trial: int
    stage: str
    fault: Fault | None = None


@dataclass(kw_only=True)
class OpenAttempt:
    """An attempt that is queued, or will be at ``due`` (monotonic seconds)."""

    request: StageRequest
    due: float
    queued: float = 0.0
    is_submitted: bool = False


@dataclass(kw_only=True)
class StageFlow:
    """The open attempts of a study, and the results that count so far: ``results[trial][stage]``. Of a trial that has
    ended they are without values and notes: of thousands those would fill the memory."""

    study: Study
    evaluator: Evaluator
    sink: EventSink
    clock: Clock
    retry_delays_s: Sequence[float]
    open: dict[tuple[int, str], OpenAttempt] = field(default_factory=dict)
    results: dict[int, dict[str, StageResult]] = field(default_factory=dict)
    _open_before: dict[tuple[int, str], StageAttempt] = field(default_factory=dict)
    _fresh: set[int] = field(default_factory=set)
    _made: dict[tuple[int, str], int] = field(default_factory=dict)
    _file: tuple[StudyFile, Json] | None = None
    _news: list[Event] = field(default_factory=list)
    _finished: dict[int, Finished] = field(default_factory=dict)

    @property
    def stages(self) -> tuple[str, ...]:
        return self.evaluator.stages

    def load(self, candidates: Sequence[CandidateRow]) -> None:
        """Take up what earlier runs recorded; ``candidates`` are all there are."""
        outcomes = {row.trial: row.outcome for row in candidates}
        for result in self.study.ledger.each_result():
            outcome = outcomes.get(result.trial)
            if outcome is not None and result.stage == TRAIN_STAGE:
                self._finish(result.trial, outcome, result)
            kept = result if outcome is None else _settled(result)
            self.results.setdefault(result.trial, {})[result.stage] = kept
        for trial, outcome in outcomes.items():
            if outcome is not None and trial not in self._finished:
                self._finish(trial, outcome, None)
        attempts = self.study.ledger.attempts(is_under_way=True)
        self._open_before = {(item.trial, item.stage): item for item in attempts}

    def settle(self, trial: int, outcome: Outcome) -> None:
        """The trial has ended: keep of its results what the search goes on to need."""
        results = self.results.get(trial, {})
        self._finish(trial, outcome, results.get(TRAIN_STAGE))
        self.results[trial] = {stage: _settled(result) for stage, result in results.items()}

    def judge_anew(self, candidates: Sequence[CandidateRow]) -> None:
        """Limits were tightened: trials that were complete may be infeasible now."""
        for row in candidates:
            if row.outcome is not None and row.outcome.ending is not Ending.COMPLETE:
                self._finished.pop(row.trial, None)

    def _finish(self, trial: int, outcome: Outcome, train: StageResult | None) -> None:
        if outcome.ending is Ending.COMPLETE:
            values = {name: value.amount for name, value in outcome.values.items()}
            self._finished[trial] = Finished(values=values, errors=errors_of(train) if train is not None else ())

    def results_of(self, trial: int) -> list[StageResult]:
        """What counts of a trial's search, in the order of the stages; the test split is not part of it."""
        results = self.results.get(trial, {})
        return [results[stage] for stage in self.stages if stage in results]

    def is_open(self, trial: int, stage: str) -> bool:
        """Whether an attempt at the stage is planned or under way."""
        return (trial, stage) in self.open

    def abandon(self, trial: int, why: str) -> None:
        """Nobody waits for the trial's open attempts any more: results that they still give are passed over."""
        fault = Fault(kind=FaultKind.TRANSIENT, reason="abandoned", detail=why)
        for key in [key for key in self.open if key[0] == trial]:
            request = self.open.pop(key).request
            self.study.ledger.record_fault(trial, request.stage, request.attempt, fault, self.clock.now_iso())

    def welcome(self, trial: int) -> None:
        """A trial that is new to the database: no earlier run has made attempts at it."""
        self._fresh.add(trial)

    def _attempts_made(self, trial: int, stage: str) -> int:
        """Counted here once it is known, for each stage of each trial asks."""
        if (trial, stage) in self._made:
            return self._made[trial, stage]
        return 0 if trial in self._fresh else len(self.study.ledger.attempts_of(trial, stage))

    def _file_json(self) -> Json:
        if self._file is None or self._file[0] is not self.study.file:
            self._file = (self.study.file, self.study.file.for_stages())
        return self._file[1]

    def queue(self, candidate: CandidateRow, stage: str, delay_s: float = 0.0) -> None:
        """Plan the next attempt at a stage, or take up the one that an earlier run left open. It is recorded here, and
        published by the next :meth:`submit_due`."""
        again = self._open_before.pop((candidate.trial, stage), None)
        inputs: dict[str, str] = {}
        for result in self.results_of(candidate.trial):
            inputs |= result.artifacts
        made = self._attempts_made(candidate.trial, stage)
        attempt = again.attempt if again else made + 1
        self._made[candidate.trial, stage] = max(made, attempt)
        request = StageRequest(
            study_id=self.study.study_id,
            trial=candidate.trial,
            stage=stage,
            attempt=attempt,
            params=candidate.params,
            seed=candidate.seed,
            inputs=inputs,
            study=self._file_json(),
            sources=self.study.sources,
            stopping=self._stopping_of(candidate, is_new=attempt == 1) if stage == TRAIN_STAGE else None,
        )
        if again is None:
            self.study.ledger.record_attempt(candidate.trial, stage, attempt, request.task_id, self.clock.now_iso())
        self.open[candidate.trial, stage] = OpenAttempt(request=request, due=self.clock.monotonic() + delay_s)

    def _stopping_of(self, candidate: CandidateRow, *, is_new: bool) -> Json | None:
        """The rule of the first attempt holds for all: a repeated training is the same work and ends the same."""
        kept = self.study.ledger.stopping(candidate.trial)
        if kept is None and is_new:
            kept = (self._new_rule(candidate),)
            self.study.ledger.record_stopping(candidate.trial, kept[0])
        return kept[0] if kept else None

    def _new_rule(self, candidate: CandidateRow) -> Json | None:
        """From where the study stands now. The initial design is trained to its end: the search learns from all of
        it."""
        file = self.study.file
        gate = self.results.get(candidate.trial, {}).get(GATE_STAGE)
        if candidate.trial < file.sampler.initial or gate is None or file.early_stopping.mode == "off":
            return None
        finished = [self._finished[trial] for trial in sorted(self._finished)]
        epochs = int(candidate.params.get("training.epochs", file.training.epochs))
        rule = stopping_rule(known_of(gate), epochs, finished, self.study.objectives, file.early_stopping)
        return rule.to_json() if rule is not None else None

    def submit_due(self) -> None:
        now = self.clock.monotonic()
        for item in self.open.values():
            if not item.is_submitted and item.due <= now:
                request = item.request
                self._emit("stage_queued", trial=request.trial, stage=request.stage, attempt=request.attempt)
                self.tell()
                self.evaluator.submit(request)
                item.is_submitted, item.queued = True, now

    def take(self, results: Sequence[StageResult]) -> list[StageEnded]:
        """Record all of them and say which stages are through; those to be tried again are queued here. What happened
        is told by :meth:`tell`, once the transaction is over that this belongs to."""
        return [item for result in results if (item := self._take_one(result)) is not None]

    def tell(self) -> None:
        """Pass on the events of what has been recorded."""
        news, self._news = self._news, []
        for event in news:
            self.sink.emit(event)

    def stop_at_defect(self, ended: Sequence[StageEnded]) -> None:
        """
        Raises:
            EvaluationDefect: one of them is a defect; names trial, stage and what was found.
        """
        for item in ended:
            if item.fault is not None and item.fault.kind is FaultKind.DEFECT:
                raise EvaluationDefect(
                    f"trial {item.trial}, stage {item.stage}: {item.fault.reason}: {self._shown(item, item.fault)}\n"
                    "The study has stopped; nothing is lost. Once the cause is removed, the same command goes on and "
                    "runs this stage again."
                )

    def _shown(self, item: StageEnded, fault: Fault) -> str:
        """The detail of a fault; of one with a traceback the first line, and the file that the whole is written to."""
        first, _, rest = fault.detail.partition("\n")
        if not rest.startswith("Traceback"):
            return fault.detail
        path = self.study.folder / "logs" / f"trial-{item.trial}-{item.stage}.txt"
        try:
            path.parent.mkdir(exist_ok=True)
            path.write_text(fault.detail, encoding="utf-8")
        except OSError as error:
            return f"{first} (its traceback could not be written: {error})"
        return f"{first}; the whole traceback is in {path}"

    def look_for_lost(self) -> list[StageEnded]:
        """Try again what was with a worker that is gone; returns the stages given up."""
        waiting = {item.request.task_id: item for item in self.open.values() if item.is_submitted}
        ended = []
        for task_id in self.evaluator.lost(list(waiting)):
            request = waiting[task_id].request
            detail = f"the worker of stage {request.stage} is gone"
            fault = Fault(kind=FaultKind.TRANSIENT, reason="worker_lost", detail=detail)
            now = self.clock.now_iso()
            self.study.ledger.record_fault(request.trial, request.stage, request.attempt, fault, now, is_lost=True)
            del self.open[request.trial, request.stage]
            self._emit_fault(request, fault)
            ended.append(self._retry(request, fault))
        self.tell()
        return [item for item in ended if item is not None]

    def _take_one(self, result: StageResult) -> StageEnded | None:
        """Act on one result. One that is not awaited (a copy, or too late) is passed over."""
        item = self.open.get((result.trial, result.stage))
        if item is None or result.study_id != self.study.study_id:
            return None
        if result.fault is not None:
            return self._take_fault(item, result, result.fault)
        if not self.study.ledger.record_result(result, self.clock.now_iso()):
            return None
        del self.open[result.trial, result.stage]
        self.results.setdefault(result.trial, {})[result.stage] = result
        self._emit_finished(item, result)
        return StageEnded(trial=result.trial, stage=result.stage)

    def _take_fault(self, item: OpenAttempt, result: StageResult, fault: Fault) -> StageEnded | None:
        request = item.request
        if result.attempt != request.attempt:
            return None  # of an attempt that was given up
        self.study.ledger.record_fault(result.trial, result.stage, result.attempt, fault, self.clock.now_iso())
        del self.open[result.trial, result.stage]
        self._emit_finished(item, result)
        self._emit_fault(request, fault)
        if fault.kind is FaultKind.DEFECT:
            return StageEnded(trial=result.trial, stage=result.stage, fault=fault)
        return self._retry(request, fault)

    def _retry(self, request: StageRequest, fault: Fault) -> StageEnded | None:
        """Try again after a pause, from the stage whose artifact is gone where that is the reason; or give up."""
        attempts = self.study.ledger.attempts_of(request.trial, request.stage)
        failed = [item.fault for item in attempts if item.is_failed and not _is_uncounted(item.fault)]
        short = sum(item is not None and item.reason in MEMORY_REASONS for item in failed)
        if len(failed) >= MAX_ATTEMPTS or short >= MAX_MEMORY_ATTEMPTS:
            return StageEnded(trial=request.trial, stage=request.stage, fault=fault)
        delay_s = self._delay_s(len(failed), fault)
        stage = request.stage
        if fault.reason in ARTIFACT_REASONS and stage != FINAL_STAGE:
            stage = self._take_back(request, fault)
        self._emit("stage_retried", trial=request.trial, stage=stage, reason=fault.reason)
        self.queue(self.study.ledger.candidate(request.trial), stage, delay_s=delay_s)
        return None

    def _delay_s(self, failed: int, fault: Fault) -> float:
        if not self.retry_delays_s:
            return 0.0
        if _is_uncounted(fault):
            return UNCOUNTED_WAITS_S[fault.reason]
        return self.retry_delays_s[min(failed, len(self.retry_delays_s)) - 1]

    def _take_back(self, request: StageRequest, fault: Fault) -> str:
        """The results from the writer of the lost artifact on count no longer; returns that stage."""
        results = self.results.get(request.trial, {})
        writer = self.stages[0]
        for stage, result in results.items():
            if any(sha256 in fault.detail for sha256 in result.artifacts.values()):
                writer = stage
        later = self.stages[self.stages.index(writer) :]
        self.study.ledger.take_back(request.trial, [name for name in later if name != request.stage])
        for name in later:
            results.pop(name, None)
            self.open.pop((request.trial, name), None)  # of another board, beside this one
        return writer

    def _emit_finished(self, item: OpenAttempt, result: StageResult) -> None:
        waited = self.clock.monotonic() - item.queued - result.seconds
        self._emit(
            "stage_finished",
            trial=result.trial,
            stage=result.stage,
            attempt=result.attempt,
            ending=result.ending.value,
            seconds=result.seconds,
            wait_seconds=max(0.0, waited),
            worker=result.worker,
            epochs_saved=_epochs_saved(result),
        )

    def _emit_fault(self, request: StageRequest, fault: Fault) -> None:
        about: Json = {"trial": request.trial, "stage": request.stage, "attempt": request.attempt}
        about |= {"reason": fault.reason, "detail": fault.detail, "kind": fault.kind.value}
        event = Event(name="fault", fields=about)
        self.study.ledger.record_events([event], self.clock.now_iso())
        self._news.append(event)

    def _emit(self, name: str, /, **fields: object) -> None:
        self._news.append(Event(name=name, fields=fields))


def _epochs_saved(result: StageResult) -> int:
    """The epochs that a training which was stopped early left out."""
    stopped = result.notes.get("stopped") if result.ending is Ending.STOPPED else None
    return int(stopped["epochs"]) - int(stopped["epoch"]) if stopped else 0


def _settled(result: StageResult) -> StageResult:
    """What still matters of a result once its trial has ended: that it is there, and its artifacts."""
    return replace(result, values={}, notes={})


def _is_uncounted(fault: Fault | None) -> bool:
    return fault is not None and fault.reason in UNCOUNTED_WAITS_S
