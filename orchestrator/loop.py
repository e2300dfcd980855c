"""The loop: ask for a candidate, record it, take it through the stages, tell how it ended; from wherever it stands.

Everything that matters is in the database before it is acted upon, so the process may be killed anywhere:

=====================================  ===========================================================================
killed between                         what the next run finds and does
=====================================  ===========================================================================
ask and record                         Optuna has a running trial the ledger does not know: it is failed there
record and submit                      a candidate without an open attempt: its next stage is queued
submit and result                      an open attempt: published again under the same task id; work done is recalled
result and the next stage              a result without a successor: the next stage is queued
last result and tell                   all results there: the trial is told
tell and the ledger's end              Optuna has it finished: only the ledger's row is closed
=====================================  ===========================================================================
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic

import numpy as np
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from orchestrator.arrays import FloatArray
from orchestrator.errors import EvaluationDefect
from orchestrator.ledger import CandidateRow, StageAttempt
from orchestrator.pareto import hypervolume, non_dominated
from orchestrator.ports import Clock, Evaluator, EventSink
from orchestrator.records import (
    Candidate,
    Ending,
    Event,
    Fault,
    FaultKind,
    Json,
    Outcome,
    StageRequest,
    StageResult,
    Violation,
)
from orchestrator.sampler import tell_outcome
from orchestrator.space import SearchSpace
from orchestrator.study import FINAL_STAGE, Study

MAX_ATTEMPTS = 3
# What a stage reports when an artifact it was to read is gone or damaged: the stage that wrote it runs again.
ARTIFACT_REASONS = ("artifact_missing", "artifact_altered")
_LOST_EVERY_S = 2.0
_KEEP_TIME_EVERY_S = 5.0
_COLLECT_S = 0.5


class SystemClock:
    """The clock of this machine."""

    def monotonic(self) -> float:
        return monotonic()

    def now_iso(self) -> str:
        return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyEnd:
    """How a run ended. ``reason``: ``budget`` (all trials told), ``wall_clock`` (its time is used up) or ``stopped``
    (on request; the same command goes on). ``message`` says it in words."""

    reason: str
    message: str
    told: int
    complete: int
    infeasible: int
    faults: int
    hypervolume: float
    front_size: int


@dataclass(kw_only=True)
class _Open:
    """An attempt that is queued or will be at ``due`` (monotonic seconds)."""

    request: StageRequest
    due: float
    queued: float = 0.0
    is_submitted: bool = False


@dataclass(kw_only=True)
class _Loop:
    study: Study
    evaluator: Evaluator
    sink: EventSink
    clock: Clock
    stop: threading.Event
    retry_delays_s: Sequence[float]
    space: SearchSpace
    open: dict[tuple[int, str], _Open] = field(default_factory=dict)
    candidates: dict[int, CandidateRow] = field(default_factory=dict)
    results: dict[int, dict[str, StageResult]] = field(default_factory=dict)
    endings: Counter[Ending] = field(default_factory=Counter)
    points: list[FloatArray] = field(default_factory=list)
    hypervolume: float = 0.0
    front_size: int = 0
    active_before_s: float = 0.0
    started: float = 0.0
    kept: float = 0.0
    looked: float = 0.0

    # -- what there is to do -------------------------------------------------------------------------------------

    @property
    def stages(self) -> tuple[str, ...]:
        return self.evaluator.stages

    @property
    def told(self) -> int:
        return self.endings[Ending.COMPLETE] + self.endings[Ending.INFEASIBLE]

    @property
    def active_s(self) -> float:
        return self.active_before_s + self.clock.monotonic() - self.started

    @property
    def is_out_of_time(self) -> bool:
        limit = self.study.file.budget.wall_clock
        return limit is not None and self.active_s >= limit

    def wants_candidate(self) -> bool:
        file = self.study.file
        in_flight = len(self.candidates)
        return (
            not self.is_out_of_time
            and not self.stop.is_set()
            and in_flight < file.parallelism.trials_in_flight
            and self.told + in_flight < file.budget.trials
        )

    def run(self) -> StudyEnd:
        self.begin()
        while self.candidates or self.wants_candidate():
            if self.stop.is_set():
                return self.end("stopped")
            if self.wants_candidate():
                self.propose()
            self.turn()
        self.measure_front()
        if self.stop.is_set():
            return self.end("stopped")
        return self.end("budget" if self.told >= self.study.file.budget.trials else "wall_clock")

    def turn(self) -> None:
        """Publish what is due, take what has come, look for what was lost."""
        self.submit_due()
        timeout = 0.0 if self.wants_candidate() else _COLLECT_S
        self.take(self.evaluator.collect(timeout))
        now = self.clock.monotonic()
        if now - self.looked >= _LOST_EVERY_S:
            self.looked = now
            self.look_for_lost()
        if now - self.kept >= _KEEP_TIME_EVERY_S:
            self.keep_time()

    # -- beginning and ending ------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Take up the study where it stands."""
        self.started = self.kept = self.clock.monotonic()
        row = self.study.ledger.study()
        assert row is not None
        self.active_before_s = row.active_seconds
        everything = self.study.ledger.candidates()
        for result in self.study.ledger.results():
            self.results.setdefault(result.trial, {})[result.stage] = result
        for candidate in everything:
            if candidate.state == "open":
                self.candidates[candidate.trial] = candidate
            else:
                self.count(candidate)
        self.announce(is_new=not everything)
        self.fail_unrecorded({candidate.trial for candidate in everything})
        attempts = self.open_attempts()
        for trial in list(self.candidates):
            self.proceed(trial, attempts)

    def count(self, candidate: CandidateRow) -> None:
        """Take an ended candidate into the sums."""
        outcome = candidate.outcome
        assert outcome is not None
        self.endings[outcome.ending] += 1
        if outcome.ending is Ending.COMPLETE:
            self.points.append(self.study.objectives.normalised(self.study.objectives.vector(outcome.values)))
            self.measure()

    def announce(self, *, is_new: bool) -> None:
        file = self.study.file
        self.emit("study_started", name=file.name, budget=file.budget.trials)
        if not is_new:
            self.emit("study_resumed", told=self.told)
            if self.points:
                self.emit("front_changed", hypervolume=self.hypervolume, front_size=self.front_size)
        self.remember("study_started" if is_new else "study_resumed", told=self.told)

    def fail_unrecorded(self, known: set[int]) -> None:
        """Trials that were proposed and never recorded: nothing was queued for them and nobody knows them."""
        for trial in self.study.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number not in known:
                self.study.optuna.tell(trial.number, state=TrialState.FAIL)

    def open_attempts(self) -> dict[tuple[int, str], StageAttempt]:
        return {(item.trial, item.stage): item for item in self.study.ledger.attempts() if item.is_open}

    def end(self, reason: str) -> StudyEnd:
        self.keep_time()
        message = _message(reason, self)
        self.emit("study_finished", reason=reason, hypervolume=self.hypervolume)
        self.remember("study_finished", reason=reason, hypervolume=self.hypervolume, message=message)
        return StudyEnd(
            reason=reason,
            message=message,
            told=self.told,
            complete=self.endings[Ending.COMPLETE],
            infeasible=self.endings[Ending.INFEASIBLE],
            faults=self.endings[Ending.FAULT],
            hypervolume=self.hypervolume,
            front_size=self.front_size,
        )

    # -- asking and queueing -------------------------------------------------------------------------------------

    def propose(self) -> None:
        """Ask, and record before anything else happens."""
        before = self.clock.monotonic()
        searched = {name: item for name, item in self.space.distributions().items() if name not in self.space.fixed}
        trial = self.study.optuna.ask(fixed_distributions=searched)
        seconds = self.clock.monotonic() - before
        candidate = Candidate(
            study=self.study.file.name,
            trial=trial.number,
            params={**trial.params, **self.space.fixed},
            seed=trial_seed(self.study.file.seed, trial.number),
        )
        now = self.clock.now_iso()
        self.emit("trial_asked", trial=trial.number)
        self.study.ledger.record_candidate(trial.number, candidate.params, candidate.seed, now)
        self.candidates[trial.number] = CandidateRow(
            trial=trial.number,
            params=candidate.params,
            seed=candidate.seed,
            state="open",
            told=None,
            started_at=now,
            ended_at=None,
            outcome=None,
        )
        self.emit("trial_proposed", trial=trial.number, params=dict(candidate.params), seconds=seconds)
        self.proceed(trial.number, {})

    def proceed(self, trial: int, attempts: dict[tuple[int, str], StageAttempt]) -> None:
        """Do what comes next for an open candidate: its next stage, or its end."""
        results = self.results.get(trial, {})
        for stage in self.stages:
            if stage not in results:
                self.queue(self.candidates[trial], stage, attempts.get((trial, stage)))
                return
            if results[stage].ending is Ending.INFEASIBLE:
                break
        self.conclude(trial)

    def queue(
        self, candidate: CandidateRow, stage: str, again: StageAttempt | None = None, delay_s: float = 0.0
    ) -> None:
        """Plan an attempt: ``again`` one that is open already, or the next. It is published when it is due."""
        results = self.results.get(candidate.trial, {})
        inputs: dict[str, str] = {}
        for earlier in self.stages:
            if earlier == stage:
                break
            inputs |= results[earlier].artifacts
        attempts = self.study.ledger.attempts_of(candidate.trial, stage)
        request = StageRequest(
            study_id=self.study.study_id,
            trial=candidate.trial,
            stage=stage,
            attempt=again.attempt if again else len(attempts) + 1,
            params=candidate.params,
            seed=candidate.seed,
            inputs=inputs,
            study=self.study.file.to_json(),
        )
        if again is None:
            self.study.ledger.record_attempt(
                candidate.trial, stage, request.attempt, request.task_id, self.clock.now_iso()
            )
        self.open[candidate.trial, stage] = _Open(request=request, due=self.clock.monotonic() + delay_s)
        self.submit_due()

    def submit_due(self) -> None:
        now = self.clock.monotonic()
        for item in self.open.values():
            if not item.is_submitted and item.due <= now:
                request = item.request
                self.emit("stage_queued", trial=request.trial, stage=request.stage, attempt=request.attempt)
                self.evaluator.submit(request)
                item.is_submitted, item.queued = True, now
                self.emit("stage_submitted", trial=request.trial, stage=request.stage, attempt=request.attempt)

    # -- taking results ------------------------------------------------------------------------------------------

    def take(self, results: Sequence[StageResult]) -> None:
        """Record all of them; a defect among them stops the study after that.

        Raises:
            EvaluationDefect: names trial, stage and what was found.
        """
        defect: StageResult | None = None
        for result in results:
            is_defect = self.take_one(result)
            defect = result if is_defect and defect is None else defect
        if defect is not None and defect.fault is not None:
            raise EvaluationDefect(
                f"trial {defect.trial}, stage {defect.stage}: {defect.fault.reason}: {defect.fault.detail}\n"
                "The study has stopped; nothing is lost. Once the cause is removed, the same command goes on and runs "
                "this stage again."
            )

    def take_one(self, result: StageResult) -> bool:
        """Act on one result; True for a defect. One that is not awaited (a copy, one that came too late) is passed over."""
        item = self.open.get((result.trial, result.stage))
        if item is None or result.study_id != self.study.study_id:
            return False
        self.emit("result_received", trial=result.trial, stage=result.stage, attempt=result.attempt)
        if result.fault is not None:
            return self.take_fault(item.request, result, result.fault)
        if self.study.ledger.record_result(result, self.clock.now_iso()):
            del self.open[result.trial, result.stage]
            self.results.setdefault(result.trial, {})[result.stage] = result
            self.emit_finished(item, result)
            if result.stage != FINAL_STAGE:
                self.proceed(result.trial, {})
        return False

    def take_fault(self, request: StageRequest, result: StageResult, fault: Fault) -> bool:
        if result.attempt != request.attempt:
            return False  # of an attempt that was given up
        now = self.clock.now_iso()
        self.study.ledger.record_fault(result.trial, result.stage, result.attempt, fault, now)
        item = self.open.pop((result.trial, result.stage))
        self.emit_finished(item, result)
        self.emit_fault(request, fault)
        if fault.kind is FaultKind.DEFECT:
            return True
        self.retry(request, fault)
        return False

    def emit_finished(self, item: _Open, result: StageResult) -> None:
        waited = self.clock.monotonic() - item.queued - result.seconds
        self.emit(
            "stage_finished",
            trial=result.trial,
            stage=result.stage,
            attempt=result.attempt,
            ending=result.ending.value,
            seconds=result.seconds,
            wait_seconds=max(0.0, waited),
            worker=result.worker,
        )

    def emit_fault(self, request: StageRequest, fault: Fault) -> None:
        about: Json = {"trial": request.trial, "stage": request.stage, "attempt": request.attempt}
        about |= {"reason": fault.reason, "detail": fault.detail, "kind": fault.kind.value}
        self.emit("fault", **about)
        self.remember("fault", **about)

    def look_for_lost(self) -> None:
        waiting = {item.request.task_id: item for item in self.open.values() if item.is_submitted}
        for task_id in self.evaluator.lost(list(waiting)):
            request = waiting[task_id].request
            fault = Fault(
                kind=FaultKind.TRANSIENT, reason="worker_lost", detail=f"the worker of stage {request.stage} is gone"
            )
            now = self.clock.now_iso()
            self.study.ledger.record_fault(request.trial, request.stage, request.attempt, fault, now, is_lost=True)
            del self.open[request.trial, request.stage]
            self.emit_fault(request, fault)
            self.retry(request, fault)

    def retry(self, request: StageRequest, fault: Fault) -> None:
        """Try again after a pause, from the stage whose artifact is gone where that is the reason; or give up."""
        failed = sum(item.is_failed for item in self.study.ledger.attempts_of(request.trial, request.stage))
        if failed >= MAX_ATTEMPTS:
            if request.stage != FINAL_STAGE:
                self.finish(request.trial, Ending.FAULT, fault=fault)
            return
        delay_s = self.retry_delays_s[min(failed, len(self.retry_delays_s)) - 1] if self.retry_delays_s else 0.0
        stage = request.stage
        if fault.reason in ARTIFACT_REASONS and stage != FINAL_STAGE:
            stage = self.writer_of(request, fault)
            later = self.stages[self.stages.index(stage) :]
            self.study.ledger.take_back(request.trial, [name for name in later if name != request.stage])
            for name in later:
                self.results.get(request.trial, {}).pop(name, None)
        candidate = self.candidates.get(request.trial) or self.row_of(request.trial)
        self.queue(candidate, stage, delay_s=delay_s)

    def writer_of(self, request: StageRequest, fault: Fault) -> str:
        """The stage that wrote the artifact named in the fault; the first one if none is."""
        for stage, result in self.results.get(request.trial, {}).items():
            if any(sha256 in fault.detail for sha256 in result.artifacts.values()):
                return stage
        return self.stages[0]

    # -- telling -------------------------------------------------------------------------------------------------

    def conclude(self, trial: int) -> None:
        """All stages have answered, or one found the candidate infeasible: close the trial."""
        results = self.results[trial]
        violations = tuple(item for result in results.values() for item in result.violations)
        values = {name: value for result in self.in_order(trial) for name, value in result.values.items()}
        violations = violations or self.study.objectives.violations(values)
        if violations:
            self.finish(trial, Ending.INFEASIBLE, violations=violations)
            return
        missing = [name for name in self.study.objectives.names if name not in values]
        if missing:
            raise EvaluationDefect(
                f"trial {trial}: no stage gave a value for {', '.join(missing)}; the stages {', '.join(results)} gave "
                f"{', '.join(values)}. Take the objective out of the study, or choose a board that can measure it."
            )
        self.finish(trial, Ending.COMPLETE)

    def in_order(self, trial: int) -> list[StageResult]:
        results = self.results.get(trial, {})
        return [results[stage] for stage in self.stages if stage in results]

    def finish(
        self, trial: int, ending: Ending, *, violations: tuple[Violation, ...] = (), fault: Fault | None = None
    ) -> None:
        """Tell Optuna, close the ledger's row, say so."""
        results = self.in_order(trial)
        outcome = Outcome(
            ending=ending,
            values={name: value for result in results for name, value in result.values.items()},
            artifacts={name: sha256 for result in results for name, sha256 in result.artifacts.items()},
            violations=violations,
            fault=fault,
            stage_seconds={result.stage: result.seconds for result in results},
        )
        self.tell(trial, outcome)
        reason = "; ".join(item.message for item in violations) or (fault.reason if fault else "")
        values = {name: value.to_json() for name, value in outcome.values.items()}
        ended = Event(
            name="trial_ended", fields={"trial": trial, "ending": ending.value, "values": values, "reason": reason}
        )
        self.emit("trial_told", trial=trial)
        self.study.ledger.end(trial, outcome, self.clock.now_iso(), [ended])
        candidate = self.candidates.pop(trial)
        self.endings[ending] += 1
        self.sink.emit(ended)
        if ending is Ending.COMPLETE:
            self.add_point(self.study.objectives.normalised(self.study.objectives.vector(outcome.values)))
        if ending is Ending.FAULT:
            self.check_faults(candidate, fault)

    def tell(self, trial: int, outcome: Outcome) -> None:
        if not self.study.optuna.get_trials(deepcopy=False)[trial].state.is_finished():
            tell_outcome(self.study.optuna, trial, outcome, self.study.objectives)
        # Finished already: told by a run that was killed right after.

    def check_faults(self, candidate: CandidateRow, fault: Fault | None) -> None:
        limit = self.study.file.budget.trials
        if self.endings[Ending.FAULT] > limit:
            reason = f"{fault.reason}: {fault.detail}" if fault else "unknown"
            raise EvaluationDefect(
                f"{self.endings[Ending.FAULT]} trials have ended in faults, more than the {limit} the budget tolerates; "
                f"the last was trial {candidate.trial}: {reason}. The lab needs attention; the same command goes on."
            )

    def add_point(self, point: FloatArray) -> None:
        before = self.hypervolume, self.front_size
        self.points.append(point)
        self.measure()
        if (self.hypervolume, self.front_size) != before:
            self.emit("front_changed", hypervolume=self.hypervolume, front_size=self.front_size)
            self.remember("front_changed", hypervolume=self.hypervolume, front_size=self.front_size)

    def measure(self) -> None:
        points = np.array(self.points)
        self.hypervolume = hypervolume(points, self.study.objectives.reference)
        self.front_size = int(non_dominated(points).sum())

    # -- the test split ------------------------------------------------------------------------------------------

    def measure_front(self) -> None:
        """Once the search is over: the error on the test split, for the trials of the front only, once each."""
        attempts = self.open_attempts()
        for trial in self.study.front():
            if FINAL_STAGE in self.results.get(trial.number, {}):
                continue
            self.queue(self.row_of(trial.number), FINAL_STAGE, attempts.get((trial.number, FINAL_STAGE)))
        while self.open and not self.stop.is_set():
            self.turn()

    def row_of(self, trial: int) -> CandidateRow:
        return next(row for row in self.study.ledger.candidates() if row.trial == trial)

    # -- rims ----------------------------------------------------------------------------------------------------

    def emit(self, name: str, /, **fields: object) -> None:
        self.sink.emit(Event(name=name, fields=fields))

    def remember(self, name: str, /, **fields: object) -> None:
        self.study.ledger.record_events([Event(name=name, fields=fields)], self.clock.now_iso())

    def keep_time(self) -> None:
        self.kept = self.clock.monotonic()
        self.study.ledger.set_active_seconds(self.active_s)


