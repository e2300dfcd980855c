"""How far a study has come, folded from its trials one by one: endings, and the lowest error that was reached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.records import Ending, Json

ERROR = "error"


@dataclass(kw_only=True)
class Standing:
    """``limits`` are those of the objectives that have one, in base units.

    ``best_error`` is the lowest error of a complete trial, ``best_under[name]`` that of any trial within the limit of
    the objective ``name``, whatever else it breaks: where it lies far above the others, that limit is what costs error.
    """

    limits: Mapping[str, float] = field(default_factory=dict)
    endings: Counter[Ending] = field(default_factory=Counter)
    best_error: float | None = None
    best_under: dict[str, float] = field(default_factory=dict)

    @property
    def feasible_share(self) -> float | None:
        """Complete trials among those that were judged; None before the first. Stopped ones were not judged."""
        judged = self.endings[Ending.COMPLETE] + self.endings[Ending.INFEASIBLE]
        return self.endings[Ending.COMPLETE] / judged if judged else None

    def take(self, ending: Ending, amounts: Mapping[str, float]) -> None:
        """Count a trial that ended with these amounts, in base units."""
        self.endings[ending] += 1
        error = amounts.get(ERROR)
        if error is None:
            return
        if ending is Ending.COMPLETE:
            self.best_error = _lower(self.best_error, error)
        for name, limit in self.limits.items():
            if name in amounts and amounts[name] <= limit:
                self.best_under[name] = _lower(self.best_under.get(name), error)

    def to_json(self) -> Json:
        return {
            "limits": dict(self.limits),
            "endings": {ending.value: count for ending, count in self.endings.items()},
            "best_error": self.best_error,
            "best_under": dict(self.best_under),
        }

    @staticmethod
    def from_json(data: Json) -> Standing:
        return Standing(
            limits=data["limits"],
            endings=Counter({Ending(ending): count for ending, count in data["endings"].items()}),
            best_error=data["best_error"],
            best_under=dict(data["best_under"]),
        )


def _lower(before: float | None, amount: float) -> float:
    return amount if before is None else min(before, amount)
