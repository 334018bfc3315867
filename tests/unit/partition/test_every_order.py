"""The bound over all orders. Oracle: enumeration of every order, subset, cut, micro-batch and choice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dse.partition.every_order import bound_of_every_order
from dse.partition.instances import seeded
from dse.partition.problem import Formula, Goal, Objective
from dse.partition.solve import solve
from tests.pipeline_problems import exhaustive, random_problem

FORMULAS: tuple[Formula, ...] = ("round", "makespan", "llmpq")


@pytest.mark.parametrize("start", range(0, 60, 20))
def test_nothing_beats_it(start: int) -> None:
    tight = []
    for seed in range(start, start + 20):
        problem = random_problem(seed, n_layers=4, n_devices=3)
        one_order = replace(problem, orders=problem.orders[:1], allow_empty=False)
        for formula, most, theta_s in zip(FORMULAS, (None, 30.0, 40.0), (0.0, 0.0, 1.5), strict=True):
            goal = Goal(formula, max_penalty=most, theta_s=theta_s)
            expected = exhaustive(replace(problem, allow_empty=True), goal)
            bound = bound_of_every_order(one_order, goal)
            assert bound is not None
            if expected is not None:
                assert bound <= expected[0] * (1 + 1e-9)
                tight.append(bound / expected[0])
    assert len(tight) > 20
    assert np.median(tight) > 0.5  # four layers on three devices are far from fractions


def test_is_near_where_layers_are_many() -> None:
    problem = seeded(n_layers=24, all_orders=True)
    goal = Goal()
    solution = solve(problem, goal, time_limit_s=10.0, gap_frac=1e-3)
    bound = bound_of_every_order(replace(problem, orders=problem.orders[:1]), goal)
    assert bound is not None
    assert solution.value is not None
    assert 0.9 * solution.value < bound <= solution.value


@pytest.mark.parametrize("objective", ["energy", "cost"])
def test_makes_no_claim_of_money_and_energy(objective: Objective) -> None:
    assert bound_of_every_order(random_problem(0), Goal(objective=objective)) is None
