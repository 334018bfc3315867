"""The planner against enumeration of every order, cut, micro-batch and choice (B1).

Oracle: ``tests.pipeline_problems.exhaustive``, which writes the formulas out again and shares no code.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dse.partition.branch import Limits
from dse.partition.objective import objective_s, penalty_of, violations
from dse.partition.problem import Formula, Goal, PipelineProblem
from dse.partition.solve import Planner, least_penalty, solve
from tests.pipeline_problems import by_mixed_integer_program, exhaustive, random_problem

FORMULAS: tuple[Formula, ...] = ("round", "makespan", "llmpq")


def goals(seed: int) -> list[Goal]:
    """One goal of every formula; the weight and the bound of the penalty rotate with the seed."""
    variants = [(0.0, None), (2.5, None), (0.0, 40.0), (1.5, 50.0)]
    return [Goal(f, *variants[(seed + i) % 4]) for i, f in enumerate(FORMULAS)]


def check(problem: PipelineProblem, goal: Goal) -> bool:
    """Compare the planner with enumeration; return whether the problem was feasible."""
    expected = exhaustive(problem, goal)
    solution = solve(problem, goal, time_limit_s=None)
    if expected is None:
        assert (solution.status, solution.arrangement, solution.value) == ("infeasible", None, None)
        assert solution.binding
        return False
    assert solution.status == "optimal"
    assert solution.arrangement is not None
    assert solution.value == pytest.approx(expected[0], rel=1e-9)
    assert solution.bound is not None
    assert solution.bound <= expected[0] * (1 + 1e-12)
    assert violations(problem, goal, solution.arrangement) == []
    assert objective_s(problem, goal, solution.arrangement) == solution.value
    assert penalty_of(problem, solution.arrangement) == solution.penalty
    return True


def run(seeds: range) -> None:
    n_feasible = sum(check(random_problem(seed), goal) for seed in seeds for goal in goals(seed))
    assert 0.5 * 3 * len(seeds) < n_feasible < 3 * len(seeds)


@pytest.mark.parametrize("start", range(0, 120, 20))
def test_equals_enumeration(start: int) -> None:
    run(range(start, start + 20))


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 2000, 100))
def test_equals_enumeration_of_a_thousand(start: int) -> None:
    run(range(start, start + 100))


@pytest.mark.parametrize("seed", range(10))
def test_three_devices_and_two_sizes(seed: int) -> None:
    problem = random_problem(seed, n_layers=4, n_devices=3, sizes=(1, 2))
    for goal in goals(seed):
        check(problem, goal)


@pytest.mark.parametrize("seed", range(8))
def test_activations_take_memory(seed: int) -> None:
    problem = random_problem(seed, n_layers=5)
    reduced = replace(problem, capacity_bytes=problem.capacity_bytes - 7.0)
    stated = replace(problem, activation_bytes=np.full((1, 1, len(problem.devices)), 7.0))
    for goal in goals(seed):
        expected = exhaustive(reduced, goal)
        value = solve(stated, goal).value
        assert (value is None) == (expected is None)
        if expected is not None:
            assert value == pytest.approx(expected[0], rel=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_least_penalty(seed: int) -> None:
    problem = random_problem(seed, n_layers=5)
    solution = least_penalty(problem)
    huge = exhaustive(problem, Goal(theta_s=1e9))
    assert (solution.value is None) == (huge is None)
    if huge is not None:
        assert solution.value == pytest.approx(huge[1], rel=1e-9)


@pytest.mark.parametrize("start", range(0, 60, 20))
def test_what_the_least_penalty_teaches_is_true(start: int) -> None:
    """Bounds at and near the least penalty, where the quality search rules out most cuts and choices."""
    n_solved = 0
    for seed in range(start, start + 20):
        problem = random_problem(seed, n_layers=5, n_choices=4)
        planner = Planner(problem, Goal())
        least = planner.learn_quality(Limits())
        if least.value is None:
            continue
        for above in (0.0, 1.0, 3.0, 8.0):
            expected = exhaustive(problem, Goal(max_penalty=least.value + above))
            solution = planner.solve(least.value + above)
            assert expected is not None
            assert solution.status == "optimal"
            assert solution.value == pytest.approx(expected[0], rel=1e-9)
            n_solved += 1
    assert n_solved > 20


@pytest.mark.parametrize("seed", range(6))
def test_mid_size_equals_mixed_integer_program(seed: int) -> None:
    """10 layers, 3 devices, 5 choices. Oracle: the textbook program in scipy's HiGHS."""
    problem = random_problem(seed, n_layers=10, n_devices=3, n_choices=5, sizes=(2,))
    problem = replace(
        problem,
        allow_empty=False,
        capacity_bytes=np.full(3, 55.0 + 4 * seed),
        orders=problem.orders[:2],
    )
    for goal in (Goal(), Goal(theta_s=3.0), Goal(max_penalty=55.0)):
        expected = by_mixed_integer_program(problem, goal)
        solution = solve(problem, goal)
        assert (solution.value is None) == (expected is None)
        if expected is not None:
            assert solution.value == pytest.approx(expected, rel=1e-7)
            assert solution.status == "optimal"


@pytest.mark.parametrize("start", range(0, 30, 10))
def test_interchangeable_layers_branch_on_counts(start: int) -> None:
    """Runs of equal layers with enumerations too small to help, so that every cut is branched."""
    n_branched = 0
    for seed in range(start, start + 10):
        problem = random_problem(seed)
        of_layer = np.array([0, 0, 0, 3, 3, 3] if seed % 2 else [0, 0, 0, 0, 0, 0])
        problem = replace(
            problem,
            prefill_s=problem.prefill_s[:, :, of_layer],
            decode_s=problem.decode_s[:, :, of_layer],
            allowed=problem.allowed[:, of_layer],
            memory_bytes=problem.memory_bytes[of_layer],
            penalty=problem.penalty[of_layer],
        )
        for goal in goals(seed):
            expected = exhaustive(problem, goal)
            planner = Planner(problem, goal, Limits(first_labels=1, max_labels=1))
            solution = planner.solve(goal.max_penalty)
            assert (solution.value is None) == (expected is None)
            if expected is not None:
                assert solution.status == "optimal"
                assert solution.value == pytest.approx(expected[0], rel=1e-9)
            n_branched += planner.last.n_branched if planner.last else 0
    assert n_branched > 0
