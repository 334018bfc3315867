"""Exact polynomials from probes: integer values on a 2 x 2 x 2 grid determine a multilinear function."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from itertools import product

from dse.graph.extent import Extent, Powers

# Coprime sizes, so that no product of two dimensions looks like another one.
BATCHES = (2, 3)
QUERIES = (5, 7)
CONTEXTS = (11, 17)
GRID: tuple[tuple[int, int, int], ...] = tuple(product(BATCHES, QUERIES, CONTEXTS))


@lru_cache(maxsize=65536)
def fit_multilinear(values: tuple[int, ...]) -> Extent:
    """Return the polynomial with powers 0 and 1 in each variable that takes ``values`` on ``GRID``.

    Newton's divided differences along one axis after the other, in exact rational arithmetic: a function
    that is linear in each variable is reproduced without rounding.

    Args:
        values: one integer per point of ``GRID``, in its order.
    """
    corners: list[Powers] = [(i, j, m) for i in (0, 1) for j in (0, 1) for m in (0, 1)]
    table = dict(zip(corners, map(Fraction, values), strict=True))
    for axis, (low, high) in enumerate((BATCHES, QUERIES, CONTEXTS)):
        for powers in [p for p in table if p[axis] == 0]:
            upper = corners[corners.index(powers) + (4, 2, 1)[axis]]
            at_low, at_high = table[powers], table[upper]
            slope = (at_high - at_low) / (high - low)
            table[powers], table[upper] = at_low - slope * low, slope
    return Extent.of({powers: float(value) for powers, value in table.items()})


def exact(extent: Extent, batch: int, query: int, context: int) -> Fraction:
    """Evaluate in rational arithmetic, for the check at a point outside the grid."""
    return sum((Fraction(k) * batch**i * query**j * context**m for (i, j, m), k in extent.terms), Fraction(0))
