"""Statistics against scipy, numpy and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as oracle

from reports.stats import fit_power_law, non_dominated, ranks, spearman

small = st.integers(min_value=-5, max_value=5).map(float)


@given(st.lists(small, min_size=1, max_size=30))
def test_ranks_equal_scipy(values: list[float]) -> None:
    assert ranks(values) == oracle.rankdata(values).tolist()


@given(st.lists(st.tuples(small, small), min_size=3, max_size=30))
def test_spearman_equals_scipy(pairs: list[tuple[float, float]]) -> None:
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    rho = spearman(a, b)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert rho is None
    else:
        assert rho == pytest.approx(oracle.spearmanr(a, b).statistic)


def test_spearman_needs_three_points() -> None:
    assert spearman([1.0, 2.0], [1.0, 2.0]) is None


@given(st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)), min_size=3, max_size=20))
def test_power_law_equals_numpy_polyfit(pairs: list[tuple[float, float]]) -> None:
    x, y = [a for a, _ in pairs], [b for _, b in pairs]
    if np.ptp(np.log(x)) < 1e-3:
        return
    fit = fit_power_law(x, y)
    slope, offset = np.polyfit(np.log(x), np.log(y), 1)
    if fit is None:
        assert abs(offset) > 690
        return
    assert fit.exponent == pytest.approx(slope, rel=1e-4, abs=1e-6)
    assert np.log(fit.factor) == pytest.approx(offset, rel=1e-4, abs=1e-4)


def test_power_law_is_exact_on_one() -> None:
    fit = fit_power_law([1.0, 2.0, 5.0], [3.0, 6.0, 15.0])
    assert fit is not None
    assert fit(10.0) == pytest.approx(30.0)
    assert fit_power_law([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
    assert fit_power_law([0.0, 1.0, 2.0], [1.0, 1.0, 2.0]) is None


@given(st.lists(st.tuples(st.none() | small, small), max_size=20))
def test_non_dominated_equals_brute_force(pairs: list[tuple[float | None, float]]) -> None:
    x, y = [a for a, _ in pairs], [b for _, b in pairs]
    front = non_dominated(x, y)
    known = {(a, b) for a, b in pairs if a is not None}
    best = {(a, b) for a, b in known if not any(c <= a and d <= b and (c, d) != (a, b) for c, d in known)}
    assert {(x[i], y[i]) for i in front} == best
    assert len(front) == len(best)
    assert [x[i] for i in front] == sorted(x[i] for i in front)
