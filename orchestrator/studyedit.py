"""Changing a study that has begun: a larger budget, tighter limits.

A limit that is tightened holds for the whole study, for the trials that were told as well: complete ones that are
beyond it are infeasible from then on, judged by the values that were recorded. The search goes on from the history as
it is judged now, and the hypervolume is measured up to the new limits, so it cannot be compared with what it was
before. A limit cannot be widened: trials that were found infeasible under it were never trained, and an objective
cannot be added: nobody measured it in the trials that there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import yaml

from orchestrator.errors import UsageError
from orchestrator.ledger import TOLD_ENDINGS
from orchestrator.objectives import Objectives
from orchestrator.quantities import counted, exact
from orchestrator.records import Ending, Event, Json, Outcome
from orchestrator.study import STUDY_COPY, Study
from orchestrator.studyfile import OBJECTIVE_UNITS, StudyFile, parse_quantity
from orchestrator.telling import FIRST_LIMITS_ATTR


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyEdit:
    """What is to be different: the budget of trials, that of time (s), limits by objective (in its unit)."""

    trials: int | None = None
    wall_clock_s: float | None = None
    limits: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return self.trials is None and self.wall_clock_s is None and not self.limits

    def to_json(self) -> Json:
        return {"version": 1, "trials": self.trials, "wall_clock_s": self.wall_clock_s, "limits": dict(self.limits)}

    @staticmethod
    def from_json(data: Json) -> StudyEdit:
        return StudyEdit(trials=data["trials"], wall_clock_s=data["wall_clock_s"], limits=data["limits"])


def parse_limit(text: str) -> tuple[str, float]:
    """``"latency=20 ms"`` → ``("latency", 0.02)``.

    Raises:
        UsageError: no such objective, or no quantity of its unit above 0.
    """
    name, equals, amount = (part.strip() for part in text.partition("="))
    if not equals or name not in OBJECTIVE_UNITS:
        raise UsageError(f"--limit: found {text!r}; write NAME=AMOUNT with one of {', '.join(OBJECTIVE_UNITS)}")
    try:
        limit = float(parse_quantity(amount, OBJECTIVE_UNITS[name]))
    except ValueError as error:
        raise UsageError(f"--limit {name}: {error}") from error
    if not 0 < limit < float("inf"):
        raise UsageError(f"--limit {name}: found {amount}; allowed is any number above 0")
    return name, limit


def edited(file: StudyFile, objectives: Objectives, edit: StudyEdit) -> StudyFile:
    """The study file with the change made to it; ``objectives`` are the study's as they are.

    Raises:
        UsageError: the change cannot be made; names each field, what it is, and why.
    """
    wrong = [*_wrong_budget(file, edit), *_wrong_limits(objectives, edit)]
    if wrong:
        raise UsageError(f"study {file.name} cannot be changed so:\n" + "\n".join(f"  {line}" for line in wrong))
    budget = {"trials": edit.trials, "wall_clock": edit.wall_clock_s}
    changed = {name: value for name, value in budget.items() if value is not None}
    limited = {
        name: item.model_copy(update={"limit": edit.limits[name]} if name in edit.limits else {})
        for name, item in file.objectives.items()
    }
    update = {"budget": file.budget.model_copy(update=changed), "objectives": limited}
    return StudyFile.from_json(file.model_copy(update=update).to_json())


def _wrong_budget(file: StudyFile, edit: StudyEdit) -> list[str]:
    found = []
    budget = file.budget
    if edit.trials is not None and edit.trials < budget.trials:
        found.append(f"budget.trials: is {budget.trials}, asked for is {edit.trials}; it may only be raised")
    if edit.wall_clock_s is not None and (budget.wall_clock is None or edit.wall_clock_s < budget.wall_clock):
        now = "without bound" if budget.wall_clock is None else exact(budget.wall_clock, "s")
        found.append(
            f"budget.wall_clock: is {now}, asked for is {exact(edit.wall_clock_s, 's')}; it may only be raised"
        )
    return found


def _wrong_limits(objectives: Objectives, edit: StudyEdit) -> list[str]:
    found = []
    known = dict(zip(objectives.names, objectives.limits, strict=True))
    for name, limit in edit.limits.items():
        unit = OBJECTIVE_UNITS[name]
        if name not in known:
            found.append(
                f"objectives.{name}: is no objective of the study ({', '.join(known)}), so its trials have not been "
                "searched by it; begin a new study that has it"
            )
        elif limit > known[name]:
            found.append(
                f"objectives.{name}.limit: is {exact(known[name], unit, name)}, asked for is "
                f"{exact(limit, unit, name)}; it may only be tightened: candidates beyond the old limit were given up "
                "before they had all values"
            )
    return found


def judged(outcome: Outcome, objectives: Objectives) -> Outcome:
    """The outcome under these limits: a complete one beyond any of them is infeasible, all others stay as they are."""
    violations = objectives.violations(outcome.values) if outcome.ending is Ending.COMPLETE else ()
    return replace(outcome, ending=Ending.INFEASIBLE, violations=violations) if violations else outcome


def apply_edit(study: Study, edit: StudyEdit, objectives_of: Callable[[StudyFile], Objectives], at: str) -> str:
    """Make the change to the study, whose sole runner the caller must be; says in words what is different.

    One transaction; applied twice it changes nothing the second time. ``objectives_of`` gives the objectives of a file
    on the study's boards.

    Raises:
        UsageError: it cannot be made; nothing was changed.
        StudyError: the database cannot be written; nothing was changed.
    """
    file = edited(study.file, study.objectives, edit)
    objectives = objectives_of(file)
    if file == study.file:
        return "nothing to change"
    with study.guarded():
        if objectives != study.objectives and FIRST_LIMITS_ATTR not in study.optuna.user_attrs:
            first = dict(zip(study.objectives.names, study.objectives.limits, strict=True))
            study.optuna.set_user_attr(FIRST_LIMITS_ATTR, first)
        told = [row for row in study.ledger.candidates() if row.outcome and row.outcome.ending in TOLD_ENDINGS]
        now = {row.trial: judged(row.outcome, objectives) for row in told if row.outcome}
        changed = {row.trial: now[row.trial] for row in told if now[row.trial] != row.outcome}
        text = _text(study.file, file, sorted(changed))
        fields = {"edit": edit.to_json(), "infeasible_now": sorted(changed), "text": text}
        as_json = {"names": objectives.names, "units": objectives.units, "limits": objectives.limits}
        study.ledger.judge_again(file.to_json(), as_json, changed, Event(name="study_edited", fields=fields), at)
    study.file, study.objectives = file, objectives
    copy = yaml.safe_dump(file.to_json(), sort_keys=False, allow_unicode=True)
    (study.folder / STUDY_COPY).write_text(f"# as edited: {text}\n{copy}", encoding="utf-8")
    return text


def _text(before: StudyFile, after: StudyFile, infeasible: list[int]) -> str:
    parts = []
    if after.budget.trials != before.budget.trials:
        parts.append(f"{after.budget.trials} trials instead of {before.budget.trials}")
    if after.budget.wall_clock != before.budget.wall_clock:
        parts.append(f"at most {exact(after.budget.wall_clock or 0.0, 's')}")
    for name, objective in after.objectives.items():
        if objective != before.objectives[name] and objective.limit is not None:
            parts.append(f"{name} at most {exact(objective.limit, OBJECTIVE_UNITS[name], name)}")
            parts.append(
                f"{counted(len(infeasible), 'trial')} {'is' if len(infeasible) == 1 else 'are'} infeasible now"
            )
    return ", ".join(dict.fromkeys(parts))
