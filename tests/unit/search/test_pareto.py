"""Fronts and hypervolumes.

Oracles: the definition of dominance in O(n^2), closed forms, inclusion-exclusion over all subsets, Monte
Carlo, and optuna's own hypervolume.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dse.search.pareto import hypervolume, hypervolume_gain, non_dominated, pareto_front

small_points = st.integers(1, 4).flatmap(
    lambda d: st.integers(1, 12).flatmap(
        lambda n: arrays(np.float64, (n, d), elements=st.integers(0, 5).map(float))
    )
)


def by_definition(points: np.ndarray) -> np.ndarray:
    no_worse = (points[:, None] <= points[None]).all(axis=2)
    better = (points[:, None] < points[None]).any(axis=2)
    return ~(no_worse & better).any(axis=0)


def by_inclusion_exclusion(points: np.ndarray, reference: np.ndarray) -> float:
    total = 0.0
    for n in range(1, len(points) + 1):
        for subset in itertools.combinations(range(len(points)), n):
            corner = points[list(subset)].max(axis=0)
            total -= (-1) ** n * np.prod(np.maximum(reference - corner, 0.0))
    return total


@given(small_points)
def test_non_dominated_equals_its_definition(points: np.ndarray) -> None:
    np.testing.assert_array_equal(non_dominated(points), by_definition(points))


@given(small_points)
def test_front_has_every_value_once(points: np.ndarray) -> None:
    index = pareto_front(points)
    expected = np.unique(points[by_definition(points)], axis=0)
    np.testing.assert_array_equal(points[index], expected)


@pytest.mark.parametrize("n_objectives", [2, 3, 4])
def test_non_dominated_of_many(n_objectives: int) -> None:
    points = np.random.default_rng(0).normal(size=(2000, n_objectives))
    np.testing.assert_array_equal(non_dominated(points), by_definition(points))


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_hypervolume_of_staircases(n: int) -> None:
    """Points (i, n - 1 - i) below (n, n): n * n minus a triangle of unit squares, n (n - 1) / 2."""
    stairs = np.array([(i, n - 1 - i) for i in range(n)], float)
    assert hypervolume(stairs, (n, n)) == n * n - n * (n - 1) // 2
    # a third and fourth objective of constant height only multiply
    for extra in (1, 2):
        points = np.concatenate([stairs, np.zeros((n, extra))], axis=1)
        assert hypervolume(points, (n, n, *[3.0] * extra)) == 3**extra * (n * n - n * (n - 1) // 2)


@given(
    st.integers(1, 5).flatmap(
        lambda d: st.integers(1, 7).flatmap(
            lambda n: arrays(np.float64, (n, d), elements=st.integers(0, 6).map(float))
        )
    )
)
def test_hypervolume_equals_inclusion_exclusion(points: np.ndarray) -> None:
    reference = np.full(points.shape[1], 5.0)
    assert hypervolume(points, reference) == pytest.approx(
        by_inclusion_exclusion(points, reference), abs=1e-9
    )


@pytest.mark.parametrize("n_objectives", [2, 3, 4, 5])
def test_hypervolume_equals_optuna(n_objectives: int) -> None:
    from optuna._hypervolume.wfg import compute_hypervolume

    rng = np.random.default_rng(n_objectives)
    points = rng.random((40, n_objectives))
    reference = np.full(n_objectives, 0.9)
    inside = points[(points < reference).all(axis=1)]
    assert hypervolume(points, reference) == pytest.approx(compute_hypervolume(inside, reference), rel=1e-9)


@pytest.mark.parametrize("n_objectives", [2, 3, 4])
def test_hypervolume_against_sampling(n_objectives: int) -> None:
    rng = np.random.default_rng(7)
    points = rng.random((15, n_objectives))
    samples = rng.random((40_000, n_objectives))
    share = (samples[:, None] >= points[None]).all(axis=2).any(axis=1).mean()
    error = np.sqrt(share * (1 - share) / len(samples))
    assert hypervolume(points, np.ones(n_objectives)) == pytest.approx(share, abs=5 * error)


@given(small_points)
def test_gain_is_the_difference(points: np.ndarray) -> None:
    reference = np.full(points.shape[1], 5.0)
    gain = hypervolume_gain(points[0], points[1:], reference)
    without = hypervolume(points[1:], reference) if len(points) > 1 else 0.0
    assert gain == pytest.approx(hypervolume(points, reference) - without, abs=1e-9)


def test_nothing_below_the_reference() -> None:
    assert hypervolume([[2.0, 0.0]], (1.0, 1.0)) == 0.0
    assert hypervolume_gain([2.0, 0.0], np.empty((0, 2)), (1.0, 1.0)) == 0.0


def test_bad_points_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        non_dominated([[float("nan"), 1.0]])
    with pytest.raises(ValueError, match="shape"):
        non_dominated([1.0, 2.0])
    with pytest.raises(ValueError, match="reference has 3"):
        hypervolume([[0.0, 0.0]], (1.0, 1.0, 1.0))
