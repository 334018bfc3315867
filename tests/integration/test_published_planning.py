"""Published planning problems, replayed to their printed digits.

Oracle: the log of LLM-PQ's evaluation on cluster 3 (recorded objectives and memory), and optima that two
independent solvers proved (data files of the planning folder).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dse.partition.objective import objective_s, stage_use, violations
from dse.partition.problem import Arrangement, Formula, Goal, PipelineProblem
from dse.partition.solve import solve
from tests.pipeline_problems import MIB, measured_cluster, only, published_cluster

PRINTED_S = 5.1e-6  # the files print 1e-5 s
TABLE_S = 5e-8  # the recovered layer times are printed to 1e-7 s
CORRECTED = "makespan"  # the files' corrected objective drains the last decode round


def rounding_s(problem: PipelineProblem, goal: Goal, arrangement: Arrangement) -> float:
    """Largest effect of the tables' rounding: the objective is sublinear, so it is that of the errors."""
    errors = replace(
        problem,
        prefill_s=np.full_like(problem.prefill_s, TABLE_S),
        decode_s=np.full_like(problem.decode_s, TABLE_S),
    )
    return PRINTED_S + objective_s(errors, goal, arrangement)


def test_recorded_plans_cost_what_the_log_says(shared_data: Path) -> None:
    problem, plans, _ = published_cluster(shared_data)
    assert len(plans) == 4
    for plan in plans:
        assert not violations(problem, Goal(), plan.arrangement)
        for formula, recorded_s in (("llmpq", plan.llmpq_s), (CORRECTED, plan.round_s)):
            goal = Goal(formula)
            slack = rounding_s(problem, goal, plan.arrangement)
            assert slack < 2e-3
            assert objective_s(problem, goal, plan.arrangement) == pytest.approx(recorded_s, abs=slack)


def test_recorded_memory(shared_data: Path) -> None:
    problem, plans, _ = published_cluster(shared_data)
    use = stage_use(problem, plans[0].arrangement)
    layers_mib = use.memory_bytes / MIB - np.array([problem.first_bytes / MIB, 0, 0, 0])
    np.testing.assert_array_equal(layers_mib, [9580, 11828, 11828, 28360])


@pytest.mark.parametrize("allow_empty", [False, True])
@pytest.mark.parametrize(("order", "name"), [(0, "T4_first"), (1, "V100_first")])
@pytest.mark.parametrize(("formula", "column"), [("llmpq", "llmpq"), (CORRECTED, "round")])
def test_optimum_of_the_recorded_tables(
    shared_data: Path, order: int, name: str, formula: Formula, column: str, allow_empty: bool
) -> None:
    problem, _, data = published_cluster(shared_data)
    problem = replace(only(problem, order=order), allow_empty=allow_empty)
    solution = solve(problem, Goal(formula))
    assert solution.status == "optimal"
    assert solution.arrangement is not None
    slack = rounding_s(problem, Goal(formula), solution.arrangement)
    assert solution.value == pytest.approx(data["optimum"][f"objective_{column}_s"][name], abs=slack)
    assert solution.bound == pytest.approx(solution.value, rel=1e-8)


def test_the_published_plan_is_optimal_by_its_own_formula_only(shared_data: Path) -> None:
    problem, plans, _ = published_cluster(shared_data)
    published = next(plan for plan in plans if plan.name == "LLM-PQ").arrangement
    own = solve(problem, Goal("llmpq"))
    assert own.value == pytest.approx(objective_s(problem, Goal("llmpq"), published), rel=1e-9)
    corrected = solve(problem, Goal(CORRECTED))
    assert corrected.value is not None
    excess = objective_s(problem, Goal(CORRECTED), published) / corrected.value - 1
    assert excess == pytest.approx(0.0026, abs=5e-5)


@pytest.mark.parametrize(("order", "name"), [(0, "T4_first"), (1, "V100_first")])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_optimum_of_the_measured_tables(shared_data: Path, order: int, name: str, size: int) -> None:
    problem, data = measured_cluster(shared_data)
    if size == 8:
        problem = replace(problem, first_bytes=published_cluster(shared_data)[0].first_bytes)
    problem = only(problem, order=order, prefill=problem.prefill_micro_batches.index(size))
    for formula, value_ms in zip(("llmpq", CORRECTED), data["optimum_ms"][name][f"eta{size}"], strict=True):
        solution = solve(problem, Goal(formula))
        assert solution.status == "optimal"
        assert solution.value == pytest.approx(value_ms / 1e3, abs=PRINTED_S)


def test_best_plan_of_the_measured_tables(shared_data: Path) -> None:
    problem, _ = measured_cluster(shared_data)
    arrangement = solve(problem, Goal("llmpq")).arrangement
    assert arrangement is not None
    assert arrangement.prefill_micro_batch == 2
    assert [stage[1:] for stage in arrangement.stages] == [(0, 18), (18, 28), (28, 38), (38, 48)]
    assert problem.device_types[arrangement.stages[0][0]] == "V100"
    np.testing.assert_array_equal(np.bincount(arrangement.choices[:18], minlength=4), [0, 0, 7, 11])
    assert set(arrangement.choices[18:]) == {2}
