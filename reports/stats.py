"""Small statistics that the sections show: rank correlation, a fitted line, the non-dominated set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MAX_LOG = 700.0  # exp of more, or of less below zero, is not a float


def ranks(values: Sequence[float]) -> list[float]:
    """Return ranks from 1, equal values sharing the mean of their ranks (Spearman 1904)."""
    order = sorted(range(len(values)), key=values.__getitem__)
    result = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for index in order[start:end]:
            result[index] = (start + 1 + end) / 2
        start = end
    return result


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation in [-1, 1]; None below three points or where a side is constant."""
    if len(first) < 3:
        return None
    a, b = ranks(first), ranks(second)
    mean = (len(a) + 1) / 2
    var_a = math.fsum((x - mean) ** 2 for x in a)
    var_b = math.fsum((y - mean) ** 2 for y in b)
    if var_a == 0 or var_b == 0:
        return None
    return math.fsum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True)) / math.sqrt(var_a * var_b)


@dataclass(frozen=True)
class PowerLaw:
    """``y = factor * x ** exponent``, fitted by least squares on the logarithms."""

    factor: float
    exponent: float

    def __call__(self, x: float) -> float:
        """Return the fitted value at ``x`` > 0."""
        return self.factor * x**self.exponent


def fit_power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw | None:
    """Return the least-squares line through (log x, log y).

    None below three positive points, for one x, and where the factor is beyond what a float holds (points so
    close in x that they fix no line).
    """
    pairs = [(math.log(a), math.log(b)) for a, b in zip(x, y, strict=True) if a > 0 and b > 0]
    if len(pairs) < 3:
        return None
    mean_x = math.fsum(a for a, _ in pairs) / len(pairs)
    mean_y = math.fsum(b for _, b in pairs) / len(pairs)
    spread = math.fsum((a - mean_x) ** 2 for a, _ in pairs)
    if spread == 0:
        return None
    exponent = math.fsum((a - mean_x) * (b - mean_y) for a, b in pairs) / spread
    offset = mean_y - exponent * mean_x
    return PowerLaw(math.exp(offset), exponent) if abs(offset) < MAX_LOG else None


def non_dominated(x: Sequence[float | None], y: Sequence[float | None]) -> list[int]:
    """Return indices of the points that no other point beats in both coordinates, by increasing ``x``.

    Both are minimised; a point with an unknown coordinate takes no part; of equal points the first stays.
    """
    known = [
        (a, b, index)
        for index, (a, b) in enumerate(zip(x, y, strict=True))
        if a is not None and b is not None
    ]
    front: list[int] = []
    best = math.inf
    for _, b, index in sorted(known):
        if b < best:
            front.append(index)
            best = b
    return front
