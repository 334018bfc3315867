"""Properties of the planner that hold for every problem."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dse.partition.problem import Formula, Goal, PipelineProblem
from dse.partition.solve import solve
from tests.pipeline_problems import random_problem

seeds = st.integers(0, 100_000)
formulas = st.sampled_from(["round", "makespan", "llmpq"])
few = settings(max_examples=25, deadline=None)


def value(problem: PipelineProblem, goal: Goal) -> float:
    """The optimum, infinite where nothing is feasible."""
    solution = solve(problem, goal)
    assert solution.status in ("optimal", "infeasible")
    return np.inf if solution.value is None else solution.value


@few
@given(seeds, formulas, st.integers(0, 30))
def test_more_memory_never_hurts(seed: int, formula: Formula, extra: int) -> None:
    problem = random_problem(seed)
    larger = replace(problem, capacity_bytes=problem.capacity_bytes + extra)
    assert value(larger, Goal(formula)) <= value(problem, Goal(formula)) * (1 + 1e-9)


@few
@given(seeds, formulas, st.integers(20, 60), st.integers(0, 20))
def test_a_looser_penalty_never_hurts(seed: int, formula: Formula, bound: int, extra: int) -> None:
    problem = random_problem(seed)
    tight, loose = (value(problem, Goal(formula, max_penalty=float(b))) for b in (bound, bound + extra))
    assert loose <= tight * (1 + 1e-9)
    assert value(problem, Goal(formula)) <= loose * (1 + 1e-9)


@few
@given(seeds, formulas)
def test_slower_layers_never_help(seed: int, formula: Formula) -> None:
    problem = random_problem(seed)
    rng = np.random.default_rng(seed)
    slower = replace(
        problem,
        prefill_s=problem.prefill_s + rng.integers(0, 5, problem.prefill_s.shape[-2:]),
        decode_s=problem.decode_s + rng.integers(0, 5, problem.decode_s.shape[-2:]),
    )
    assert value(slower, Goal(formula)) >= value(problem, Goal(formula)) * (1 - 1e-9)


@few
@given(seeds, formulas, st.integers(-20, 20))
def test_time_scales(seed: int, formula: Formula, power: int) -> None:
    """All times in another unit, the value in that unit (powers of two are exact)."""
    problem, factor = random_problem(seed), 2.0**power
    names = ("prefill_s", "decode_s", "hop_prefill_s", "hop_decode_s")
    names += ("first_prefill_s", "first_decode_s", "last_prefill_s", "last_decode_s")
    scaled = replace(problem, **{name: getattr(problem, name) * factor for name in names})
    expected = value(problem, Goal(formula))
    if np.isfinite(expected):
        assert value(scaled, Goal(formula)) == pytest.approx(expected * factor, rel=1e-9)


@few
@given(seeds, formulas)
def test_order_of_choices_does_not_matter(seed: int, formula: Formula) -> None:
    problem = random_problem(seed)
    shuffled = np.random.default_rng(seed).permutation(problem.memory_bytes.shape[1])
    other = replace(
        problem,
        **{
            name: np.ascontiguousarray(getattr(problem, name)[..., shuffled])
            for name in ("prefill_s", "decode_s", "allowed", "memory_bytes", "penalty")
        },
    )
    goal = Goal(formula, theta_s=1.0)
    first, second = value(problem, goal), value(other, goal)
    assert first == second or first == pytest.approx(second, rel=1e-9)


@few
@given(seeds)
def test_the_published_formula_is_the_drained_one_without_hops_and_rounds(seed: int) -> None:
    """With one decode token both count the prefill alone, LLM-PQ one decode step more."""
    problem = replace(random_problem(seed), output_tokens=1)
    zero = np.zeros_like(problem.hop_prefill_s)
    problem = replace(problem, hop_prefill_s=zero, hop_decode_s=zero, decode_s=0 * problem.decode_s)
    problem = replace(
        problem,
        first_decode_s=0 * problem.first_decode_s,
        last_decode_s=0 * problem.last_decode_s,
    )
    values = [value(problem, Goal(f)) for f in ("round", "makespan", "llmpq")]
    assert values[0] == values[1] == pytest.approx(values[2]) or not np.isfinite(values[0])
