"""The accounts of replicas against their definitions."""

from __future__ import annotations

import math

import pytest

from dse.graph.workload import Workload
from dse.partition.layout.ledger import Ledger
from dse.partition.problem import Goal

LEDGER = Ledger(Goal(objective="throughput"), Workload(8, 16, 4), separate=False)


@pytest.mark.parametrize("seconds", [0.25, 4.0])
def test_a_part_of_the_rate_gives_its_seconds_back(seconds: float) -> None:
    part = LEDGER.part("throughput", seconds, 2, "both")
    assert part == -2 / seconds
    assert LEDGER.value("throughput", part, 2, "both") == seconds


def test_a_bound_of_no_seconds_bounds_no_rate() -> None:
    assert LEDGER.part("throughput", 0.0, 2, "both") == -math.inf
    assert LEDGER.objective_of(LEDGER.total("throughput", [("both", -math.inf)])) == 0.0
