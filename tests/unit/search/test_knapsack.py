"""Exact allocation.

Oracles: enumeration of all allocations for few units, scipy's mixed-integer solver for more.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from dse.search.knapsack import allocate, allocation_front
from dse.search.pareto import pareto_front


def random_instance(
    seed: int, n_units: int, n_choices: int, *, integer: bool
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    if integer:
        return tuple(rng.integers(0, 12, (2, n_units, n_choices)).astype(float))
    size = rng.uniform(1, 9, (n_units, 1)) * np.sort(rng.uniform(2, 16, (n_units, n_choices)), axis=1)
    penalty = rng.lognormal(0, 1, (n_units, 1)) * np.exp2(
        -np.arange(n_choices) + rng.normal(0, 0.3, (n_units, n_choices))
    )
    return penalty, size


def all_totals(penalty: np.ndarray, size: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """(M, 2) size and penalty of every allocation."""
    options = [np.flatnonzero(row) for row in allowed]
    picks = np.array(list(itertools.product(*options)))
    units = np.arange(len(size))
    return np.stack([size[units, picks].sum(axis=1), penalty[units, picks].sum(axis=1)], axis=1)


def by_milp(penalty: np.ndarray, size: np.ndarray, budget: float) -> float:
    n_units, n_choices = penalty.shape
    one = np.kron(np.eye(n_units), np.ones(n_choices))
    result = milp(
        penalty.ravel(),
        constraints=[LinearConstraint(one, 1, 1), LinearConstraint(size.ravel()[None], -np.inf, budget)],
        integrality=np.ones(penalty.size),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    return float(result.fun)


@given(st.integers(0, 10_000), st.booleans(), st.floats(0, 1))
def test_allocate_equals_enumeration(seed: int, integer: bool, share: float) -> None:
    penalty, size = random_instance(seed, 5, 3, integer=integer)
    allowed = np.random.default_rng(seed).random(size.shape) > 0.2
    allowed[:, 0] = True
    totals = all_totals(penalty, size, allowed)
    budget = totals[:, 0].min() + share * np.ptp(totals[:, 0]) - 0.5
    result = allocate(penalty, size, budget, allowed)
    fits = totals[:, 0] <= budget * (1 + 1e-12)
    if not fits.any():
        assert result.status == "infeasible"
        assert result.missing_size == pytest.approx(totals[:, 0].min() - budget)
        return
    assert result.status == "optimal"
    assert result.penalty == pytest.approx(totals[fits, 1].min(), rel=1e-9, abs=1e-12)
    assert result.bound == result.penalty
    units = np.arange(5)
    assert result.size == pytest.approx(size[units, list(result.choices)].sum())
    assert allowed[units, list(result.choices)].all()


@given(st.integers(0, 10_000), st.booleans())
def test_front_equals_enumeration(seed: int, integer: bool) -> None:
    penalty, size = random_instance(seed, 5, 3, integer=integer)
    totals = all_totals(penalty, size, np.ones(size.shape, bool))
    expected = totals[pareto_front(np.round(totals, 9))]
    front = allocation_front(penalty, size)
    np.testing.assert_allclose([(a.size, a.penalty) for a in front], expected, rtol=1e-9, atol=1e-9)
    for allocation in front:
        assert size[np.arange(5), list(allocation.choices)].sum() == pytest.approx(allocation.size)


@pytest.mark.parametrize("seed", range(12))
def test_allocate_equals_mixed_integer_program(seed: int) -> None:
    penalty, size = random_instance(seed, 40, 4, integer=False)
    budget = size.min(axis=1).sum() + (0.05 + 0.07 * seed) * np.ptp(size, axis=1).sum()
    result = allocate(penalty, size, budget)
    assert result.status == "optimal"
    assert result.size is not None
    assert result.size <= budget * (1 + 1e-9)
    assert result.penalty == pytest.approx(by_milp(penalty, size, budget), rel=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_front_agrees_with_every_budget(seed: int) -> None:
    penalty, size = random_instance(seed, 14, 4, integer=False)
    front = allocation_front(penalty, size)
    for point in front[:: max(1, len(front) // 25)]:
        assert point.size is not None
        assert allocate(penalty, size, point.size).penalty == pytest.approx(point.penalty, rel=1e-9)


def test_never_worse_than_uniform_of_the_same_size() -> None:
    penalty, size = random_instance(5, 60, 5, integer=False)
    for k in range(5):
        result = allocate(penalty, size, size[:, k].sum())
        assert result.penalty is not None
        assert result.penalty <= penalty[:, k].sum() * (1 + 1e-12)


def test_thinned_front_keeps_its_stated_error() -> None:
    """Every exact point has a thinned one that is no larger, and worse by the stated error at most."""
    penalty, size = random_instance(2, 14, 4, integer=False)
    exact = allocation_front(penalty, size)
    thin = allocation_front(penalty, size, max_labels=60)
    assert len(thin) < len(exact)
    error = thin[0].penalty - thin[0].bound
    assert 0 < error < 0.5 * (exact[0].penalty - exact[-1].penalty)
    sizes = np.array([a.size for a in thin])
    penalties = np.array([a.penalty for a in thin])
    for point in exact:
        assert penalties[sizes <= point.size + 1e-9].min() <= point.penalty + error + 1e-9


def test_label_limit_gives_a_gap_instead_of_a_wrong_proof() -> None:
    penalty, size = random_instance(3, 40, 4, integer=False)
    budget = size.min(axis=1).sum() + 0.4 * np.ptp(size, axis=1).sum()
    exact, limited = allocate(penalty, size, budget), allocate(penalty, size, budget, max_labels=1)
    if limited.status == "optimal":
        assert limited.penalty == pytest.approx(exact.penalty)
    else:
        assert limited.bound <= exact.penalty <= limited.penalty


def test_a_loose_budget_takes_the_best_of_every_unit() -> None:
    penalty, size = random_instance(1, 10, 3, integer=False)
    assert allocate(penalty, size, 1e9).penalty == pytest.approx(penalty.min(axis=1).sum())


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        allocate(np.ones((2, 2)), np.ones((2, 3)), 1.0)
    with pytest.raises(ValueError, match="unit 1 has no allowed"):
        allocate(np.ones((2, 2)), np.ones((2, 2)), 5.0, np.array([[True, True], [False, False]]))
    with pytest.raises(ValueError, match="finite"):
        allocate(np.full((1, 1), np.inf), np.ones((1, 1)), 5.0)
