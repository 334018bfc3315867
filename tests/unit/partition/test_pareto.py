"""Fronts over several quantities. Oracle: every arrangement of tiny problems, priced one by one."""

from __future__ import annotations

import numpy as np
import pytest

from dse.partition.objective import penalty_of, quantity, violations
from dse.partition.pareto import AXES, Axis, objective_front
from dse.partition.problem import Goal
from tests.unit.partition.test_objectives import arrangements, priced_problem


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("axes", [("quality", "time"), ("quality", "tpot", "energy", "cost")])
def test_points_are_proven_and_not_beaten(seed: int, axes: tuple[Axis, ...]) -> None:
    problem, goal = priced_problem(seed), Goal("makespan")
    rows = []
    for plan in arrangements(problem):
        if not violations(problem, goal, plan):
            values = [
                penalty_of(problem, plan) if a == "quality" else quantity(problem, goal, plan, a)
                for a in axes
            ]
            rows.append(values)
    front = objective_front(problem, goal, axes, n_points=9, gap_frac=1e-9)
    assert bool(front) == bool(rows)
    if not rows:
        return
    table = np.array(rows)
    assert len(front) >= 1
    for axis in axes:  # the best of every axis is reached
        best = min(point.values[axis] for point in front)
        assert best <= table[:, axes.index(axis)].min() * (1 + 1e-6) + 1e-12
    for point in front:
        assert point.solution.gap_frac is not None
        assert point.solution.gap_frac <= 1e-6
        ok = np.ones(len(table), bool)
        for axis, bound in point.bounds.items():
            ok &= table[:, axes.index(axis)] <= bound * (1 + 1e-9)
        least = table[ok][:, axes.index(point.minimised)].min()
        assert point.values[point.minimised] == pytest.approx(least, rel=1e-6, abs=1e-12)


def test_every_axis_can_be_minimised() -> None:
    for axis in AXES[1:]:
        front = objective_front(priced_problem(1), Goal("makespan"), ("quality", axis), n_points=3)
        assert front
