"""The stage train under a rule: it ends where the rule says, and is the same training up to there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator.records import Ending, Event, StageRequest, StageResult
from orchestrator.stopping import StoppingRule
from tasks import train
from tasks.stage import StageContext, run_stage
from tests.support.studies import request

PARAMS: Mapping[str, Any] = {"network.width": 8, "training.epochs": 4, "training.learning_rate": 0.01}


class Shelf(dict[str, bytes]):
    """Artifacts in memory, under their length."""

    def put_bytes(self, data: bytes) -> str:
        self[str(len(data))] = data
        return str(len(data))

    def get_bytes(self, sha256: str) -> bytes:
        return self[sha256]


def trained(rule: StoppingRule | None, events: list[Event] | None = None) -> StageResult:
    asked: StageRequest = request("train", params=PARAMS, stopping=rule.to_json() if rule else None)
    heard = events if events is not None else []
    return run_stage(train.run, asked, StageContext(artifacts=Shelf(), progress=heard.append))


@pytest.fixture(scope="module")
def whole() -> StageResult:
    return trained(None)


def test_a_training_ends_at_the_epoch_the_rule_names(whole: StageResult) -> None:
    events: list[Event] = []
    result = trained(StoppingRule(threshold=0.0, shares=(0.0, 1.0, 1.0, 1.0)), events)
    assert result.ending is Ending.STOPPED
    assert result.artifacts == {}
    assert result.notes["curve"] == whole.notes["curve"][:2]
    assert result.notes["stopped"]["message"].startswith(
        "stopped early at epoch 2 of 4: would need an error of at most"
    )
    assert [event.fields["epoch"] for event in events] == [1, 2]


def test_a_rule_that_never_applies_changes_nothing(whole: StageResult) -> None:
    result = trained(StoppingRule(threshold=1.0, shares=(1.0,) * 4))
    assert result.ending is Ending.COMPLETE
    assert result.notes == whole.notes
    assert result.values == whole.values
