"""Exact polynomials from probes: integer values on a small grid determine the function that is fitted.

A decoder's sizes are linear in each of (batch, query length, context length), so 2 x 2 x 2 points are enough.
An encoder attends to its own tokens, so its sizes are quadratic in the query length and know no context; a
vision model has a fixed number of patches, so its sizes depend on the batch alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Probe:
    """Where sizes are measured, and the polynomials that they determine.

    Attributes:
        grid: (batch, query, context) of the passes that are fitted.
        checks: of the passes that must agree with the fit.
        powers: exponents of (batch, query, context) of the fitted terms, as many as grid points.
    """

    grid: tuple[tuple[int, int, int], ...]
    checks: tuple[tuple[int, int, int], ...]
    powers: tuple[Powers, ...]

    @property
    def step(self) -> Probe:
        """Decode steps alone: what a module does differently for a single token is linear in the others."""
        points = tuple(product(BATCHES, (1,), CONTEXTS))
        return Probe(points, (), tuple((i, 0, m) for i in (0, 1) for m in (0, 1)))

    @property
    def points(self) -> tuple[tuple[int, int, int], ...]:
        """All points."""
        return (*self.grid, *self.checks)

    def fitter(self) -> Callable[[tuple[int, ...]], Extent]:
        """Return the function from values on the grid to the polynomial that takes them."""
        if self == DECODER:
            return fit_multilinear
        inverse = _inverse([[_monomial(point, powers) for powers in self.powers] for point in self.grid])

        @lru_cache(maxsize=65536)
        def fit(values: tuple[int, ...]) -> Extent:
            solved = (sum(k * value for k, value in zip(row, values, strict=True)) for row in inverse)
            return Extent.of({powers: float(k) for powers, k in zip(self.powers, solved, strict=True)})

        return fit


def _monomial(point: tuple[int, int, int], powers: Powers) -> Fraction:
    value = 1
    for size, power in zip(point, powers, strict=True):
        value *= size**power
    return Fraction(value)


def _inverse(matrix: list[list[Fraction]]) -> list[list[Fraction]]:
    """Invert a small matrix exactly, by Gauss-Jordan elimination."""
    size = len(matrix)
    rows = [[*row, *(Fraction(i == j) for j in range(size))] for i, row in enumerate(matrix)]
    for column in range(size):
        pivot = next(i for i in range(column, size) if rows[i][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        scale = rows[column][column]
        rows[column] = [value / scale for value in rows[column]]
        for i in range(size):
            if i != column and rows[i][column]:
                factor = rows[i][column]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[column], strict=True)]
    return [row[size:] for row in rows]


# A whole prefill, a chunk and a decode step, at sizes outside the grid.
DECODER = Probe(
    GRID,
    ((1, 13, 13), (5, 3, 29), (1, 1, 23)),
    tuple((i, j, m) for i in (0, 1) for j in (0, 1) for m in (0, 1)),
)
ENCODER = Probe(
    tuple((batch, query, query) for batch in BATCHES for query in (5, 7, 11)),
    ((1, 13, 13), (5, 3, 3)),
    tuple((i, j, 0) for i in (0, 1) for j in (0, 1, 2)),
)
VISION = Probe(((2, 1, 1), (3, 1, 1)), ((1, 1, 1), (5, 1, 1)), ((0, 0, 0), (1, 0, 0)))
