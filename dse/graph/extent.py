"""Sizes as functions of a workload: polynomials in (batch, query length, context length).

``context`` is the number of positions attended to, so it includes the query: a prefill of P tokens has
query = context = P, and a decode step after p cached tokens has query = 1 and context = p + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import ArrayLike, NDArray

Powers = tuple[int, int, int]


@dataclass(frozen=True)
class Extent:
    """A polynomial: ``terms`` are ((batch power, query power, context power), coefficient), sorted.

    Coefficients are non-zero; the empty tuple is the constant 0.
    """

    terms: tuple[tuple[Powers, float], ...] = ()

    @classmethod
    def constant(cls, value: float) -> Extent:
        """Return the extent that is ``value`` for every workload."""
        return cls(((((0, 0, 0)), float(value)),)) if value else cls()

    @classmethod
    def of(cls, terms: dict[Powers, float]) -> Extent:
        """Build from a mapping, dropping zero coefficients and sorting the rest."""
        return cls(tuple(sorted((p, float(c)) for p, c in terms.items() if c)))

    def __call__(self, batch: ArrayLike, query: ArrayLike, context: ArrayLike) -> NDArray[np.float64]:
        """Evaluate; the arguments broadcast, the result is float64."""
        sizes = [np.asarray(a, dtype=np.float64) for a in (batch, query, context)]
        result = np.zeros(np.broadcast(*sizes).shape)
        for powers, coefficient in self.terms:
            term: NDArray[np.float64] | float = coefficient
            for size, power in zip(sizes, powers, strict=True):
                if power:
                    term = term * (size if power == 1 else size**power)
            result += term
        return result

    def at_query(self, query: float) -> Extent:
        """Return the extent of batch and context that is left at one query length."""
        merged: dict[Powers, float] = {}
        for (i, j, k), coefficient in self.terms:
            merged[i, 0, k] = merged.get((i, 0, k), 0.0) + coefficient * query**j
        return Extent.of(merged)

    def __add__(self, other: Extent) -> Extent:
        merged = dict(self.terms)
        for powers, k in other.terms:
            merged[powers] = merged.get(powers, 0.0) + k
        return Extent.of(merged)

    def __mul__(self, other: Extent | float) -> Extent:
        if not isinstance(other, Extent):
            return Extent.of({p: k * other for p, k in self.terms})
        merged: dict[Powers, float] = {}
        for (i, j, m), k in self.terms:
            for (r, s, t), x in other.terms:
                powers = (i + r, j + s, m + t)
                merged[powers] = merged.get(powers, 0.0) + k * x
        return Extent.of(merged)

    __rmul__ = __mul__


@dataclass(frozen=True)
class ExtentStack:
    """Many extents, evaluated together: a matrix of coefficients times the monomials that occur.

    Attributes:
        powers: the monomials; ``coefficients``: (N, monomials).
    """

    powers: tuple[Powers, ...]
    coefficients: NDArray[np.float64]

    @classmethod
    def of(cls, extents: Sequence[Extent]) -> ExtentStack:
        """Stack extents in order."""
        powers = tuple(sorted({power for extent in extents for power, _ in extent.terms}))
        column = {power: index for index, power in enumerate(powers)}
        coefficients = np.zeros((len(extents), len(powers)))
        for row, extent in enumerate(extents):
            for power, coefficient in extent.terms:
                coefficients[row, column[power]] = coefficient
        return cls(powers, coefficients)

    def __call__(self, batch: ArrayLike, query: ArrayLike, context: ArrayLike) -> NDArray[np.float64]:
        """Evaluate; the arguments broadcast to a shape S, the result is (*S, N) float64."""
        sizes = [np.asarray(a, dtype=np.float64) for a in (batch, query, context)]
        terms = np.ones((*np.broadcast(*sizes).shape, len(self.powers)))
        for index, powers in enumerate(self.powers):
            for size, power in zip(sizes, powers, strict=True):
                for _ in range(power):
                    terms[..., index] *= size
        found: NDArray[np.float64] = terms @ self.coefficients.T
        return found


def total(extents: tuple[Extent, ...] | list[Extent]) -> Extent:
    """Return the sum of any number of extents."""
    return reduce(Extent.__add__, extents, Extent())


def volume(shape: tuple[Extent, ...]) -> Extent:
    """Return the number of elements of a tensor whose dimensions are ``shape``."""
    return reduce(Extent.__mul__, shape, Extent.constant(1))
