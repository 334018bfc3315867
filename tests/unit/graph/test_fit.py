"""Exact fits. Oracle: the polynomial that made the values, evaluated directly in integers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dse.graph.extent import Extent
from dse.graph.fit import GRID, exact, fit_multilinear

POWERS = [(i, j, m) for i in (0, 1) for j in (0, 1) for m in (0, 1)]


def value(factors: dict[tuple[int, int, int], int], batch: int, query: int, context: int) -> int:
    return sum(k * batch**i * query**j * context**m for (i, j, m), k in factors.items())


@given(st.lists(st.integers(-(10**12), 10**12), min_size=8, max_size=8))
def test_every_multilinear_polynomial_is_reproduced_exactly(coefficients: list[int]) -> None:
    factors = dict(zip(POWERS, coefficients, strict=True))
    extent = fit_multilinear(tuple(value(factors, *point) for point in GRID))
    assert dict(extent.terms) == {p: float(k) for p, k in factors.items() if k}


def test_a_square_is_seen_off_the_grid() -> None:
    extent = fit_multilinear(tuple(query * query for _, query, _ in GRID))
    assert exact(extent, 1, 13, 13) != 169


def test_exact_evaluation_agrees_with_the_float_one() -> None:
    extent = Extent.of({(1, 1, 1): 3, (0, 1, 0): -2, (0, 0, 0): 5})
    assert exact(extent, 2, 3, 5) == float(extent(2, 3, 5)) == 3 * 30 - 6 + 5
