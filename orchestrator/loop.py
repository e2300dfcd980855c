"""The loop: ask for a candidate, record it, take it through the stages, tell how it ended; from wherever it stands.

Everything that matters is in the database before it is acted upon, so the process may be killed anywhere:

=====================================  ===========================================================================
killed between                         what the next run finds and does
=====================================  ===========================================================================
ask and record                         Optuna has a running trial the ledger does not know: it is the next asked for
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from orchestrator.boards import side_by_side, with_worst
from orchestrator.errors import EvaluationDefect
from orchestrator.fittime import counting_fits
from orchestrator.growing import GrowingFront
from orchestrator.ledger import TOLD_ENDINGS, CandidateRow
from orchestrator.ports import Clock, Control, Evaluator, EventSink
from orchestrator.postgres import DatabaseAway
from orchestrator.records import Candidate, Ending, Event, Fault, Outcome, StageResult, Value, Violation
from orchestrator.space import SearchSpace
from orchestrator.stageflow import StageEnded, StageFlow
from orchestrator.standing import Standing
from orchestrator.stopping import has_plateaued
from orchestrator.study import FINAL_STAGE, Study
from orchestrator.telling import tell_outcome

_LOST_EVERY_S = 2.0
_KEEP_TIME_EVERY_S = 5.0
_COLLECT_S = 0.5
_MOST_RECONNECTIONS = 100


class SystemClock:
    """The clock of this machine."""

    def monotonic(self) -> float:
        return monotonic()

    def now_iso(self) -> str:
        return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyEnd:
    """How a run ended. ``reason``: ``budget`` (all trials told), ``wall_clock`` (its time is over), ``plateau`` (the
    last trials gained too little), ``paused`` (on request, with nothing under way) or ``interrupted`` (on request; the
    same command goes on). ``text`` says it in words."""

    reason: str
    text: str
    told: int
    complete: int
    infeasible: int
    faults: int
    hypervolume: float
    front_size: int
    stopped: int = 0


class _ByFile:
    """Nobody steers: as many trials under way as the study file says."""

    def __init__(self, study: Study) -> None:
        self._study = study

    def in_flight(self, could_use: int) -> int:
        return self._study.file.parallelism.trials_in_flight

    def is_pausing(self) -> bool:
        return False

    def take_edits(self) -> bool:
        return False


@dataclass(kw_only=True)
class _Loop:
    study: Study
    evaluator: Evaluator
    sink: EventSink
    clock: Clock
    stop: threading.Event
    control: Control
    flow: StageFlow
    space: SearchSpace
    candidates: dict[int, CandidateRow] = field(default_factory=dict)
    front: GrowingFront
    standing: Standing = field(default_factory=Standing)
    asked: dict[int, Trial] = field(default_factory=dict)
    unrecorded: list[FrozenTrial] = field(default_factory=list)
    hypervolumes: list[float] = field(default_factory=list)
    active_before_s: float = 0.0
    started: float = 0.0
    kept: float = 0.0
    looked: float = 0.0

    @property
    def hypervolume(self) -> float:
        return self.front.hypervolume

    @property
    def front_size(self) -> int:
        return self.front.size

    @property
    def endings(self) -> Counter[Ending]:
        return self.standing.endings

    @property
    def told(self) -> int:
        return sum(self.endings[ending] for ending in TOLD_ENDINGS)

    @property
    def active_s(self) -> float:
        return self.active_before_s + self.clock.monotonic() - self.started

    @property
    def is_out_of_time(self) -> bool:
        limit = self.study.file.budget.wall_clock
        return limit is not None and self.active_s >= limit

    @property
    def has_plateaued(self) -> bool:
        plateau = self.study.file.budget.plateau
        return plateau is not None and has_plateaued(self.hypervolumes, self.study.file.sampler.initial, plateau)

    @property
    def is_over(self) -> bool:
        """Whether the search is: those under way are its last trials."""
        is_spent = self.told + len(self.candidates) >= self.study.file.budget.trials
        return is_spent or self.is_out_of_time or self.has_plateaued

    def wants_candidate(self) -> bool:
        is_begun = len(self.candidates)
        may_begin = not self.is_over and not self.stop.is_set() and not self.control.is_pausing()
        could_use = self.study.file.budget.trials - self.told if may_begin else is_begun
        return is_begun < self.control.in_flight(could_use) and may_begin

    def run(self) -> StudyEnd:
        self.begin()
        while True:
            self.search()
            if self.stop.is_set():
                return self.end("interrupted")
            if not self.is_over:
                return self.end("paused")
            self.fail_unrecorded()
            self.measure_front()
            if self.stop.is_set():
                return self.end("interrupted")
            if self.is_over:  # unless its budget was raised meanwhile
                return self.end(self.spent())

    def search(self) -> None:
        """Begin and end trials until there is nothing under way and nothing to begin, or ``stop`` is set."""
        while (self.candidates or not (self.is_over or self.control.is_pausing())) and not self.stop.is_set():
            if self.wants_candidate():
                self.propose()
            self.turn()

    def spent(self) -> str:
        """What ended the search."""
        if self.told >= self.study.file.budget.trials:
            return "budget"
        return "plateau" if self.has_plateaued else "wall_clock"

    def turn(self) -> None:
        """Publish what is due, take what has come, look for what was lost, make the changes that were asked for.

        What has come is recorded in one transaction with the attempts that follow from it, before any of them is
        published: the disk is waited for once, however many trials are under way.
        """
        if self.control.take_edits():
            self.recount()
        self.flow.submit_due()
        results = self.evaluator.collect(0.0 if self.wants_candidate() else _COLLECT_S)
        with self.study.ledger.together():
            ended = self.flow.take(results)
            over = self.advance(ended)
        self.flow.tell()
        self.flow.submit_due()
        self.flow.stop_at_defect(ended)
        self.conclude(over)
        now = self.clock.monotonic()
        if now - self.looked >= _LOST_EVERY_S:
            self.looked = now
            self.conclude(self.advance(self.flow.look_for_lost()))
        if now - self.kept >= _KEEP_TIME_EVERY_S:
            self.keep_time()

    def advance(self, ended: Sequence[StageEnded]) -> dict[int, Fault | None]:
        """Plan what follows; returns the trials for which nothing does, with the fault that ended them."""
        over: dict[int, Fault | None] = {}
        for item in ended:
            if item.stage == FINAL_STAGE:
                continue  # the trial was told long ago
            if item.trial not in self.candidates or item.trial in over:
                continue  # another board's stage, taken in the same turn, has ended it
            if item.fault is not None:
                self.flow.abandon(item.trial, f"stage {item.stage} of the same trial was given up")
                over[item.trial] = item.fault
            elif not self.proceed(item.trial):
                over[item.trial] = None
        return over

    def conclude(self, over: Mapping[int, Fault | None]) -> None:
        """Close these trials, each by itself."""
        for trial, fault in over.items():
            if fault is not None:
                self.finish(trial, Ending.FAULT, fault=fault)
            else:
                self.conclude_one(trial)

    # -- beginning and ending ------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Take up the study where it stands."""
        self.started = self.kept = self.clock.monotonic()
        row = self.study.ledger.study()
        assert row is not None
        self.active_before_s = row.active_seconds
        everything = self.study.ledger.candidates()
        self.flow.load(everything)
        for candidate in sorted(everything, key=lambda item: item.told or 0):  # gains are counted in that order
            if candidate.outcome is None:
                self.candidates[candidate.trial] = candidate
            else:
                self.count(candidate.outcome)
        self.announce(is_new=not everything)
        self.remember("study_resumed" if everything else "study_started", told=self.told)
        known = {candidate.trial for candidate in everything}
        running = self.study.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self.unrecorded = [trial for trial in running if trial.number not in known]
        for trial in list(self.candidates):
            if not self.proceed(trial):
                self.conclude_one(trial)

    def count(self, outcome: Outcome) -> None:
        """Take an ended candidate into the sums."""
        self.standing.take(outcome.ending, {name: value.amount for name, value in outcome.values.items()})
        if outcome.ending is Ending.COMPLETE:
            self.front.add(self.study.objectives.normalised(self.study.objectives.vector(outcome.values)))
        if outcome.ending in TOLD_ENDINGS:
            self.hypervolumes.append(self.hypervolume)

    def recount(self) -> None:
        """The study was edited: take the sums anew, from its outcomes as they are judged now."""
        self.standing = Standing(limits=self.study.objectives.finite_limits)
        self.front, self.hypervolumes = GrowingFront(reference=self.study.objectives.reference), []
        everything = self.study.ledger.candidates()
        for candidate in sorted(everything, key=lambda item: item.told or 0):
            if candidate.outcome is not None:
                self.count(candidate.outcome)
        self.flow.judge_anew(everything)
        self.announce(is_new=False)

    def announce(self, *, is_new: bool) -> None:
        file = self.study.file
        self.emit("study_started", name=file.name, budget=file.budget.trials, standing=self.standing.to_json())
        if not is_new:
            self.emit("study_resumed", told=self.told)
            if self.front.size:
                self.emit("front_changed", hypervolume=self.hypervolume, front_size=self.front_size)

    def fail_unrecorded(self) -> None:
        """The search is over: trials that were asked for and never recorded are not taken up any more."""
        for trial in self.unrecorded:
            self.study.optuna.tell(trial.number, state=TrialState.FAIL)
        self.unrecorded = []

    def end(self, reason: str) -> StudyEnd:
        self.keep_time()
        text = _text(reason, self)
        self.emit("study_finished", reason=reason, hypervolume=self.hypervolume)
        self.remember("study_finished", reason=reason, hypervolume=self.hypervolume, text=text)
        return StudyEnd(
            reason=reason,
            text=text,
            told=self.told,
            complete=self.endings[Ending.COMPLETE],
            infeasible=self.endings[Ending.INFEASIBLE],
            faults=self.endings[Ending.FAULT],
            hypervolume=self.hypervolume,
            front_size=self.front_size,
            stopped=self.endings[Ending.STOPPED],
        )

    # -- one trial -----------------------------------------------------------------------------------------------

    def propose(self) -> None:
        """Ask, and record before anything else happens."""
        before = self.clock.monotonic()
        searched = {name: item for name, item in self.space.distributions().items() if name not in self.space.fixed}
        with counting_fits() as fits:
            trial = self.ask(searched)
        seconds = self.clock.monotonic() - before
        self.emit("trial_asked", trial=trial.number)
        candidate = Candidate(
            study=self.study.file.name,
            trial=trial.number,
            params={**trial.params, **self.space.fixed},
            seed=trial_seed(self.study.file.seed, trial.number),
        )
        self.asked[candidate.trial] = trial
        self.flow.welcome(candidate.trial)
        with self.study.ledger.together():
            self.study.ledger.record_candidate(candidate.trial, candidate.params, candidate.seed, self.clock.now_iso())
            self.candidates[candidate.trial] = self.study.ledger.candidate(candidate.trial)
            self.proceed(candidate.trial)
        about = {"seconds": seconds, "fit_seconds": fits.seconds, "n_fits": fits.n_fits}
        self.emit("trial_proposed", trial=candidate.trial, params=dict(candidate.params), **about)

    def ask(self, searched: Mapping[str, BaseDistribution]) -> Trial:
        """The next candidate. One that was asked for and never recorded is asked for again under its number, so that an
        interrupted search proposes what it would have proposed."""
        if not self.unrecorded:
            return self.study.optuna.ask(fixed_distributions=dict(searched))
        trial = Trial(self.study.optuna, self.unrecorded.pop(0)._trial_id)
        for name, distribution in searched.items():
            trial._suggest(name, distribution)
        return trial

    def proceed(self, trial: int) -> bool:
        """Queue the next stages of an open candidate; whether there are any, or it is waited for one.

        Of stages that run side by side all are waited for, even when one of them has found the candidate infeasible:
        what is told must not depend on which board was faster.
        """
        results = self.flow.results.get(trial, {})
        for group in side_by_side(self.evaluator.stages):
            ended = [results[stage] for stage in group if stage in results]
            if any(result.ending is Ending.STOPPED for result in ended):
                return False
            if len(ended) < len(group):
                self.begin_stages(trial, [stage for stage in group if stage not in results])
                return True
            if any(result.ending is Ending.INFEASIBLE for result in ended):
                return False
        return False

    def begin_stages(self, trial: int, stages: Sequence[str]) -> None:
        for stage in stages:
            if not self.flow.is_open(trial, stage):
                self.flow.queue(self.candidates[trial], stage)

    def conclude_one(self, trial: int) -> None:
        """All stages have answered, or one stopped early or found the candidate infeasible: close the trial."""
        results = self.flow.results_of(trial)
        stopped = [result for result in results if result.ending is Ending.STOPPED]
        if stopped:
            self.finish(trial, Ending.STOPPED, reason=stopped[0].notes["stopped"]["message"])
            return
        values = self.values_of(results)
        violations = tuple(item for result in results for item in result.violations)
        violations = violations or self.study.objectives.violations(values)
        if violations:
            self.finish(trial, Ending.INFEASIBLE, violations=violations)
            return
        missing = [name for name in self.study.objectives.names if name not in values]
        if missing:
            raise EvaluationDefect(
                f"trial {trial}: no stage gave a value for {', '.join(missing)}; the stages "
                f"{', '.join(result.stage for result in results)} gave {', '.join(values)}. "
                "Take the objective out of the study, or choose a board that can measure it."
            )
        self.finish(trial, Ending.COMPLETE)

    def values_of(self, results: Sequence[StageResult]) -> dict[str, Value]:
        """Later stages know better; of several boards' values the worst stands under the plain name."""
        values = {name: value for result in results for name, value in result.values.items()}
        return with_worst(values, self.study.file.kinds)

    def finish(
        self,
        trial: int,
        ending: Ending,
        *,
        violations: tuple[Violation, ...] = (),
        fault: Fault | None = None,
        reason: str = "",
    ) -> None:
        """Tell Optuna, close the ledger's row, say so."""
        results = self.flow.results_of(trial)
        outcome = Outcome(
            ending=ending,
            values=self.values_of(results),
            artifacts={name: sha256 for result in results for name, sha256 in result.artifacts.items()},
            violations=violations,
            fault=fault,
            stage_seconds={result.stage: result.seconds for result in results},
            reason=reason,
        )
        asked = self.asked.pop(trial, None)
        # Asked by an earlier run, it may have been told before that one ended.
        if asked or not self.study.optuna.get_trials(deepcopy=False)[trial].state.is_finished():
            tell_outcome(self.study.optuna, trial, outcome, self.study.objectives, asked=asked)
        self.emit("trial_told", trial=trial)
        ended = _ended_event(trial, outcome)
        before = self.hypervolume, self.front_size
        self.count(outcome)
        has_changed = (self.hypervolume, self.front_size) != before
        with self.study.ledger.together():
            self.study.ledger.end(trial, outcome, self.clock.now_iso(), [ended])
            if has_changed:
                self.remember("front_changed", hypervolume=self.hypervolume, front_size=self.front_size)
        del self.candidates[trial]
        self.flow.settle(trial, outcome)
        self.sink.emit(ended)
        if has_changed:
            self.emit("front_changed", hypervolume=self.hypervolume, front_size=self.front_size)
        self.check_faults(trial, fault)

    def check_faults(self, trial: int, fault: Fault | None) -> None:
        limit = self.study.file.budget.trials
        if fault is not None and self.endings[Ending.FAULT] > limit:
            raise EvaluationDefect(
                f"{self.endings[Ending.FAULT]} trials have ended in faults, more than the {limit} that are tolerated; "
                f"the last was trial {trial}: {fault.reason}: {fault.detail}. The lab needs attention; the same "
                "command goes on."
            )

    # -- the test split ------------------------------------------------------------------------------------------

    def measure_front(self) -> None:
        """Once the search is over: the error on the test split, for the trials of a front only, once each."""
        self.control.in_flight(0)
        for trial in self.study.on_any_front():
            if FINAL_STAGE not in self.flow.results.get(trial.number, {}):
                self.flow.queue(self.study.ledger.candidate(trial.number), FINAL_STAGE)
        while self.flow.open and not self.stop.is_set():
            self.turn()

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
    control: Control | None = None,
    retry_delays_s: Sequence[float] = (1.0, 5.0),
) -> StudyEnd:
    """Run the study until its budget is used up, its time is over, it has reached a plateau, ``stop`` is set, or
    ``control`` lets it pause.

    Without a plateau exactly ``budget.trials`` trials are told over all runs: complete ones, infeasible ones and those
    stopped early together. A trial that ends in
    a fault is not told and another takes its place, as long as there are no more than ``budget.trials`` of them.

    Raises:
        EvaluationDefect: a stage found a defect, or too many faults; the trial is evaluated again by the next run.
        StudyError: the database cannot be used, or another process runs this study.
        OrchestratorError: the evaluator cannot be reached.
    """
    study.optuna.sampler = sampler
    clock = clock or SystemClock()
    stop = stop or threading.Event()
    control = control or _ByFile(study)

    def run() -> StudyEnd:
        loop = _Loop(
            study=study,
            evaluator=evaluator,
            sink=sink,
            clock=clock,
            stop=stop,
            control=control,
            flow=StageFlow(study=study, evaluator=evaluator, sink=sink, clock=clock, retry_delays_s=retry_delays_s),
            space=SearchSpace.from_parameters(study.file.space),
            standing=Standing(limits=study.objectives.finite_limits),
            front=GrowingFront(reference=study.objectives.reference),
        )
        with study.guarded():
            return loop.run()

    with study.locked():
        return over_lost_connections(run, sink)


