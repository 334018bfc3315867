"""Polynomials. Oracle: the ring laws, and evaluation in plain numbers."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dse.graph.extent import Extent, total, volume

powers = st.tuples(*[st.integers(0, 2)] * 3)
extents = st.dictionaries(powers, st.integers(-50, 50), max_size=4).map(
    lambda terms: Extent.of({p: float(k) for p, k in terms.items()})
)
points = st.tuples(*[st.integers(1, 9)] * 3)


@given(extents, extents, points)
def test_sums_and_products_of_the_values(one: Extent, other: Extent, at: tuple[int, int, int]) -> None:
    assert (one + other)(*at) == one(*at) + other(*at)
    assert (one * other)(*at) == one(*at) * other(*at)
    assert (3 * one)(*at) == 3 * one(*at)


@given(extents, extents)
def test_equal_polynomials_are_equal_objects(one: Extent, other: Extent) -> None:
    assert one + other == other + one
    assert one * other == other * one
    assert one + (-1) * one == Extent()


def test_arguments_broadcast() -> None:
    extent = Extent.of({(1, 0, 0): 2, (0, 1, 1): 1})
    values = extent(np.arange(3)[:, None], 5, np.arange(4))
    expected = [[2.0 * batch + 5.0 * context for context in range(4)] for batch in range(3)]
    np.testing.assert_array_equal(values, expected)


def test_total_and_volume() -> None:
    sizes = (Extent.of({(1, 0, 0): 1}), Extent.of({(0, 1, 0): 1}), Extent.constant(7))
    assert volume(sizes) == Extent.of({(1, 1, 0): 7})
    assert total(list(sizes))(2, 3, 4) == 2 + 3 + 7
    assert total([]) == Extent()