def run_study(
    study: Study,
    evaluator: Evaluator,
    sampler: BaseSampler,
    *,
    sink: EventSink,
    clock: Clock | None = None,
    stop: threading.Event | None = None,
    retry_delays_s: Sequence[float] = (1.0, 5.0),
) -> StudyEnd:
    """Run the study until its budget is used up, its time is over, or ``stop`` is set.

    Exactly ``budget.trials`` trials are told over all runs, complete and infeasible ones together. A trial that ends in
    a fault is not told and another takes its place, as long as there are no more than ``budget.trials`` of them.

    Raises:
        EvaluationDefect: a stage found a defect, or too many faults; the trial is evaluated again by the next run.
        StudyError: the database cannot be used, or another process runs this study.
        OrchestratorError: the evaluator cannot be reached.
    """
    study.optuna.sampler = sampler
    loop = _Loop(
        study=study,
        evaluator=evaluator,
        sink=sink,
        clock=clock or SystemClock(),
        stop=stop or threading.Event(),
        retry_delays_s=retry_delays_s,
        space=SearchSpace.from_parameters(study.file.space),
    )
    with study.locked(), study.guarded():
        return loop.run()


def trial_seed(study_seed: int, trial: int) -> int:
    """What fixes everything random in a trial's evaluation, below 2³¹."""
    digest = hashlib.sha256(f"edgefront trial {study_seed}/{trial}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _message(reason: str, loop: _Loop) -> str:
    if reason == "stopped":
        return f"stopped after {loop.told} trials, {len(loop.candidates)} under way; the same command goes on from here"
    if loop.told and not loop.points:
        return _all_infeasible(loop)
    used = "the budget is used up" if reason == "budget" else "the time is used up"
    return f"{used}: {loop.told} trials, {loop.front_size} on the front, hypervolume {loop.hypervolume:.4f}"


def _all_infeasible(loop: _Loop) -> str:
    """Which limits nobody met, and who came closest."""
    outcomes = [(row.trial, row.outcome) for row in loop.study.ledger.candidates() if row.outcome is not None]
    broken = [(trial, item) for trial, outcome in outcomes for item in outcome.violations]
    counts = Counter(item.quantity for _, item in broken)
    parts = []
    for quantity, count in counts.most_common():
        trial, closest = min(((t, v) for t, v in broken if v.quantity == quantity), key=lambda pair: pair[1].excess)
        parts.append(f"{quantity}: {count} of {loop.told}, closest trial {trial} ({closest.message})")
    return (
        f"none of the {loop.told} candidates is feasible ({'; '.join(parts)}). "
        "Raise the limits, choose a larger board, or let the space reach smaller networks."
    )