def over_lost_connections(run: Callable[[], StudyEnd], sink: EventSink) -> StudyEnd:
    """``run``, begun again from what the database holds where its connection broke amid it: nobody knows whether the
    last transaction was written, and a fresh start asks. Opening a connection waits for a server that is away.

    Raises:
        DatabaseAway: the connection broke again and again, or could not be opened within a minute.
    """
    for _ in range(_MOST_RECONNECTIONS):
        try:
            return run()
        except DatabaseAway as error:
            if not error.was_connected:
                raise
            sink.emit(Event(name="database_lost", fields={"detail": str(error)}))
    return run()


def trial_seed(study_seed: int, trial: int) -> int:
    """What fixes everything random in a trial's evaluation, below 2³¹."""
    digest = hashlib.sha256(f"edgefront trial {study_seed}/{trial}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _ended_event(trial: int, outcome: Outcome) -> Event:
    reason = outcome.reason or "; ".join(item.message for item in outcome.violations)
    reason = reason or (outcome.fault.reason if outcome.fault else "")
    values = {name: value.to_json() for name, value in outcome.values.items()}
    fields = {"trial": trial, "ending": outcome.ending.value, "values": values, "reason": reason}
    return Event(name="trial_ended", fields=fields)


def _text(reason: str, loop: _Loop) -> str:
    if reason == "interrupted":
        return f"stopped after {loop.told} trials, {len(loop.candidates)} under way; the same command goes on from here"
    if reason == "paused":
        return f"paused after {loop.told} trials, none under way"
    if loop.told and not loop.front.size:
        return _all_infeasible(loop)
    early = f" ({loop.endings[Ending.STOPPED]} stopped early)" if loop.endings[Ending.STOPPED] else ""
    return (
        f"{_used(reason, loop)}: {loop.told} trials{early}, {loop.front_size} on the front, "
        f"hypervolume {loop.hypervolume:.4f}"
    )


def _used(reason: str, loop: _Loop) -> str:
    plateau = loop.study.file.budget.plateau
    if reason == "plateau" and plateau is not None:
        return f"the last {plateau.trials} trials raised the hypervolume by no more than {100 * plateau.gain:g} %"
    return "the budget is used up" if reason == "budget" else "the time is used up"


def _all_infeasible(loop: _Loop) -> str:
    """Which limits nobody met, and who came closest."""
    outcomes = [(row.trial, row.outcome) for row in loop.study.ledger.candidates() if row.outcome is not None]
    broken = [(trial, item) for trial, outcome in outcomes for item in outcome.violations]
    once = dict.fromkeys((item.quantity, trial) for trial, item in broken)  # however many boards it is too much for
    counts = Counter(quantity for quantity, _ in once)
    parts = []
    for quantity, count in counts.most_common():
        trial, closest = min(((t, v) for t, v in broken if v.quantity == quantity), key=lambda pair: pair[1].excess)
        parts.append(f"{quantity}: {count} of {loop.told}, closest trial {trial} ({closest.message})")
    return (
        f"none of the {loop.told} candidates is feasible ({'; '.join(parts)}). "
        "Raise the limits, choose a larger board, or let the space reach smaller networks."
    )
