"""The memory plans of the example studies' networks, from the smallest to the largest of their spaces."""

from __future__ import annotations

import pytest

from tasks.deployment import integer_graph
from tasks.firmware.planner import plan_memory
from tests.support.example_networks import CORNERS, SHAPES, example_network


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_the_arena_is_within_5_percent_of_the_most_that_lives_at_once(name: str, corner: str) -> None:
    plan = plan_memory(integer_graph(example_network(name, corner)))
    assert plan.lower_bound_bytes <= plan.arena_bytes <= 1.05 * plan.lower_bound_bytes
