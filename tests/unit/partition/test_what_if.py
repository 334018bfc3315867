"""Plans after a change, and the reference programs. Oracles: the planner from scratch, enumeration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dse.partition.branch import Limits
from dse.partition.instances import llmpq_cluster3
from dse.partition.lanes import LaneFactory
from dse.partition.objective import violations
from dse.partition.problem import Goal
from dse.partition.reference import Solver, solve_lane
from dse.partition.solve import solve
from dse.partition.what_if import lost_devices, with_prices, without_device
from tests.pipeline_problems import exhaustive, only, published_cluster, random_problem


@pytest.mark.parametrize("seed", range(8))
def test_a_lost_device_is_replanned_exactly(seed: int) -> None:
    problem = random_problem(seed, n_layers=5, n_devices=3)
    goal = Goal(max_penalty=40.0)
    plan = solve(problem, goal).arrangement
    if plan is None:
        return
    changes = list(lost_devices(problem, goal, plan, Limits(gap_frac=1e-9)))
    assert len(changes) == len(plan.stages)
    for change, (device, first, end) in zip(changes, plan.stages, strict=True):
        expected = exhaustive(without_device(problem, device), goal)
        assert (change.solution.value is None) == (expected is None)
        if expected is None:
            continue
        assert change.solution.value == pytest.approx(expected[0], rel=1e-9)
        assert change.solution.arrangement is not None
        assert not violations(problem, replace(goal), replace(change.solution.arrangement)) or (
            not problem.allow_empty
        )
        assert set(range(first, end)) <= set(change.moved_layers)
        assert change.moved_bytes > 0


def test_prices_change_the_cheapest_plan() -> None:
    problem = replace(random_problem(2, n_layers=5), allow_empty=True, price_usd_per_h=(1.0, 5.0))
    problem = replace(problem, capacity_bytes=np.full(2, 1e6), allowed=np.ones_like(problem.allowed))
    goal = Goal(objective="cost")
    before = solve(problem, goal)
    assert before.arrangement is not None
    change = with_prices(problem, goal, before.arrangement, (1e6, 1e-6), Limits(gap_frac=1e-9))
    expected = solve(replace(problem, price_usd_per_h=(1e6, 1e-6)), goal)
    assert change.solution.value == pytest.approx(expected.value)
    assert change.solution.arrangement is not None
    assert [stage[0] for stage in change.solution.arrangement.stages] == [1]


@pytest.mark.parametrize("solver", ["highs", "scip", "sat"])
def test_reference_programs_agree(solver: Solver) -> None:
    for seed in range(4):
        problem = replace(random_problem(seed, n_layers=5), allow_empty=False)
        for goal in (Goal(), Goal("llmpq"), Goal("makespan", max_penalty=40.0)):
            for lane in LaneFactory(problem, goal).lanes():
                alone = replace(problem, orders=(lane.devices,))
                expected = exhaustive(alone, goal)
                found = solve_lane(lane, goal.max_penalty, solver, time_limit_s=20)
                assert (found.value is None) == (expected is None)
                if expected is not None:
                    assert found.value == pytest.approx(expected[0], rel=1e-4)
                    assert found.bound <= expected[0] * (1 + 1e-4)


def test_benchmark_instance_is_the_published_one(shared_data: Path) -> None:
    published, _, _ = published_cluster(shared_data)
    published = replace(only(published, order=1), allow_empty=False)
    ours = llmpq_cluster3()
    goal = Goal("makespan")
    assert solve(ours, goal).value == pytest.approx(solve(published, goal).value, rel=1e-9)
