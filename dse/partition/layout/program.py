"""A mixed-integer program, column by column and row by row."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

Linear = dict[int, float]
"""Column -> coefficient."""


@dataclass
class Program:
    """Columns and rows as they come."""

    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    integer: list[bool] = field(default_factory=list)
    rows: list[tuple[Linear, float, float]] = field(default_factory=list)

    def column(self, upper: float = np.inf, *, integer: bool = False) -> int:
        """Add a column from 0 to ``upper``."""
        self.lower.append(0.0)
        self.upper.append(upper)
        self.integer.append(integer)
        return len(self.upper) - 1

    def at_most(self, left: Linear, right: Linear | float) -> None:
        """Add ``left <= right``."""
        if isinstance(right, float):
            self.rows.append((left, -np.inf, right))
            return
        self.rows.append((plus(left, times(right, -1.0)), -np.inf, 0.0))

    def equals(self, left: Linear, right: float) -> None:
        """Add ``left = right``."""
        self.rows.append((left, right, right))


def plus(*terms: Linear) -> Linear:
    """Return the sum of linear forms."""
    total: Linear = {}
    for term in terms:
        for column, value in term.items():
            total[column] = total.get(column, 0.0) + value
    return total


def times(term: Linear, factor: float) -> Linear:
    """Return a linear form times a number."""
    return {column: value * factor for column, value in term.items()}
